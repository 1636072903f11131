"""What is measured of a trained network: its accuracy, its gains, and their effective rates."""

from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp

from optax_bnmask.demo.data import Digits
from optax_bnmask.demo.train import MODEL, State, data_loss
from optax_bnmask.mask import Mask
from optax_bnmask.paths import layout


class Rates(NamedTuple):
    """For each gain, that is each channel of each normaliser, of one run.

    Attributes:
      gradient: ``g``, the mean over the batches of ``|dL/dgamma|``; ``(channels,)``.
      effective: The mean over the batches of ``g / (g + lambda * |gamma|)``; ``(channels,)``.
    """

    gradient: jax.Array
    effective: jax.Array


def accuracy(state: State, digits: Digits) -> jax.Array:
    """The share of the test images whose digit one run names, on its running statistics."""
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    logits = cast("jax.Array", MODEL.apply(variables, digits.test_images, train=False))
    return jnp.mean(jnp.argmax(logits, axis=-1) == digits.test_labels)


def gains(params: Any, norm_scale: Mask) -> jax.Array:  # noqa: ANN401 - a params pytree
    """Every gamma of one run, ``(channels,)``; `norm_scale` is True on their leaves."""
    leaves = layout(params).leaves
    return jnp.concatenate([jnp.ravel(leaves[path]) for path in norm_scale.decayed])


def effective_rates(
    state: State, digits: Digits, norm_scale: Mask, weight_decay: float, batch_size: int
) -> Rates:
    """The note's ``eta_eff / eta = g / (g + lambda * gamma)``, for each gain of one run.

    ``g`` is ``|dL/dgamma|`` of the data loss alone, elementwise, at the given parameters, on one
    batch of training images in training mode, and ``gamma`` stands for ``|gamma|``. The ratio is
    formed for each batch and averaged over the batches of one pass. With ``lambda = 0`` it is 1 by
    definition, and so it is where both ``g`` and ``gamma`` are 0.

    Args:
      state: One run.
      digits: The images.
      norm_scale: True on the leaves that are gammas.
      weight_decay: The lambda that acts on the gammas.
      batch_size: Images in a batch.

    Returns:
      The gradients and the ratios, one for each gain.
    """
    steps = len(digits.train_labels) // batch_size
    batches = jnp.reshape(jnp.arange(steps * batch_size), (steps, batch_size))
    gamma = jnp.abs(gains(state.params, norm_scale))

    def one(batch: jax.Array) -> Rates:
        grads, _ = jax.grad(data_loss, has_aux=True)(
            state.params, state.batch_stats, digits.train_images[batch], digits.train_labels[batch]
        )
        g = jnp.abs(gains(grads, norm_scale))
        pull = g + weight_decay * gamma
        return Rates(g, jnp.where(pull > 0, g / jnp.where(pull > 0, pull, 1.0), 1.0))

    rates = jax.lax.map(one, batches)
    effective = jnp.mean(rates.effective, axis=0) if weight_decay else jnp.ones_like(gamma)
    return Rates(jnp.mean(rates.gradient, axis=0), effective)
