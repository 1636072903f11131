"""The second pass: the degree of every value, and the equations between exponents. No new demands.

A loop over the tape. What a law says is done to the degrees of the operands, renamed and made
uniform as the plan of the first pass says; where operands must agree, constants that stand for 0 or
for infinity are set apart first, and recorded.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

from optax_bnmask.program.demands import (
    PINNED,
    ZEROS,
    Axes,
    Cut,
    Joined,
    Plan,
    Regrouped,
)
from optax_bnmask.program.dependence import needed
from optax_bnmask.program.equations import NOTHING, Components, System
from optax_bnmask.program.exponents import Cell, Degree, Degrees, spread
from optax_bnmask.program.flags import ANY_DEGREE, AS_CAPTURED, HUGE
from optax_bnmask.program.indices import Atom, Segments
from optax_bnmask.program.registry import AGREE, SAME, UNRULED, Map
from optax_bnmask.program.renaming import between, placed, renamed
from optax_bnmask.program.tape import CARRY, Equation


class Approximation(NamedTuple):
    """An approximation: a constant taken as something else, beside a value of that degree.

    Attributes:
      kind: As in `optax_bnmask.analysis.Assumption`.
      value: The constant.
      equation: Where.
      degree: The degree; `None` if this is recorded whatever the value's degree is.
      axes: The axes of the degree.
    """

    kind: str
    value: float
    equation: Equation
    degree: Degree | None
    axes: Sequence[Atom]


class Solution:
    """The degrees of all values of a tape.

    Attributes:
      axes: The axes of the values.
      system: The unknowns.
      degrees: The degree of each value that has axes.
      taken: The approximations made.
      unhandled: How often each primitive without a rule met a value that scales.
      at: The equation that is read, and its plan.

    Args:
      axes: What the first pass found.
      leaves: The degrees of the leaves; by default, new unknowns.
      system: The unknowns; by default, a new system.
      on_equation: Called after each equation with the operands' degrees and that of the result.
    """

    def __init__(
        self,
        axes: Axes,
        leaves: Mapping[int, Degree] | None = None,
        system: System | None = None,
        on_equation: Callable[[Equation, Sequence[Degree], Degree | None], None] | None = None,
    ) -> None:
        self.axes, self.facts, self.tape = axes, axes.facts, axes.tape
        self.system = system or System()
        self.arithmetic = Degrees(self.system, axes.indices)
        self.taken: list[Approximation] = []
        self.unhandled: dict[str, int] = {}
        self.at: tuple[Equation, Any] | None = None
        self._on_equation = on_equation
        self._done: set[int] = set()
        self.degrees: dict[int, Degree] = (
            {x: self.arithmetic.leaf(segments) for x, segments in axes.of_leaves.items()}
            if leaves is None
            else dict(leaves)
        )

    def read(self, outputs: Iterable[int]) -> None:
        """Reads the equations that `outputs` need, and were not read before."""
        tape = self.tape
        live = tape.live if outputs is tape.outs else needed(tape, outputs)
        for e, plan in zip(tape.equations, self.axes.plans, strict=True):
            if plan is not None and live[e.out] and e.out not in self._done:
                self._done.add(e.out)
                self._read(e, plan)

    def pin(self, values: Iterable[int]) -> None:
        """Imposes that values do not scale."""
        for x in values:
            if x in self.axes.of:
                self.arithmetic.pin(self.degrees[x], self.axes.of[x])

    def finish(self) -> None:
        """Imposes degree 0 on values with an epsilon beside them that scale with no leaf.

        A carry that starts as 0 has unknowns of its own. A clock, ``t += 1e-3``, would be free to
        have any degree if the 1e-3 were taken as 0: it is no epsilon.
        """
        again = True
        while again:
            again = False
            for t in self.taken:
                for cell, d in (t.degree or {}).items() if t.kind == "epsilon" else ():
                    again |= self._unless_of_leaves(cell, d, t)

    def _unless_of_leaves(self, cell: Cell, d: Components | None, t: Approximation) -> bool:
        """Pins a cell whose degree has no unknowns but those in `System.own`; whether it did."""
        if not d:
            return False
        resolve, many = self.system.resolve, t.degree is not None and len(t.degree) > 1
        segments = self.arithmetic.segments(t.axes) if many else ()
        components = self.arithmetic.apart(cell, d, segments) if many else d
        forms = [f for f in map(resolve, components.values()) if f]
        if not forms or any(u not in self.system.own for f in forms for u in f):
            return False
        for form in forms:
            self.system.zero(form)
        return True

    def is_zero(self, x: Degree) -> bool:
        """Whether a degree is 0 in all cells, given what is solved."""
        return not any(self.system.resolve(form) for d in x.values() if d for form in d.values())

    def _read(self, e: Equation, plan: Any) -> None:  # noqa: ANN401 - a plan of the first pass
        self.at = e, plan
        if plan is ZEROS:
            self._approximate("zeros", 0.0, e, None, ())
            return
        if plan is PINNED:
            if e.rule is UNRULED and not all(map(self.is_zero, self._operands(e))):
                self.unhandled[e.name] = self.unhandled.get(e.name, 0) + 1
            self.pin(e.ins)
            out = None
        else:
            found = _READINGS[type(plan)](self, e, plan)
            out = found if e.out in self.axes.of else None
            if out is not None:
                self.degrees[e.out] = out
        if self._on_equation:
            self._on_equation(e, self._operands(e), out)

    def _operands(self, e: Equation) -> list[Degree]:
        """The degrees of the operands that have any."""
        return [self.degrees[x] for x in e.ins if x in self.axes.of]

    def _counts(self, axes: Iterable[Atom]) -> list[int]:
        """How many segments each axis has."""
        return list(map(len, self.arithmetic.segments(axes)))

    def _constant(self, rank: int, *, every: bool = False) -> Degree:
        return {(0,) * rank: None if every else NOTHING}

    def _moved(self, x: int, m: Map, plan: Plan) -> Degree:
        """The degree of an operand along the axes of the result."""
        rank = len(plan.axes)
        d = self.arithmetic.moved(self.degrees[x], m, rank, self.axes.of[x])
        if len(d) == 1:
            return d
        return spread(d, self._counts(plan.axes), set(range(rank)) - set(m.values()))

    def _by_law(self, e: Equation, plan: Plan) -> Degree:
        law = plan.law
        operands = [
            None if m is None else self.degrees[x] if m is SAME else self._moved(x, m, plan)
            for x, m in zip(e.ins, plan.maps, strict=True)
        ]
        if law.pinned:
            self.pin(e.ins[k] for k in law.pinned)
        if alike := plan.law.alike:
            operands[alike[0]] = self._agreed(e, plan, [operands[k] for k in alike], alike)
        if e.op is CARRY:
            return self._carried_in(e, plan, operands[0])
        if law.powers is AGREE:
            return self._agreed(e, plan, operands, range(len(e.ins)))
        return self._multiplied(plan, operands)

    def _multiplied(self, plan: Plan, operands: Sequence[Degree | None]) -> Degree:
        out = None
        for d, k in zip(operands, plan.law.powers or (), strict=False):
            if d is not None and k:
                if out is None:
                    out = d if k == 1 else self.arithmetic.power(d, k)
                elif k in (1, -1):
                    out = self.arithmetic.product(out, d, k)
                else:
                    out = self.arithmetic.product(out, self.arithmetic.power(d, k))
        return self._constant(len(plan.axes)) if out is None else out

    def _agreed(
        self,
        e: Equation,
        plan: Plan,
        operands: Sequence[Degree | None],
        places: Sequence[int],
    ) -> Degree:
        """Imposes one degree on the operands at `places`, constants set apart; returns it."""
        scaling = [d for d in operands if d is not None]
        guard = self.facts.guard_operand(e) if len(e.ins) == 3 and plan.law.pinned == (0,) else None
        for place in places:
            x = e.ins[place]
            if x in self.axes.of or place in plan.law.pinned:
                continue
            if plan.law.map_of(place) is not None and not self.facts.is_never_chosen(e, place):
                counts = place == guard and self._approximate(
                    "guard", self.facts.numbers[x] or 0.0, e, scaling, plan.axes
                )
                if not counts and not self._set_apart(e, place, scaling, plan.axes):
                    scaling = [*scaling, self._constant(len(plan.axes))]
        if not scaling:
            return self._constant(len(plan.axes), every=True)
        return self.arithmetic.agree(scaling, plan.axes)

    def _set_apart(
        self,
        e: Equation,
        place: int,
        scaling: Sequence[Degree],
        axes: Sequence[Atom],
    ) -> bool:
        """Whether a constant among values that must agree stands for 0 or infinity; records it."""
        x = e.ins[place]
        flags, number = self.facts.flags[x], self.facts.numbers[x]
        if flags & ANY_DEGREE:
            return (
                self._approximate("zeros", 0.0, e, scaling, axes) if flags & AS_CAPTURED else True
            )
        if number is None or not scaling:
            return False
        if flags & HUGE or self.axes.epsilons.is_ceiling(e, place):
            return self._approximate("infinity", number, e, scaling, axes)
        if self.axes.epsilons.is_epsilon(e, place):
            return self._approximate("epsilon", number, e, scaling, axes)
        return False

    def _approximate(
        self,
        kind: str,
        value: float,
        e: Equation,
        scaling: Sequence[Degree] | None,
        axes: Sequence[Atom],
    ) -> bool:
        """Records an approximation beside the first of some degrees; always true."""
        degree = scaling[0] if scaling else None
        if scaling is None or degree is not None:
            self.taken.append(Approximation(kind, value, e, degree, axes))
        return True

    def _carried_in(self, e: Equation, plan: Plan, start: Degree | None) -> Degree:
        """The degree that a carry starts with; new unknowns in the cells where that is any."""
        segments = self.arithmetic.segments(plan.axes)
        out = self._constant(len(plan.axes), every=True) if start is None else start
        if None not in out.values():
            return out
        before, deep = len(self.system.atoms), len(self.tape.full[e.ins[0]])
        own = self.arithmetic.leaf([*segments[:deep], *[((),)] * (len(segments) - deep)])
        self.system.own.update(range(before, len(self.system.atoms)))
        if len(out) > 1:
            out, own = (self.arithmetic.full(d, segments) for d in (out, own))
        out = {c: own[c] if d is None else d for c, d in out.items()}
        if self.facts.flags[e.ins[0]] & HUGE:
            self._approximate("infinity", self.facts.numbers[e.ins[0]] or 0.0, e, [out], plan.axes)
        elif self.facts.flags[e.ins[0]] & AS_CAPTURED:
            self._approximate("zeros", 0.0, e, [out], plan.axes)
        return out

    def _even(self, x: int, flat: Collection[int]) -> tuple[Degree, list[Segments]]:
        """The degree of a value, made not to vary along `flat` axes, and the segments of its axes.

        Of a flat axis that is one segment, without atoms.
        """
        inside, d = self.axes.segments(x), self.degrees[x]
        if flat:
            to = {q: q for q in range(len(inside)) if q not in flat}
            d = self.arithmetic.moved(d, to, len(inside), self.axes.of[x])
            inside = [((),) if q in flat else s for q, s in enumerate(inside)]
        return self.arithmetic.full(d, inside), inside

    def _reshaped(self, e: Equation, plan: Regrouped) -> Degree:
        """The degree after a reshape: the atoms of old and new axes are the same, in order."""
        kept = {q for before, _ in plan.groups for q in before}
        reached = {q for _, after in plan.groups for q in after}
        x, outside = e.ins[0], self.axes.segments(e.out)
        d, inside = self._even(x, set(range(len(self.axes.of[x]))) - kept)
        out = renamed(d, plan.groups, inside, outside)
        return spread(out, list(map(len, outside)), set(range(len(outside))) - reached)

    def _cut(self, e: Equation, plan: Cut) -> Degree:
        """The degree of a slice: the cells between its bounds."""
        flat = [q for q, b in enumerate(plan.bounds) if b is None]
        d, inside = self._even(e.ins[0], flat)
        places = [
            between(s, *b) if b else {t: t for t in range(len(s))}
            for s, b in zip_longest(inside, plan.bounds)  # hidden axes have no bounds
        ]
        return spread(placed(d, places), self._counts(self.axes.of[e.out]), flat)

    def _joined(self, e: Equation, plan: Joined) -> Degree:
        """The degree of a concatenation: the cells of its pieces, one after the other."""
        segments = self.axes.segments(e.out)
        counts = list(map(len, segments))
        parts = [self.degrees[x] for x in e.ins if x in self.axes.of]
        out: Degree = {}
        at = 0
        for place, (x, piece) in enumerate(zip(e.ins, plan.pieces, strict=True)):
            if not piece.size:
                continue
            if x in self.axes.of:
                d, inside = self._even(x, plan.flat)
            else:
                inside = [((),) if q in plan.flat else s for q, s in enumerate(segments)]
                inside[plan.axis] = self.axes.indices.segments(piece)
                apart = self._set_apart(e, place, parts, self.axes.of[e.out])
                d = self.arithmetic.full(self._constant(len(inside), every=apart), inside)
            places = [{t: t for t in range(len(s))} for s in inside]
            places[plan.axis] = {t: t + at for t in places[plan.axis]}
            out |= spread(placed(d, places), counts, plan.flat)
            at += len(places[plan.axis])
        return out


_READINGS: Mapping[Any, Callable[[Solution, Equation, Any], Degree]] = {
    Plan: Solution._by_law,
    Regrouped: Solution._reshaped,
    Cut: Solution._cut,
    Joined: Solution._joined,
}
"""What is done at an equation, by its plan."""
