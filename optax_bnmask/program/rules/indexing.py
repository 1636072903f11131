"""Reading and writing at places that are computed."""

import numpy as np

from optax_bnmask.program.facts import Facts
from optax_bnmask.program.flags import ANY_DEGREE, MAY_BE_0, NONNEG
from optax_bnmask.program.registry import AGREE, PIN, SAME, Kind, Law, rule
from optax_bnmask.program.rules.shaping import unchanged
from optax_bnmask.program.tape import Equation


def filling(e: Equation) -> float | None:
    """The number that a gather returns where a place is out of bounds, if it fills there."""
    return e.params["fill_value"] if "FILL" in str(e.params["mode"]) else None


def _of_lookup(reading: Facts, e: Equation, flags: int) -> int:
    """A filling of 0 is one more zero."""
    del reading
    number = filling(e)
    if number == 0:
        return flags | MAY_BE_0
    return flags if number is None or not np.isfinite(number) else flags & ~ANY_DEGREE


@rule(Kind.LOOKUP, "gather_p", facts=_of_lookup)
def gather(e: Equation, reading: Facts) -> Law | None:
    """``(a*x)[i] = a * x[i]``; axes that are looked up along must scale alike.

    Rows of a (100, 8) table at (3, 5) places are (3, 5, 8): axis 1 of the table is axis 2 of the
    result, and the table must not vary along axis 0. Of (32, 10) logits at the 32 labels, one for
    each example, axis 0 is that of the labels.
    """
    number = filling(e)
    if number is not None and number != 0 and np.isfinite(number):
        return PIN
    numbers, sizes = e.params["dimension_numbers"], e.params["slice_sizes"]
    shape = reading.tape.shapes[e.ins[0]]
    left_out = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    kept = (a for a in range(len(shape)) if a not in left_out)
    pairs = zip(kept, numbers.offset_dims, strict=True)
    to = {a: q for a, q in pairs if sizes[a] == shape[a]}
    placed = [q for q in range(len(reading.tape.shapes[e.out])) if q not in numbers.offset_dims]
    rows = zip(numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True)
    return Law((to | {a: placed[i] for a, i in rows}, None), (1, 0))


def reads_several(e: Equation, reading: Facts) -> bool:
    """Whether a gather reads more than one place."""
    shape = reading.tape.full[e.ins[1]]
    rank = len(reading.tape.shapes[e.ins[1]])
    places = [n for a, n in enumerate(shape) if a != rank - 1]
    return int(np.prod(places[: rank - 1], dtype=np.int64)) > 1


@rule(Kind.VIEW, "dynamic_slice_p")
def dynamic_slice(e: Equation, reading: Facts) -> Law:
    """``(a*x)[i:i+n] = a * x[i:i+n]``; axes that are cut at unknown places must scale alike."""
    shape, sizes = reading.tape.shapes[e.ins[0]], e.params["slice_sizes"]
    to = {a: a for a, (n, m) in enumerate(zip(shape, sizes, strict=True)) if n == m}
    return Law((to, *[None] * (len(e.ins) - 1)), (1, *[0] * (len(e.ins) - 1)))


@rule(Kind.JOIN, "dynamic_update_slice_p")
def dynamic_update_slice(e: Equation, reading: Facts) -> Law:
    """Entries of both remain: the degrees agree."""
    shape, part = (reading.tape.shapes[x] for x in e.ins[:2])
    partial = [a for a, n in enumerate(shape) if part[a] != n]
    to = unchanged(len(shape), partial)
    return Law((to, to, *[None] * (len(e.ins) - 2)), AGREE)


def _of_scattered(reading: Facts, e: Equation, flags: int) -> int:
    """Zeros may be put anywhere, and sums may cancel."""
    if e.op.name == "scatter" and e.params.get("update_jaxpr") is not None:
        return MAY_BE_0
    every = ANY_DEGREE if reading.flags[e.ins[0]] & reading.flags[e.ins[2]] & ANY_DEGREE else 0
    sign = NONNEG if e.op.name == "scatter-sub" else 0
    return flags & ~(ANY_DEGREE | sign) | every | MAY_BE_0


@rule(
    Kind.JOIN,
    *("scatter_p", "scatter_add_p", "scatter_sub_p", "scatter_max_p", "scatter_min_p"),
    facts=_of_scattered,
)
def scatter(e: Equation, reading: Facts) -> Law | None:
    """Entries of both remain, or their sums: the degrees agree.

    `scatter` may also put each entry through a function, about which nothing is known. Axes along
    which whole rows are put keep their indices: a row (8,) put into (5, 8) is its axis 1.
    """
    if e.op.name == "scatter" and e.params.get("update_jaxpr") is not None:
        return PIN
    numbers = e.params["dimension_numbers"]
    shape, update = reading.tape.shapes[e.ins[0]], reading.tape.shapes[e.ins[2]]
    left_out = (*numbers.inserted_window_dims, *numbers.operand_batching_dims)
    kept = (a for a in range(len(shape)) if a not in left_out)
    pairs = zip(kept, numbers.update_window_dims, strict=True)
    whole = {a: q for a, q in pairs if shape[a] == update[q]}
    return Law(({a: a for a in whole}, None, {q: a for a, q in whole.items()}), AGREE)


def _of_multiplied(reading: Facts, e: Equation, flags: int) -> int:
    """What is known of the operand, and zeros of the factors."""
    del flags
    return reading.flags[e.ins[0]] & ANY_DEGREE | MAY_BE_0


@rule(Kind.JOIN, "scatter_mul_p", facts=_of_multiplied)
def scatter_mul(e: Equation, reading: Facts) -> Law:
    """Some entries are multiplied: the factors must not scale."""
    del e, reading
    return Law((SAME, None, None), (1, 0, 0), pinned=(2,))
