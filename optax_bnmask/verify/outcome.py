"""What `verify` returns."""

import dataclasses

from optax_bnmask.wording import counted


@dataclasses.dataclass(frozen=True, slots=True)
class Weak:
    """An invariance that is proved but does not hold at the user's own parameters.

    Attributes:
      path: The leaf; of a joint group, one of its leaves.
      change: By how much doubling it, with the biases of its own or the rest of its group, moves
        the outputs there, relative to their largest entry.
      others: The rest of its group.
      because: What the proof leans on that does not hold here: the epsilon, or the guard.
    """

    path: str
    change: float
    others: tuple[str, ...] = ()
    because: str = ""

    def __str__(self) -> str:
        """One line for a person."""
        shown = ", ".join(map(repr, self.others[:3])) + (", ..." if len(self.others) > 3 else "")
        with_others = f" with {shown}" if shown else ""
        because = self.because or "though nothing that the proof leans on explains it"
        return (
            f"weak: doubling {self.path!r}{with_others} moves the outputs by {self.change:.1%} at "
            f"these parameters, {because}"
        )


@dataclasses.dataclass(frozen=True, slots=True)
class Verification:
    """A numeric certificate of an `Analysis`: every claim that it makes held.

    What is in it is measured, at some parameters and on some inputs, and proves nothing.

    Attributes:
      symmetries: The dimension of the space of symmetries that was checked.
      invariant: The number of leaves, claimed invariant, that were scaled.
      joint: The number of leaves, claimed jointly invariant, that were scaled.
      axes: The number of axes, claimed invariant index by index, of which each index was scaled.
      dead: The number of leaves, claimed dead, that were given other values.
      shifts: The number of axes along which leaves, as claimed, were shifted.
      error: The largest change of an entry of an output under any claimed symmetry, relative to how
        far that entry moves when the parameters are drawn anew.
      tolerance: What that error had to stay below.
      dtype: The coarsest floating dtype that was computed in, which sets the tolerance: float64,
        whatever the function computes in by itself, unless it cannot be opened (see `notes`).
      weak: The invariances that do not hold at the user's own parameters.
      possibly_missed: Leaves not claimed invariant whose scale moved no output.
      dead_biases: Biases whose value moved no output, as before the subtraction of a mean.
      unseen: The claims that could not be looked at: however little was done, values overflowed, or
        rounding moved the outputs by as much.
      notes: What else could not be looked at, in sentences.
    """

    symmetries: int
    invariant: int
    joint: int
    axes: int
    dead: int
    shifts: int
    error: float
    tolerance: float
    dtype: str
    weak: tuple[Weak, ...] = ()
    possibly_missed: tuple[str, ...] = ()
    dead_biases: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether all was looked at, no invariance is weak and no leaf was possibly missed."""
        return not self.weak and not self.possibly_missed and not self.unseen

    def __str__(self) -> str:
        """A few lines for a person."""
        looked = "that could be looked at " if self.unseen else ""
        lines = [
            f"{counted(self.symmetries, 'symmetry', 'symmetries')}, {self.invariant} invariant and "
            f"{self.joint} jointly invariant leaves, each index of "
            f"{counted(self.axes, 'axis', 'axes')}, "
            f"{counted(self.dead, 'dead leaf', 'dead leaves')}, "
            f"{counted(self.shifts, 'shift', 'shifts')} along axes: all {looked}hold, to "
            f"{self.error:.1e} (tolerance {self.tolerance:.1e}, computed in {self.dtype})"
        ]
        lines += [str(w) for w in self.weak]
        lines += [f"possibly missed: scaling {p!r} moves nothing" for p in self.possibly_missed]
        lines += [f"dead, as measured: the value of {p!r} moves nothing" for p in self.dead_biases]
        lines += [
            f"not looked at: {said}: values overflow, or rounding moves the outputs by as much"
            for said in self.unseen
        ]
        return "\n".join([*lines, *self.notes])
