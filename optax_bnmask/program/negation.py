"""Values that are negatives of others: a sum with one of them is a difference."""

from typing import Final, Protocol

from optax_bnmask import compat
from optax_bnmask.program.registry import Kind
from optax_bnmask.program.tape import Tape

_NEG: Final = compat.primitive("neg_p")


class Numbers(Protocol):
    """What is known of numbers, as of `optax_bnmask.program.facts.Facts`."""

    tape: Tape
    numbers: list[float | None]


def is_negated(known: Numbers, x: int) -> bool:
    """Whether a value is the negative of another, as ``-y`` or ``-0.5 * y``, wherever moved to."""
    negated = False
    while (e := known.tape.writers.get(x)) is not None:
        if e.kind in (Kind.VIEW, Kind.CAST):
            negated ^= e.op is _NEG
            x = e.ins[0]
        elif e.kind is Kind.PRODUCT and any(known.numbers[y] is not None for y in e.ins):
            number, x = sorted(e.ins, key=lambda y: known.numbers[y] is None)
            negated ^= (known.numbers[number] or 0) < 0
        else:
            break
    return negated
