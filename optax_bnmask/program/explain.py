"""The chain of operations from a leaf to where its scale cancels, or to where it is pinned.

The second pass once more, with a number for every exponent: the leaf is scaled, with the leaves
that its symmetry scales too, and where an equation does not hold, the chain ends.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from fractions import Fraction

from optax_bnmask.program.cones import Vector
from optax_bnmask.program.demands import Axes, Plan
from optax_bnmask.program.equations import Form, System
from optax_bnmask.program.exponents import Degree
from optax_bnmask.program.facts import Facts
from optax_bnmask.program.registry import AGREE, Kind
from optax_bnmask.program.running import Running
from optax_bnmask.program.shifts import Shifts
from optax_bnmask.program.shifts.candidates import Candidates
from optax_bnmask.program.solve import Solution
from optax_bnmask.program.symmetries import Symmetries
from optax_bnmask.program.tape import Equation, Tape
from optax_bnmask.program.trace import Program
from optax_bnmask.program.uses.reading import uses
from optax_bnmask.vocabulary import Cancellation

_SHOWN = 8
"""At most so many operations are shown at either end of a chain."""

DIFFERENT = "different powers of c"

_POWER = 0
"""The one unknown: the power of the common factor."""


@dataclasses.dataclass(frozen=True)
class Explainer:
    """Answers further questions about an analysed program: shift axes, witnesses, chains.

    Attributes:
      program: The traced function.
      found: Its symmetries.
      biases: For each leaf, the biases added to its own output.
      dead: For each leaf whose value does not matter, why.
      zero_centred: The leaves to which the program adds a constant before it uses them, ``1 + p``.
      running: The normalisers whose running statistics it reads.
    """

    program: Program
    found: Symmetries
    biases: Sequence[Sequence[int]]
    dead: Mapping[int, Cancellation]
    zero_centred: frozenset[int]
    running: tuple[Running, ...]

    @functools.cached_property
    def axes(self) -> Axes:
        """The axes of its values, found once more: an analysis that nobody asks keeps no tape."""
        tape = Tape(self.program)
        return Axes(Facts(tape, zeros=[x for x, i in tape.leaves.items() if i in self.dead]))

    @functools.cached_property
    def shift_axes(self) -> dict[str, tuple[int, ...]]:
        """By path, the axes along which the same may be added to a leaf, and no output changes."""
        tape = Tape(self.program)
        facts = Facts(tape)
        read = uses(facts, self.program.inputs, self.program.shapes)
        dead = [x for x, i in tape.leaves.items() if i in self.dead]
        found: dict[str, tuple[int, ...]] = {}
        for starts in Candidates(facts, read, read.flat).along_axes(dead):
            for x, axis in Shifts(read.flat, starts).harmless:
                path = self.program.paths[tape.leaves[x]]
                found[path] = tuple(sorted({*found.get(path, ()), axis or 0}))
        return dict(sorted(found.items()))

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
        tape = self.axes.tape
        if not tape.live[tape.ins[self.program.inputs.index(number)]]:
            return f"{path}: no output depends on it."
        if number in self.dead:
            return f"{path} plus anything:\n  no output changes: {self.dead[number]}"
        exponents, is_symmetry = self._direction(number)
        if not is_symmetry:
            exponents: Vector = dict.fromkeys((number, *self.biases[number]), 1)
        steps = _followed(self.axes, self.program, exponents)
        own, names = exponents[number], self.program.paths
        others = [
            names[i] if c == own else f"{names[i]} times {_power(c)}"
            for i, c in exponents.items()
            if i != number
        ]
        more = f", together with {_some(others)}" if others else ""
        head = f"{path} times {_power(own)}{more}"
        return "\n".join([f"{head}:", *_shortened(steps)])

    def _direction(self, number: int) -> tuple[Vector, bool]:
        """The exponents of a symmetry that scales a leaf, and whether there is one."""
        if number in self.found.witness:
            return self.found.witness[number], True
        group = self.found.group[number]
        if group is not None and number in self.found.cone:
            inside = self.found.groups[group]
            return {i: c for i, c in self.found.cone.items() if i in inside}, True
        return {}, False


def _followed(axes: Axes, program: Program, exponents: Vector) -> list[str]:
    """A line for each step of the chain."""
    tape, numbers = axes.tape, _Numbers()
    steps = _Steps(numbers)
    leaves: dict[int, Degree] = {}
    for x, i in zip(tape.ins, program.inputs, strict=True):
        if x in axes.of:
            form: Form = {_POWER: exponents[i]} if i in exponents else {}
            leaves[x] = {(0,) * len(axes.of[x]): {(): form} if form else {}}
    solution = Solution(axes, leaves, numbers, steps.note)
    try:
        solution.read(tape.outs)
    except _Unequal:
        return [*steps.lines, _end(solution, numbers)]
    for x in tape.outs:
        try:
            solution.pin([x])
        except _Unequal:
            return [*steps.lines, f"an output scales by {numbers.power(solution.degrees[x])}"]
    return [*steps.lines, "no output scales"]


def _end(solution: Solution, numbers: "_Numbers") -> str:
    """Why the equation at which a reading stopped does not hold."""
    if solution.at is None:
        return "pinned"
    e, plan = solution.at
    powers = [numbers.power(solution.degrees[x]) for x in e.ins if x in solution.axes.of]
    if DIFFERENT in powers:
        return f"{e.name} mixes parts of one array that scale differently: pinned, at {e.where}"
    if isinstance(plan, Plan) and plan.law.powers is AGREE:
        powers += ["nothing"] * (len(e.ins) - len(plan.law.pinned) - len(powers))
        return f"{e.name} joins values that scale by {' and '.join(powers)}: pinned, at {e.where}"
    return f"{e.name} is not homogeneous in a value that scales: pinned, at {e.where}"


class _Unequal(Exception):  # noqa: N818 - no error: an equation that does not hold for these numbers
    """An equation between exponents does not hold."""


class _Numbers(System):
    """The system in which the exponents of leaves are numbers: powers of the common factor."""

    def __init__(self) -> None:
        super().__init__()
        self.unknown()

    def zero(self, form: Form) -> None:
        """Fails if the form is a power other than 0; else solves for an unknown of a carry."""
        form = self.resolve(form)
        if form.keys() == {_POWER}:
            raise _Unequal
        super().zero(form)

    def power(self, x: Degree) -> str:
        """A degree in words."""
        powers = {self.resolve((d or {}).get((), {})).get(_POWER, 0) for d in x.values()}
        if len(powers) > 1:
            return DIFFERENT
        (power,) = powers
        return "nothing" if not power else "c" if power == 1 else f"c**{power}"

    def scales(self, x: Degree) -> bool:
        """Whether a degree is not 0 throughout."""
        return any(self.resolve(form) for d in x.values() if d for form in d.values())


class _Steps:
    """The lines of a chain, one for each operation worth a line."""

    def __init__(self, numbers: _Numbers) -> None:
        self.numbers = numbers
        self.lines: list[str] = []

    def note(self, e: Equation, ins: Sequence[Degree], out: Degree | None) -> None:
        """One more step, if it changes how the value scales, or joins values that do."""
        scaling = [self.numbers.power(d) for d in ins if self.numbers.scales(d)]
        if not scaling:
            return
        power = self.numbers.power(out) if out and self.numbers.scales(out) else None
        always = e.kind in (Kind.CONTRACTION, Kind.LOOKUP)
        if always or scaling != [power]:
            what = f"scales by {power}" if power else "here the scale cancels"
            self.lines.append(f"{e.name}: {what}, at {e.where}")


def _power(exponent: Fraction | int) -> str:
    return "c" if exponent == 1 else f"c**{exponent}"


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown


def _shortened(steps: Sequence[str]) -> list[str]:
    lines = [f"  {step}" for step in dict.fromkeys(steps)]
    if len(lines) <= 2 * _SHOWN + 1:
        return lines
    middle = f"  ... {len(lines) - 2 * _SHOWN} more operations ..."
    return [*lines[:_SHOWN], middle, *lines[-_SHOWN:]]
