"""The chain of operations from a leaf to where its scale cancels, or to where it is pinned.

A third reading of the same rules: the leaf is scaled, with the leaves that its symmetry scales too,
and every value has a plain number for a degree. Where the rules demand what does not hold, the
chain ends.
"""

import dataclasses
from collections.abc import Hashable, Mapping, Sequence

from optax_bnmask.program.cones import Vector
from optax_bnmask.program.context import Eqn, Site
from optax_bnmask.program.degree import ANY, ZERO, Degree
from optax_bnmask.program.forms import Form, Profile
from optax_bnmask.program.interpreter import walk
from optax_bnmask.program.layout import Layouts
from optax_bnmask.program.symmetries import Symmetries
from optax_bnmask.program.trace import Program
from optax_bnmask.program.unknowns import Unknowns

_SHOWN = 8
"""At most so many operations are shown at either end of a chain."""

_POWER = 0
"""The one unknown: the power of the common factor."""


@dataclasses.dataclass(frozen=True, slots=True)
class Explainer:
    """What an analysis by program can still be asked.

    Attributes:
      program: The traced function.
      found: Its symmetries.
      biases: For each leaf, the biases added to its own output.
    """

    program: Program
    found: Symmetries
    biases: Sequence[Sequence[int]]

    def witness(self, path: str) -> Mapping[str, object]:
        """The symmetry that scales a leaf: the exponent of every leaf that it scales.

        Args:
          path: The canonical path of a leaf.

        Returns:
          Exponents by path; empty if there is no such symmetry with exponents >= 0.
        """
        exponents, _ = self._direction(self.program.paths.index(path))
        return {self.program.paths[i]: c for i, c in exponents.items()}

    def explain(self, path: str) -> str:
        """The chain of operations from the leaf to where its scale cancels or is pinned.

        Args:
          path: The canonical path of a leaf.

        Returns:
          Lines of text.
        """
        number = self.program.paths.index(path)
        if not self.program.live[number]:
            return f"{path}: no output depends on it."
        exponents, is_symmetry = self._direction(number)
        if not is_symmetry:
            exponents = dict.fromkeys((number, *self.biases[number]), 1)
        follow = _Follow()
        ins = [
            Degree({_POWER: exponents[i]}) if i in exponents else ZERO for i in self.program.inputs
        ]
        try:
            outs = walk(follow, self.program.jaxpr, ins, self.program.consts)
            follow.end(outs)
        except _Stopped as stopped:
            follow.steps.append(str(stopped))
        others = [self.program.paths[i] for i in exponents if i != number]
        head = f"{path} times c" + (f", together with {_some(others)}" if others else "")
        return "\n".join([f"{head}:", *_shortened(follow.steps)])

    def _direction(self, number: int) -> tuple[Vector, bool]:
        """The exponents of the symmetry that scales a leaf, if there is one."""
        if number in self.found.witness:
            return self.found.witness[number], True
        group = self.found.group[number]
        if group is not None and number in self.found.cone:
            inside = self.found.groups[group]
            return {i: c for i, c in self.found.cone.items() if i in inside}, True
        return {}, False


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown


def _shortened(steps: Sequence[str]) -> list[str]:
    lines = [f"  {step}" for step in dict.fromkeys(steps)]
    if len(lines) <= 2 * _SHOWN + 1:
        return lines
    middle = f"  ... {len(lines) - 2 * _SHOWN} more operations ..."
    return [*lines[:_SHOWN], middle, *lines[-_SHOWN:]]


class _Stopped(Exception):  # noqa: N818 - no error: the chain ends here
    """The rules demand what does not hold for these exponents."""


class _Follow:
    """The reading in which every degree is a number.

    Attributes:
      steps: What was met on the way, a line each.
    """

    def __init__(self) -> None:
        self.unknowns = Unknowns()
        self.unknowns.scalar()
        self.layouts = Layouts(self.unknowns, self._level_of)
        self.hidden: dict[int, int] = {}
        self.devices: dict[Hashable, int] = {}
        self.literals: dict[int, Degree] = {}
        self.calls: list[Eqn] = []
        self.steps: list[str] = []

    def _level_of(self, profile: Profile) -> Form:
        forms = [form for _, form in profile if form is not None]
        if any(form != forms[0] for form in forms):
            raise _Stopped("parts of one array that scale differently are mixed there: pinned")
        return forms[0] if forms else {}

    def _stop(self, eqn: Eqn, what: str) -> _Stopped:
        return _Stopped(f"{_name(eqn)} {what}: pinned, at {Site(eqn, tuple(self.calls))}")

    def agree(self, eqn: Eqn, degrees: Sequence[Degree]) -> Degree:
        """The common degree, or the end of the chain."""
        result = ANY
        for d in degrees:
            if d.level is None:
                continue
            if result.level is not None and (d.level, d.along) != (result.level, result.along):
                powers = " and ".join(_power(x) for x in degrees if x.level is not None)
                raise self._stop(eqn, f"joins values that scale by {powers}")
            result = d
        return result.bare()

    def pin(self, eqn: Eqn, degrees: Sequence[Degree]) -> Degree:
        """The end of the chain, unless nothing scales."""
        if any(not d.is_zero and not d.is_any for d in degrees):
            raise self._stop(eqn, "is not homogeneous in a value that scales")
        return ZERO

    def end(self, outs: Sequence[Degree]) -> None:
        """The outputs: that they scale is the end as well."""
        if any(not d.is_zero and not d.is_any for d in outs):
            raise _Stopped(f"an output scales by {_power(outs[0])}")
        self.steps.append("no output scales")

    def looked_up(self, eqn: Eqn, d: Degree) -> Degree:
        """A row of a table scales like the table."""
        del eqn
        return d

    def closed_over(self, d: Degree, value: object) -> Degree:
        """Constants do not scale."""
        del value
        return d

    def carried(self, eqn: Eqn, start: Degree, *, scales: bool) -> Degree:
        """What a loop carries scales in it as at its start."""
        del eqn
        return start.bare() if scales else ZERO

    def free(self) -> Degree:
        """Nothing is unknown here."""
        return ZERO

    def shift(self, a: Degree, b: Degree) -> Form:
        """The difference, a number."""
        power = (a.level or {}).get(_POWER, 0) - (b.level or {}).get(_POWER, 0)
        return {_POWER: power} if power else {}

    def assume(self, kind: str, value: float, eqn: Eqn, d: Degree) -> None:
        """The analysis has recorded these."""
        del kind, value, eqn, d

    def unruled(self, eqn: Eqn) -> None:
        """The analysis has counted these."""
        del eqn

    def note(self, kind: str, eqn: Eqn, ins: Sequence[Degree], outs: list[Degree]) -> list[Degree]:
        """One more step, if it changes how the value scales, or joins values that do."""
        scaling = [d for d in ins if not d.is_zero and not d.is_any]
        ends = all(d.is_zero or d.is_any for d in outs)
        same = len(scaling) == 1 and not ends and outs[0].level == scaling[0].level
        if scaling and (kind in ("contraction", "lookup") or not same):
            what = "here the scale cancels" if ends else f"scales by {_power(outs[0])}"
            self.steps.append(f"{_name(eqn)}: {what}, at {Site(eqn, tuple(self.calls))}")
        return outs


def _name(eqn: Eqn) -> str:
    return "the output" if eqn is None else str(eqn.primitive.name)


def _power(d: Degree) -> str:
    if d.along:
        return "different powers of c"
    power = (d.level or {}).get(_POWER, 0)
    return "nothing" if not power else "c" if power == 1 else f"c**{power}"
