"""Sums over the entries of weights and updates of any size, and steps along a sphere.

Everything is done in float32, or in the leaf's own dtype where that is wider, and in units that are
powers of two, so that a change of units rounds nothing and no square overflows or vanishes.

Where two sums read one intermediate array, each computes it for itself, in another unit so that XLA
does not merge the two: XLA's CPU compiler stores what two sums share, and pages that are fresh in
each step cost more than all arithmetic. Only a difference in which much cancels is shared, so that
all that read it see the same rounding.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

LIFT = 20
"""The power of two that the part of an update across a large weight `w` is scaled up by.

That part is the update minus a multiple of `w`, whose factor could underflow otherwise. To scale
`w` down instead would take one more array.
"""


class Split(NamedTuple):
    """An update `u` of a weight `w`, taken apart: ``u = radial * w + u_t``, ``<u_t, w> = 0``.

    Each but `tangent` has the weight's shape, with 1 in place of each axis that was summed over.

    Attributes:
      radial: ``<u, w> / <w, w>``; 0 where `w` is zero.
      tangent: ``u_t``, of the weight's shape.
      squared_tangent: ``<u_t, u_t>``.
    """

    radial: jax.Array
    tangent: jax.Array
    squared_tangent: jax.Array


def wide(x: jax.Array) -> jax.Array:
    """The array in float32, or in its own dtype where that is wider."""
    return x if jnp.finfo(x.dtype).bits >= 32 else x.astype(jnp.float32)


def sum_of_squares(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """``<x, x>`` over some axes, which are kept with length 1."""
    return jnp.sum(jnp.square(jnp.abs(wide(x))), axes, keepdims=True)


def inner_product(x: jax.Array, y: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """The real part of ``<x, y>`` over some axes, which are kept with length 1."""
    return jnp.sum(jnp.real(jnp.conj(wide(x)) * wide(y)), axes, keepdims=True)


def max_abs(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """The largest ``|x|`` over some axes, which are kept with length 1."""
    return jnp.max(jnp.abs(wide(x)), axes, keepdims=True, initial=0)


def exponent(size: jax.Array) -> jax.Array:
    """The `e` with ``size / 2**e`` in [0.5, 1), from -120 to 120 in float32; 0 for 0.

    So there is room for a few powers more; sizes beyond these bounds, in units of ``2**e``, can
    still be squared without overflow.

    Read off the bits: since JAX 0.12 the output of `jnp.frexp` loses its sharding, and is gathered.
    """
    info = jnp.finfo(size.dtype)
    bits = jax.lax.bitcast_convert_type(size, jnp.dtype(f"int{info.bits}"))
    # Exponent bits b stand for 1.f * 2**(b + 1 - maxexp), and 1.f is twice a number in [0.5, 1).
    power = (bits >> info.nmant) + (2 - info.maxexp)
    power = jnp.clip(power, 8 - info.maxexp, info.maxexp - 8)
    return jnp.where(size > 0, power, 0).astype(jnp.int32)


def times_power_of_2(x: jax.Array, by: jax.Array) -> jax.Array:
    """``x * 2**by``, exactly, for `by` up to the dtype's largest exponent; 0 below the smallest."""
    x = wide(x)
    info = jnp.finfo(x.dtype)
    bits = jnp.clip(by.astype(jnp.dtype(f"int{info.bits}")) + (info.maxexp - 1), 0)
    power = jax.lax.bitcast_convert_type(bits << info.nmant, jnp.dtype(f"float{info.bits}"))
    return x * power.astype(x.dtype)


def nonzero(x: jax.Array) -> jax.Array:
    """A divisor, with 1 where it is 0."""
    return jnp.where(x == 0, 1, x)


def max_ratio_exponent(dtype: Any) -> int:  # noqa: ANN401 - a dtype
    """The exponent of 2 above which ``|update| / |weight|`` is clipped: 40 in float32.

    A weight 2**-40 times as long as the update vanishes in rounding beside it, so that a larger
    ratio gives the same step; and the squares of its entries, 2**-80 times those of the update or
    less, do not underflow yet.
    """
    return jnp.finfo(dtype).nmant + 17


def norm(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """``|x|`` over some axes, which are kept with length 1."""
    unit = exponent(max_abs(x, axes))
    return times_power_of_2(jnp.sqrt(sum_of_squares(times_power_of_2(x, -unit), axes)), unit)


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
    along = inner_product(update, weight, axes)
    radial = jnp.where(squared_norm > 0, along / jnp.where(squared_norm > 0, squared_norm, 1), 0)
    tangent = wide(update) - radial.astype(wide(weight).dtype) * wide(weight)
    return Split(radial, tangent, sum_of_squares(tangent, axes))


def step_to(
    radius: jax.Array,
    weight: jax.Array,
    share: jax.Array,
    heading: Callable[[int], jax.Array],
    axes: tuple[int, ...],
) -> jax.Array:
    """The step from `w` to ``radius * (share * w' + h) / |share * w' + h|``.

    The length is measured on what is added up, and not computed from parts: so the norm after the
    step is the radius to one rounding of each entry, whatever rounding made of `h`.

    Args:
      radius: The norm after the step.
      weight: `w`, of any shape.
      share: A number for each norm. `w'` is `w` in units of a power of two near the radius.
      heading: The function of `k` that gives ``2**k * h``, of the weight's shape; it is called once
        for each `k`. The squares of ``share * w' + h`` must neither overflow nor vanish.
      axes: The axes to sum over.

    Returns:
      The step, of the weight's shape; 0 where there is nothing to normalise.
    """
    unit, share = exponent(radius), share.astype(wide(weight).dtype)  # w' = w / 2**unit
    there = times_power_of_2(share, 1 - unit) * wide(weight) + heading(1)
    length = jnp.sqrt(sum_of_squares(there, axes)) / 2
    nothing = length == 0  # false of NaN, which must propagate
    length = jnp.where(nothing, 1, length)
    stretch = times_power_of_2(radius, -unit) / length
    # Not the difference of two vectors: of a small step that would keep the rounding of `w` only.
    pace = (radius / length / 4).astype(share.dtype)
    step = (stretch.astype(share.dtype) * share - 1) * wide(weight) + pace * heading(2)
    return jnp.where(nothing, 0, step)
