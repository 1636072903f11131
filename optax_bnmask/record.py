"""What is known of the parameters of a model, as plain data: what an `Analysis` decides from."""

import dataclasses
from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import groupby
from typing import Protocol

from optax_bnmask.arguments import wrong_kind
from optax_bnmask.errors import CategoryError, PathError
from optax_bnmask.paths import nearest
from optax_bnmask.vocabulary import Block, Evidence, Leaf
from optax_bnmask.wording import counted


@dataclasses.dataclass(frozen=True, slots=True, order=True)
class Assumption:
    """One approximation that a proof leans on.

    Attributes:
      kind: ``"epsilon"`` (a small constant taken as 0), ``"infinity"`` (a dtype's largest finite
        value taken as infinite), ``"guard"`` (a constant chosen only where a value is 0) or
        ``"zeros"`` (an array that the function closes over, all 0 now and taken to stay so).
      value: The constant.
      primitive: The name of the operation that takes the constant.
      where: ``file:line (function)`` in the user's code, as far as the trace knows it.
    """

    kind: str
    value: float
    primitive: str
    where: str

    def __str__(self) -> str:
        """One line for a person."""
        return f"{self.in_words}, at {self.where}"

    @property
    def in_words(self) -> str:
        """The approximation in words, without its place."""
        taken = {
            "epsilon": "taken as 0",
            "infinity": "taken as infinite",
            "guard": "chosen only where the guarded value is 0",
            "zeros": "in all of an array that the function closes over, taken to stay so",
        }[self.kind]
        return f"{self.value:g} in `{self.primitive}` {taken}"


class Proof(Protocol):
    """The program behind an analysis, kept for later questions; no part of its value or JSON."""

    def explain(self, path: str) -> str:
        """The chain of operations from the leaf to where its scale cancels or is pinned."""
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """The fields of an `Analysis`, and how to look up a leaf.

    Functions that make masks and reports take a `Record`, so that their modules need not import
    `Analysis`, whose methods call them. `Analysis`, the only subclass, describes the fields.
    """

    leaves: tuple[Leaf, ...]
    evidence: frozenset[Evidence]
    symmetries: tuple[Mapping[str, Fraction], ...] = ()
    groups: tuple[frozenset[str], ...] = ()
    assumptions: tuple[Assumption, ...] = ()
    unhandled: Mapping[str, int] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    proof: Proof | None = dataclasses.field(default=None, compare=False, repr=False)
    _by_path: dict[str, Leaf] = dataclasses.field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        """Indexes the leaves by path."""
        object.__setattr__(self, "_by_path", {leaf.path: leaf for leaf in self.leaves})

    def __bool__(self) -> bool:
        """Refuses: as a `mask` of Optax's, an analysis would count as true for every leaf."""
        raise TypeError(
            "An `Analysis` cannot stand for a bool, and so it is no `mask`. Found one where a bool "
            "is wanted. Pass `analysis.decay_mask()` or `analysis.select(...)` as `mask`."
        )

    def __hash__(self) -> int:
        """Refuses: as the labels of `optax.partition`, an analysis would be one for all leaves."""
        raise TypeError(
            "An `Analysis` is no label and no key. Found one where either is wanted. Pass "
            "`analysis.labels(...)` to `optax.partition`, and `analysis.to_json()` to a cache."
        )

    def __getitem__(self, path: str) -> Leaf:
        """The leaf of that canonical path."""
        try:
            return self._by_path[path]
        except KeyError:
            raise PathError(
                f"`path` must name a leaf of this analysis. It has no leaf {path!r}"
                f"{nearest(path, self._by_path)}."
            ) from None

    def __contains__(self, path: str) -> bool:
        """Whether there is a leaf of that canonical path."""
        return path in self._by_path

    def explain(self, path: str) -> str:
        """Why a leaf is what it is: its reason and, from a program, the chain of operations.

        Args:
          path: The canonical path of a leaf.

        Returns:
          Lines of text: the chain from the leaf to the normaliser that makes it invariant, or to
          the place that pins its scale, with the user's file and line.

        Raises:
          PathError: There is no such leaf.
        """
        leaf = self[path]
        why = self.proof.explain(path) if self.proof else f"{path}: {leaf.role}. {leaf.reason}"
        shifts = getattr(self.proof, "shift_axes", {}).get(path, ())
        said = [f"along axis {axis}, the same may be added to all" for axis in shifts]
        return "\n".join([why, *in_words(leaf), *said])


def in_words(leaf: Leaf) -> list[str]:
    """What is known of a leaf's axes, and whether a gradient reaches it, a line each."""
    said = [f"as a matrix: {leaf.dimensions}"] if leaf.dimensions else []
    for axis, own in leaf.blocks.items():
        n = len({*leaf.parts.get(axis, range(len(own)))})
        together = f", which make {counted(n, 'matrix', 'matrices')}" if n < len(own) else ""
        said.append(f"axis {axis} in parts of {sizes(own)}{together}")
    for axis, own in leaf.invariant_blocks.items():
        places = ", ".join(
            f"{b.start}:{b.stop}" + (f" in runs of {b.inner}" if b.inner < b.stop - b.start else "")
            for b in own
        )
        said.append(f"along axis {axis}, {places} may be scaled without the rest")
    return [*said, *([] if leaf.reached else ["no gradient reaches it"])]


def sizes(blocks: Sequence[Block]) -> str:
    """The lengths of an axis's blocks as text: ``3 x 64 by 16``, three of 64 in runs of 16."""
    each = [(b.stop - b.start, b.inner) for b in blocks]
    alike = [(len([*same]), *size) for size, same in groupby(each)]
    return " + ".join(
        (f"{n} x " if n > 1 else "") + str(size) + (f" by {inner}" if inner < size else "")
        for n, size, inner in alike
    )


def require_program(analysis: Record, what: str) -> None:
    """Fails unless an analysis was read off a program.

    Raises:
      CategoryError: It rests on structure alone, which does not tell `what`.
    """
    if Evidence.PROGRAM not in analysis.evidence:
        raise CategoryError(
            f"{what} cannot be told from structure alone: they are a property of the program. Use "
            f"`bnmask.analyze(fn, params, ...)`, `analyze_linen` or its kin."
        )


def require_analysis(value: object) -> None:
    """Fails unless the argument `analysis` is one.

    Raises:
      TypeError: It is something else, such as a mask.
    """
    if not isinstance(value, Record):
        raise wrong_kind(
            "analysis",
            "an `Analysis`, as `bnmask.analyze` and its kin return it",
            value,
            "Masks and labels are made from one, and tell less.",
        )
