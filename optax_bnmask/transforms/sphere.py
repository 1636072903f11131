"""What an update does to a weight's norm and to its direction, in float32 or wider."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Split(NamedTuple):
    """An update `u` of a weight `w`, taken apart: ``u = radial * w + u_t``, ``<u_t, w> = 0``.

    Each has the weight's shape, with 1 in place of each axis that was summed over.

    Attributes:
      squared_norm: ``<w, w>``.
      radial: ``<u, w> / <w, w>``; 0 where `w` is zero.
      squared_turn: ``<u_t, u_t>``.
    """

    squared_norm: jax.Array
    radial: jax.Array
    squared_turn: jax.Array


def wide(x: jax.Array) -> jax.Array:
    """The array in float32, or in its own dtype where that is wider."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def sum_of_squares(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """``<x, x>`` over some axes, which are kept with length 1."""
    return jnp.sum(jnp.square(jnp.abs(wide(x))), axes, keepdims=True)


def split(update: jax.Array, weight: jax.Array, axes: tuple[int, ...]) -> Split:
    """Takes an update apart, in one pass over both.

    ``<u_t, u_t> = <u, u> - <u, w>**2 / <w, w>``, which rounding must not make negative.

    Args:
      update: `u`, of the weight's shape.
      weight: `w`, of any shape.
      axes: The axes to sum over.

    Returns:
      The `Split`.
    """
    along = jnp.sum(jnp.real(jnp.conj(wide(update)) * wide(weight)), axes, keepdims=True)
    length = sum_of_squares(weight, axes)
    radial = jnp.where(length > 0, along / jnp.where(length > 0, length, 1), 0)
    return Split(length, radial, jnp.maximum(sum_of_squares(update, axes) - radial * along, 0))
