"""The second pass: the degree of every value, and the equations between exponents. No new demands.

A loop over the tape. What a law says is done to the degrees of the operands, renamed and made
uniform as the plan of the first pass says; where operands must agree, constants that stand for 0 or
for infinity are set apart first, and recorded.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from optax_bnmask.program.demands import (
    PINNED,
    ZEROS,
    Axes,
    Cut,
    Joined,
    Padded,
    Plan,
    Regrouped,
)
from optax_bnmask.program.equations import NOTHING, Components, System
from optax_bnmask.program.exponents import Cell, Degree, Degrees, spread
from optax_bnmask.program.flags import EVERY, HUGE, NOW
from optax_bnmask.program.indices import Segments
from optax_bnmask.program.registry import AGREE, RULES, SAME
from optax_bnmask.program.renaming import between, renamed
from optax_bnmask.program.tape import CARRY, Equation


class Taken(NamedTuple):
    """An approximation: a constant taken as something else, beside a value of that degree.

    Attributes:
      kind: As in `optax_bnmask.analysis.Assumption`.
      value: The constant.
      equation: Where.
      degree: The degree; `None` if it scales in any case.
      axes: The segments of its axes.
    """

    kind: str
    value: float
    equation: Equation
    degree: Degree | None
    axes: Sequence[Segments]


class Solution:
    """The degrees of all values of a tape.

    Attributes:
      axes: The axes of the values.
      system: The unknowns.
      degrees: The degree of each value that has axes.
      taken: The approximations made.
      unhandled: How often each primitive without a rule met a value that scales.
      at: The equation that is read, and its plan.
    """

    def __init__(
        self,
        axes: Axes,
        leaves: Mapping[int, Degree] | Iterable[int],
        system: System | None = None,
        heard: Callable[[Equation, Sequence[Degree], Degree | None], None] | None = None,
    ) -> None:
        self.axes, self.facts, self.tape = axes, axes.facts, axes.tape
        self.system = system or System()
        self.arithmetic = Degrees(self.system)
        self.taken: list[Taken] = []
        self.unhandled: dict[str, int] = {}
        self.at: tuple[Equation, Any] | None = None
        self._heard = heard
        self._done: set[int] = set()
        if isinstance(leaves, Mapping):
            self.degrees: dict[int, Degree] = dict(leaves)
        else:
            self.degrees = {
                x: self.arithmetic.leaf(axes.segments(x)) for x in leaves if x in axes.of
            }

    def read(self, outputs: Iterable[int]) -> None:
        """Reads the equations that `outputs` need, and were not read before."""
        needed = self.tape.needed(outputs)
        for place, (e, plan) in enumerate(zip(self.tape.equations, self.axes.plans, strict=True)):
            if needed[e.out] and place not in self._done:
                self._done.add(place)
                if plan is not None:
                    self._read(e, plan)

    def pin(self, values: Iterable[int]) -> None:
        """Imposes that values do not scale."""
        for x in values:
            if x in self.axes.of:
                self.arithmetic.pin(self.degrees[x], self._segments(x))

    def finish(self) -> None:
        """Takes back what was taken for an epsilon beside values that no leaf makes scale.

        A carry that starts as 0 has unknowns of its own. A clock, ``t += 1e-3``, would be free to
        have any degree if the 1e-3 were taken as 0: it is no epsilon.
        """
        again = True
        while again:
            again = False
            for t in self.taken:
                for cell, d in (t.degree or {}).items() if t.kind == "epsilon" else ():
                    again |= self._unless_of_leaves(cell, d, t)

    def _unless_of_leaves(self, cell: Cell, d: Components | None, t: Taken) -> bool:
        """Makes a cell not scale that scales, but not with any leaf; whether it did."""
        if not d:
            return False
        resolve, many = self.system.resolve, t.degree is not None and len(t.degree) > 1
        components = self.arithmetic.apart(cell, d, t.axes) if many else d
        forms = [f for f in map(resolve, components.values()) if f]
        if not forms or any(u not in self.system.own for f in forms for u in f):
            return False
        for form in forms:
            self.system.zero(form)
        return True

    def is_zero(self, x: Degree) -> bool:
        """Whether a degree is 0 throughout, in terms of what is free."""
        return not any(self.system.resolve(form) for d in x.values() if d for form in d.values())

    def _read(self, e: Equation, plan: Any) -> None:  # noqa: ANN401 - a plan of the first pass
        self.at = e, plan
        if plan is ZEROS:
            self._take("zeros", 0.0, e, None)
            return
        ins = [self.degrees[x] for x in e.ins if x in self.axes.of]
        if plan is PINNED:
            if e.op not in RULES and any(not self.is_zero(d) for d in ins):
                self.unhandled[e.name] = self.unhandled.get(e.name, 0) + 1
            self.pin(e.ins)
            out = None
        else:
            found = self._result(e, plan)
            out = found if e.out in self.axes.of else None
            if out is not None:
                self.degrees[e.out] = out
        if self._heard:
            self._heard(e, ins, out)

    def _result(self, e: Equation, plan: Any) -> Degree:  # noqa: ANN401 - a plan of the first pass
        if isinstance(plan, Plan):
            return self._by_law(e, plan)
        if isinstance(plan, Regrouped):
            return self._reshaped(e, plan)
        if isinstance(plan, Cut):
            return self._cut(e, plan)
        return self._joined(e, plan) if isinstance(plan, Joined) else self._padded(e, plan)

    def _segments(self, x: int) -> Callable[[], list[Segments]]:
        return lambda: self.axes.segments(x)

    def _counts(self, plan: Plan) -> list[int]:
        return [len(self.axes.indices.segments(a)) for a in plan.axes]

    def _constant(self, rank: int, *, every: bool = False) -> Degree:
        return {(0,) * rank: None if every else NOTHING}

    def _by_law(self, e: Equation, plan: Plan) -> Degree:
        law, counts = plan.law, None
        operands: list[Degree | None] = []
        for x, m in zip(e.ins, plan.maps, strict=True):
            if m is None:
                operands.append(None)
            elif m == SAME:
                operands.append(self.degrees[x])
            else:
                counts = counts or self._counts(plan)
                d = self.degrees[x]
                operands.append(self.arithmetic.moved(d, m, counts, self._segments(x)))
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
                    out = self.arithmetic.power(d, k)
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
        """The one degree of the operands at some places, constants set apart."""
        scaling = [d for d in operands if d is not None]
        segments = [self.axes.indices.segments(a) for a in plan.axes]
        guard = self.facts.is_guard(e) if len(e.ins) == 3 and plan.law.pinned == (0,) else None
        for place in places:
            x = e.ins[place]
            counted = plan.law.counts(place) and not self.facts.is_never_chosen(e, place)
            if counted and x not in self.axes.of and place not in plan.law.pinned:
                counts = place == guard and self._take(
                    "guard", self.facts.numbers[x] or 0.0, e, scaling, segments
                )
                if not counts and not self._set_apart(e, place, scaling, segments):
                    scaling = [*scaling, self._constant(len(plan.axes))]
        if not scaling:
            return self._constant(len(plan.axes), every=True)
        return self.arithmetic.agree(scaling, lambda: segments)

    def _set_apart(
        self, e: Equation, place: int, scaling: Sequence[Degree], segments: Sequence[Segments]
    ) -> bool:
        """Whether a constant among values that must agree stands for 0 or for infinity."""
        x = e.ins[place]
        flags, number = self.facts.flags[x], self.facts.numbers[x]
        if flags & EVERY:
            return self._take("zeros", 0.0, e, scaling, segments) if flags & NOW else True
        if number is None or not scaling:
            return False
        if flags & HUGE:
            return self._take("infinity", number, e, scaling, segments)
        if self.axes.epsilons.is_epsilon(e, place):
            return self._take("epsilon", number, e, scaling, segments)
        return False

    def _take(
        self,
        kind: str,
        value: float,
        e: Equation,
        scaling: Sequence[Degree] | None,
        segments: Sequence[Segments] = (),
    ) -> bool:
        """Records an approximation."""
        degree = scaling[0] if scaling else None
        if scaling is None or degree is not None:
            self.taken.append(Taken(kind, value, e, degree, segments))
        return True

    def _carried_in(self, e: Equation, plan: Plan, start: Degree | None) -> Degree:
        """The degree that a carry starts with; unknown where that is any."""
        segments = [self.axes.indices.segments(a) for a in plan.axes]
        out = self._constant(len(plan.axes), every=True) if start is None else start
        if None not in out.values():
            return out
        before, deep = len(self.system.atoms), len(self.tape.full_shape(e.ins[0]))
        own = self.arithmetic.leaf([*segments[:deep], *[((),)] * (len(segments) - deep)])
        self.system.own.update(range(before, len(self.system.atoms)))
        if len(out) > 1:
            out, own = (self.arithmetic.full(d, segments) for d in (out, own))
        out = {c: own[c] if d is None else d for c, d in out.items()}
        if self.facts.flags[e.ins[0]] & HUGE:
            self._take("infinity", self.facts.numbers[e.ins[0]] or 0.0, e, [out], segments)
        elif self.facts.flags[e.ins[0]] & NOW:
            self._take("zeros", 0.0, e, [out], segments)
        return out

    def _reshaped(self, e: Equation, plan: Regrouped) -> Degree:
        """Cells and components renamed: the atoms of the old axes, in order, are the new ones'."""
        x = e.ins[0]
        old, new = self.axes.of[x], self.axes.of[e.out]
        d, groups = self.degrees[x], plan.groups
        if all(len(a) == len(b) == 1 and old[a[0]] is new[b[0]] for a, b in groups):
            counts = [len(self.axes.indices.segments(a)) for a in new]
            to = {a[0]: b[0] for a, b in groups}
            return self.arithmetic.moved(d, to, counts, self._segments(x))
        inside, outside = self.axes.segments(x), self.axes.segments(e.out)
        kept = {q for a, _ in groups for q in a}
        if len(kept) < len(old):
            counts = [len(s) if q in kept else 1 for q, s in enumerate(inside)]
            to = {q: q for q in kept}
            d = self.arithmetic.moved(d, to, counts, self._segments(x))
        if len(d) == 1 and not any(d.values()):
            return dict.fromkeys([(0,) * len(new)], *d.values())
        d = self.arithmetic.full(d, [s if q in kept else ((),) for q, s in enumerate(inside)])
        out = renamed(d, groups, inside, outside)
        reached = {q for _, b in groups for q in b}
        counts = [len(s) for s in outside]
        return spread(out, counts, [q for q in range(len(new)) if q not in reached])

    def _cut(self, e: Equation, plan: Cut) -> Degree:
        x = e.ins[0]
        inside, d = self.axes.segments(x), self.degrees[x]
        bounds = [*plan.bounds, *[(0, a.size) for a in self.axes.of[x][len(plan.bounds) :]]]
        flat = [q for q, b in enumerate(bounds) if b is None]
        if flat:
            counts = [1 if q in flat else len(s) for q, s in enumerate(inside)]
            to = {q: q for q in range(len(inside)) if q not in flat}
            d = self.arithmetic.moved(d, to, counts, self._segments(x))
        inside = [((),) if q in flat else s for q, s in enumerate(inside)]
        d = self.arithmetic.full(d, inside)
        kept = [
            {0: 0} if b is None else between(s, *b) for s, b in zip(inside, bounds, strict=True)
        ]
        out: Degree = {
            tuple(m[t] for m, t in zip(kept, c, strict=True)): components
            for c, components in d.items()
            if all(t in m for m, t in zip(kept, c, strict=True))
        }
        counts = [len(s) for s in self.axes.segments(e.out)]
        return spread(out, counts, flat)

    def _joined(self, e: Equation, plan: Joined) -> Degree:
        axis, axes = plan.axis, self.axes.of[e.out]
        counts = [len(self.axes.indices.segments(a)) for a in axes]
        segments = self.axes.segments(e.out)
        out: Degree = {}
        at = 0
        parts = [self.degrees[x] for x in e.ins if x in self.axes.of]
        for place, (x, piece) in enumerate(zip(e.ins, plan.pieces, strict=True)):
            if not piece.size:
                continue
            own = self.axes.indices.segments(piece)
            mine = [*counts[:axis], len(own), *counts[axis + 1 :]]
            if x in self.axes.of:
                to = {q: q for q in range(len(mine)) if q not in plan.flat}
                d = self.arithmetic.moved(self.degrees[x], to, mine, self._segments(x))
            else:
                apart = self._set_apart(e, place, parts, segments)
                d = self._constant(len(mine), every=apart)
            d = self.arithmetic.full(d, [*segments[:axis], own, *segments[axis + 1 :]])
            out.update(((*c[:axis], c[axis] + at, *c[axis + 1 :]), f) for c, f in d.items())
            at += len(own)
        return out

    def _padded(self, e: Equation, plan: Padded) -> Degree:
        x, value = e.ins
        d = self.arithmetic.full(self.degrees[x], self.axes.segments(x))
        if self.facts.flags[value] & (HUGE | NOW):
            self._set_apart(e, 1, [self.degrees[x]], self.axes.segments(x))
        before = [
            len(self.axes.indices.segments(pieces[0])) if first else 0
            for pieces, first in plan.pieces
        ]
        before += [0] * (len(self.axes.of[e.out]) - len(before))
        every = self._constant(len(before), every=True)
        out = self.arithmetic.full(every, self.axes.segments(e.out))
        out.update((tuple(t + b for t, b in zip(c, before, strict=True)), f) for c, f in d.items())
        return out
