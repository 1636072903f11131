"""What has become of each unknown of a gauge on the way: was it summed over, or made a size?

With ``u`` the local scale of `x`, which starts there, the marks of ``u`` are

    x                       reduced 0
    x - mean(x)             reduced 0      a sum is reduced as little as the least of its summands
    (x - mean(x))**2        reduced 0, a size
    mean((x - mean(x))**2)  reduced 1, a size
    sqrt(the same + 1e-5)   reduced 1, a size

so that ``(x - mean(x)) / sqrt(..)`` divides by a size that is reduced more often.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple

from optax_bnmask import compat
from optax_bnmask.program.facts import Facts
from optax_bnmask.program.registry import RULES, Kind
from optax_bnmask.program.tape import MOVE, RESHAPE, Equation

_SAME_VALUE = {
    *(MOVE, RESHAPE),
    *(compat.primitive(f"{name}_p") for name in ("conj", "convert_element_type", "copy", "neg")),
}
"""Operations whose result is the operand seen otherwise: times that, it is a square."""
_EVEN = {compat.primitive("square_p"), compat.primitive("abs_p")}
_POWERS = {compat.primitive("integer_pow_p"), compat.primitive("pow_p")}
_REDUCING = {Kind.REDUCTION, Kind.CONTRACTION, Kind.LOOP}
_PRODUCTS = {Kind.PRODUCT, Kind.CONTRACTION}
_MARKING = {Kind.POWER, *_REDUCING, *_PRODUCTS}
"""Kinds of operations that may change a mark."""


class Mark(NamedTuple):
    """What has become of one unknown in one value.

    Attributes:
      reduced: How often it was summed over since it started.
      is_size: Whether it is made of squares or magnitudes.
    """

    reduced: int = 0
    is_size: bool = False


_START: Final = Mark()


class Trails:
    """The marks of the unknowns in each value; those that are missing are as they started."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self._of: dict[int, Mapping[int, Mark]] = {}
        self._roots: dict[int, int] = {}
        self._sums: dict[Any, int] = {}

    def root(self, x: int) -> int:
        """The value that a value is, seen with other axes, or computed once more."""
        return self._roots.get(x, x)

    def mark(self, x: int, unknown: int) -> Mark:
        """What has become of an unknown in a value."""
        return self._of.get(x, {}).get(unknown, _START)

    def forget(self, x: int) -> None:
        """Starts anew."""
        self._of.pop(x, None)

    def see(self, e: Equation) -> None:
        """Gives the result of an equation all that its one operand has."""
        x = e.ins[0]
        if x in self._of:
            self._of[e.out] = self._of[x]
        if e.op in _SAME_VALUE:
            self._roots[e.out] = self._roots.get(x, x)

    def leave(self, e: Equation, unknowns: Callable[[int], Iterable[int]]) -> None:
        """Finds the marks of the result of an equation from those of its operands.

        Args:
          e: The equation.
          unknowns: For a value, the unknowns in its gauge.
        """
        kind, x, of = RULES[e.op].kind, e.ins[0], self._of
        self._find_root(e, kind)
        if kind not in _MARKING:
            held = [y for y in e.ins if y in of]
            if not held:
                return
            if len(held) == 1 and not any(y != held[0] and unknowns(y) for y in e.ins):
                self._of[e.out] = self._of[held[0]]  # beside constants
                return
        size = kind is Kind.POWER and self._is_even(e)
        size |= kind in _PRODUCTS and len(e.ins) == 2 and self.root(x) == self.root(e.ins[1])
        more = int(kind in _REDUCING)
        found: dict[int, Mark] = {}
        for y in e.ins:
            self._add(found, y, unknowns(y), kind)
        if size or more:
            found = {u: Mark(m.reduced + more, m.is_size or size) for u, m in found.items()}
        if found:
            self._of[e.out] = found

    def _is_even(self, e: Equation) -> bool:
        """Whether a power does not see the sign of what it is a power of."""
        if e.op in _POWERS:
            n = e.params["y"] if "y" in e.params else self.facts.numbers[e.ins[1]]
            return n is not None and n % 2 == 0
        return e.op in _EVEN

    def _find_root(self, e: Equation, kind: Kind) -> None:
        if e.op in _SAME_VALUE:
            self._roots[e.out] = self.root(e.ins[0])
        elif kind is Kind.SUM:  # programs compute ``x - mean`` more than once
            known = (e.op, *map(self.root, e.ins))
            self._roots[e.out] = self._sums.setdefault(known, e.out)

    def _add(self, found: dict[int, Mark], x: int, unknowns: Iterable[int], kind: Kind) -> None:
        """Adds the marks of an operand: of joined statistics, one that is a size is enough."""
        known = self._of.get(x, {})
        for u in unknowns:
            mark, other = known.get(u, _START), found.get(u)
            if other is not None:
                sizes = (mark.is_size, other.is_size)
                is_size = any(sizes) if kind is Kind.JOIN else all(sizes)
                mark = Mark(min(mark.reduced, other.reduced), is_size)
            found[u] = mark
