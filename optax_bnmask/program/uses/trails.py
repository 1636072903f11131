"""What has become of each unknown of a gauge on the way: was it summed over, or made a size?

With ``u`` the local scale of `x`, which starts there, the marks of ``u`` are

    x                       reduced 0
    x - mean(x)             reduced 0      a sum is reduced as little as the least of its summands
    (x - mean(x))**2        reduced 0, a size
    mean((x - mean(x))**2)  reduced 1, a size
    sqrt(the same + 1e-5)   reduced 1, a size

so that ``(x - mean(x)) / sqrt(..)`` divides by a size that is reduced more often.

Few marks are ever asked for. So they are found backwards, from the value that one is asked for to
where the unknown starts, which is seldom far, and kept.
"""

from collections.abc import Callable, Collection, Sequence, Set
from typing import Any, Final, NamedTuple

from optax_bnmask import compat
from optax_bnmask.program.facts import Facts
from optax_bnmask.program.registry import Kind
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


class Mark(NamedTuple):
    """What has become of one unknown in one value.

    Attributes:
      reduced: How often it was summed over since it started.
      is_size: Whether it is made of squares or magnitudes.
    """

    reduced: int = 0
    is_size: bool = False


_START: Final = Mark()

Held = Callable[[int], Set[int]]
"""For a value, the unknowns that its gauge has, or had."""


class Trails:
    """The marks of the unknowns in each value.

    Attributes:
      facts: What is known of the values.
    """

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self._writers = facts.tape.writers
        self._marks: dict[int, dict[int, Mark]] = {}
        self._roots: dict[int, int] = {}
        self._sums: dict[Any, int] = {}

    def start(self, x: int, unknown: int) -> None:
        """Says that an unknown starts in a value."""
        self._marks[unknown] = {x: _START}

    def marks(
        self, values: Sequence[int], unknowns: Set[int], held: Held
    ) -> dict[int, Sequence[Mark]]:
        """For each of some unknowns, its mark in each of some values.

        Unknowns are followed back together as long as each operand holds all of them or none: what
        DenseNet's normalisers read has dozens. Where they were joined, they are parted by their
        marks there.

        Args:
          values: The values.
          unknowns: The unknowns.
          held: For a value, the unknowns that its gauge has, or had.
        """
        out: dict[int, Sequence[Mark]] = {}
        groups = [unknowns]
        while groups:
            group = groups.pop()
            if len(group) == 1:
                (u,) = group
                out[u] = [self._mark(x, u, held) for x in values]
            elif parted := self._parted(values, group, held, out):
                groups += parted
        return out

    def _parted(
        self, values: Sequence[int], group: Set[int], held: Held, out: dict[int, Sequence[Mark]]
    ) -> Collection[Set[int]]:
        """Follows a group back to where it parts; notes its marks if it never does."""
        marks: dict[int, Mark] = {}
        found: dict[int, tuple[Equation, list[int]]] = {}
        waiting = [*values]
        while waiting:
            y = waiting.pop()
            if y in marks or y in found:
                continue
            e = self._writers.get(y)
            own = [(z, held(z)) for z in e.ins] if e else []
            sources = [z for z, unknowns in own if group <= unknowns]
            if e and sources and all(group <= u or group.isdisjoint(u) for _, u in own):
                found[y] = e, sources
                waiting += sources
                continue
            alike: dict[Mark, set[int]] = {}
            for u in group:
                alike.setdefault(self._mark(y, u, held), set()).add(u)
            if len(alike) > 1:
                return alike.values()
            (marks[y],) = alike
        for y in sorted(found):  # in the order of execution
            e, sources = found[y]
            marks[y] = self._left(e, [marks[z] for z in sources])
        pair = tuple(marks[x] for x in values)
        out |= dict.fromkeys(group, pair)
        return ()

    def _mark(self, x: int, unknown: int, held: Held) -> Mark:
        """The mark of one unknown, which is kept."""
        marks, waiting = self._marks[unknown], [x]
        found: dict[int, tuple[Equation, list[int]]] = {}
        while waiting:
            y = waiting.pop()
            if y not in marks and y not in found:
                e = self._writers.get(y)
                sources = [z for z in e.ins if unknown in held(z)] if e else []
                if e is None or not sources:
                    marks[y] = _START
                else:
                    found[y] = e, sources
                    waiting += sources
        for y in sorted(found):  # in the order of execution
            e, sources = found[y]
            marks[y] = self._left(e, [marks[z] for z in sources])
        return marks[x]

    def _left(self, e: Equation, marks: Sequence[Mark]) -> Mark:
        """The mark in the result of an equation, from those in its operands.

        Of joined statistics, one that is a size is enough.
        """
        kind, (reduced, is_size) = e.kind, marks[0]
        for mark in marks[1:]:
            reduced = min(reduced, mark.reduced)
            is_size = is_size or mark.is_size if kind is Kind.JOIN else is_size and mark.is_size
        if kind in _PRODUCTS and len(e.ins) == 2:
            is_size = is_size or self.root(e.ins[0]) == self.root(e.ins[1])
        elif kind is Kind.POWER:
            is_size = is_size or self._is_even(e)
        reduced += kind in _REDUCING
        first = marks[0]
        return first if first == (reduced, is_size) else Mark(reduced, is_size)

    def _is_even(self, e: Equation) -> bool:
        """Whether a power does not see the sign of what it is a power of."""
        if e.op in _POWERS:
            n = e.params["y"] if "y" in e.params else self.facts.numbers[e.ins[1]]
            return n is not None and n % 2 == 0
        return e.op in _EVEN

    def root(self, x: int) -> int:
        """The value that a value equals, up to sign, axes and dtype, or computed once more."""
        roots, waiting = self._roots, [x]
        found: dict[int, Equation] = {}
        while waiting:
            y = waiting.pop()
            if y not in roots and y not in found:
                e = self._writers.get(y)
                if e is None or not _is_followed(e):
                    roots[y] = y
                else:
                    found[y] = e
                    waiting += e.ins
        for y in sorted(found):  # in the order of execution
            roots[y] = self._root(found[y], [roots[z] for z in found[y].ins])
        return roots[x]

    def _root(self, e: Equation, roots: Sequence[int]) -> int:
        """The root of the result of an equation: programs compute ``x - mean`` more than once."""
        return roots[0] if e.op in _SAME_VALUE else self._sums.setdefault((e.op, *roots), e.out)


def _is_followed(e: Equation) -> bool:
    """Whether `Trails.root` looks behind an equation: a view, or a sum to be compared."""
    return e.op in _SAME_VALUE or e.kind is Kind.SUM
