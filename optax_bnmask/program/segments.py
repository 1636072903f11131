"""Divisors that are sums over segments, each of which divides the rows that it was summed over.

In a graph's normaliser, ``z * rsqrt(segment_sum(z * z, of, n) + c)[of]``, the sum is 0 for segments
without rows, and no row looks these up. That is so only if rows are looked up just where they were
summed: anything that is not seen to be so is taken not to be.
"""

from collections.abc import Iterable, Sequence
from math import prod

import jax.numpy as jnp

from optax_bnmask import compat
from optax_bnmask.program.facts import Facts
from optax_bnmask.program.flags import ANY_DEGREE, MAY_BE_0
from optax_bnmask.program.registry import Kind
from optax_bnmask.program.tape import MOVE, Equation

_ADD, _LESS, _MAX, _SUMS = (
    compat.primitive(f"{name}_p") for name in ("add", "lt", "max", "scatter_add")
)
_ENTRYWISE = {Kind.POWER, Kind.PRODUCT, Kind.QUOTIENT, Kind.SUM, Kind.EXTREMUM}
_PRODUCTS = {Kind.PRODUCT, Kind.QUOTIENT}
_NEAR = 12
"""So many operations at most are between a sum and where it is looked up."""


class Segments:
    """Tells divisors that are sums over the divided rows' own segments."""

    def __init__(self, facts: Facts) -> None:
        self.facts, self.tape = facts, facts.tape

    def divide_their_own(
        self, factors: Sequence[int], lookup: Equation | None, divided: Sequence[int]
    ) -> bool:
        """Whether a divisor may be 0 only where a segment has no rows, or what is divided is 0.

        Args:
          factors: The factors of the divisor.
          lookup: The equation that looks it up once the constant is added to it, if there is one.
          divided: What is divided.
        """
        if lookup is None:
            lookup = self.tape.writers.get(factors[0]) if len(factors) == 1 else None
            if lookup is None or lookup.kind is not Kind.LOOKUP:
                return False
            factors = self.factors(lookup.ins[:1])
        depends = self.facts.depends
        summed = [(f, self._summed(f, lookup)) for f in factors]
        return any(depends[f] for f in factors) and all(
            rows is not None
            and (self._is_0_with(rows, divided) if depends[f] else self._is_counted(rows))
            for f, rows in summed
        )

    def factors(self, xs: Iterable[int]) -> list[int]:
        """The values whose powers, entry by entry, some values are products of; no numbers."""
        waiting = list(xs)
        out: list[int] = []
        while waiting:
            x = waiting.pop()
            e = self.tape.writers.get(x)
            kind = None if e is None else e.kind
            if e is not None and kind in (Kind.VIEW, Kind.CAST, Kind.POWER):
                waiting.append(e.ins[0])
            elif e is not None and kind in _PRODUCTS:
                waiting += e.ins
            elif e is not None and kind is Kind.REDUCTION and self._is_of_one(e):
                waiting.append(e.ins[0])
            elif self.facts.numbers[x] is None:
                out.append(x)
        return out

    def _is_of_one(self, e: Equation) -> bool:
        """Whether a reduction is over single entries."""
        return len(e.ins) == 1 and prod(self.tape.full[e.ins[0]]) == prod(self.tape.full[e.out])

    def _squared(self, e: Equation) -> int | None:
        """The value whose square an equation computes, however it is spelled."""
        law = self.facts.law(e) if e.kind is Kind.POWER else None
        square = law is not None and law.powers == (2,)
        return e.ins[0] if square or (e.kind is Kind.PRODUCT and e.ins[0] == e.ins[1]) else None

    def is_same(self, x: int, y: int, depth: int = 6) -> bool:
        """Whether two values are computed in the same way, as far as a few steps back tell."""
        if x == y:
            return True
        d, e = self.tape.writers.get(x), self.tape.writers.get(y)
        if d is None or e is None:
            a, b = self.facts.numbers[x], self.facts.numbers[y]
            return a is not None and a == b
        bases = self._squared(d), self._squared(e)
        if depth > 0 and bases[0] is not None and bases[1] is not None:
            return self.is_same(bases[0], bases[1], depth - 1)
        return (
            depth > 0
            and (d.op, d.place, len(d.ins)) == (e.op, e.place, len(e.ins))
            and d.params == e.params
            and all(self.is_same(u, v, depth - 1) for u, v in zip(d.ins, e.ins, strict=True))
        )

    def _summed(self, x: int, lookup: Equation) -> int | None:
        """The rows that a value is the sum of, over the segment of each row that looks it up."""
        e = self.tape.writers.get(x)
        if e is None or not self._are_entries_of(lookup.ins[0], x):
            return None
        if e.op is _MAX and not self.facts.depends[x]:  # a count of at least 1
            x = next((y for y in e.ins if self.facts.numbers[y] is None), x)
            e = self.tape.writers.get(x)
        if e is None or e.op is not _SUMS or not _is_inverse(e, lookup):
            return None
        start, indices, rows = e.ins
        same = self._given(indices) == self._given(lookup.ins[1])
        return rows if same and self.facts.numbers[start] == 0 else None

    def _is_0_with(self, rows: int, divided: Sequence[int]) -> bool:
        """Whether rows are never 0, or made of nothing but what is divided."""
        if not self.facts.flags[rows] & MAY_BE_0:
            return True
        own = self._entries(rows)
        return any(self.is_same(self._entries(x), own) for x in divided)

    def _is_counted(self, rows: int) -> bool:
        """Whether rows are one positive number, so that their sum counts those of a segment."""
        return (self.facts.numbers[rows] or 0) > 0

    def _are_entries_of(self, x: int, y: int) -> bool:
        """Whether a value is computed from another entry by entry, its axes where they were."""
        waiting, seen = [x], set[int]()
        while waiting and len(seen) < _NEAR:
            x = waiting.pop()
            if x == y:
                return True
            seen.add(x)
            e = self.tape.writers.get(x)
            if e is None:
                continue
            if e.kind in (*_ENTRYWISE, Kind.CAST):
                waiting += [z for z in e.ins if len(self.tape.full[z]) == len(self.tape.full[x])]
            elif e.op is MOVE and all(a == q for a, q in e.params["to"].items()):
                waiting.append(e.ins[0])  # repeated along others
        return False

    def _entries(self, x: int) -> int:
        """The value whose entries, squared, summed and repeated, are those of a value."""
        while (e := self.tape.writers.get(x)) is not None:
            square = e.kind is Kind.PRODUCT and e.ins[0] == e.ins[1]
            seen = e.kind in (Kind.POWER, Kind.REDUCTION, Kind.CAST) or self._is_aligned(e)
            if not square and not seen:
                break
            x = e.ins[0]
        return x

    def _given(self, x: int) -> int:
        """The indices as they were given, before ``where(i < 0, i + n, i)``."""
        while (e := self.tape.writers.get(x)) is not None:
            if e.kind is Kind.SELECT and self._counts_from_the_end(e):
                x = e.ins[1]
            elif self._is_aligned(e) or (e.kind is Kind.CAST and _is_wide(e)):
                x = e.ins[0]
            else:
                break
        return x

    def _counts_from_the_end(self, e: Equation) -> bool:
        """Whether a select is ``where(i < 0, i + n, i)``, or chooses `i` throughout."""
        which, given, other = e.ins
        if self.facts.flags[which] & ANY_DEGREE:
            return True
        test, added = (self.tape.writers.get(x) for x in (which, other))
        return (
            test is not None
            and test.op is _LESS
            and test.ins[0] == given
            and self.facts.numbers[test.ins[1]] == 0
            and added is not None
            and added.op is _ADD
            and given in added.ins
        )

    def _is_aligned(self, e: Equation) -> bool:
        """Whether a move adds and drops axes of length 1, and does nothing else."""
        if e.op is not MOVE:
            return False
        old, new = ([n for n in self.tape.full[x] if n != 1] for x in (e.ins[0], e.out))
        places = [q for _, q in sorted(e.params["to"].items())]
        return old == new and places == sorted(places)


def _is_inverse(summed: Equation, lookup: Equation) -> bool:
    """Whether a gather reads single rows along the axis along which a scatter added them."""
    put, read = summed.params["dimension_numbers"], lookup.params["dimension_numbers"]
    return (
        put.inserted_window_dims
        == put.scatter_dims_to_operand_dims
        == read.collapsed_slice_dims
        == read.start_index_map
        and not put.operand_batching_dims
        and not read.operand_batching_dims
        and "CLIP" not in str(lookup.params["mode"])
    )


def _is_wide(e: Equation) -> bool:
    """Whether a cast is between integers that hold any index."""
    dtypes = (v.aval.dtype for v in (e.source.invars[0], e.source.outvars[0]))
    return all(jnp.issubdtype(d, jnp.integer) and d.itemsize >= 4 for d in dtypes)
