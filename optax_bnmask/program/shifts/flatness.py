"""The axes along which values do not vary, whatever the parameters and the data are."""

from typing import Final

from optax_bnmask import compat
from optax_bnmask.program.dependence import dependents
from optax_bnmask.program.facts import Facts
from optax_bnmask.program.registry import Kind
from optax_bnmask.program.shifts.changes import aligned
from optax_bnmask.program.tape import MOVE, Equation

_DEEPEST: Final = 3
"""Broadcasts are looked for behind so many operations: a gain is broadcast, scaled, and multiplied,
and what is farther away is no reason to walk back through the whole network."""

_ENTRYWISE: Final = frozenset(
    {
        Kind.PRODUCT,
        Kind.QUOTIENT,
        Kind.SUM,
        Kind.POWER,
        Kind.EXTREMUM,
        Kind.SELECT,
        Kind.COMPARISON,
        Kind.NONLINEAR,
        Kind.CAST,
    }
)
_COPIES: Final = {compat.primitive(f"{name}_p") for name in ("neg", "copy", "stop_gradient")}


class Flatness:
    """Which axes of each value are flat: found on request, and remembered.

    Attributes:
      facts: What is known of the values.
    """

    def __init__(self, facts: Facts) -> None:
        self.facts, self._tape = facts, facts.tape
        captured = self._tape.captured
        self._given = dependents(self._tape, captured) if captured else bytes(len(facts.numbers))
        self._known: dict[int, tuple[bool, ...]] = {}

    def of(self, x: int, deepest: int = _DEEPEST) -> tuple[bool, ...]:
        """For each axis of a value, hidden ones last, whether all its indices hold the same."""
        if x not in self._known:
            self._known[x] = self._found(x, deepest)
        return self._known[x]

    def number(self, x: int) -> float | None:
        """The number that all entries of a value are, if the program spells it out.

        What an array that the function closes over holds now, such as a flag that says that this is
        the first step, it need not hold when the function is called.
        """
        return None if self._given[x] else self.facts.numbers[x]

    def along(self, x: int, out: int, deepest: int = _DEEPEST) -> tuple[bool, ...]:
        """Along which axes of a result an operand is flat that goes into it entry by entry.

        A number beside an array, and an axis of length 1 that grows, are flat.
        """
        shown, wide = len(self._tape.shapes[x]), len(self._tape.shapes[out])
        flat, rank = self.of(x, deepest), len(self._tape.full[out])
        if shown not in (0, wide):
            return (False,) * rank
        return aligned(flat[:shown], wide, same=True) + aligned(
            flat[shown:], rank - wide, same=True
        )

    def _found(self, x: int, deepest: int) -> tuple[bool, ...]:
        tape, e = self._tape, self._tape.writers.get(x)
        if self.number(x) is not None:
            return (True,) * len(tape.full[x])
        if e is not None and deepest:
            if e.op is MOVE:
                return self._moved(e, deepest)
            if e.op in _COPIES or e.kind in _ENTRYWISE:
                return self._of_all(e, deepest)
        return self._single(x)

    def _single(self, x: int) -> tuple[bool, ...]:
        """Flat along axes of length 1 alone."""
        return tuple([n == 1 for n in self._tape.full[x]])

    def _moved(self, e: Equation, deepest: int) -> tuple[bool, ...]:
        flat, to = self.of(e.ins[0], deepest - 1), e.params["to"]
        out = [True] * len(self._tape.full[e.out])
        for a, q in to.items():
            out[q] = flat[a]
        return tuple(out)

    def _of_all(self, e: Equation, deepest: int) -> tuple[bool, ...]:
        """Flat where all operands are.

        The last operand comes first, as the first is most often the stream, with the longest past.
        """
        single = self._single(e.out)
        flat: tuple[bool, ...] = (True,) * len(single)
        for x in reversed(e.ins):
            own = self.along(x, e.out, deepest - 1)
            flat = tuple([a and b for a, b in zip(flat, own, strict=True)])
            if flat == single:
                break
        return flat
