"""The axes along which values do not vary, whatever the parameters and the data are."""

from typing import Final

from optax_bnmask import compat
from optax_bnmask.program.dependence import dependents
from optax_bnmask.program.facts import Facts
from optax_bnmask.program.registry import Kind
from optax_bnmask.program.tape import MOVE, Equation

_DEEPEST: Final = 3
"""Broadcasts are looked for behind so many operations: a gain is broadcast, scaled, and multiplied,
and what is farther away is no reason to walk back through the whole network."""

_ENTRYWISE: Final = frozenset(
    {
        *(Kind.PRODUCT, Kind.QUOTIENT, Kind.SUM, Kind.POWER, Kind.EXTREMUM, Kind.SELECT),
        *(Kind.COMPARISON, Kind.NONLINEAR, Kind.CAST),
    }
)
_COPIES: Final = {compat.primitive(f"{name}_p") for name in ("neg", "copy", "stop_gradient")}
_IOTA: Final = compat.primitive("iota_p")


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

        A number beside an array is flat, and so is an array along the iterations of a loop that it
        is not of.
        """
        shown, wide = len(self._tape.shapes[x]), len(self._tape.shapes[out])
        flat, rank = self.of(x, deepest), len(self._tape.full[out])
        if shown not in (0, wide):
            return (False,) * rank
        return (flat[:shown] or (True,) * wide) + (flat[shown:] or (True,) * (rank - wide))

    def _found(self, x: int, deepest: int) -> tuple[bool, ...]:
        full, e = self._tape.full[x], self._tape.writers.get(x)
        if self.number(x) is not None:
            return (True,) * len(full)
        flat = tuple([n == 1 for n in full])
        if e is None or not deepest:
            return flat
        if e.op is _IOTA:
            return tuple([a != e.params["dimension"] for a in range(len(flat))])
        if e.op is MOVE:
            own, back = self.of(e.ins[0], deepest - 1), {q: a for a, q in e.params["to"].items()}
            return tuple([q not in back or own[back[q]] for q in range(len(flat))])
        if e.op in _COPIES or e.kind in _ENTRYWISE:
            return self._of_all(e, flat, deepest)
        return flat

    def _of_all(self, e: Equation, single: tuple[bool, ...], deepest: int) -> tuple[bool, ...]:
        """Flat where all operands are, and along `single` axes, which have length 1.

        The first operand comes first, as it is most often the stream, which is flat along no axis.
        """
        flat: tuple[bool, ...] = (True,) * len(single)
        for x in e.ins:
            own = self.along(x, e.out, deepest - 1)
            flat = tuple([a and b for a, b in zip(flat, own, strict=True)])
            if flat == single:
                break
        return flat
