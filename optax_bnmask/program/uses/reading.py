"""The loop that follows leaves and normalisers through the equations of a tape."""

import math
from collections.abc import Callable, Sequence, Set
from typing import Any

import numpy as np

from optax_bnmask import compat
from optax_bnmask.program.constants import entries_of
from optax_bnmask.program.facts import Facts
from optax_bnmask.program.flags import ANY_DEGREE
from optax_bnmask.program.registry import Kind
from optax_bnmask.program.tape import CARRY, MOVE, RESHAPE, SLICE, Equation
from optax_bnmask.program.uses import contractions, entrywise, indicating, lookups, reductions
from optax_bnmask.program.uses.belonging import belonging
from optax_bnmask.program.uses.dimensions import reshaped
from optax_bnmask.program.uses.record import Record
from optax_bnmask.program.uses.views import DATA, View, renamed

_DOT, _DYNAMIC_SLICE = (compat.primitive(f"{name}_p") for name in ("dot_general", "dynamic_slice"))


def uses(
    facts: Facts,
    leaves: Sequence[int | None],
    shapes: Sequence[Sequence[int]],
) -> Record:
    """How the leaves of a program are used.

    Args:
      facts: What is known of its values.
      leaves: For each input, the number of its leaf, or `None`.
      shapes: The shape of each leaf, by its number.

    Returns:
      The `Record` of all equations.
    """
    record, own = Record(facts, shapes), belonging(facts)
    _inputs(record, leaves, own)
    views, indicators = record.views, record.indicators
    for e in record.tape.equations:
        if e.out in own:
            _start_of_own(record, e.out)
            continue
        kind = _kind(e)
        for x in e.ins:
            if x in views:
                record.begin(e)
                if kind is not Kind.CONTRACTION:  # which most often starts a new gauge
                    record.gauges.read(e, record.law)
                views[e.out] = _NOTES[kind](record, e)
                break
        else:
            if view := _of_constants(record, e):
                views[e.out] = view
        if e.op in indicating.FIRST or (indicators and not indicators.keys().isdisjoint(e.ins)):
            indicating.read(record, e, kind)
    return record


def _of_constants(record: Record, e: Equation) -> View | None:
    """The view of a value that is made of constants alone, if that is as good as data."""
    if e.op is CARRY:  # what a loop makes of them
        record.begin(e)
        return contractions.carried(record, e, DATA)
    return entrywise.root_of_captured(record, e)


def _inputs(record: Record, leaves: Sequence[int | None], own: Set[int]) -> None:
    tape, gauges = record.tape, record.gauges
    for x, number in zip(tape.ins, leaves, strict=True):
        if number is not None and tape.floats[x]:
            gauges.start_input(x, number)
            places = tuple(frozenset({a}) for a in range(len(tape.shapes[x])))
            record.views[x] = View({number: places}, data=False)
        elif x in own:
            _start_of_own(record, x)
        else:
            gauges.start_input(x)
            record.views[x] = DATA
    for x, value in tape.captured.items():
        size = math.prod(tape.shapes[x])
        if size > 1 and not record.facts.flags[x] & ANY_DEGREE and record.facts.numbers[x] is None:
            _start_of_own(record, x)
            if _has_unit_rows(value):
                record.indicators[x] = indicating.along_last(tape, x)


def _start_of_own(record: Record, x: int) -> None:
    """Notes a value that may belong to a leaf that it meets entry by entry."""
    record.gauges.start_input(x)
    record.views[x] = View(fixed=math.prod(record.tape.shapes[x]))


def _kind(e: Equation) -> Kind:
    """The kind of an equation; a contraction that sums over nothing is a product."""
    if e.op is _DOT and not e.params["dimension_numbers"][0][0]:
        return Kind.PRODUCT
    return e.kind


def _has_unit_rows(value: Any) -> bool:  # noqa: ANN401 - a captured array
    """Whether each row of an array is 1 in one place and else 0, as those of ``eye(n)`` are."""
    array = entries_of(value)
    if array is None or array.ndim < 2:
        return False
    return bool(np.all((array == 0) | (array == 1)) and np.all(array.sum(-1) == 1))


def _view(record: Record, e: Equation) -> View:
    """The view of a value whose entries are those of the operand: the operand's, axes renamed."""
    k = next(k for k, x in enumerate(e.ins) if x in record.views) if len(e.ins) > 1 else 0
    x, view = e.ins[k], record.views[e.ins[k]]
    if e.op is RESHAPE:
        old, new = record.tape.shapes[x], record.tape.shapes[e.out]
        return renamed(view, lambda p: reshaped(p, old, new), broad=view.broad)
    if e.op is SLICE or e.op is _DYNAMIC_SLICE:
        return view._replace(piece=e.out) if view.leaves else view
    if e.op is not MOVE and record.is_alike(x):  # reversed, say: each axis is the one that it was
        return view
    return record.along(k) or DATA


def _cast(record: Record, e: Equation) -> View:
    """What is known of a value in another dtype; numbers made from integers start a new gauge."""
    view = _view(record, e)
    if view.data and record.tape.floats[e.out] and not record.tape.floats[e.ins[0]]:
        record.gauges.start(e.out)
    return view


_NOTES: dict[Kind, Callable[[Record, Equation], View]] = {
    Kind.VIEW: _view,
    Kind.CAST: _cast,
    Kind.POWER: entrywise.pointwise,
    Kind.EXTREMUM: entrywise.pointwise,
    Kind.NONLINEAR: entrywise.pointwise,
    Kind.PRODUCT: entrywise.product,
    Kind.QUOTIENT: entrywise.product,
    Kind.SUM: entrywise.total,
    Kind.CONTRACTION: contractions.contraction,
    Kind.REDUCTION: reductions.reduction,
    Kind.FACTORS: reductions.reduction,
    Kind.LOOKUP: lookups.lookup,
    Kind.JOIN: contractions.join,
    Kind.SELECT: contractions.select,
    Kind.LOOP: contractions.loop,
    Kind.OPAQUE: contractions.opaque,
    Kind.COMPARISON: contractions.opaque,
    Kind.UNSCALED: contractions.opaque,
    Kind.SOLUTION: contractions.opaque,
}
