"""Sums of products: linear in each operand, where all summands scale alike."""

import functools
from collections.abc import Sequence
from typing import Any

from optax_bnmask import compat
from optax_bnmask.program.constants import has_precise_result
from optax_bnmask.program.facts import Facts
from optax_bnmask.program.flags import MASKED, NONNEG
from optax_bnmask.program.registry import Kind, Law, Map, known, rule
from optax_bnmask.program.rules.shaping import unchanged
from optax_bnmask.program.tape import CONTRACT, Equation
from optax_bnmask.program.windows import misses


@rule(Kind.CONTRACTION, "dot_general_p")
def dot(e: Equation, reading: Facts) -> Law:
    """``f(a*x, b*y) = a*b * f(x, y)``.

    With x (2, 3, 4) and y (5, 2, 4) contracted over the 4 with the 2 as a batch, the result is
    (2, 3, 5): axis 0 of x and axis 1 of y are its axis 0, axis 1 of x its axis 1, axis 0 of y its
    axis 2; neither may vary along the 4.
    """
    x, y = (len(reading.tape.shapes[x]) for x in e.ins[:2])
    return _rounded(e, _maps_of_dot(e.params["dimension_numbers"], x, y))


@functools.cache  # layers that repeat have the same
def _maps_of_dot(numbers: Any, rx: int, ry: int) -> tuple[Map, Map]:  # noqa: ANN401 - as of `dot`
    """The maps of operands of ranks `rx` and `ry`."""
    (cx, cy), (bx, by) = numbers
    of_x = [*bx, *(a for a in range(rx) if a not in cx and a not in bx)]
    of_y = [*by, *(a for a in range(ry) if a not in cy and a not in by)]
    behind = len(of_x) - len(bx)
    to_y = {a: q + behind * (q >= len(by)) for q, a in enumerate(of_y)}
    return {a: q for q, a in enumerate(of_x)}, to_y


@rule(Kind.CONTRACTION, CONTRACT)
def contract(e: Equation, reading: Facts) -> Law:
    """``f(a*x, b*y) = a*b * f(x, y)``."""
    del reading
    return _rounded(e, e.params["to"])


@rule(Kind.CONTRACTION, "ragged_dot_general_p", facts=known(adds=MASKED))  # rows in no group are 0
def ragged_dot(e: Equation, reading: Facts) -> Law:
    """``f(a*x, b*y) = a*b * f(x, y)`` of rows times the matrix of their group.

    x (m, k), y (g, k, n) to (m, n): row i of x meets one of the g matrices.

    Which rows meet which operand is computed, so that all of these must scale alike.
    """
    tape, (x, y, *_) = reading.tape, e.ins
    ((cx, cy), (bx, by)), groups = compat.ragged_numbers(e.params)
    if not groups:  # what is ragged is summed over, or a batch: rows of the result are groups
        return _rounded(e, ({}, {}, None))
    of_x = [*bx, *(a for a in range(len(tape.shapes[x])) if a not in cx and a not in bx)]
    free_y = [a for a in range(len(tape.shapes[y])) if a not in (*cy, *by, *groups)]
    to_y = {a: q for q, a in enumerate(by)} | {a: q + len(of_x) for q, a in enumerate(free_y)}
    return _rounded(e, ({a: q for q, a in enumerate(of_x)}, to_y, None))


def _of_windows(reading: Facts, e: Equation, flags: int) -> int:
    """0 where a window covers nothing but padding, or holes between entries."""
    p, (x, w) = e.params, (reading.tape.shapes[y] for y in e.ins)
    numbers = p["dimension_numbers"]
    sizes, windows = [x[a] for a in numbers.lhs_spec[2:]], [w[a] for a in numbers.rhs_spec[2:]]
    holes = zip(p["lhs_dilation"], p["rhs_dilation"], strict=True)
    moves = windows, p["window_strides"], p["padding"], holes
    return flags | MASKED if any(map(misses, sizes, *moves)) else flags


@rule(Kind.CONTRACTION, "conv_general_dilated_p", facts=_of_windows)
def convolution(e: Equation, reading: Facts) -> Law:
    """``conv(a*x, b*w) = a*b * conv(x, w)``.

    NHWC with HWIO: the N of x and the O of w are axes of the result. Feature groups are opened on
    the tape; with groups of the batch, nothing may vary.
    """
    del reading
    if e.params["batch_group_count"] > 1:
        return _rounded(e, ({}, {}))
    numbers = e.params["dimension_numbers"]
    to_batch, to_feature = numbers.out_spec[:2]
    return _rounded(e, ({numbers.lhs_spec[0]: to_batch}, {numbers.rhs_spec[0]: to_feature}))


def _rounded(e: Equation, maps: tuple[Any, ...]) -> Law:
    """The law of a sum of products; in integers or 8-bit floats, its operands must not scale."""
    if has_precise_result(e):
        return Law(maps, (1, 1, 0)[: len(maps)])
    return Law(maps, (0, 0, 0)[: len(maps)], scales=False, pinned=(0, 1))


@rule(Kind.REDUCTION, "fft_p", facts=known(keeps=~NONNEG))
def fourier(e: Equation, reading: Facts) -> Law:
    """``fft(a*x) = a * fft(x)``, where all entries along the transformed axes scale alike."""
    rank = len(reading.tape.shapes[e.ins[0]])
    return Law((unchanged(rank, last(rank, len(e.params["fft_lengths"]))),))


def last(rank: int, n: int) -> Sequence[int]:
    """The last `n` of `rank` axes."""
    return range(rank - n, rank)
