"""What the rules ask of whoever reads a program, and the reading that solves for symmetries.

The rules are written once, against a `Context` that says what "agree" and "pin" do. `Symmetry`
imposes equations; `optax_bnmask.program.roles.Local` imposes nothing and looks at how leaves meet
data.
"""

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple, Protocol

from optax_bnmask import compat
from optax_bnmask.program.degree import ANY, ZERO, Degree, Key
from optax_bnmask.program.forms import NOTHING, Form, Profile, plus
from optax_bnmask.program.layout import Layouts
from optax_bnmask.program.unknowns import Unknowns

Eqn = Any
"""An equation of a jaxpr; JAX keeps the type private."""


class Site(NamedTuple):
    """An equation and the calls that it is nested in, outermost first."""

    eqn: Eqn
    calls: tuple[Eqn, ...]

    def __str__(self) -> str:
        """The user's file and line."""
        return compat.location(self.eqn, self.calls)


class Context(Protocol):
    """One way to read a program."""

    layouts: Layouts
    unknowns: Unknowns
    hidden: dict[int, int]
    devices: dict[Hashable, int]
    literals: dict[int, Degree]
    calls: list[Eqn]

    def agree(self, eqn: Eqn, degrees: Sequence[Degree]) -> Degree:
        """The degree of a value that is one of several, or their sum."""
        ...

    def pin(self, eqn: Eqn, degrees: Sequence[Degree]) -> Degree:
        """The degree of a value that no power of its arguments' scale can be taken out of."""
        ...

    def looked_up(self, eqn: Eqn, d: Degree) -> Degree:
        """The degree of rows looked up in a table of degree `d`."""
        ...

    def closed_over(self, d: Degree, value: object) -> Degree:
        """The degree of an array that the program is closed over; `d`, if it is a mere constant."""
        ...

    def free(self) -> Degree:
        """A degree of which nothing is known yet."""
        ...

    def carried(self, eqn: Eqn, start: Degree, *, scales: bool) -> Degree:
        """The degree, within a loop, of what it carries, from that at its start."""
        ...

    def shift(self, a: Degree, b: Degree) -> Form:
        """The number by which `a` exceeds `b`; what else they differ by must vanish."""
        ...

    def assume(self, kind: str, value: float, eqn: Eqn, d: Degree) -> None:
        """Records an approximation made for a value of degree `d`."""
        ...

    def unruled(self, eqn: Eqn) -> None:
        """Records a primitive without a rule."""
        ...

    def note(self, kind: str, eqn: Eqn, ins: Sequence[Degree], outs: list[Degree]) -> list[Degree]:
        """Lets the reading remember what it wants of an equation of that kind."""
        ...


class Symmetry:
    """The reading that imposes every equation, so that what remains free are the symmetries.

    Attributes:
      unknowns: The exponents, solved as far as the program read so far demands.
      layouts: The arithmetic of degrees over them.
      hidden: The lengths of the axes that values do not show, by their negative names: those of
        loops, and those of meshes.
      devices: Which of these an axis of the mesh is, by its own name.
      assumptions: ``(kind, constant, site, degree)`` of every approximation made.
      unhandled: How often each primitive without a rule was met with a degree.
    """

    def __init__(self, unknowns: Unknowns) -> None:
        self.unknowns = unknowns
        self.layouts = Layouts(unknowns, unknowns.flattened)
        self.literals: dict[int, Degree] = {}
        self.calls: list[Eqn] = []
        self.hidden: dict[int, int] = {}
        self.devices: dict[Hashable, int] = {}
        self.assumptions: list[tuple[str, float, Site, Degree]] = []
        self.unhandled: dict[str, int] = {}

    def agree(self, eqn: Eqn, degrees: Sequence[Degree]) -> Degree:
        """Imposes that all degrees are equal; constants of every degree go along."""
        result = ANY
        for d in degrees:
            if d.level is None:
                continue
            if result.level is None:
                result = d
            elif d.along or result.along:
                result = self._agree(result, d)
            elif d.level != result.level:
                self.unknowns.equate_to_zero(plus(d.level, result.level, -1))
        del eqn
        return result.bare()

    def _agree(self, a: Degree, b: Degree) -> Degree:
        """Imposes ``a = b`` at every index where both are defined; the union of the two."""
        a, b = self.layouts.onto_common_keys(self.layouts.resolved(a), self.layouts.resolved(b))
        gap, aligned = self._gap(a, b)
        if not aligned:  # once resolved, they turned out to be numbers
            self.unknowns.equate_to_zero(gap)
        along: dict[Key, Profile] = {}
        levels = dict[Key, Form]()
        for place, (key, pieces) in enumerate(aligned):
            diffs = [(n, plus(f, g, -1)) for n, f, g in pieces if f is not None and g is not None]
            if place == len(aligned) - 1:
                for n, diff in diffs:
                    self.unknowns.equate_along_to_zero(n, plus(diff, gap))
                levels[key] = plus(NOTHING, gap, -1)
            else:
                levels[key] = self._level_of(diffs)
                gap = plus(gap, levels[key])
            by = levels[key]
            along[key] = [
                (n, f if f is not None else None if g is None else plus(g, by))
                for n, f, g in pieces
            ]
        return self.layouts.tidy(a.level or NOTHING, along)

    def _gap(
        self, a: Degree, b: Degree
    ) -> tuple[Form, list[tuple[Key, list[tuple[int, Form | None, Form | None]]]]]:
        """The difference of the levels, and the profiles side by side, those apart last."""
        gap = plus(a.level or NOTHING, b.level or NOTHING, -1)
        aligned = []
        for key in dict.fromkeys((*a.along, *b.along)):
            other = a.along.get(key) or b.along[key]
            length = sum(n for n, _ in other)
            blank: Profile = [(length, NOTHING)]
            pieces = self.unknowns.aligned(a.along.get(key, blank), b.along.get(key, blank))
            aligned.append((key, pieces))
        aligned.sort(key=lambda item: all(f is None or g is None for _, f, g in item[1]))
        return gap, aligned

    def _level_of(self, diffs: Sequence[tuple[int, Form]]) -> Form:
        """The one number that all differences are made to be."""
        if not diffs:
            return NOTHING
        return self.unknowns.flattened(list(diffs))

    def shift(self, a: Degree, b: Degree) -> Form:
        """Imposes that `a` and `b` differ by a number only, and returns it."""
        if not a.along and not b.along:
            return plus(a.level or NOTHING, b.level or NOTHING, -1)
        a, b = self.layouts.onto_common_keys(self.layouts.resolved(a), self.layouts.resolved(b))
        gap, aligned = self._gap(a, b)
        for _, pieces in aligned:
            diffs = [(n, plus(f, g, -1)) for n, f, g in pieces if f is not None and g is not None]
            gap = plus(gap, self._level_of(diffs))
        return gap

    def pin(self, eqn: Eqn, degrees: Sequence[Degree]) -> Degree:
        """Imposes degree 0 on every operand."""
        del eqn
        for d in degrees:
            if d.level is None or (not d.level and not d.along):
                continue
            if len(d.along) == 1:
                (profile,) = d.along.values()
                for n, form in profile:
                    if form is not None:
                        self.unknowns.equate_along_to_zero(n, plus(form, d.level))
            else:
                self.unknowns.equate_to_zero(self.layouts.level(self.layouts.resolved(d)))
        return ZERO

    def looked_up(self, eqn: Eqn, d: Degree) -> Degree:
        """A row of a table scales like the table."""
        del eqn
        return d

    def closed_over(self, d: Degree, value: object) -> Degree:
        """Constants do not scale."""
        del value
        return d

    def carried(self, eqn: Eqn, start: Degree, *, scales: bool) -> Degree:
        """One unknown degree for all iterations, so that no fixpoint need be found."""
        if not scales or start.is_zero:
            return ZERO
        return self.agree(eqn, (self.free(), start))

    def free(self) -> Degree:
        """A degree with an unknown of its own."""
        return Degree({self.unknowns.scalar(): 1})

    def assume(self, kind: str, value: float, eqn: Eqn, d: Degree) -> None:
        """Records an approximation."""
        if not d.is_zero:
            self.assumptions.append((kind, value, Site(eqn, tuple(self.calls)), d))

    def unruled(self, eqn: Eqn) -> None:
        """Counts a primitive without a rule."""
        name = str(eqn.primitive)
        self.unhandled[name] = self.unhandled.get(name, 0) + 1

    def note(self, kind: str, eqn: Eqn, ins: Sequence[Degree], outs: list[Degree]) -> list[Degree]:
        """This reading remembers nothing beside the degrees."""
        del kind, eqn, ins
        return outs
