"""Which small constants are epsilons: taken as 0, since they only keep a divisor from 0.

A small constant beside a value that scales, ``v + c`` or ``max(v, c)``, is taken as 0 if

- it is positive and bounds `v` from below. ``clamp``'s ceiling, ``min``, and ``v - c`` decide what
  comes out however small `c` is;
- something divides by the sum, or takes a root of it where `v` is never 0: that is what epsilons
  are for. Beside a value that is thresholded, squashed or put out, `c` is one constant of many;
- the divisor is *shared*, one for several entries of what it divides. ``x / sqrt(mean(x**2) + c)``
  compares the entries of `x` with each other, and goes on doing so however far they are scaled. A
  divisor of an entry's own, ``k*s / (k*s + c)``, compares the entry with `c` and nothing else: at
  ``c = 0`` it is 1, whatever `k` and `s` are, so that `c` is all that the quotient is about (a
  saturation constant). An entry's own divisor will do if it is of another kind than the entry:
  the norms of two vectors under their dot product, that of a kernel alone under its output;
- where `v` is exactly 0, so is what is divided: ``1 / (d + c)`` with distances `d` that may be 0 is
  about `c`, and so are ``z / (norm(z * mask) + c)`` in the rows that are masked whole, and
  ``relu(-z) / (norm(relu(z)) + c)``: see `optax_bnmask.program.zeros`. ``z / (segment_sum(norm(z),
  of, n) + c)[of]`` is not: the sum is 0 for segments without rows, and these divide none;
- the sum is not carried to the next iteration: there it accumulates, as in a clock ``t += 1e-3``.

A large constant above a reciprocal, ``min(1 / v, 1 / c) = 1 / max(v, c)``, is an epsilon `c` below
`v`, and is taken as infinite where `c` would be taken as 0.

Whether `c` really is negligible at somebody's parameters is for `verify` to measure; each one is
recorded.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest
from math import prod
from typing import NamedTuple

from optax_bnmask import compat
from optax_bnmask.program.dependence import dependents
from optax_bnmask.program.equations import Number
from optax_bnmask.program.facts import Facts
from optax_bnmask.program.flags import EPSILON, MAY_BE_0, NONNEG
from optax_bnmask.program.registry import Kind
from optax_bnmask.program.segments import Segments
from optax_bnmask.program.tape import CARRIED, Equation
from optax_bnmask.program.zeros import Zeros

_ADD, _SUB, _MAX, _MIN, _CLAMP = (
    compat.primitive(f"{name}_p") for name in ("add", "sub", "max", "min", "clamp")
)

_PASSING = {Kind.VIEW, Kind.CAST, Kind.SUM, Kind.SELECT, Kind.JOIN, Kind.EXTREMUM, Kind.POWER}
"""Kinds whose results still hold the sum as a summand or an entry, or a power of it."""

_FACTORS = {Kind.PRODUCT, Kind.QUOTIENT}
_SEEN = {Kind.VIEW, Kind.CAST, Kind.LOOP}

_FUNCTIONS = {*_PASSING, *_FACTORS, Kind.REDUCTION, Kind.LOOP}
"""Kinds whose results are nothing but functions of their operands' entries."""

_MOST = 256
"""How many uses of a sum are looked at; where there are more, it is no epsilon on their account."""

_NEAR = 64
"""Among so many values a common ancestor of a divisor and what it divides is looked for."""


class Use(NamedTuple):
    """A value with the sum as a factor: ``sum**power`` times other values.

    Attributes:
      at: The value.
      power: That power.
      others: The other factors.
      shared: Whether several entries of these meet one entry of the sum.
      rooted: Whether a root was taken on the way.
      lookup: The equation that looked it up on the way, if one did.
    """

    at: int
    power: float
    others: tuple[int, ...]
    shared: bool = False
    rooted: bool = False
    lookup: Equation | None = None


class Epsilons:
    """Tells epsilons from other small constants `c`, by how the sum ``v + c`` is used."""

    def __init__(self, facts: Facts) -> None:
        self.facts, self.tape = facts, facts.tape
        self._segments = Segments(facts)
        self._known: dict[int, bool] = {}

    def is_epsilon(self, e: Equation, place: int) -> bool:
        """Whether the constant that is the operand at `place` may be taken as 0."""
        number = self.facts.numbers[e.ins[place]]
        if number is None or not _bounds_from_below(e, place, number):
            return False
        if e.out not in self._known:
            beside = [x for x in e.ins if self.facts.numbers[x] is None]
            self._known[e.out] = self._is_negligible(e, abs(number), beside)
        return self._known[e.out]

    def is_ceiling(self, e: Equation, place: int) -> bool:
        """Whether the constant that is the operand at `place` is 1 / c, of an epsilon c."""
        number = self.facts.numbers[e.ins[place]]
        if e.op is not _MIN or number is None or number * EPSILON < 1:
            return False
        v, power = self._as_power(e.ins[1 - place])
        return power < 0 and self._is_negligible(e, 1 / number, [v], power)

    def _is_negligible(
        self, e: Equation, number: float, beside: list[int], power: Number = 1
    ) -> bool:
        """Whether a constant does nothing but keep what it is added to from 0.

        Args:
          e: The equation whose result is the sum, or a power of it.
          number: The constant.
          beside: The values that it is added to.
          power: The power.
        """
        factors = self._segments.factors(beside)
        uses = self._uses(e.out, number, power)
        return (
            self._keeps_from_0(e, beside, factors, uses)
            and not self._accumulates(e.out)
            and not self._divides_others(beside, factors, uses, number)
        )

    def _as_power(self, x: int) -> tuple[int, Number]:
        """A value as a power of another one, or as a number times its reciprocal."""
        e = self.tape.writers.get(x)
        if e is not None and e.kind is Kind.POWER:
            return e.ins[0], self._power_of(e)
        if e is not None and e.kind is Kind.QUOTIENT and self.facts.numbers[e.ins[0]] is not None:
            return e.ins[1], -1
        return x, 1

    @staticmethod
    def _kind(e: Equation | None) -> Kind | None:
        return None if e is None else e.kind

    def _keeps_from_0(
        self, e: Equation, beside: list[int], factors: list[int], uses: Sequence[Use]
    ) -> bool:
        """Whether the sum is rooted or a shared divisor, and in no quotient ``v / (v + c)``."""
        flags = self.facts.flags
        nonneg = all(flags[x] & NONNEG for x in beside)
        may_be_0 = any(flags[x] & MAY_BE_0 for x in beside)
        known: dict[tuple[int, ...], list[int]] = {}
        divisors = [use for use in uses if use.power <= 0]
        for use in divisors:
            if use.others not in known:
                known[use.others] = self._segments.factors(use.others)
        divided = [(use, known[use.others]) for use in divisors]
        if any(others and self._is_within(factors, others) for _, others in divided):
            return False
        if self._is_of_leaves(factors, {x for use in divisors for x in use.others}):
            return False
        if nonneg and not may_be_0 and any(use.power > 0 and use.rooted for use in uses):
            return True
        return (nonneg or e.op in (_ADD, _SUB)) and any(
            bool(others)
            and (
                self._segments.divide_their_own(factors, use.lookup, use.others)
                or (
                    (use.shared or self._is_of_another_kind(factors, others))
                    and (
                        not may_be_0
                        or (  # and the divisor is no other row's
                            use.lookup is None and self._are_0_together(factors, beside, use.others)
                        )
                    )
                )
            )
            for use, others in reversed(divided)  # the last ones divide the most
        )

    def _uses(self, x: int, number: float, power: Number) -> list[Use]:
        """How that power of the sum is used, as far as products, powers and sums over it reach."""
        waiting, readers = [Use(x, power.numerator / power.denominator, ())], self.tape.readers
        out: list[Use] = []
        while waiting and len(out) < _MOST:
            use = waiting.pop()
            out.append(use)
            steps = [self._step(e, use, number) for e in readers.get(use.at, ())]
            waiting += [step for step in steps if step is not None]
        return out

    def _step(self, e: Equation, use: Use, number: float) -> Use | None:
        """What the sum is a part of after one more operation; `None` where it is no factor."""
        kind, x, power, others, rooted = e.kind, use.at, use.power, use.others, use.rooted
        if kind is Kind.REDUCTION:  # a sum of n of them adds up n constants
            several = number * self._size(x) / max(self._size(e.out), 1) > EPSILON
            return None if others or several else use._replace(at=e.out)
        if kind is Kind.POWER and not others and e.ins[0] == x:
            k = self._power_of(e)
            power *= k.numerator / k.denominator  # its sign counts, and rationals are slow
            rooted = rooted or 0 < abs(k.numerator) < k.denominator
        elif kind is Kind.QUOTIENT and e.ins[1] == x != e.ins[0]:
            power, others = -power, (*others, e.ins[0])
        elif kind in _FACTORS and power != 1 and e.ins[0] != e.ins[1]:
            others += tuple(y for y in e.ins if y != x) if kind is Kind.PRODUCT else ()
        elif kind is Kind.LOOKUP and e.ins[0] == x and use.lookup is None:
            return use._replace(at=e.out, lookup=e)
        elif kind not in _SEEN:
            return None
        full = self.tape.full
        shared = use.shared or (full[x] != full[e.out] and prod(full[e.out]) > prod(full[x]))
        return Use(e.out, power, others, shared, rooted, use.lookup)

    def _power_of(self, e: Equation) -> Number:
        """The power that an equation takes its operand to; 0 if that is not known."""
        law = self.facts.law(e)
        return law.powers[0] if law is not None and law.powers else 0

    def _size(self, x: int) -> int:
        return prod(self.tape.full[x])

    def _accumulates(self, x: int) -> bool:
        """Whether a loop hands the sum on to its next iteration, as a summand or an entry."""
        waiting, seen = [x] if self.tape.loops else [], {x}
        while waiting:
            for e in self.tape.readers.get(waiting.pop(), ()):
                if e.op is CARRIED and e.ins[1] in seen:
                    return True
                passes = e.kind in _PASSING or (
                    e.kind in _FACTORS and any(self.facts.numbers[y] is not None for y in e.ins)
                )
                if passes and e.out not in seen:
                    seen.add(e.out)
                    waiting.append(e.out)
        return False

    def _divides_others(
        self, beside: list[int], factors: list[int], uses: Sequence[Use], number: float
    ) -> bool:
        """Whether one of several quotients by the sum is not 0 where the divisor is.

        What has no ancestor in common with the divisor is left alone: the gradient of a normaliser,
        where it is a part of the program, divides what comes from behind, and masks it later.
        """
        if not any(self.facts.flags[x] & MAY_BE_0 for x in beside):
            return False
        quotients = {
            use.others
            for use in uses
            if use.power <= 0 and use.others and use.lookup is None and self._is_read(use, number)
        }
        return len(quotients) > 1 and not all(
            self._segments.divide_their_own(factors, None, others)
            or self._are_0_together(factors, beside, others)
            or not self._are_near(beside, others)
            for others in quotients
        )

    def _is_read(self, use: Use, number: float) -> bool:
        """Whether anything reads a quotient but further factors."""
        readers = self.tape.readers.get(use.at, ())
        return use.at in self.tape.outs or any(self._step(e, use, number) is None for e in readers)

    def _is_within(self, factors: list[int], others: list[int]) -> bool:
        """Whether all `factors` are among `others`, so that they cancel in the quotient."""
        return all(any(self._segments.is_same(f, o) for o in others) for f in factors)

    def _is_of_leaves(self, factors: list[int], divided: Iterable[int]) -> bool:
        """Whether a divisor is an entry of a leaf, ``abs(g) + c``, that what it divides is made of.

        ``sum(x * g) / (abs(g) + c)`` is a saturation of `g`, as ``g / (abs(g) + c)`` is.
        """
        if not factors or any(f not in self.tape.leaves for f in factors):
            return False
        depends = dependents(self.tape, factors)
        return any(depends[x] for x in divided)

    def _is_of_another_kind(self, factors: list[int], others: list[int]) -> bool:
        """Whether a divisor is of another kind than what it divides, and so no saturation of it.

        It is if it is a product of two different reductions, as the norms under a dot product, or
        depends on no data, as the norm of a kernel, and what it divides does.
        """
        kinds = {self._kind(self.tape.writers.get(f)) for f in factors}
        if kinds <= {Kind.REDUCTION, Kind.CONTRACTION} and not all(
            self._segments.is_same(factors[0], f) for f in factors
        ):
            return True
        knows = self.facts.depends_on_data
        return not any(knows[f] for f in factors) and any(knows[o] for o in others)

    def _are_0_together(
        self, factors: list[int], divisor: list[int], divided: Iterable[int]
    ) -> bool:
        """Whether what is divided is 0 where the divisor is.

        Beside results of loops, of which nothing is known, an ancestor in common will do.

        Args:
          factors: The factors of the divisor.
          divisor: The divisor, without its epsilon.
          divided: What is divided.
        """
        if all(self._kind(self.tape.writers.get(f)) is Kind.LOOP for f in factors):
            return any(self._are_near(divisor, [x]) for x in divided)
        zeros = Zeros(self.facts, self._segments, divided)
        return all(zeros.include_those_of(x) for x in divisor)

    def _are_near(self, xs: Iterable[int], ys: Iterable[int]) -> bool:
        """Whether two sets of values, with their nearest ancestors, have a value in common."""
        found: tuple[set[int | None], set[int | None]] = (set(), set())
        for pair in zip_longest(self._near(xs), self._near(ys)):
            for x, own, other in zip(pair, found, reversed(found), strict=True):
                if x in other:
                    return True
                own.add(x)
        return False

    def _near(self, xs: Iterable[int]) -> Iterator[int]:
        """Yields values, then what they are entrywise functions or reductions of, nearest first."""
        waiting, seen = list(xs), set(xs)
        for x in waiting:
            yield x
            e = self.tape.writers.get(x)
            if e is not None and len(seen) < _NEAR and self._kind(e) in _FUNCTIONS:
                new = [y for y in e.ins if y not in seen and self.facts.numbers[y] is None]
                seen.update(new)
                waiting += new


def _bounds_from_below(e: Equation, place: int, number: float) -> bool:
    """Whether a small constant keeps another operand from being less than it."""
    if e.op is _SUB:
        return place == 1 and -EPSILON <= number < 0
    below = e.op in (_ADD, _MAX) or (e.op is _CLAMP and place == 0)
    return below and 0 < number <= EPSILON
