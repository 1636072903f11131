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

from collections.abc import Callable, Collection, Iterable, Sequence, Set
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
_SEGMENTS = compat.primitive("scatter_add_p")
"""A sum over the rows of each segment: reduced, too."""
_PRODUCTS = {Kind.PRODUCT, Kind.CONTRACTION}


class Mark(NamedTuple):
    """What has become of one unknown in one value.

    Attributes:
      reduced: How often it was summed over since it started.
      is_size: Whether it is made of squares or magnitudes.
    """

    reduced: int = 0
    is_size: bool = False


START: Final = Mark()
"""Of an unknown where it starts, as most do."""

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

    def start(self, x: int, unknown: int, mark: Mark = START) -> None:
        """Says that an unknown starts in a value, which may be a size already."""
        self._marks[unknown] = {x: mark}

    def marks(
        self, values: Sequence[int], unknowns: Set[int], held: Held
    ) -> dict[int, Sequence[Mark]]:
        """For each of some unknowns, its mark in each of some values.

        Unknowns are followed together as long as they can be: what DenseNet's normalisers read
        has dozens.

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
                out[u] = self._marks_of(values, u, held)
            else:
                found, parts = self._of_group(values, group, held)
                out |= dict.fromkeys(() if parts else group, found)
                groups += parts
        return out

    def _marks_of(self, values: Sequence[int], unknown: int, held: Held) -> list[Mark]:
        """The mark of one unknown in each of some values, which is kept."""
        marks = self._marks[unknown]

        def sources(e: Equation) -> list[int]:
            return [x for x in e.ins if unknown in held(x)]

        for x, e, ins in self._past(values, marks, sources):
            marks[x] = self._left(e, [marks[y] for y in ins]) if e else START
        return [marks[x] for x in values]

    def _of_group(
        self, values: Sequence[int], group: Set[int], held: Held
    ) -> tuple[list[Mark], Collection[Set[int]]]:
        """The mark that several unknowns have in common in each of some values.

        They are followed back to where an operand holds but some of them, and are one by one from
        there. If they have different marks in that place, they are parted by these.
        """
        marks: dict[int, Mark] = {}

        def sources(e: Equation) -> list[int]:
            """The operands that hold the group, if the others hold nothing of it."""
            own = [(x, held(x)) for x in e.ins]
            parted = any(not (group <= u or group.isdisjoint(u)) for _, u in own)
            return [] if parted else [x for x, unknowns in own if group <= unknowns]

        for x, e, ins in self._past(values, marks, sources):
            if e is not None:
                marks[x] = self._left(e, [marks[y] for y in ins])
                continue
            alike: dict[Mark, set[int]] = {}
            for u in group:
                mark = self._marks[u].get(x) or self._marks_of([x], u, held)[0]
                alike.setdefault(mark, set()).add(u)
            if len(alike) > 1:
                return [], alike.values()
            (marks[x],) = alike
        return [marks[x] for x in values], ()

    def _past(
        self, values: Iterable[int], known: Collection[int], sources: Callable[..., Sequence[int]]
    ) -> list[tuple[int, Equation | None, Sequence[int]]]:
        """What is to be known before some values are, in the order of execution.

        Args:
          values: The values.
          known: Those of which it is known already.
          sources: The operands of an equation that its result hangs on.

        Returns:
          For each value how it is computed, and its sources; neither if there are none.
        """
        waiting = [*values]
        found: dict[int, tuple[int, Equation | None, Sequence[int]]] = {}
        while waiting:
            x = waiting.pop()
            if x not in known and x not in found:
                e = self._writers.get(x)
                ins = sources(e) if e else ()
                found[x] = (x, e, ins) if ins else (x, None, ())
                waiting += ins
        return [found[x] for x in sorted(found)]

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
        reduced += kind in _REDUCING or e.op is _SEGMENTS
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
        roots = self._roots
        if x not in roots:
            for y, e, ins in self._past([x], roots, _compared):
                if e is None:
                    roots[y] = y
                elif e.op in _SAME_VALUE:
                    roots[y] = roots[ins[0]]
                else:  # programs compute ``x - mean`` more than once
                    roots[y] = self._sums.setdefault((e.op, *(roots[z] for z in ins)), y)
        return roots[x]


def _compared(e: Equation) -> Sequence[int]:
    """The operands that `Trails.root` looks at: of a view, or of a sum to be compared."""
    return e.ins if e.op in _SAME_VALUE or e.kind is Kind.SUM else ()
