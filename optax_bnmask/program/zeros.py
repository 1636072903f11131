"""Whether a product is exactly 0 wherever its divisor is, as far as the program shows it.

A value is 0 for a *cause* that lies behind it: a mask, a ReLU, a padding. The norm of
``relu(z) * m`` is 0 in the rows where all of `relu(z)` is, and in those where `m` is. From the
divisor the walk goes back to its causes, and each must be one of zeros of the product, too. It is,
of ``relu(z) * m`` itself, computed once or twice, and of ``g * m * relu(z)``; of `z`, ``relu(-z)``
and ``relu(z)[::-1]`` it is not: these are 0 in other rows.

On both sides the walk knows which axes of a value are axes of where it started. Those along which
the divisor varies tell its rows apart. They must be axes of the product, too: in the reverse of the
rows and in sums over them, they are lost.
"""

from collections.abc import Iterable, Sequence

from optax_bnmask import compat
from optax_bnmask.program.facts import Facts
from optax_bnmask.program.flags import ANY_DEGREE, CLIPPED, MASKED, MAY_BE_0, MEAN, NONNEG
from optax_bnmask.program.maps import operand_map, regrouped
from optax_bnmask.program.registry import Kind
from optax_bnmask.program.segments import Segments
from optax_bnmask.program.tape import MOVE, RESHAPE, SLICE, Equation

_SUB, _REVERSE, _SORT, _CUT, _JOIN = (
    compat.primitive(f"{name}_p") for name in ("sub", "rev", "sort", "dynamic_slice", "concatenate")
)
_PARTS = (SLICE, _CUT)
_ELSEWHERE = (*_PARTS, _REVERSE, _SORT, _JOIN)
"""Operations that put entries in other places along the axes that they change."""

_ALL = {Kind.SUM, Kind.EXTREMUM, Kind.SELECT}
_ANY = {Kind.PRODUCT, Kind.CONTRACTION}
_FIRST = {Kind.VIEW, Kind.CAST, Kind.POWER, Kind.QUOTIENT, Kind.REDUCTION}
"""Kinds whose results are 0 where all operands are, where any is, and where the first is."""

_NEAR = 64
"""So many values are looked at on either side."""

Axes = frozenset[int]


class Zeros:
    """The zeros of a product, with which those of its divisor are compared."""

    def __init__(self, facts: Facts, segments: Segments, product: Iterable[int]) -> None:
        self.facts, self.tape, self._segments = facts, facts.tape, segments
        self._new, self._product = list(product), list[int]()
        self._behind: dict[object, list[int]] = {}
        self._reached: set[int] = set()
        self._left = _NEAR

    def include_those_of(self, divisor: int) -> bool:
        """Whether the product is 0 wherever the divisor is, if that may be on ordinary inputs."""
        rows = frozenset(a for a, n in enumerate(self.tape.full[divisor]) if n > 1)
        return self._include(divisor, rows, MAY_BE_0)

    def _add(self, factor: int) -> None:
        """Looks behind a factor for what may make it 0, by operation."""
        self._product.append(factor)
        waiting, seen = [factor], {factor}
        for x in waiting:
            e = self.tape.writers.get(x)
            self._behind.setdefault(e and e.op, []).append(x)
            if e is not None and len(seen) < _NEAR:
                new = dict.fromkeys(y for _, y in _causes(e) if y not in seen)
                seen.update(new)
                waiting += new
        self._reached |= seen

    def _include(self, x: int, rows: Axes, which: int) -> bool:
        """Whether the product is 0 wherever a value behind the divisor is.

        Args:
          x: The value.
          rows: Its axes along which the divisor varies.
          which: The flags of the zeros that matter, some of `MAY_BE_0`: once many entries are
            summed up, only those of whole rows do.
        """
        number, e = self.facts.numbers[x], self.tape.writers.get(x)
        if number is not None:
            return number != 0
        if self.facts.depends[x] and self.tape.floats[x]:
            which &= self.facts.flags[x]
            if not which and not self.facts.flags[x] & ANY_DEGREE:
                return True
        self._left -= 1
        if self._left < 0:
            return False
        if e is not None and e.op is MOVE:  # the same zeros
            return self._include_causes(e, rows, which)
        squares = self._squares(e) if e is not None else None
        if squares is not None and self._include(squares, rows, MAY_BE_0):
            return True  # as of most normalisers, without a look at the product
        return (
            self._is_one_for_all(x, rows)
            or self._is_cause(x, rows)
            or (e is not None and squares is None and self._include_causes(e, rows, which))
        )

    def _is_one_for_all(self, x: int, rows: Axes) -> bool:
        """Whether a mask has several entries, and the same for each row: some are not 0."""
        full = self.tape.full[x]
        several = max(full, default=1) > 1
        return several and not self.facts.depends[x] and all(full[a] == 1 for a in rows)

    def _include_causes(self, e: Equation, rows: Axes, which: int) -> bool:
        """Whether the product is 0 wherever the operands make the result 0."""
        if (
            (e.kind is Kind.EXTREMUM and which & CLIPPED)
            or (e.op in _ELSEWHERE and not self._keeps_rows(e, rows, which))
            or (e.op is _SUB and not self._is_deviation(e))  # 0 where the two are equal
        ):
            return False
        if e.kind is Kind.QUOTIENT and self.facts.numbers[e.ins[1]] is None:
            # 0 / 0 is not 0, as the mean over a mask without any entry.
            self._new.append(e.ins[1])
        causes = [(self._back(e, k, rows), x) for k, x in _causes(e)]
        if e.kind is Kind.EXTREMUM:  # a bound of 0 makes zeros here and there alone
            causes = [c for c in causes if self.facts.numbers[c[1]] is None]
        if e.kind is Kind.SELECT:  # zeros are there where the predicate chooses them
            zeros = (self.facts.numbers[x] == 0 for _, x in causes)
            causes = [
                (rows, e.ins[0]) if zero else c for zero, c in zip(zeros, causes, strict=True)
            ]
        found = (axes is not None and self._include(x, axes, which) for axes, x in causes)
        if e.kind is Kind.SUM or e.op is _JOIN:  # 0 where both are, else by accident
            return any(found)
        return bool(causes) and all(found)

    def _keeps_rows(self, e: Equation, rows: Axes, which: int) -> bool:
        """Whether entries change places within rows alone, and none are left out that matter."""
        kept = self._back(e, 0, rows)
        return (
            kept is not None and len(kept) == len(rows) and (e.op not in _PARTS or which == MASKED)
        )

    def _is_deviation(self, e: Equation) -> bool:
        """Whether a difference is from a mean, which no row is equal to but by accident."""
        means = sum(self._averaged(x) is not None for x in e.ins)
        return means == 1 or bool(self.facts.any(e, MEAN))

    def _is_cause(self, x: int, rows: Axes) -> bool:
        """Whether the product is 0 in the rows where a value is, of which it is computed."""
        while self._new:
            self._add(self._new.pop())
        same = {x} if x in self._reached else set(self._computed_alike(x))
        known: dict[tuple[int, Axes], bool] = {}

        def is_0(y: int, axes: Axes) -> bool:
            if (y, axes) not in known:
                known[y, axes] = rows <= axes if y in same else is_computed_0(y, axes)
            return known[y, axes]

        def is_computed_0(y: int, axes: Axes) -> bool:
            e = self.tape.writers.get(y)
            if e is None or y not in self._reached:
                return self.facts.numbers[y] == 0
            causes = [(self._back(e, k, axes), z) for k, z in _causes(e)]
            found = (inner is not None and is_0(z, inner) for inner, z in causes)
            return any(found) if e.kind in _ANY else bool(causes) and all(found)

        return bool(same) and any(
            is_0(y, frozenset(range(len(self.tape.full[y])))) for y in self._product
        )

    def _computed_alike(self, x: int) -> Iterable[int]:
        """The values behind the product that are computed in the same way as a value."""
        e, full = self.tape.writers.get(x), self.tape.full
        for y in self._behind.get(e and e.op, ()):
            if full[y] == full[x] and self._segments.is_same(x, y):
                yield y

    def _back(self, e: Equation, place: int, axes: Axes) -> Axes | None:
        """Which axes of an operand are some axes of the result; `None` if no law says so."""
        x, full = e.ins[place], self.tape.full
        if e.op is RESHAPE:
            groups = regrouped(full[x], full[e.out])
            return frozenset(a for old, new in groups if not axes.isdisjoint(new) for a in old)
        if e.op is SLICE or e.op is _JOIN:
            return frozenset(a for a in axes if full[x][a] == full[e.out][a])
        if e.kind is Kind.CAST and not self.tape.floats[x]:  # a predicate, counted
            return axes
        law = self.facts.law(e)
        if law is None or law.map_of(place) is None:
            return None
        if e.kind is Kind.POWER and not (law.powers and law.powers[0] > 0):
            return None
        to = operand_map(self.tape, e, place, law.map_of(place))
        return frozenset(a for a, q in to.items() if q in axes)

    def _squares(self, e: Equation) -> int | None:
        """The mean of squares in a variance, which is 0 only where that is.

        In ``mean(x**2) - mean(x)**2`` it is the first. Where the two are equal and not 0, so are
        all entries of `x`, which they are not on ordinary inputs. Variances are often clipped at 0,
        which is no ReLU: only rounding puts any below.
        """
        if e.kind is Kind.EXTREMUM:
            inner = [x for x in e.ins if self.facts.numbers[x] is None]
            if len(inner) != 1 or inner[0] not in self.tape.writers:
                return None
            if self._is_sum_of_squares(inner[0]):
                return inner[0]
            e = self.tape.writers[inner[0]]
        if e.op is not _SUB:
            return None
        x, y = (self._averaged(x) for x in e.ins)
        same = x is not None and y is not None and self._segments.is_same(x, y)
        return e.ins[0] if same else None

    def _is_sum_of_squares(self, x: int) -> bool:
        """Whether a value is the sum or mean of squares, perhaps computed as ``x * x``."""
        if self.facts.flags[x] & NONNEG:
            return True
        factors = self._segments.factors([x])
        while len(factors) == 1:
            e = self.tape.writers.get(factors[0])
            if e is None or e.kind is not Kind.REDUCTION:
                return False
            factors = self._segments.factors(e.ins[:1])
        half = len(factors) // 2
        pairs = zip(factors[:half], factors[half:], strict=False)
        return 2 * half == len(factors) and all(self._segments.is_same(*pair) for pair in pairs)

    def _averaged(self, x: int) -> int | None:
        """What a mean of powers, or a power of a mean, is the mean of, be it over a mask."""
        reduced = False
        while (e := self.tape.writers.get(x)) is not None:
            rest = {y for _, y in _causes(e) if self.facts.depends[y]}
            if len(rest) != 1 or e.kind in (Kind.SUM, Kind.EXTREMUM, Kind.CONTRACTION):
                break
            reduced |= e.kind is Kind.REDUCTION
            (x,) = rest
        return x if reduced else None


def _causes(e: Equation) -> Sequence[tuple[int, int]]:
    """The operands, with their places, that may make the result 0."""
    if e.kind in _FIRST:
        return [(0, e.ins[0])]
    if e.kind in _ANY or e.kind in _ALL or e.op is _JOIN:
        return list(enumerate(e.ins))[e.kind is Kind.SELECT :]
    return []
