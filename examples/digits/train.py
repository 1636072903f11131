"""Training: one seed at a time in words, all seeds at once by `vmap`."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
import optax

from examples.digits.data import Digits
from examples.digits.model import ResNet
from optax_bnmask.mask import Mask


@dataclasses.dataclass(frozen=True, slots=True)
class Recipe:
    """How every policy is trained: the usual one of ResNets on small images.

    Attributes:
      epochs: Passes over the training images.
      batch_size: Images in a step; what is left of an epoch is dropped.
      learning_rate: The peak, after one epoch of warm-up and before a cosine decay to 0.
      momentum: Of SGD.
      weight_decay: lambda, added to the gradient as ``lambda * w``: the penalty is
        ``lambda / 2 * w**2``.
    """

    epochs: int
    batch_size: int = 128
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4


@dataclasses.dataclass(frozen=True, slots=True)
class Policy:
    """Which leaves decay.

    Attributes:
      name: What tables and legends call it.
      mask: The mask for Optax; None decays every leaf.
    """

    name: str
    mask: Mask | None


class State(NamedTuple):
    """One run; with a leading axis, one run for each seed."""

    params: Any
    batch_stats: Any
    opt_state: optax.OptState
    key: jax.Array


MODEL: Final = ResNet()


def optimizer(recipe: Recipe, policy: Policy, steps: int) -> optax.GradientTransformation:
    """SGD with momentum and weight decay on the leaves that the policy names."""
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, recipe.learning_rate, steps, steps * max(recipe.epochs, 2)
    )
    return optax.chain(
        optax.add_decayed_weights(recipe.weight_decay, mask=policy.mask),
        optax.sgd(schedule, recipe.momentum),
    )


def trainer(
    digits: Digits, recipe: Recipe, policy: Policy, seeds: int
) -> tuple[State, Callable[[State], tuple[State, jax.Array]]]:
    """One run for each seed, all at once.

    A seed sets the initial parameters and the order of the images; every policy sees the same.

    Args:
      digits: The images.
      recipe: How to train.
      policy: Which leaves decay.
      seeds: How many runs.

    Returns:
      The states before the first step, and the function of an epoch: from the states, which it
      consumes, to the states after it and the mean training losses, ``(seeds,)``.
    """
    tx = optimizer(recipe, policy, len(digits.train_labels) // recipe.batch_size)
    keys = jax.random.split(jax.random.key(0), seeds)
    start = jax.jit(jax.vmap(partial(_initial, tx)))(keys)
    one = partial(_epoch, tx, recipe.batch_size, digits.train_images, digits.train_labels)
    return start, jax.jit(jax.vmap(one), donate_argnums=0)


def data_loss(
    params: Any,  # noqa: ANN401 - a params pytree
    batch_stats: Any,  # noqa: ANN401 - its statistics
    images: jax.Array,
    labels: jax.Array,
) -> tuple[jax.Array, Any]:
    """The mean cross-entropy of a batch in training mode, and the updated statistics."""
    logits, updated = MODEL.apply(
        {"params": params, "batch_stats": batch_stats}, images, train=True, mutable=["batch_stats"]
    )
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return jnp.mean(loss), updated["batch_stats"]


def _initial(tx: optax.GradientTransformation, key: jax.Array) -> State:
    """The state of one run before its first step."""
    weights, order = jax.random.split(key)
    variables = MODEL.init(weights, jnp.zeros((1, 8, 8, 1)), train=True)
    params = variables["params"]
    return State(params, variables["batch_stats"], tx.init(params), order)


def _epoch(
    tx: optax.GradientTransformation,
    batch_size: int,
    images: jax.Array,
    labels: jax.Array,
    state: State,
) -> tuple[State, jax.Array]:
    """One run through one pass over the images, in a new order."""
    key, order = jax.random.split(state.key)
    steps = len(labels) // batch_size
    drawn = jax.random.permutation(order, len(labels))[: steps * batch_size]

    def step(state: State, batch: jax.Array) -> tuple[State, jax.Array]:
        grad = jax.value_and_grad(data_loss, has_aux=True)
        (loss, stats), grads = grad(state.params, state.batch_stats, images[batch], labels[batch])
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return State(params, stats, opt_state, state.key), loss

    state, losses = jax.lax.scan(
        step, state._replace(key=key), jnp.reshape(drawn, (steps, batch_size))
    )
    return state, jnp.mean(losses)
