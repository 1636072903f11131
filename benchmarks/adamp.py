"""AdamP: finds out at every step, from gradients, which leaves are scale-invariant.

The published alternative to deciding it once from the program. Written from the algorithm of
Heo et al., "AdamP: Slowing Down the Slowdown for Momentum Optimizers on Scale-invariant Weights",
arXiv:2006.08217. Only the branch that is taken is run, as published: a `jnp.where` over all of them
is slower, at least on CPUs.
"""

import jax
import jax.numpy as jnp
import optax

EPSILON = 1e-8


def detected(weight, grad, axes=None, delta=0.1):
    """Whether the gradient of a leaf tells that it is invariant to its scale, over some axes.

    Where ``f(a*w) = f(w)``, the gradient is orthogonal to the weight; so an absolute cosine below
    ``delta / sqrt(dimension)``, smaller than chance would have it, is taken for invariance.

    Args:
      weight: A leaf of two axes or more.
      grad: Its gradient.
      axes: The axes that a scale is common to; all of them by default.
      delta: What the cosine is compared with, times the square root of the dimension.

    Returns:
      A boolean of shape ``()``: the cosine is below at each index of the other axes.
    """
    lengths = jnp.sqrt(jnp.square(weight).sum(axes) * jnp.square(grad).sum(axes))
    cosines = jnp.abs((weight * grad).sum(axes)) / jnp.maximum(lengths, EPSILON)
    return cosines.max() < delta / (weight.size / cosines.size) ** 0.5


def channel_axes(weight):
    """All axes but the last, which has Flax's output features."""
    return tuple(range(weight.ndim - 1))


def _turned(update, weight, grad, weight_decay, delta, wd_ratio):
    """The update without its radial part and with little decay, where invariance is detected."""

    def plain():
        return update + weight_decay * weight

    def turning(axes):
        direction = weight / (jnp.sqrt(jnp.square(weight).sum(axes, keepdims=True)) + EPSILON)
        radial = (direction * update).sum(axes, keepdims=True)
        return update - direction * radial + wd_ratio * weight_decay * weight

    def turned_if_detected(axes, otherwise):
        found = detected(weight, grad, axes, delta)
        return jax.lax.cond(found, lambda: turning(axes), otherwise)

    if weight.ndim < 2:
        return plain()
    return turned_if_detected(channel_axes(weight), lambda: turned_if_detected(None, plain))


def adamp(learning_rate, weight_decay=0.0, delta=0.1, wd_ratio=0.1):
    """AdamP as an Optax optimizer; the defaults are the paper's."""
    adam = optax.scale_by_adam()

    def update(grads, state, params):
        updates, state = adam.update(grads, state, params)
        updates = jax.tree.map(
            lambda u, w, g: _turned(u, w, g, weight_decay, delta, wd_ratio), updates, params, grads
        )
        return updates, state

    transformation = optax.GradientTransformation(adam.init, update)
    return optax.chain(transformation, optax.scale_by_learning_rate(learning_rate))
