"""The first pass: which axes are the same, cut or split, as each equation demands. No exponents.

What depends on no leaf has no axes here, and neither has what cannot scale whatever the indices
are, such as the result of ``exp``: they are *rigid*, and make no demands.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from optax_bnmask import compat
from optax_bnmask.program.epsilons import Epsilons
from optax_bnmask.program.facts import Facts
from optax_bnmask.program.flags import ANY_DEGREE, AS_CAPTURED, HUGE, PACKED
from optax_bnmask.program.indices import ONE, Atom, Indices, Mismatch, Segments, joined
from optax_bnmask.program.maps import operand_map, regrouped
from optax_bnmask.program.registry import PIN, SAME, Kind, Law, Map
from optax_bnmask.program.tape import CARRY, MOVE, RESHAPE, SLICE, Equation


@dataclasses.dataclass(slots=True, eq=False)
class Plan:
    """What the second pass needs to know of an equation.

    Attributes:
      law: How its result scales.
      maps: For each operand, which of its axes is which of the result; `None` if it does not count.
      axes: The axes of the result, also where it does not scale and so has none in `Axes.of`.
    """

    law: Law
    maps: Sequence[Any]
    axes: list[Atom]


class Regrouped(NamedTuple):
    """For a reshape: pairs of groups of axes, of operand and result: see `regrouped`."""

    groups: list[tuple[list[int], list[int]]]


class Cut(NamedTuple):
    """For a slice: the bounds along each axis, `None` where it must not vary."""

    bounds: list[tuple[int, int] | None]


class Joined(NamedTuple):
    """For a concatenation: the axis, its pieces, and the axes along which nothing may vary."""

    axis: int
    pieces: list[Atom]
    flat: set[int]


PINNED: Final = "pinned"
"""In the place of a plan: no operand may scale."""
ZEROS: Final = "zeros"
"""In the place of a plan: the result is 0 only because an array that is closed over is so now."""


class Axes:
    """The axes of all values of a tape that may scale.

    Attributes:
      facts: What is known of the values.
      indices: The index sets of the axes.
      of: The axes of each value that has any, the hidden ones last.
      of_leaves: The segments of the axes of each leaf that has any.
      plans: For each equation what the second pass needs of it; `None` where all is rigid.
      epsilons: Which small constants the second pass may take as 0.
    """

    def __init__(self, facts: Facts) -> None:
        self.facts, self.tape = facts, facts.tape
        self.epsilons = Epsilons(facts)
        self._any_packed = any(flags & PACKED for flags in facts.flags)
        self.indices = Indices()
        self.of: dict[int, list[Atom]] = {}
        self.of_leaves: dict[int, list[Segments]] = {}
        try:
            self.plans = self._all_plans()
        except Mismatch:  # a border was accepted in few rows that later recurred in too many
            self.indices = Indices(most=1)
            self.plans = self._all_plans()

    def _all_plans(self) -> list[Any]:
        """Imposes the demands of all equations; returns the plans, when all axes are refined."""
        ins = (x for x in self.facts.leaves if 0 not in self.tape.shapes[x])
        self.of = {x: [Atom(n) for n in self.tape.shapes[x]] for x in ins}
        plans = [self._plan(e) for e in self.tape.equations]
        shared = {id(axes): axes for axes in self.of.values()}  # by values of one shape
        self.indices.settle(a for axes in shared.values() for a in axes)
        self.of_leaves = {x: self.segments(x) for x in self.facts.leaves if x in self.of}
        return plans

    def segments(self, x: int) -> list[Segments]:
        """The segments of the axes of a value."""
        return [self.indices.segments(a) for a in self.of[x]]

    def _plan(self, e: Equation) -> Any:  # noqa: ANN401 - one of the plans above
        for x in e.ins:
            if x in self.of:
                break
        else:
            if e.op is not CARRY or not self._starts_from_nothing(e):
                return None
        flags = self.facts.flags[e.out]
        if flags & ANY_DEGREE:
            return ZEROS if flags & AS_CAPTURED else None
        law = self.facts.law(e)
        if law is PIN or (self._any_packed and self._takes_factors_for_a_matrix(e)):
            return PINNED
        special = _SPECIAL.get(e.op)
        return special(self, e) if special is not None else self._mapped(e, law)

    def _takes_factors_for_a_matrix(self, e: Equation) -> bool:
        """Whether a packed factorisation meets anything but a solver or the entry of a loop."""
        if not self.facts.any(e, PACKED) or e.kind is Kind.SOLUTION:
            return False
        return e.op is not MOVE or any(a != q for a, q in e.params["to"].items())

    def _starts_from_nothing(self, e: Equation) -> bool:
        """Whether a carry that may come to scale starts from 0, or what is of every degree too."""
        starts = self.facts.flags[e.ins[0]] & (ANY_DEGREE | HUGE)
        return bool(starts and self.facts.depends[e.out] and self.tape.floats[e.out])

    def _map(self, e: Equation, k: int, law: Law) -> Any:  # noqa: ANN401 - a map, `SAME` or `None`
        """Which axis of an operand is which of the result; `None` if its scale does not count."""
        x, tape, m = e.ins[k], self.tape, law.map_of(k)
        if m is None or x not in self.of:
            return None
        is_alike = tape.shapes[x] == tape.shapes[e.out]  # but perhaps for hidden axes
        if m is SAME and is_alike and len(tape.full[x]) == len(tape.full[e.out]):
            return SAME
        return operand_map(tape, e, k, m)

    def _mapped(self, e: Equation, law: Law) -> Any:  # noqa: ANN401 - a plan
        """The plan of an equation by its law: operands share the axes of the result."""
        shared = self._shared(e) if law.maps is SAME else None
        if shared is not None:
            maps, axes = [SAME if x in self.of else None for x in e.ins], shared
        else:
            maps, axes = self._matched(e, law)
        if law.scales:
            self.of[e.out] = axes
        return Plan(law, maps, axes)

    def _matched(self, e: Equation, law: Law) -> tuple[list[Any], list[Atom]]:
        """The maps of the operands, less axes that cannot be unified; the axes of the result."""
        maps, sizes = [self._map(e, k, law) for k in range(len(e.ins))], self.tape.full[e.out]
        axes: list[Any] = [None] * len(sizes)
        refused: set[int] = set()
        for x, m in zip(e.ins, maps, strict=True):
            if m is not None:
                refused |= self._not_unified(axes, self.of[x], m)
        if refused:
            maps = [m and _without(m, refused, len(sizes)) for m in maps]
        for r, n in enumerate(sizes):
            if axes[r] is None or r in refused:
                axes[r] = ONE if n == 1 else Atom(n)
        return maps, axes

    def _shared(self, e: Equation) -> list[Atom] | None:
        """The axes of the result, if all operands have its shape and their axes can be unified."""
        full = self.tape.full
        found: list[list[Atom]] = []
        for x in e.ins:
            if x in self.of:
                if full[x] != full[e.out]:
                    return None
                found.append(self.of[x])
        for own in found[1:]:
            if own is not found[0] and self._not_unified(found[0], own, SAME):
                return None
        return found[0] if found else None

    def _not_unified(self, axes: list[Any], own: Sequence[Atom], m: Any) -> set[int]:  # noqa: ANN401 - a map
        """Unifies axes of an operand with those of the result; returns those where that fails."""
        refused: set[int] = set()
        for q, r in m.items() if m is not SAME else enumerate(range(len(own))):
            one = axes[r]
            if one is None:
                axes[r] = own[q]
            elif one is not own[q] and not self._are_unified(one, own[q]):
                refused.add(r)
        return refused

    def _are_unified(self, one: Atom, other: Atom) -> bool:
        """Makes two axes the same; whether that succeeds."""
        try:
            self.indices.unify(one, other)
        except Mismatch:
            return False
        return True

    def _reshaped(self, e: Equation) -> Regrouped:
        """A reshape merges axes and splits them anew, group by group."""
        x = e.ins[0]
        own, old, new = self.of[x], self.tape.shapes[x], self.tape.shapes[e.out]
        axes: list[Atom | None] = [None] * len(new)
        groups: list[tuple[list[int], list[int]]] = []
        for inside, outside in regrouped(old, new):
            before = [q for q in inside if old[q] > 1]
            after = [q for q in outside if new[q] > 1]
            if not before:
                continue
            try:
                rest, made = self.indices.merged([own[q] for q in before]), list[Atom]()
                for q in reversed(after[1:]):
                    rest, row = self.indices.split(rest, new[q])
                    made.append(row)
            except Mismatch:
                continue
            for q, axis in zip(after, [rest, *reversed(made)], strict=True):
                axes[q] = axis
            groups.append((before, after))
        hidden = range(len(self.tape.hidden[x]))
        groups += [([len(old) + j], [len(new) + j]) for j in hidden]
        shown = [Atom(n) if a is None else a for a, n in zip(axes, new, strict=True)]
        self.of[e.out] = [*shown, *own[len(old) :]]
        return Regrouped(groups)

    def _cut(self, e: Equation) -> Cut:
        bounds = [
            b if s == 1 else None
            for b, s in zip(e.params["bounds"], e.params["strides"], strict=True)
        ]
        return self._cut_along(e, bounds)

    def _cut_dynamically(self, e: Equation) -> Cut:
        """A slice at computed places, as far as these are known numbers."""
        return self._cut_along(e, dynamic_bounds(self.facts, e))

    def _cut_along(self, e: Equation, bounds: list[tuple[int, int] | None]) -> Cut:
        own, axes = self.of[e.ins[0]], list[Atom]()
        kept: list[tuple[int, int] | None] = []
        for axis, bound, n in zip(own, bounds, self.tape.shapes[e.out], strict=False):
            try:
                if bound is None:
                    raise Mismatch
                for border in bound:
                    self.indices.cut(axis, border)
                axes.append(self.indices.part(axis, *bound))
                kept.append(bound)
            except Mismatch:
                axes.append(Atom(n))
                kept.append(None)
        self.of[e.out] = [*axes, *own[len(axes) :]]
        return Cut(kept)

    def _joined(self, e: Equation) -> Joined:
        axis, flat = e.params["dimension"], set[int]()
        axes: list[Atom] = []
        for x in e.ins:
            if x not in self.of:
                continue
            if not axes:
                axes = list(self.of[x])
            flat.update(
                q
                for q, own in enumerate(self.of[x])
                if q != axis and not self._are_unified(axes[q], own)
            )
        pieces = [
            self.of[x][axis] if x in self.of else Atom(self.tape.shapes[x][axis]) for x in e.ins
        ]
        self.of[e.out] = [
            joined(pieces) if q == axis else Atom(a.size) if q in flat else a
            for q, a in enumerate(axes)
        ]
        return Joined(axis, pieces, flat)

    def _carried_in(self, e: Equation) -> Any:  # noqa: ANN401 - a plan
        """A carry has the axes of its start, or of its own where that is a constant."""
        if e.ins[0] in self.of:
            return self._mapped(e, Law())
        self.of[e.out] = [Atom(n) for n in self.tape.full[e.out]]
        return Plan(Law(), [None], self.of[e.out])


_SPECIAL: Mapping[Any, Any] = {
    RESHAPE: Axes._reshaped,
    SLICE: Axes._cut,
    CARRY: Axes._carried_in,
    compat.primitive("dynamic_slice_p"): Axes._cut_dynamically,
    compat.primitive("concatenate_p"): Axes._joined,
}


def _without(m: Any, refused: set[int], rank: int) -> Map:  # noqa: ANN401 - a map, or `SAME`
    pairs = {q: q for q in range(rank)} if m is SAME else m
    return {q: r for q, r in pairs.items() if r not in refused}


def dynamic_bounds(facts: Facts, e: Equation) -> list[tuple[int, int] | None]:
    """The bounds of a slice at computed places, by axis; `None` where the place is not known."""
    shape, sizes = facts.tape.shapes[e.ins[0]], e.params["slice_sizes"]
    bounds: list[tuple[int, int] | None] = []
    for n, size, place in zip(shape, sizes, e.ins[1:], strict=True):
        start = 0 if size == n else facts.numbers[place]
        low = None if start is None else min(max(int(start), 0), n - size)
        bounds.append(None if low is None else (low, low + size))
    return bounds
