"""What an analysis claims, each claim as a way to scale parameters that must change no output.

A move gives powers of 2 by leaf: ``{0: 3.0, 2: -1.5}`` multiplies leaf 0 by 8 and leaf 2 by
``2**-1.5``. Where a claim is about every index of an axis, they are arrays. Since moves are added,
any number of claims is tried by one evaluation: if each is right, so are all at once.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any, Protocol

import numpy as np

from optax_bnmask.analysis import Analysis
from optax_bnmask.program.cones import Vector
from optax_bnmask.program.explain import Explainer
from optax_bnmask.vocabulary import Scale

Move = dict[int, Any]
"""Powers of 2 by leaf number: numbers, or arrays that broadcast to the leaf."""

_CHOICES = 64
"""At most so many ways of scaling biases along with the indices of an axis are tried."""


class Claim(Protocol):
    """A claim that can be tried."""

    @property
    def said(self) -> str:
        """What is done, in words: ``Scaling 'w' with ['b']``."""
        ...

    def move(self, far: float, rng: np.random.Generator) -> Move:
        """A random way to do it: a leaf is scaled by at most ``2**far``; down where `far` < 0."""
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class Scaling:
    """Some leaves may be scaled together.

    Attributes:
      said: What is done, in words.
      exponents: By which powers of the common factor.
    """

    said: str
    exponents: Vector

    def move(self, far: float, rng: np.random.Generator) -> Move:
        """A random power of the factor, so that several claims, each wrong, do not cancel."""
        top = max(map(abs, self.exponents.values()), default=1)
        power = far * rng.uniform(0.25, 1.0)
        return {i: power * float(s / Fraction(top)) for i, s in self.exponents.items()}


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """Which entries of a bias belong to an index of an axis.

    Attributes:
      leaf: The bias.
      exponent: The power of the index's factor that it is scaled by.
      axis: Along which of its axes they lie; `None` where all of it goes along with every index.
      block: Not 0 if each index has a run of neighbouring entries; 0 if, of `n` indices, entry `k`
        belongs to index ``k % n``.
    """

    leaf: int
    exponent: float
    axis: int | None = None
    block: int = 1


@dataclasses.dataclass(frozen=True, slots=True)
class EachIndex:
    """Every index along an axis of a leaf may be scaled by itself.

    Attributes:
      said: What is done, in words.
      leaf: The leaf.
      axis: The axis.
      shapes: The shapes of all leaves.
      places: Which entries of its biases are scaled along with each index.
      only: The indices to scale; all of them where this is `None`.
    """

    said: str
    leaf: int
    axis: int
    shapes: Sequence[tuple[int, ...]]
    places: tuple[Place, ...] = ()
    only: tuple[int, ...] | None = None

    @property
    def size(self) -> int:
        """The number of indices."""
        return self.shapes[self.leaf][self.axis]

    def move(self, far: float, rng: np.random.Generator) -> Move:
        """Another factor for each index, up for some and down for others."""
        powers = min(far, 4.0) * rng.uniform(-1.0, 1.0, size=self.size)
        if self.only is not None:
            chosen = np.isin(np.arange(self.size), self.only)
            powers = np.where(chosen, powers, 0.0)
        out: Move = {self.leaf: _along(self.axis, len(self.shapes[self.leaf]), powers)}
        for place in self.places:
            shape = self.shapes[place.leaf]
            own = place.exponent * powers
            if place.axis is None:
                out[place.leaf] = float(np.sum(own))
                continue
            n = shape[place.axis] // self.size
            spread = np.repeat(own, n) if place.block else np.tile(own, n)
            out[place.leaf] = _along(place.axis, len(shape), spread)
        return out

    def at(self, indices: Iterable[int]) -> "EachIndex":
        """The claim about some of the indices."""
        return dataclasses.replace(self, only=tuple(indices))

    def alternatives(self, biases: Vector) -> Iterator["EachIndex"]:
        """The claim, which has no `places` yet, with each way of scaling its biases along."""
        choices = [tuple(self._places(j, float(s))) for j, s in biases.items() if j != self.leaf]
        for choice in itertools.islice(itertools.product(*choices), _CHOICES):
            yield dataclasses.replace(self, places=tuple(p for p in choice if p is not None))

    def _places(self, bias: int, exponent: float) -> Iterator[Place | None]:
        shape = self.shapes[bias]
        fitting = [a for a in range(len(shape)) if shape[a] and shape[a] % self.size == 0]
        for axis in sorted(fitting, key=lambda a: (shape[a] != self.size, -a)):
            yield Place(bias, exponent, axis)
            if shape[axis] != self.size:
                yield Place(bias, exponent, axis, block=0)
        yield None
        yield Place(bias, exponent)


def _along(axis: int, rank: int, powers: np.ndarray) -> np.ndarray:
    return powers.reshape([-1 if a == axis else 1 for a in range(rank)])


def added(moves: Iterable[Move]) -> Move:
    """Several moves as one."""
    out: Move = {}
    for move in moves:
        for i, power in move.items():
            out[i] = out[i] + power if i in out else power
    return out


def bits(move: Move) -> float:
    """The most powers of 2 by which a move can enlarge a product of all leaves, each taken once."""
    return sum(float(np.max(np.abs(power), initial=0.0)) for power in move.values())


def leaves_alone(analysis: Analysis, proof: Explainer) -> list[Scaling]:
    """The claims that each invariant leaf may be scaled, with the biases added to its output."""
    return [
        _scaling(analysis, witness(proof, i), i)
        for i, leaf in enumerate(analysis.leaves)
        if leaf.scale is Scale.INVARIANT
    ]


def groups(analysis: Analysis, proof: Explainer) -> list[Scaling]:
    """The claims that each joint group may be scaled, and each `JOINT` leaf that is in none."""
    number = {leaf.path: i for i, leaf in enumerate(analysis.leaves)}
    cone = proof.found.cone
    found = []
    for n, group in enumerate(analysis.groups):
        exponents = {i: cone.get(i, 1) for i in sorted(number[path] for path in group)}
        found.append(Scaling(f"Scaling group {n}, {sorted(group)},", exponents))
    for i, leaf in enumerate(analysis.leaves):
        within = () if leaf.group is None else analysis.groups[leaf.group]
        if leaf.scale is Scale.JOINT and leaf.path not in within:
            found.append(_scaling(analysis, {i: 1}, i))
    return found


def axes(analysis: Analysis) -> list[EachIndex]:
    """The claims that each index along `Leaf.invariant_axes` may be scaled by itself."""
    shapes = [leaf.shape for leaf in analysis.leaves]
    return [
        EachIndex(f"axis {axis} of {leaf.path!r}", i, axis, shapes)
        for i, leaf in enumerate(analysis.leaves)
        for axis in leaf.invariant_axes
    ]


def symmetries(analysis: Analysis) -> list[Scaling]:
    """The claims of all `Analysis.symmetries`, whether or not they shrink leaves."""
    number = {leaf.path: i for i, leaf in enumerate(analysis.leaves)}
    found = []
    for vector in analysis.symmetries:
        named = ", ".join(f"{path!r}: {s}" for path, s in vector.items())
        exponents: Vector = {number[path]: s for path, s in vector.items()}
        found.append(Scaling(f"Scaling by c**s with s = {{{named}}}", exponents))
    return found


def witness(proof: Explainer, i: int) -> Vector:
    """The symmetry that scales an invariant leaf: it and biases of its own."""
    return proof.found.witness.get(i) or dict.fromkeys((i, *proof.biases[i]), 1)


def _scaling(analysis: Analysis, exponents: Mapping[int, Any], i: int) -> Scaling:
    others = [analysis.leaves[j].path for j in exponents if j != i]
    said = f"Scaling {analysis.leaves[i].path!r}" + (f" with {others}" if others else "")
    return Scaling(said, dict(exponents))
