"""What an update does to a weight's norm and to its direction, in float32 or wider."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Split(NamedTuple):
    """An update `u` of a weight `w`, taken apart: ``u = radial * w + u_t``, ``<u_t, w> = 0``.

    Each but `turn` has the weight's shape, with 1 in place of each axis that was summed over.

    Attributes:
      radial: ``<u, w> / <w, w>``; 0 where `w` is zero.
      turn: ``u_t``, of the weight's shape.
      squared_turn: ``<u_t, u_t>``.
    """

    radial: jax.Array
    turn: jax.Array
    squared_turn: jax.Array


def wide(x: jax.Array) -> jax.Array:
    """The array in float32, or in its own dtype where that is wider."""
    return x if jnp.finfo(x.dtype).bits >= 32 else x.astype(jnp.float32)


def sum_of_squares(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """``<x, x>`` over some axes, which are kept with length 1."""
    return jnp.sum(jnp.square(jnp.abs(wide(x))), axes, keepdims=True)


def split(
    update: jax.Array, weight: jax.Array, squared_norm: jax.Array, axes: tuple[int, ...]
) -> Split:
    """Takes an update apart, in two passes over both.

    One pass would do for ``<u_t, u_t> = <u, u> - <u, w>**2 / <w, w>``, but of an update that is
    radial for the most part this difference keeps nothing but rounding.

    Args:
      update: `u`, of the weight's shape.
      weight: `w`, of any shape.
      squared_norm: ``<w, w>``, which the caller needs too: on a mesh each sum is a collective, and
        XLA does not merge two that are equal.
      axes: The axes to sum over.

    Returns:
      The `Split`.
    """
    along = jnp.sum(jnp.real(jnp.conj(wide(update)) * wide(weight)), axes, keepdims=True)
    radial = jnp.where(squared_norm > 0, along / jnp.where(squared_norm > 0, squared_norm, 1), 0)
    turn = wide(update) - radial.astype(wide(weight).dtype) * wide(weight)
    return Split(radial, turn, sum_of_squares(turn, axes))
