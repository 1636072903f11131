"""Which blocks of a fused leaf are separate matrices: cut apart, and never together again.

Queries, keys and values of ``jnp.split(x @ fused, 3, -1)`` are three matrices. So are they where
heads are interleaved, ``(x @ fused).reshape(..., heads, 3 * n)``, and each is cut out of the last
axis. The two halves of a head that a rotation turns into each other are cut apart as well, but then
added, or summed over together: they are of one matrix.

An axis of a leaf is followed through the program as an array of its own indices::

    x @ fused            [0 1 2 3 4 5 6 7 8 9 10 11]
    reshape to (2, 6)    [[0 1 2 3 4 5] [6 7 8 9 10 11]]       two heads
    its last four        [[2 3 4 5] [8 9 10 11]]               cut: {2 3 4 5 8 9 10 11}, the rest
    halves, added        [[2 3] [8 9]] + [[4 5] [10 11]]       together: 2 and 4, 3 and 5, ..
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from optax_bnmask import compat
from optax_bnmask.program.demands import dynamic_bounds
from optax_bnmask.program.facts import Facts
from optax_bnmask.program.maps import operand_map, regrouped
from optax_bnmask.program.registry import Kind, Law, Map
from optax_bnmask.program.tape import RESHAPE, SLICE, Equation
from optax_bnmask.vocabulary import Block

_JOINED, _DYNAMIC_SLICE, _REVERSED = (
    compat.primitive(f"{name}_p") for name in ("concatenate", "dynamic_slice", "rev")
)

Indices = np.ndarray[Any, Any]
"""For each entry of a value the index of the leaf's axis that it is of; -1 where it is of none. Of
length 1 along the axes of the value that have nothing to do with it."""


class _Axis:
    """One axis of one leaf: how it is cut, and what comes together again."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.cuts: list[Indices] = []
        self.met: list[tuple[Indices, Indices]] = []

    def cut(self, kept: Indices) -> None:
        """Tells the indices that are kept from the rest."""
        self.cuts.append(kept[kept >= 0])

    def meet(self, one: Indices, other: Indices) -> None:
        """Notes that entries come together, each of one array with one of the other."""
        self.met.append((one, other))

    def meet_along(self, indices: Indices, axes: Iterable[int]) -> None:
        """Notes that entries come together that differ along one of some axes alone."""
        for a in axes:
            if indices.shape[a] > 1:
                self.meet(indices, np.take(indices, [0], a))

    def parts(self, starts: Sequence[int]) -> tuple[int, ...]:
        """The number of the part that each of some indices is in, counted as they come."""
        cells = np.zeros(self.size, int)
        for inside in self.cuts:
            kept = np.zeros(self.size, int)
            kept[inside] = 1
            cells = np.unique(2 * cells + kept, return_inverse=True)[1]  # so that these stay small
        together = np.eye(cells.max() + 1, dtype=bool)
        for one, other in self.met:
            known = (one >= 0) & (other >= 0)
            pair = (np.broadcast_to(x, known.shape)[known] for x in (one, other))
            together[tuple(cells[x] for x in pair)] = True
        part = list(range(len(together)))
        for one, other in np.argwhere(together & ~np.eye(len(together), dtype=bool)).tolist():
            old, new = part[one], part[other]
            part = [new if p == old else p for p in part]
        found = [part[cell] for cell in cells[list(starts)].tolist()]
        number = {p: n for n, p in enumerate(dict.fromkeys(found))}
        return tuple(number[p] for p in found)


def parts(
    facts: Facts, fused: Mapping[int, Mapping[int, Sequence[Block]]]
) -> dict[int, dict[int, tuple[int, ...]]]:
    """The number of the part that each block of each axis belongs to.

    Args:
      facts: What is known of the values.
      fused: The blocks of each leaf, which is named by its value, by axis.

    Returns:
      For each leaf and axis of several blocks a number for each block, the same for those of one
      part.
    """
    several = {
        (x, axis): _Axis(facts.tape.shapes[x][axis])
        for x, by_axis in fused.items()
        for axis, blocks in by_axis.items()
        if len(blocks) > 1
    }
    if any(e.op is SLICE or e.op is _DYNAMIC_SLICE for e in facts.tape.equations):
        _follow(facts, several)
    out: dict[int, dict[int, tuple[int, ...]]] = {}
    for (x, axis), found in several.items():
        starts = [block.start for block in fused[x][axis]]
        out.setdefault(x, {})[axis] = found.parts(starts)
    return out


def _follow(facts: Facts, several: Mapping[tuple[int, int], _Axis]) -> None:
    """Follows the axes through all equations."""
    known: dict[int, dict[tuple[int, int], Indices]] = {}
    for x, axis in several:
        full = facts.tape.full[x]
        along = [-1 if a == axis else 1 for a in range(len(full))]
        known.setdefault(x, {})[x, axis] = np.arange(full[axis]).reshape(along)
    for e in facts.tape.equations:
        follow = _BY_OP.get(e.op) or _BY_KIND.get(e.kind)
        if follow is None:
            continue
        for key in dict.fromkeys(key for x in e.ins if x in known for key in known[x]):
            own = [known.get(x, {}).get(key) for x in e.ins]
            found = follow(_Step(facts, e, several[key], own))
            if found is not None:
                known.setdefault(e.out, {})[key] = found


class _Step(NamedTuple):
    """One equation, and the indices of one axis in its operands."""

    facts: Facts
    e: Equation
    axis: _Axis
    ins: Sequence[Indices | None]

    def to(self, k: int) -> Map:
        """Which axis of an operand is which of the result."""
        law = self.facts.law(self.e) or Law()
        return operand_map(self.facts.tape, self.e, k, law.map_of(k))

    def moved(self, k: int, own: Indices) -> Indices | None:
        """The indices in an operand along the axes of the result; none where they are lost."""
        to, rank = self.to(k), len(self.facts.tape.full[self.e.out])
        kept = sorted((a for a in range(own.ndim) if a in to), key=lambda a: to[a])
        if own.size > math.prod(own.shape[a] for a in kept):
            return None
        shape = [1] * rank
        for a in kept:
            shape[to[a]] = own.shape[a]
        rest = [a for a in range(own.ndim) if a not in to]
        return own.transpose([*kept, *rest]).reshape(shape)


def _reshaped(step: _Step) -> Indices | None:
    (own,), tape, e = step.ins, step.facts.tape, step.e
    if own is None:
        return None
    old, new = tape.shapes[e.ins[0]], tape.shapes[e.out]
    wide, shape = list(own.shape), [1] * len(new)
    for inside, outside in regrouped(old, new):
        if any(own.shape[a] > 1 for a in inside):
            for a in inside:
                wide[a] = old[a]
            for a in outside:
                shape[a] = new[a]
    return np.broadcast_to(own, wide).reshape([*shape, *own.shape[len(old) :]])


def _cut(step: _Step) -> Indices | None:
    own = found = step.ins[0]
    if own is None or found is None:
        return None
    for a, bound in enumerate(_bounds(step)):
        if own.shape[a] > 1:
            if bound is None:
                return None
            found = np.take(found, range(*bound), a)
    if found.size < own.size:
        step.axis.cut(found)
    return found


def _bounds(step: _Step) -> list[tuple[int, int, int] | None]:
    """The bounds and the stride of each visible axis; `None` where they are not known."""
    e, facts = step.e, step.facts
    if e.op is SLICE:
        return [(*b, s) for b, s in zip(e.params["bounds"], e.params["strides"], strict=True)]
    return [bound and (*bound, 1) for bound in dynamic_bounds(facts, e)]


def _joined(step: _Step) -> Indices | None:
    axis, full = step.e.params["dimension"], step.facts.tape.full
    found = [own for own in step.ins if own is not None]
    wide = [max(own.shape[a] for own in found) for a in range(found[0].ndim)]
    pieces = []
    for x, own in zip(step.e.ins, step.ins, strict=True):
        shape = [full[x][axis] if a == axis else n for a, n in enumerate(wide)]
        pieces.append(np.broadcast_to(-1 if own is None else own, shape))
    return np.concatenate(pieces, axis)


def _reversed(step: _Step) -> Indices | None:
    own = step.ins[0]
    along = [a for a in step.e.params["dimensions"] if own is not None and own.shape[a] > 1]
    return None if own is None else np.flip(own, tuple(along))


def _entrywise(step: _Step) -> Indices | None:
    """Entries that are added, or chosen from, come together."""
    moved = [own if own is None else step.moved(k, own) for k, own in enumerate(step.ins)]
    found = [own for own in moved if own is not None]
    for other in found[1:]:
        step.axis.meet(found[0], other)
    return found[0] if found else None


def _scaled(step: _Step) -> Indices | None:
    """The leaf's indices, if the factor does not mix data and leaves (a rotation's cosine)."""
    others = [x for x, own in zip(step.e.ins, step.ins, strict=True) if own is None]
    if len(others) != 1 or step.facts.mixes(others[0]):
        return None
    return _entrywise(step)


def _summed(step: _Step) -> Indices | None:
    """What is summed over comes together; a leaf is followed into what it is applied to."""
    out = None
    for k, (x, own) in enumerate(zip(step.e.ins, step.ins, strict=True)):
        if own is not None:
            to = step.to(k)
            step.axis.meet_along(own, (a for a in range(own.ndim) if a not in to))
            if step.facts.depends[x] and not step.facts.mixes(x):
                out = step.moved(k, own)
    return out


_BY_OP: Mapping[Any, Callable[[_Step], Indices | None]] = {
    RESHAPE: _reshaped,
    SLICE: _cut,
    _DYNAMIC_SLICE: _cut,
    _JOINED: _joined,
    _REVERSED: _reversed,
}
_BY_KIND: Mapping[Kind, Callable[[_Step], Indices | None]] = {
    **dict.fromkeys((Kind.VIEW, Kind.CAST, Kind.POWER, Kind.NONLINEAR), _entrywise),
    **dict.fromkeys((Kind.SUM, Kind.EXTREMUM, Kind.SELECT), _entrywise),
    **dict.fromkeys((Kind.PRODUCT, Kind.QUOTIENT), _scaled),
    **dict.fromkeys((Kind.REDUCTION, Kind.CONTRACTION), _summed),
}
