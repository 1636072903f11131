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
_EQUAL, _SCATTER, _IOTA = (compat.primitive(f"{name}_p") for name in ("eq", "scatter", "iota"))
_DOT = compat.primitive("dot_general_p")
FIRST = {_EQUAL, _SCATTER}
"""Operations that make an indicator of what is none."""
_SAME = {Kind.VIEW, Kind.CAST, Kind.POWER, Kind.NONLINEAR, Kind.SELECT, Kind.PRODUCT, Kind.SUM}
"""Kinds whose results vary along an axis only if an operand does."""


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
    if e.op is _EQUAL:
        return _of_comparison(record, e)
    if e.op is _SCATTER:
        is_made = [record.facts.numbers[x] for x in (e.ins[0], e.ins[2])] == [0, 1]
        return (_HOT,) * len(record.tape.full[e.out]) if is_made else ()
    if kind in (Kind.PRODUCT, Kind.SELECT):
        return _of_factors(record, e)
    if kind is Kind.JOIN:
        parts = [record.indicators.get(x, ()) for x in e.ins if _counts(record, x)]
        return tuple(map(_both, *parts)) if all(map(len, parts)) else ()
    return _of_first(record, e, kind)


def _counts(record: "Record", x: int) -> bool:
    """Whether a value is no constant."""
    return x in record.indicators or x in record.views


def _of_comparison(record: "Record", e: Equation) -> OneHotAxes:
    if any(record.facts.numbers[x] is not None for x in e.ins):
        return ()
    axes = range(len(record.tape.full[e.out]))
    x, y = ([_varies_beside(record, e, z, a) for a in axes] for z in e.ins)
    return tuple(_HOT if a != b else _COLD for a, b in zip(x, y, strict=True))


def _varies_beside(record: "Record", e: Equation, x: int, axis: int) -> bool:
    """Whether an operand may vary along an axis of the result; scalars have no visible ones."""
    shown, own = (len(record.tape.shapes[z]) for z in (e.out, x))
    place = axis if own == shown else axis - shown + own
    seen = (axis >= shown or own == shown) and place < len(record.tape.full[x])
    return seen and varies(record, x, place)


def _of_factors(record: "Record", e: Equation) -> OneHotAxes:
    """One-hot where one operand at least is, and all others are constant along the axis."""
    record.begin(e)
    out = []
    for axis in range(len(record.tape.full[e.out])):
        is_hot, is_same = False, True
        for k, x in enumerate(e.ins):
            if _counts(record, x):
                alike = record.is_alike(x)
                own = [axis] if alike else [a for a, b in record.to(k).items() if b == axis]
                here = any(record.indicators[x][a] for a in own if x in record.indicators)
                is_hot |= here
                is_same &= here or not any(varies(record, x, a) for a in own)
        out.append(_HOT if is_hot and is_same else _COLD)
    return tuple(out)


def _of_first(record: "Record", e: Equation, kind: Kind) -> OneHotAxes:
    first, tape = record.indicators.get(e.ins[0]), record.tape
    if first is None or kind not in (Kind.VIEW, Kind.CAST, Kind.LOOKUP, Kind.REDUCTION):
        return ()
    if e.op is RESHAPE:
        return reshaped(first, tape.shapes[e.ins[0]], tape.shapes[e.out])
    if kind is Kind.LOOKUP:  # rows of an identity
        return along_last(tape, e.out)
    record.begin(e)
    if e.op is SLICE or (e.op is not MOVE and record.is_alike(e.ins[0])):
        return first
    return moved(first, record.to(0), len(tape.full[e.out]))


def _both(*hot: frozenset[int]) -> frozenset[int]:
    return _HOT if all(hot) else _COLD


def varies(record: "Record", x: int, axis: int, depth: int = 12) -> bool:
    """Whether a value may vary along an axis, as far as a few steps back tell."""
    tape = record.tape
    if tape.full[x][axis] == 1 or record.facts.numbers[x] is not None:
        return False
    e = tape.writers.get(x)
    if e is None or depth == 0:
        return True
    if e.op is _IOTA:
        return axis == e.params["dimension"]
    if e.op is MOVE:
        to = e.params["to"]
        inner = [a for a, b in to.items() if b == axis]
        return any(varies(record, e.ins[0], a, depth - 1) for a in inner)
    if e.kind in _SAME and all(tape.full[y] == tape.full[x] for y in e.ins):
        return any(varies(record, y, axis, depth - 1) for y in e.ins)
    return True
