"""The claims of an analysis: ways to scale parameters that must change no output.

A move gives powers of 2 by leaf: ``{0: 3.0, 2: -1.5}`` multiplies leaf 0 by 8 and leaf 2 by
``2**-1.5``. The powers are arrays where each index of an axis has one of its own. The sum of the
moves of several claims tries them all by one evaluation: if each claim is right, no output changes.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any, Protocol

import numpy as np

from optax_bnmask.analysis import Analysis
from optax_bnmask.errors import StructureError
from optax_bnmask.program.cones import Vector
from optax_bnmask.program.explain import Explainer
from optax_bnmask.vocabulary import Evidence, Scale

Move = dict[int, Any]
"""Powers of 2 by leaf number: numbers, or arrays that broadcast to the leaf."""

_MAX_ALTERNATIVES = 64
"""The most ways of scaling biases along with the indices of an axis that are tried."""


class Claim(Protocol):
    """A claim that can be tried."""

    @property
    def description(self) -> str:
        """What the move does, in words: ``Scaling 'w' with ['b']``."""
        ...

    def move(self, far: float, rng: np.random.Generator) -> Move:
        """A random move that scales leaves by ``2**far`` at most; down where `far` is negative."""
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class LeafScaling:
    """Some leaves may be scaled together.

    Attributes:
      description: What the move does, in words.
      exponents: By leaf number, the power of the common factor that the leaf is scaled by.
    """

    description: str
    exponents: Vector

    def move(self, far: float, rng: np.random.Generator) -> Move:
        """A move whose length is random, so that two claims that are wrong do not cancel."""
        top = max(map(abs, self.exponents.values()), default=1)
        power = far * rng.uniform(0.25, 1.0)
        return {i: power * float(s / Fraction(top)) for i, s in self.exponents.items()}


@dataclasses.dataclass(frozen=True, slots=True)
class BiasEntries:
    """Which entries of a bias are scaled along with each of the `n` indices of another leaf's axis.

    Attributes:
      leaf: The number of the bias.
      exponent: The power of the index's factor that they are scaled by.
      axis: The axis of the bias, of length ``m * n``, that is divided among the indices; `None`
        where the whole bias is scaled with every index.
      contiguous: Whether index `k` has the `m` neighbours from ``k * m`` on; otherwise it has every
        `n`-th entry, from `k` on.
    """

    leaf: int
    exponent: float
    axis: int | None = None
    contiguous: bool = True


@dataclasses.dataclass(frozen=True, slots=True)
class AxisScaling:
    """Every index along an axis of a leaf may be scaled by itself.

    Attributes:
      description: Which axis of which leaf, in words.
      leaf: The number of the leaf.
      axis: The axis.
      shapes: The shapes of all leaves.
      biases: The entries of its biases that are scaled along with each index.
      indices: The indices to scale; all of them where this is `None`.
    """

    description: str
    leaf: int
    axis: int
    shapes: Sequence[tuple[int, ...]]
    biases: tuple[BiasEntries, ...] = ()
    indices: tuple[int, ...] | None = None

    @property
    def size(self) -> int:
        """The number of indices."""
        return self.shapes[self.leaf][self.axis]

    def move(self, far: float, rng: np.random.Generator) -> Move:
        """Another factor for each index, up for some and down for others."""
        powers = min(far, 4.0) * rng.uniform(-1.0, 1.0, size=self.size)
        if self.indices is not None:
            chosen = np.isin(np.arange(self.size), self.indices)
            powers = np.where(chosen, powers, 0.0)
        out: Move = {self.leaf: _along(self.axis, len(self.shapes[self.leaf]), powers)}
        for bias in self.biases:
            shape = self.shapes[bias.leaf]
            own = bias.exponent * powers
            if bias.axis is None:
                out[bias.leaf] = float(np.sum(own))
                continue
            m = shape[bias.axis] // self.size
            spread = np.repeat(own, m) if bias.contiguous else np.tile(own, m)
            out[bias.leaf] = _along(bias.axis, len(shape), spread)
        return out

    def alternatives(self, exponents: Vector) -> Iterator["AxisScaling"]:
        """The claim, whose `biases` are empty, with each way in which they may be scaled along.

        Args:
          exponents: By leaf number, the power of an index's factor that a bias is scaled by.

        Yields:
          The claim for each combination of `BiasEntries`, those that shapes suggest most first.
        """
        choices = [
            tuple(self._entries(j, float(s))) for j, s in exponents.items() if j != self.leaf
        ]
        for choice in itertools.islice(itertools.product(*choices), _MAX_ALTERNATIVES):
            yield dataclasses.replace(self, biases=tuple(p for p in choice if p is not None))

    def _entries(self, bias: int, exponent: float) -> Iterator[BiasEntries | None]:
        shape = self.shapes[bias]
        fitting = [a for a in range(len(shape)) if shape[a] and shape[a] % self.size == 0]
        for axis in sorted(fitting, key=lambda a: (shape[a] != self.size, -a)):
            yield BiasEntries(bias, exponent, axis)
            if shape[axis] != self.size:
                yield BiasEntries(bias, exponent, axis, contiguous=False)
        yield None
        yield BiasEntries(bias, exponent)


def _along(axis: int, rank: int, powers: np.ndarray) -> np.ndarray:
    """A vector, reshaped to broadcast along one axis of an array of that rank."""
    return powers.reshape([-1 if a == axis else 1 for a in range(rank)])


def sum_of_moves(moves: Iterable[Move]) -> Move:
    """Several moves as one."""
    out: Move = {}
    for move in moves:
        for i, power in move.items():
            out[i] = out[i] + power if i in out else power
    return out


def max_growth(move: Move) -> float:
    """The power of 2 by which a move can at most enlarge a product of all leaves."""
    return sum(float(np.max(np.abs(power), initial=0.0)) for power in move.values())


def leaf_claims(analysis: Analysis, proof: Explainer) -> list[LeafScaling]:
    """The claims that each invariant leaf may be scaled, with the biases added to its output."""
    return [
        _scaling(analysis, witness(proof, i), i)
        for i, leaf in enumerate(analysis.leaves)
        if leaf.scale is Scale.INVARIANT
    ]


def group_claims(analysis: Analysis, proof: Explainer) -> list[LeafScaling]:
    """The claims that each joint group may be scaled, and each `JOINT` leaf that is in none."""
    number = {leaf.path: i for i, leaf in enumerate(analysis.leaves)}
    cone = proof.found.cone
    found = []
    for n, group in enumerate(analysis.groups):
        exponents = {i: cone.get(i, 1) for i in sorted(number[path] for path in group)}
        found.append(LeafScaling(f"Scaling group {n}, {sorted(group)},", exponents))
    for i, leaf in enumerate(analysis.leaves):
        within = () if leaf.group is None else analysis.groups[leaf.group]
        if leaf.scale is Scale.JOINT and leaf.path not in within:
            found.append(_scaling(analysis, {i: 1}, i))
    return found


def axis_claims(analysis: Analysis) -> list[AxisScaling]:
    """The claims that each index along `Leaf.invariant_axes` may be scaled by itself."""
    shapes = [leaf.shape for leaf in analysis.leaves]
    return [
        AxisScaling(f"axis {axis} of {leaf.path!r}", i, axis, shapes)
        for i, leaf in enumerate(analysis.leaves)
        for axis in leaf.invariant_axes
    ]


def symmetry_claims(analysis: Analysis) -> list[LeafScaling]:
    """The claims that parameters may be scaled by each of `Analysis.symmetries`."""
    number = {leaf.path: i for i, leaf in enumerate(analysis.leaves)}
    found = []
    for vector in analysis.symmetries:
        named = ", ".join(f"{path!r}: {s}" for path, s in vector.items())
        exponents: Vector = {number[path]: s for path, s in vector.items()}
        found.append(LeafScaling(f"Scaling by c**s with s = {{{named}}}", exponents))
    return found


def witness(proof: Explainer, i: int) -> Vector:
    """The symmetry that scales an invariant leaf, with the biases added to its output."""
    return proof.found.witness.get(i) or dict.fromkeys((i, *proof.biases[i]), 1)


def _scaling(analysis: Analysis, exponents: Mapping[int, Any], i: int) -> LeafScaling:
    others = [analysis.leaves[j].path for j in exponents if j != i]
    said = f"Scaling {analysis.leaves[i].path!r}" + (f" with {others}" if others else "")
    return LeafScaling(said, dict(exponents))


def moved(base: Sequence[np.ndarray], move: Move) -> list[np.ndarray]:
    """Leaves after a move."""
    return [x * np.exp2(move[i]) if i in move else x for i, x in enumerate(base)]


def proof_of(analysis: Analysis, leaves: Sequence[Any]) -> Explainer:
    """The proof behind an analysis; fails if there is none, or `leaves` have other shapes."""
    if not isinstance(analysis.proof, Explainer):
        if Evidence.PROGRAM in analysis.evidence:
            raise StructureError(
                "`analysis` must come with the program that it was proved from. This one was read "
                "from JSON or from a pickle, which hold what was found, and not the program. Call "
                "`optax_bnmask.analyze` in this process."
            )
        raise StructureError(
            "`analysis` must have been proved from a program to be verified. This one rests on "
            "structure alone and claims nothing of scale. Use `optax_bnmask.analyze`."
        )
    found = [tuple(np.shape(x)) for x in leaves]
    if found != [leaf.shape for leaf in analysis.leaves]:
        raise StructureError(
            f"`params` must be those of `analysis`. It knows {len(analysis.leaves)} leaves, "
            f"`params` has {len(leaves)}, or some of other shapes. Analyse `fn` on these `params`."
        )
    return analysis.proof
