"""One loop over the tape: the change of each value, and what may be added without any effect.

A leaf is *dead* if no output changes, whatever is added to it: exactly, in real arithmetic. A leaf
of shape ``(4, 10)`` may be *shifted along* axis 1 if none changes when ``d[:, None]`` is added,
whatever the four numbers ``d`` are: so it is with the kernel of logits that only a softmax reads.
All is added at once. Where an operation leaves a change constant along no axis, the leaves that it
comes from are *lost*: they matter, for all that is known, and nothing is added to them any more.
What is lost nowhere, and reaches no output, has no effect.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple

from optax_bnmask import compat
from optax_bnmask.program.flags import HUGE
from optax_bnmask.program.flatness import Flatness
from optax_bnmask.program.maps import operand_map
from optax_bnmask.program.registry import Kind, Law, Map
from optax_bnmask.program.shifts.changes import (
    Changes,
    Perturbation,
    Source,
    Term,
    alive,
    constant_along,
    is_any,
    lost,
    starts_of,
    varies,
    varying,
)
from optax_bnmask.program.tape import CARRY, Equation

Shifting = Callable[["Shifts", Equation], "Changes | None"]
"""How the result of an equation changes with its operands; `None` if it does not."""

LAWS: Final[dict[Any, Shifting]] = {}
"""By primitive, `Op` of the tape, or kind, in this order; filled on import, and never after."""

_FILL: Final = -1e4
"""Masks of weights are filled with such a number, or one farther below."""


class Approximation(NamedTuple):
    """A huge number taken as infinite, which no addition changes.

    Attributes:
      number: The number.
      equation: Where.
      sources: What is added to the values beside it.
    """

    number: float
    equation: Equation
    sources: tuple[Source, ...]


class Shifts:
    """The changes of the values of a tape.

    Attributes:
      facts: What is known of the values.
      tape: The tape.
      flat: The axes along which they do not vary.
      changes: The change of each value that changes.
      means: For a value ``c * mean(x)``: ``{term: c}``, with the term of the change of
        ``mean(x)**2``.
      pure: The values that are computed from leaves alone.
      cancelled: Where changes cancelled, and their sources.
      taken: Numbers taken as infinite.
      views: For a source and what is done to it: it, and the source that comes of it.
      source: For each start that is not lost, its source.
      carries: For each carry, the starts that change it in some iteration, and for each axis
        whether it changes by the same along it.
      unsettled: Whether a carry has changed by more than the loop was read with.
    """

    def __init__(self, flat: Flatness, starts: Iterable[Perturbation]) -> None:
        """Reads the tape.

        Args:
          flat: What is known of its values.
          starts: What to add to leaves.
        """
        self.flat, self.facts, self.tape = flat, flat.facts, flat.facts.tape
        self.carries: dict[int, tuple[set[Perturbation], list[bool]]] = {}
        self._starts = list(starts)
        self._lost = set[Perturbation]()
        self._laws: dict[Any, Shifting] = {}
        self.unsettled = True
        while self.unsettled:
            self._read_all()

    @property
    def harmless(self) -> list[Perturbation]:
        """What may be added without any effect, in the order in which it was given."""
        return [start for start in self._starts if start not in self._lost]

    @property
    def dead(self) -> list[int]:
        """The leaves to which anything may be added."""
        return [x for x, axis in self.harmless if axis is None]

    def _read_all(self) -> None:
        self.unsettled = False
        self.changes: dict[int, Changes] = {}
        self.means: dict[int, Changes] = {}
        self.pure = set(self.facts.leaves)
        self.cancelled: list[tuple[Equation, list[Source]]] = []
        self.taken: list[Approximation] = []
        self._squares: dict[tuple[int, frozenset[int]], Source] = {}
        self.views: dict[Any, tuple[Source, Source | None]] = {}
        self.source = {start: Source(start=start) for start in self.harmless}
        for (x, axis), source in self.source.items():
            shape = self.tape.shapes[x]
            places = varying([a == axis for a in range(len(shape))], shape)
            self.changes.setdefault(x, {})[source, places] = 1
        changes, carries = self.changes, self.carries
        for e in self.tape.equations:
            for x in e.ins:
                if x in changes:
                    self._read(e)
                    break
            else:
                if e.op is CARRY and e.out in carries:
                    self._read(e)
        for x in self.tape.outs:
            self.lose(self.of(x))

    def _read(self, e: Equation) -> None:
        """Finds the change of an equation's result, if an operand has a change that is not lost."""
        changes, pure = self.changes, self.pure
        is_met, is_pure = e.op is CARRY, True
        for x in e.ins:
            is_pure = is_pure and (x in pure or x in self.tape.literals)
            if x in changes:
                if found := alive(changes[x]):
                    changes[x], is_met = found, True
                else:
                    del changes[x]
        if not is_met:
            return
        if is_pure:
            pure.add(e.out)
        if e.op not in self._laws:
            self._laws[e.op] = LAWS.get(e.op) or LAWS.get(e.kind) or losing
        if new := self._laws[e.op](self, e):
            changes[e.out] = new

    def of(self, x: int) -> Changes:
        """The change of a value: no terms if there is none."""
        return self.changes.get(x, {})

    def along(self, x: int, out: int) -> Changes:
        """The change of an operand along the axes of a result that is computed entry by entry."""
        changes, tape = self.of(x), self.tape
        shown, wide = len(tape.shapes[x]), len(tape.shapes[out])
        if not changes or shown == wide:
            return changes
        if shown:
            self.lose(changes)
            return {}
        return {(s, (None,) * wide + places): c for (s, places), c in changes.items()}

    def to(self, e: Equation, k: int, law: Law) -> Map:
        """Which axis of an operand is which of the result of an equation of that law."""
        return operand_map(self.tape, e, k, law.map_of(k))

    def lose(self, terms: Iterable[Term]) -> None:
        """Marks the sources of a change as lost."""
        self._lost |= lost(source for source, _ in terms)

    def fresh(
        self,
        e: Equation,
        sources: Sequence[Source],
        constant: Sequence[bool],
        *,
        may_cancel: bool = False,
    ) -> Changes:
        """A change by a new source, made of `sources`, that is constant along some axes.

        If there are none, and the value depends on data, the sources are lost and there is no
        change, unless it `may_cancel`. This keeps changes short.
        """
        shape = self.tape.full[e.out]
        if may_cancel or e.out in self.pure or is_any(constant, shape):
            return {(Source(sources), varying(constant, shape)): 1}
        self._lost |= lost(sources)
        return {}

    def view(
        self,
        e: Equation,
        source: Source,
        key: Any,  # noqa: ANN401 - what is hashable
        constant: Sequence[bool],
        *,
        may_cancel: bool = False,
    ) -> Source | None:
        """The source that comes of a source by what `key` names: the same one each time.

        Args:
          e: The equation.
          source: What the operand changes by.
          key: What is done to it.
          constant: Along which axes the result changes by the same.
          may_cancel: Whether it is kept even if that is along none.

        Returns:
          The source; `None` if it is given up.
        """
        seen = id(source), key
        if seen not in self.views:
            made = self.fresh(e, [source], constant, may_cancel=may_cancel)
            self.views[seen] = source, next((new for new, _ in made), None)
        found = self.views[seen][1]
        return found if found and found.is_alive() else None

    def fresh_for_each(
        self, e: Equation, terms: Iterable[Term], of: Callable[[list[bool]], Sequence[bool]]
    ) -> Changes:
        """A `fresh` change for all terms that are constant along the same axes.

        `of` takes whether a term is constant along each axis of the operand to those of the result.
        """
        groups: dict[tuple[bool, ...], list[Source]] = {}
        for source, places in terms:
            groups.setdefault(tuple(of(constant_along(places))), []).append(source)
        out: Changes = {}
        for constant, sources in groups.items():
            out |= self.fresh(e, sources, constant)
        return out

    def fresh_by(self, e: Equation, terms: Iterable[Term], to: Map) -> Changes:
        """A `fresh` change of terms of an operand, constant along its axes, which are `to`'s.

        Along an axis of the result that is none of the operand's, it is not constant.
        """
        back, rank = {q: a for a, q in to.items()}, range(len(self.tape.full[e.out]))
        return self.fresh_for_each(e, terms, lambda c: [q in back and c[back[q]] for q in rank])

    def hand_on(self, x: int, changes: Changes) -> bool:
        """Records that a carry changes by these, too; whether that is new."""
        starts, constant = self.carries.setdefault(x, (set(), [True] * len(self.tape.full[x])))
        new = starts_of(source for source, _ in changes) - starts - self._lost
        less = [a for a, c in enumerate(constant) if c and any(varies(t, (a,)) for t in changes)]
        starts |= new
        for a in less:
            constant[a] = False
        return bool(new or less)

    def square(self, x: int, over: frozenset[int]) -> Source:
        """The source of the change of ``mean(x, over)**2``."""
        key = x, over
        if key not in self._squares:
            self._squares[key] = Source([source for source, _ in self.of(x)], square=key)
        return self._squares[key]

    def is_infinite(self, e: Equation, x: int, beside: Iterable[Changes]) -> bool:
        """Whether a value stays as it is whatever is added to it, as what masks are filled with."""
        number = self.flat.number(x)
        if number is None:
            return False
        if self.facts.flags[x] & HUGE or (-math.inf < number <= _FILL and self.is_weighed(e.out)):
            sources = tuple(source for changes in beside for source, _ in changes)
            self.taken.append(Approximation(number, e, sources))
            return True
        return not math.isfinite(number)

    def is_weighed(self, x: int) -> bool:
        """Whether a value is read for nothing but ``exp(x - max(x))``, as in a softmax.

        Of a number far below the others that is 0, whatever is added to it. The maximum must be
        read for nothing else: in a row of such numbers it is one of them.
        """
        values, maxima = [x], set[int]()
        for y in values:  # which grow
            if y in self.tape.outs:
                return False
            for e in self.tape.readers.get(y, ()):
                name = getattr(e.op, "name", "")
                less = name == "sub" and e.ins[0] in values and e.ins[0] not in maxima
                if e.kind in (Kind.VIEW, Kind.CAST) or name == "stop_gradient":
                    maxima.update([e.out] if y in maxima else [])
                elif name == "reduce_max" or (name == "max" and y in maxima):
                    maxima.add(e.out)
                elif less and (y in maxima or e.ins[0] == y):
                    pass
                elif y in maxima or name not in ("exp", "argmax"):
                    return False
                else:
                    continue
                values.append(e.out)
        return True

    def cancels(self, e: Equation, sources: Iterable[Source]) -> None:
        """Records where changes cancelled."""
        if gone := list(sources):
            self.cancelled.append((e, gone))

    def assumed(self) -> list[Approximation]:
        """The numbers taken as infinite beside values that change by something harmless."""
        harmless = set(self.harmless)
        return [t for t in self.taken if not harmless.isdisjoint(starts_of(t.sources))]


def losing(shifts: Shifts, e: Equation) -> None:
    """The law of what has no other: all that changes its operands is lost."""
    for x in e.ins:
        shifts.lose(shifts.of(x))


def shifting(*keys: Any) -> Callable[[Shifting], Shifting]:  # noqa: ANN401 - see below
    """Registers a law for primitives by JAX's attribute names, operations of the tape, or kinds."""

    def register(law: Shifting) -> Shifting:
        for key in keys:
            found = compat.primitive(key) if isinstance(key, str) else key
            if found is not None:
                LAWS[found] = law
        return law

    return register
