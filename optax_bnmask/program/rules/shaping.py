"""Moving, cutting, joining and reducing axes."""

import functools
from collections.abc import Sequence
from math import prod
from typing import Final

from optax_bnmask.program.facts import Facts
from optax_bnmask.program.flags import (
    ANY_DEGREE,
    CLIPPED,
    MASKED,
    MAY_BE_0,
    MEAN,
    NONNEG,
    RECTIFIED,
)
from optax_bnmask.program.registry import PIN, Kind, Law, Map, known, rule
from optax_bnmask.program.tape import COLLECT, MOVE, RESHAPE, SLICE, Equation
from optax_bnmask.program.windows import misses


def unchanged(rank: int, but: Sequence[int] = ()) -> Map:
    """The identity map of `rank` axes, less those in `but`, along which nothing may vary."""
    return {a: a for a in range(rank) if a not in but}


@rule(Kind.VIEW, MOVE)
def move(e: Equation, reading: Facts) -> Law:
    """Entries of the operand in other places: ``f(a*x) = a * f(x)``."""
    del reading
    return Law((e.params["to"],))


# ``f(a*x) = a * f(x)``; which entries go where, the passes work out for themselves.
rule(Kind.VIEW, RESHAPE, SLICE)(Law())


def _of_collected(reading: Facts, e: Equation, flags: int) -> int:
    """Devices that get nothing have zeros."""
    del reading
    return flags | MAY_BE_0 if e.params["clips"] else flags


@rule(Kind.VIEW, COLLECT, facts=_of_collected)
def collect(e: Equation, reading: Facts) -> Law:
    """``f(a*x) = a * f(x)``, where all that is mixed scales alike."""
    del reading
    return Law((e.params["to"],))


@rule(Kind.VIEW, "rev_p")
def reverse(e: Equation, reading: Facts) -> Law:
    """Entries change places along an axis: ``f(a*x) = a * f(x)`` if all along it scale alike."""
    return Law((unchanged(len(reading.tape.shapes[e.out]), e.params["dimensions"]),))


# Joined entries keep each its own degree, segment by segment:
# (2, 3) of degree s beside (4, 3) of degree t along axis 0 has the cells [2] of s and [4] of t.
rule(Kind.JOIN, "concatenate_p")(Law())


_MANY: Final = 16
"""In every row of an ordinary batch, at least one of so many results of a ReLU is not 0."""


def _of_sum(reading: Facts, e: Equation, flags: int) -> int:
    """A sum of several values that are 0 here and there is 0 by accident only, of many never.

    Of a few that a ReLU puts out all may be 0 at once: of n with a chance of one in two each, in
    one of ``2**n`` rows.
    """
    shape = reading.tape.shapes[e.ins[0]]
    n = prod(shape[a] for a in e.params["axes"])
    if n == 1:
        return flags
    return flags | MEAN if flags & RECTIFIED and n < _MANY else flags & ~CLIPPED | MEAN


def reduced(e: Equation, reading: Facts) -> Map:
    """The map of the axes that a reduction keeps; along the others nothing may vary."""
    return _kept(len(reading.tape.shapes[e.ins[0]]), tuple(e.params["axes"]))


@functools.cache  # layers that repeat have the same
def _kept(rank: int, gone: tuple[int, ...]) -> Map:
    """The map of all axes but some, which go away."""
    return {a: q for q, a in enumerate(a for a in range(rank) if a not in gone)}


@rule(Kind.REDUCTION, "reduce_sum_p", facts=_of_sum)
def total(e: Equation, reading: Facts) -> Law:
    """``sum(a*x) = a * sum(x)``, where all summands scale alike."""
    return Law((reduced(e, reading),))


@rule(Kind.REDUCTION, "reduce_max_p", "reduce_min_p")
def extreme(e: Equation, reading: Facts) -> Law:
    """``max(a*x) = a * max(x)`` for ``a > 0``, where all candidates scale alike."""
    return Law((reduced(e, reading),))


def _count(e: Equation, reading: Facts) -> int:
    return prod(reading.tape.shapes[e.ins[0]][a] for a in e.params["axes"])


def _of_product(reading: Facts, e: Equation, flags: int) -> int:
    """A product of no factors is 1."""
    return flags if _count(e, reading) else 0


@rule(Kind.REDUCTION, "reduce_prod_p", facts=_of_product)
def product(e: Equation, reading: Facts) -> Law:
    """``prod(a*x) = a**n * prod(x)`` for n factors that scale alike."""
    n = _count(e, reading)
    return Law((reduced(e, reading),), (n,), scales=n != 0)


@rule(Kind.OPAQUE, "argmax_p", "argmin_p")
def place_of_extreme(e: Equation, reading: Facts) -> Law:
    """``argmax(a*x) = argmax(x)``, where all candidates scale alike."""
    return Law((reduced(e, reading),), (0,), scales=False)


@rule(Kind.REDUCTION, "cumsum_p", "cummax_p", "cummin_p")
def cumulate(e: Equation, reading: Facts) -> Law:
    """``f(a*x) = a * f(x)``, where all entries along the axis scale alike."""
    return Law((unchanged(len(reading.tape.shapes[e.out]), (e.params["axis"],)),))


# Each entry would scale by its own power, or by an unknown function: none may scale.
rule(Kind.OPAQUE, "cumprod_p", "cumlogsumexp_p", "reduce_p", "reduce_window_p")(PIN)
rule(Kind.OPAQUE, "select_and_scatter_p")(PIN)


def windowed(e: Equation) -> list[int]:
    """The axes that a window moves over."""
    p = e.params
    rank = range(len(p["window_dimensions"]))
    strides, holes = p["window_strides"], p.get("base_dilation") or (1,) * len(rank)
    return [
        a
        for a in rank
        if p["window_dimensions"][a] > 1 or strides[a] > 1 or any(p["padding"][a]) or holes[a] > 1
    ]


def _of_windows(reading: Facts, e: Equation, flags: int) -> int:
    """0 where a window covers nothing but padding."""
    p, sizes = e.params, reading.tape.shapes[e.ins[0]]
    holes = zip(p["base_dilation"], p["window_dilation"], strict=True)
    moves = p["window_dimensions"], p["window_strides"], p["padding"], holes
    return flags | MASKED if any(map(misses, sizes, *moves)) else flags


@rule(Kind.REDUCTION, "reduce_window_sum_p", facts=_of_windows)
@rule(Kind.REDUCTION, "reduce_window_max_p", "reduce_window_min_p")
def pool(e: Equation, reading: Facts) -> Law:
    """``f(a*x) = a * f(x)``, where all entries of a window scale alike."""
    del reading
    return Law((unchanged(len(e.params["window_dimensions"]), windowed(e)),))


def by_window(e: Equation, reading: Facts) -> Law:
    """Linear in the first operand, put to or taken from where the second is largest."""
    del reading
    to = unchanged(len(e.params["window_dimensions"]), windowed(e))
    return Law((to, to), (1, 0))


rule(Kind.REDUCTION, "select_and_scatter_add_p", facts=known(keeps=ANY_DEGREE, adds=MAY_BE_0))(
    by_window
)
rule(Kind.REDUCTION, "select_and_gather_add_p", facts=known(keeps=~NONNEG))(by_window)


def _of_sorted(reading: Facts, e: Equation, flags: int) -> int:
    """What is known of the operand that is the result once it is sorted."""
    del flags
    return reading.flags[e.ins[e.place]] & (NONNEG | MAY_BE_0 | ANY_DEGREE)


@rule(Kind.REDUCTION, "sort_p", facts=_of_sorted)
def sort(e: Equation, reading: Facts) -> Law:
    """Sorting moves entries by keys whose order no common positive factor changes."""
    to = unchanged(len(reading.tape.shapes[e.out]), (e.params["dimension"],))
    powers = tuple(int(place == e.place) for place in range(len(e.ins)))
    return Law((to,) * len(e.ins), powers)


def _of_largest(reading: Facts, e: Equation, flags: int) -> int:
    """Of the second result, where the largest entries stand, nothing is known."""
    del reading
    return MAY_BE_0 if e.place else flags


@rule(Kind.REDUCTION, "top_k_p", "approx_top_k_p", facts=_of_largest)
def largest(e: Equation, reading: Facts) -> Law:
    """The largest entries scale like all entries; where they stand does not."""
    rank = len(reading.tape.shapes[e.out])
    axis = e.params.get("axis", e.params.get("reduction_dimension", rank - 1))
    to = unchanged(rank, (axis % rank,))
    return Law((to,), (1,)) if e.place == 0 else Law((to,), (0,), scales=False)
