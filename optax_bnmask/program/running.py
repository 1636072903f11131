"""Normalisers that read running statistics, alone or to correct the statistics of the batch."""

import copy
import warnings
from collections.abc import Sequence, Set
from math import prod
from typing import NamedTuple

from optax_bnmask import compat
from optax_bnmask.analysis import Analysis
from optax_bnmask.families import listed
from optax_bnmask.program.demands import Axes
from optax_bnmask.program.dependence import dependents, needed
from optax_bnmask.program.facts import Facts
from optax_bnmask.program.freedom import leaf_exponents
from optax_bnmask.program.registry import Kind
from optax_bnmask.program.shifts import Flatness, Shifts
from optax_bnmask.program.solve import Solution
from optax_bnmask.program.symmetries import symmetries
from optax_bnmask.program.tape import Equation, Tape
from optax_bnmask.program.trace import Program
from optax_bnmask.vocabulary import Scale

_STOP, _SUB = compat.primitive("stop_gradient_p"), compat.primitive("sub_p")
_VIEWS = frozenset({Kind.VIEW, Kind.CAST})
_SCALED = _VIEWS | {Kind.QUOTIENT, Kind.PRODUCT}
"""What leads from a mean that is subtracted back to its sum."""


class Running(NamedTuple):
    """A normaliser whose running mean and var the outputs read.

    Attributes:
      scope: Where it is: a module, or a file and a line.
      corrects: Whether it corrects statistics of the batch by its running ones, as batch
        renormalisation does; else it runs on them alone, as in inference.
      orthogonal: The leaves whose gradient is orthogonal to them though their scale matters, as no
        gradient flows through the correction.
      is_place: Whether it is known by a file and a line only.
    """

    scope: str
    corrects: bool
    orthogonal: tuple[str, ...] = ()
    is_place: bool = False

    def __str__(self) -> str:
        """In words."""
        if not self.corrects:
            where = self.scope if self.is_place else repr(self.scope)
            which = "statistics that it is given" if self.is_place else "its running statistics"
            return (
                f"the normaliser at {where} runs on {which} here: trace the function as it is "
                f"trained, or its parameters and the weights before it look sensitive"
            )
        said = (
            f"the normaliser at {self.scope!r} corrects the statistics of the batch by its running "
            f"ones, as batch renormalisation does, so that the scale of the weights before it "
            f"reaches the outputs"
        )
        if not self.orthogonal:
            return said
        return (
            f"{said}; no gradient flows through the correction, so that the gradient of "
            f"{listed(self.orthogonal, 1)} is orthogonal to it all the same"
        )


def running_statistics(program: Program, tape: Tape, given: Sequence[Equation]) -> list[Running]:
    """Each module whose running mean and var the outputs read.

    Args:
      program: The function.
      tape: Its equations.
      given: Where something is normalised by statistics that are arguments. These places are
        returned where no arguments are called ``mean`` and ``var``.
    """
    arguments = [x for x, i in zip(tape.ins, program.inputs, strict=True) if i is None]
    live = zip(arguments, program.argument_paths, strict=True)
    # An NNX Variable's array is its `value`, which is no part of its name.
    values = {path.removesuffix("/value"): x for x, path in live if tape.live[x]}
    scopes = {path.rpartition("/")[0] for path in program.paths}
    depends = dependents(tape, tape.leaves) if values else bytearray()
    out = []
    for path, mean in values.items():
        scope, _, name = path.rpartition("/")
        var = values.get(f"{scope}/var")
        if name != "mean" or var is None:
            continue
        where = _within(scope, scopes)
        corrects = _corrects_the_batch(tape, [mean, var], depends)
        out.append(Running(where, corrects, _orthogonal(program, tape) if corrects else ()))
    places = dict.fromkeys(e.where for e in given)
    return out or [Running(place, corrects=False, is_place=True) for place in places]


def means_of_one(tape: Tape) -> list[str]:
    """Notes on means that are subtracted from what they are of, and are of a single entry each.

    With a batch of one example BatchNorm subtracts each entry from itself, and normalises nothing.
    """

    def behind(x: int, kinds: Set[Kind]) -> int:
        while (e := tape.writers.get(x)) is not None and e.kind in kinds:
            x = e.ins[0]
        return x

    def is_of_one(e: Equation, x: int) -> bool:
        mean = tape.writers.get(behind(e.ins[1], _SCALED))
        return (
            mean is not None
            and mean.kind is Kind.REDUCTION
            and behind(mean.ins[0], _VIEWS) == x
            and tape.shapes[x] != tape.shapes[mean.out]
            and prod(tape.shapes[x]) == prod(tape.shapes[mean.out])
        )

    centred: dict[int, list[Equation]] = {}
    for e in tape.equations:
        if e.op is _SUB:
            centred.setdefault(behind(e.ins[0], _VIEWS), []).append(e)
    places = [
        e.where
        for x, several in centred.items()
        if all(is_of_one(e, x) for e in several)  # a mean over devices may be subtracted beside it
        for e in several
    ]
    return [
        f"the mean subtracted at {place} is of a single entry, as with a batch of one example: "
        f"nothing is normalised there; trace it with a batch of two or more"
        for place in dict.fromkeys(places)
    ]


def _within(scope: str, scopes: Set[str]) -> str:
    """The longest tail of an argument's scope that is a scope of the params; else all of it."""
    parts = scope.split("/")
    tails = ("/".join(parts[n:]) for n in range(len(parts)))
    return next((tail for tail in tails if tail in scopes), scope)


def _corrects_the_batch(tape: Tape, running: Sequence[int], depends: Sequence[int]) -> bool:
    """Whether running statistics meet only statistics of the batch, which are sums over its axes.

    In inference they are subtracted from the activations themselves, which have more entries.

    Args:
      tape: The program.
      running: The running statistics.
      depends: Whether each value depends on a leaf.
    """
    ours = dependents(tape, running)
    size = max(prod(tape.shapes[x]) for x in running)
    met = [
        x
        for e in tape.equations
        if any(ours[x] and not depends[x] for x in e.ins)
        for x in e.ins
        if depends[x]
    ]

    def is_sum(x: int) -> bool:
        while prod(tape.shapes[x]) == size and x in tape.writers:
            e = tape.writers[x]
            if e.kind is Kind.REDUCTION:
                return True
            x = next((y for y in e.ins if depends[y]), -1)
        return False

    return bool(met) and all(map(is_sum, met))


def _orthogonal(program: Program, tape: Tape) -> tuple[str, ...]:
    """The leaves that become invariant once results of `stop_gradient` are read as constants.

    The gradient of such a leaf is orthogonal to it, though its scale reaches the outputs.
    """
    cut = copy.copy(tape)
    for name in ("writers", "readers"):  # cached from the equations, of which some go
        cut.__dict__.pop(name, None)
    cut.equations = [e for e in tape.equations if e.op is not _STOP]
    live = needed(cut, cut.outs)
    cut.equations = [e for e in cut.equations if live[e.out]]
    cut.loops = [e for e in cut.loops if live[e.out]]
    here, there = (_invariant(program, t) for t in (tape, cut))
    return tuple(path for path in there if path not in here)


def _invariant(program: Program, tape: Tape) -> list[str]:
    """The paths of the leaves that may be scaled alone; those that are dead are left out."""
    everything = Facts(tape)
    dead = Shifts(Flatness(everything), [(x, None) for x in everything.leaves]).dead
    facts = Facts(tape, zeros=dead)
    axes = Axes(facts)
    solution = Solution(axes)
    solution.read(tape.outs)
    solution.pin(tape.outs)
    solution.finish()
    exponents = {
        tape.leaves[x]: leaf_exponents(solution.system, solution.degrees[x], segments)
        for x, segments in axes.of_leaves.items()
    }
    n = len(program.paths)
    scale = symmetries(solution.system, exponents, [()] * n, n).scale
    return [path for path, s in zip(program.paths, scale, strict=True) if s is Scale.INVARIANT]


def warn_of_running_statistics(analysis: Analysis) -> None:
    """Warns of every normaliser that was traced in inference mode."""
    running: Sequence[Running] = getattr(analysis.proof, "running", ())
    alone = [each for each in running if not each.corrects]
    if alone:
        more = f" (and {len(alone) - 1} more, see `Analysis.notes`)" if len(alone) > 1 else ""
        warnings.warn(f"{alone[0]}{more}", UserWarning, stacklevel=3)
