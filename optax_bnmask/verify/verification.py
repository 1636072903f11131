"""What a verification found."""

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class Weak:
    """An invariance that is proved but does not hold at the user's own parameters.

    Attributes:
      path: The leaf.
      change: By how much doubling it, with the biases of its own, moves the outputs there,
        relative to their largest entry: the epsilon beside what it feeds is not small.
    """

    path: str
    change: float


@dataclasses.dataclass(frozen=True, slots=True)
class Verification:
    """A numeric certificate of an `Analysis`: every claim that it makes held.

    Attributes:
      symmetries: The dimension of the space of symmetries that was checked.
      invariant: The number of leaves, claimed invariant, that were scaled far.
      joint: The number of leaves, claimed jointly invariant, that were scaled far.
      axes: The number of axes, claimed invariant index by index, that were tried.
      error: The largest relative change of an output under any claimed symmetry.
      tolerance: What that error had to stay below.
      dtype: The coarsest floating dtype that the function computes in, which sets the tolerance.
      weak: The invariances that do not hold at the user's own parameters.
      possibly_missed: Leaves not claimed invariant whose scale moved no output.
      dead_biases: Biases whose value moves no output, as before the subtraction of a mean.
      notes: What could not be looked at, in sentences.
    """

    symmetries: int
    invariant: int
    joint: int
    axes: int
    error: float
    tolerance: float
    dtype: str
    weak: tuple[Weak, ...] = ()
    possibly_missed: tuple[str, ...] = ()
    dead_biases: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether no invariance is weak and no leaf was possibly missed."""
        return not self.weak and not self.possibly_missed

    def __str__(self) -> str:
        """A few lines for a person."""
        lines = [
            f"{self.symmetries} symmetries, {self.invariant} invariant and {self.joint} jointly "
            f"invariant leaves, {self.axes} axes: all hold, to {self.error:.1e} "
            f"(tolerance {self.tolerance:.1e}, computed in {self.dtype})"
        ]
        lines += [
            f"weak: doubling {w.path!r} moves the outputs by {w.change:.1%} at these parameters, "
            f"where an epsilon is not small"
            for w in self.weak
        ]
        lines += [f"possibly missed: scaling {p!r} moves nothing" for p in self.possibly_missed]
        lines += [f"dead bias: the value of {p!r} moves nothing" for p in self.dead_biases]
        return "\n".join([*lines, *self.notes])
