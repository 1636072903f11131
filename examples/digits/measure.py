"""What is measured of a trained network: its accuracy, its gains, and their effective rates."""

from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from examples.digits.data import Digits
from examples.digits.train import MODEL, State, data_loss
from optax_bnmask.mask import Mask
from optax_bnmask.paths import tree_index


class Rates(NamedTuple):
    """For each gain, that is each channel of each normaliser, of one run.

    Attributes:
      gradient: ``g``, the mean over the batches of ``|dL/dgamma|``; ``(channels,)``.
      effective: The mean over the batches of ``g / (g + lambda * |gamma|)``; ``(channels,)``.
    """

    gradient: jax.Array
    effective: jax.Array


@partial(jax.jit, static_argnames="norm_scale")
def mean_gains(params: Any, norm_scale: Mask) -> jax.Array:  # noqa: ANN401 - a params pytree
    """The mean ``|gamma|`` of each run, ``(seeds,)``; `norm_scale` is True on the gammas."""
    return jnp.mean(jnp.abs(jax.vmap(partial(gains, norm_scale=norm_scale))(params)), axis=1)


@partial(jax.jit, static_argnames=("norm_scale", "batch_size"))
def final(
    states: State, weight_decay: ArrayLike, digits: Digits, *, norm_scale: Mask, batch_size: int
) -> tuple[jax.Array, Rates]:
    """The `accuracy` and the `effective_rates` of each run, with a leading axis of seeds."""

    def one(state: State) -> tuple[jax.Array, Rates]:
        rates = effective_rates(state, weight_decay, digits, norm_scale, batch_size)
        return accuracy(state, digits), rates

    return jax.vmap(one)(states)


def accuracy(state: State, digits: Digits) -> jax.Array:
    """The share of the test images whose digit one run names, on its running statistics."""
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    logits = cast("jax.Array", MODEL.apply(variables, digits.test_images, train=False))
    return jnp.mean(jnp.argmax(logits, axis=-1) == digits.test_labels)


def gains(params: Any, norm_scale: Mask) -> jax.Array:  # noqa: ANN401 - a params pytree
    """Every gamma of one run, ``(channels,)``; `norm_scale` is True on their leaves."""
    leaves = tree_index(params).leaves
    return jnp.concatenate([jnp.ravel(leaves[path]) for path in norm_scale.decayed])


def effective_rates(
    state: State, weight_decay: ArrayLike, digits: Digits, norm_scale: Mask, batch_size: int
) -> Rates:
    """The share ``eta_eff / eta = g / (g + lambda * gamma)``, for each gain of one run.

    ``g`` is ``|dL/dgamma|`` of the data loss alone, elementwise, at the given parameters, on one
    batch of training images in training mode, and ``gamma`` stands for ``|gamma|``. The ratio is
    formed for each batch and averaged over the batches of one pass. With ``lambda = 0`` it is 1,
    and where both ``g`` and ``gamma`` are 0 it is taken as 1.

    Args:
      state: One run.
      weight_decay: The lambda that acts on the gammas.
      digits: The images.
      norm_scale: True on the leaves that are gammas.
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
    return Rates(jnp.mean(rates.gradient, axis=0), jnp.mean(rates.effective, axis=0))
