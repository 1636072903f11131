"""Which values others are computed from, loops included: marks spread over the tape, both ways."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from optax_bnmask.program.tape import Tape


def needed(tape: "Tape", outputs: Iterable[int], passes: Sequence[int] | None = None) -> bytearray:
    """Marks with a 1 each value that `outputs` are computed from, and these.

    The new value of a carry is needed as long as the carry is *read in the body*, even where
    nothing reads it after the loop: it constrains the carry.

    Args:
      tape: The program.
      outputs: The values to start from.
      passes: For each value, whether to go on to the operands of the equation that writes it; by
        default always.
    """
    needed = bytearray(len(tape.shapes))
    grown = list(outputs)
    while grown:
        for x in grown:
            needed[x] = 1
        for e in reversed(tape.equations):
            if needed[e.out] and (passes is None or passes[e.out]):
                for x in e.ins:
                    needed[x] = 1
        grown = [e.out for e in tape.loops if needed[e.ins[0]] and not needed[e.out]]
    return needed


def dependents(
    tape: "Tape", origins: Iterable[int], passes: Sequence[int] | None = None
) -> bytearray:
    """Marks with a 1 each value that depends on one of `origins`.

    Args:
      tape: The program.
      origins: The values to start from, marked too.
      passes: For each value, whether it depends on what its equation reads; by default it does.
    """
    depends = bytearray(len(tape.shapes))
    grown = list(origins)
    while grown:
        for x in grown:
            depends[x] = 1
        for e in tape.equations:
            for x in e.ins:
                if depends[x]:
                    depends[e.out] = passes is None or passes[e.out]
                    break
        grown = [e.ins[0] for e in tape.loops if depends[e.ins[1]] and not depends[e.ins[0]]]
    return depends
