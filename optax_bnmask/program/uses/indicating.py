"""Which values are indicators: 1 where something has an index and 0 elsewhere, times a factor.

A leaf that is contracted with one is looked up. ``one_hot(t, 7) = (t[:, None] == arange(7))`` is
*hot* along an axis if only one of the two that are compared varies there, as it is along both of
its axes. A mask, ``t == 0`` or ``a == b`` of two that vary alike, is hot along none. Times a factor
that is the same along a hot axis, such as a gate for each expert, it stays hot along that one; what
is masked by it, and varies itself, is data.
"""

from typing import TYPE_CHECKING

from optax_bnmask import compat
from optax_bnmask.program.registry import Kind
from optax_bnmask.program.tape import MOVE, RESHAPE, SLICE, Equation, Tape
from optax_bnmask.program.uses.dimensions import Places, moved, reshaped

if TYPE_CHECKING:
    from optax_bnmask.program.uses.record import Record

OneHotAxes = Places
"""For each axis of a value, whether it is hot along it."""

_HOT: frozenset[int] = frozenset({0})
_COLD: frozenset[int] = frozenset()
_EQUAL, _SCATTER, _DOT = (
    compat.primitive(f"{name}_p") for name in ("eq", "scatter", "dot_general")
)
FIRST = {_EQUAL, _SCATTER}
"""Operations that make an indicator of what is none."""


def read(record: "Record", e: Equation, kind: Kind) -> None:
    """Notes along which axes the result of an equation is an indicator, if it is one at all."""
    hot = _hot(record, e, kind)
    if any(hot):
        record.indicators[e.out] = hot


def along_last(tape: Tape, x: int) -> OneHotAxes:
    """One-hot along the last axis alone."""
    axes = [_COLD] * len(tape.full[x])
    axes[len(tape.shapes[x]) - 1] = _HOT
    return tuple(axes)


def is_lookup(record: "Record", e: Equation, k: int) -> bool:
    """Whether a contraction looks up: its operand at `k` is hot along all that is summed."""
    hot, to = record.indicators.get(e.ins[k]), record.to(k)
    sizes = record.tape.full[e.ins[k]]
    return hot is not None and all(hot[a] or n == 1 for a, n in enumerate(sizes) if a not in to)


def hot_sums(record: "Record", e: Equation, k: int) -> list[int]:
    """The axes of the operand at `k` that are summed with a hot axis of the other: it chooses."""
    hot = record.indicators.get(e.ins[1 - k])
    if hot is None or e.op is not _DOT:
        return []
    summed = e.params["dimension_numbers"][0]
    pairs = zip(summed[k], summed[1 - k], strict=True)
    return [own for own, other in pairs if hot[other]]


def _hot(record: "Record", e: Equation, kind: Kind) -> OneHotAxes:
    numbers, hot = record.facts.numbers, [record.indicators.get(x, ()) for x in e.ins]
    if e.op is _EQUAL:
        if any(numbers[x] is not None for x in e.ins):
            return ()
        flat = zip(*(record.flat.along(x, e.out) for x in e.ins), strict=True)
        return tuple(_HOT if a != b else _COLD for a, b in flat)
    if e.op is _SCATTER:
        is_made = (numbers[e.ins[0]], numbers[e.ins[2]]) == (0, 1)
        return (_HOT,) * len(record.tape.full[e.out]) if is_made else ()
    if kind in (Kind.PRODUCT, Kind.SELECT):
        return _of_factors(record, e)
    if kind is Kind.JOIN:  # hot where all pieces are, constants aside
        pieces = [own for x, own in zip(e.ins, hot, strict=True) if own or x in record.views]
        return tuple(_HOT.intersection(*axes) for axes in zip(*pieces, strict=False))
    return _of_first(record, e, kind, hot[0])


def _of_factors(record: "Record", e: Equation) -> OneHotAxes:
    """One-hot where one operand at least is, and all others are constant along the axis."""
    record.begin(e)
    rank = range(len(record.tape.full[e.out]))
    hot, same = set[int](), set(rank)
    for k, x in enumerate(e.ins):
        own = record.indicators.get(x)
        if own or x in record.views:  # no constant
            to = {a: a for a in rank} if record.is_alike(x) else record.to(k)
            here = {q for a, q in to.items() if own and own[a]}
            hot |= here
            same -= {q for a, q in to.items() if not record.flat.of(x)[a]} - here
    return tuple(_HOT if a in hot & same else _COLD for a in rank)


def _of_first(record: "Record", e: Equation, kind: Kind, first: OneHotAxes) -> OneHotAxes:
    tape = record.tape
    if not first or kind not in (Kind.VIEW, Kind.CAST, Kind.LOOKUP, Kind.REDUCTION):
        return ()
    if e.op is RESHAPE:
        return reshaped(first, tape.shapes[e.ins[0]], tape.shapes[e.out])
    if kind is Kind.LOOKUP:  # rows of an identity
        return along_last(tape, e.out)
    record.begin(e)
    if e.op is SLICE or (e.op is not MOVE and record.is_alike(e.ins[0])):
        return first
    return moved(first, record.to(0), len(tape.full[e.out]))
