"""What is known of values themselves: numbers, signs, what may be exactly 0. One forward pass.

Nothing here knows of exponents. Each `Kind` of operation says once what its results keep of what is
known of their operands; a rule may know more. A value without `NONNEG` may be negative, one with
`CLIPPED` or `MASKED` may be exactly 0, and where nothing is known it has these two.
"""

import functools
from collections.abc import Callable, Collection, Sequence
from typing import Final

import numpy as np

from optax_bnmask import compat
from optax_bnmask.program.constants import folded, known_of
from optax_bnmask.program.dependence import dependents
from optax_bnmask.program.flags import (
    ANY_DEGREE,
    AS_CAPTURED,
    CAPTURED_NONZERO,
    CLIPPED,
    EPSILON,
    HUGE,
    MASKED,
    MAY_BE_0,
    MEAN,
    NONNEG,
    NONZERO,
    RECTIFIED,
    ZERO_TEST,
)
from optax_bnmask.program.negation import is_negated
from optax_bnmask.program.registry import PIN, Kind, Law
from optax_bnmask.program.tape import BRANCH, Equation, Tape

_SUB, _MAX, _DOT = (compat.primitive(f"{name}_p") for name in ("sub", "max", "dot_general"))

_KEPT: Final = NONNEG | MAY_BE_0 | RECTIFIED


class Facts:
    """What is known of every value of a tape.

    Attributes:
      tape: The tape.
      leaves: The values of the leaves, without those that are read as 0.
      numbers: The number that all entries of a value are, if that is known.
      flags: The flags of each value: see `optax_bnmask.program.flags`.
      depends: Whether a value depends on a leaf.
    """

    def __init__(self, tape: Tape, zeros: Collection[int] = ()) -> None:
        """Reads the tape.

        Args:
          tape: The program.
          zeros: Leaves that are read as 0, since their value does not matter.
        """
        self.tape = tape
        self.numbers: list[float | None] = [None] * len(tape.shapes)
        self.flags = [0] * len(tape.shapes)
        self.leaves = [x for x in tape.leaves if x not in zeros]
        self.depends = dependents(tape, self.leaves)
        for x, value in (tape.literals | tape.captured).items():
            self.numbers[x], self.flags[x] = known_of(value)
        for x in tape.captured:
            self.flags[x] |= AS_CAPTURED if self.flags[x] & ANY_DEGREE else 0
        for x in zeros:
            self.numbers[x], self.flags[x] = 0.0, ANY_DEGREE | NONNEG
        self._laws: dict[int, Law | None] = {}
        for e in tape.equations:
            self._read(e)

    def law(self, e: Equation) -> Law | None:
        """The `Law` of an equation; `PIN` if its operands must not scale, or it has no rule."""
        law = e.rule.law
        if law is PIN or type(law) is Law:
            return law
        if e.out not in self._laws:
            self._laws[e.out] = law(e, self)
        return self._laws[e.out]

    def _read(self, e: Equation) -> None:
        numbers = self.numbers
        for x in e.ins:
            if numbers[x] is None:
                break
        else:
            if (number := folded(e, numbers)) is not None:
                numbers[e.out], self.flags[e.out] = number
                self.flags[e.out] |= self.any(e, AS_CAPTURED)
                return
        flags = _BY_KIND[e.kind](self, e)
        if e.rule.facts is not None:
            flags = e.rule.facts(self, e, flags)
        if 0 in self.tape.full[e.out]:  # no entries
            flags = ANY_DEGREE
        self.flags[e.out] = flags

    def any(self, e: Equation, flag: int, first: int = 0) -> int:
        """The bits of `flag` that at least one operand has, from operand `first` on."""
        found = 0
        for x in e.ins[first:]:
            found |= self.flags[x]
        return found & flag

    def all(self, e: Equation, flag: int, first: int = 0) -> int:
        """The bits of `flag` that all operands have, from operand `first` on."""
        found = flag
        for x in e.ins[first:]:
            found &= self.flags[x]
        return found

    def is_data(self, x: int) -> bool:
        """Whether a value is no function of leaves, and may hold a 0 for all that is known."""
        return (
            not self.depends[x] and self.numbers[x] is None and not self.flags[x] & CAPTURED_NONZERO
        )

    def mixes(self, x: int) -> bool:
        """Whether a value is a function of leaves and of data."""
        return bool(self.depends[x] and self.depends_on_data[x])

    @functools.cached_property
    def depends_on_data(self) -> bytearray:
        """For each value, whether data go into it."""
        return dependents(self.tape, [x for x in self.tape.ins if not self.depends[x]])

    def may_be_zero(self, x: int) -> bool:
        """Whether a value may be exactly 0 on ordinary inputs; true if it depends on no leaf."""
        return bool(not self.depends[x] or self.flags[x] & (MAY_BE_0 | ANY_DEGREE))

    def is_never_chosen(self, e: Equation, place: int) -> bool:
        """Whether an operand is a case of a select whose predicate is known to choose another."""
        if place == 0 or e.kind is not Kind.SELECT:
            return False
        which = self.numbers[e.ins[0]]
        return which is not None and which != place - 1

    def guard_operand(self, e: Equation) -> int | None:
        """The place of a select's operand that is chosen only where a value is 0, if a number.

        In ``where(n != 0, n, 1)`` the 1 is a guard: as long as `n` is not exactly 0 on ordinary
        inputs, the result is `n`.
        """
        which, *cases = e.ins
        if len(cases) != 2 or not self.flags[which] & (NONZERO | ZERO_TEST):
            return None
        place = 1 if self.flags[which] & NONZERO else 2
        number = self.numbers[e.ins[place]]
        return place if number is not None and not self.flags[e.ins[place]] & ANY_DEGREE else None


# The flags of a result, by the kind of its operation.


def _first(facts: Facts, e: Equation) -> int:
    """Everything that is known of the first operand."""
    return facts.flags[e.ins[0]]


def _mixed(facts: Facts, e: Equation) -> int:
    """The sign and the zeros of the first operand."""
    return facts.flags[e.ins[0]] & (_KEPT | ANY_DEGREE | AS_CAPTURED)


def _of_factors(facts: Facts, e: Equation) -> int:
    """Signs multiply, zeros of either factor are zeros; data may be a mask of leaves or of data."""
    x, y = e.ins[:2]
    flags = facts.any(e, ANY_DEGREE | AS_CAPTURED | MAY_BE_0 | RECTIFIED) | _scaled(facts, x, y)
    flags |= NONNEG if x == y else facts.all(e, NONNEG)
    data = facts.is_data(x), facts.is_data(y)
    masks = any(data) if facts.depends[e.out] else all(data) and x != y
    return flags | MASKED if masks else flags


def _of_quotient(facts: Facts, e: Equation) -> int:
    """Signs multiply, zeros are those of the numerator."""
    x = e.ins[0]
    every = (
        facts.any(e, ANY_DEGREE | AS_CAPTURED) if facts.tape.floats[e.out] else 0
    )  # of integers, 3/0 is -1
    flags = every | facts.all(e, NONNEG) | facts.flags[x] & (MAY_BE_0 | RECTIFIED)
    flags |= _scaled(facts, *e.ins)
    return flags | MASKED if facts.depends[e.out] and facts.is_data(x) else flags


def _scaled(facts: Facts, x: int, y: int) -> int:
    """`MEAN` if one of two operands is a number and the other a mean."""
    numbers = facts.numbers
    if numbers[x] is None and numbers[y] is None:
        return 0
    return (facts.flags[x] | facts.flags[y]) & MEAN


def _of_contraction(facts: Facts, e: Equation) -> int:
    """A sum of products is 0 only where a whole row is; without a sum it is a product.

    Data contracted with functions of leaves and data may be 0 in a whole row, as an adjacency
    matrix at a node without neighbours; a row that a kernel is applied to is taken not to be 0,
    unless it was made of other data before.
    """
    x, y = e.ins[:2]
    if e.op is _DOT and not e.params["dimension_numbers"][0][0]:
        return _of_factors(facts, e)
    x_is_data, y_is_data = facts.is_data(x), facts.is_data(y)
    mixed = (x_is_data and (y_is_data or facts.mixes(y))) or (y_is_data and facts.mixes(x))
    return (
        (MASKED if mixed else 0)
        | (facts.flags[x] | facts.flags[y]) & (ANY_DEGREE | AS_CAPTURED | MASKED)
        | (facts.flags[x] & facts.flags[y] & NONNEG)
    )


def _of_sum(facts: Facts, e: Equation) -> int:
    """A sum keeps what both have; a difference may be 0 in whole rows, unless from a mean."""
    x, y = e.ins
    difference = e.op is _SUB or is_negated(facts, x) != is_negated(facts, y)
    if facts.any(e, ANY_DEGREE):
        return _of_sum_with_constant(facts, e)
    if not difference:  # of signs and a number, as in ``sign(x) + 1``, whole rows may be 0
        numbered = facts.numbers[x] is not None or facts.numbers[y] is not None
        zeros = numbered and not facts.all(e, NONNEG)
        return facts.all(e, _KEPT) | (facts.any(e, MASKED) if zeros else 0)
    from_mean = x != y and facts.any(e, MEAN)
    return CLIPPED | facts.all(e, MASKED | RECTIFIED) if from_mean else MAY_BE_0


def _of_sum_with_constant(facts: Facts, e: Equation) -> int:
    """Beside zeros a value stays what it is; beside infinities it does not."""
    (x, y), flags = e.ins, facts.flags
    other, constant = (x, y) if flags[y] & ANY_DEGREE else (y, x)
    zeros = facts.numbers[constant] == 0
    keeps_sign = flags[other] & flags[constant] & NONNEG and e.op is not _SUB
    nonneg = NONNEG if keeps_sign or (zeros and constant == y and flags[x] & NONNEG) else 0
    kept = flags[other] & (MAY_BE_0 | ANY_DEGREE) | flags[constant] & AS_CAPTURED | nonneg
    return kept if zeros or flags[other] & ANY_DEGREE else kept | MAY_BE_0


def _of_extremum(facts: Facts, e: Equation) -> int:
    """A maximum or minimum may be 0 where an operand, such as the bound of a ReLU, may be."""
    flags = facts.all(e, ANY_DEGREE) | facts.any(e, MASKED | AS_CAPTURED) | _clipped(facts, e.ins)
    largest = e.op is _MAX
    floor = largest and any(
        facts.flags[x] & NONNEG or (facts.numbers[x] or -1) >= 0 or facts.numbers[x] == 0
        for x in e.ins
    )
    return flags | NONNEG if floor else flags | facts.all(e, NONNEG)


def _of_cases(facts: Facts, e: Equation, first: int = 1) -> int:
    """A select: 0 where any case is, in whole rows if data choose between zeros and others."""
    cases = e.ins[first:]
    which = facts.numbers[e.ins[0]] if first else None
    if which is not None and 0 <= which < len(cases):
        return facts.flags[cases[int(which)]]
    guard = facts.guard_operand(e) if first else None
    if guard is not None:
        return facts.flags[e.ins[3 - guard]] & NONNEG if facts.numbers[e.ins[guard]] else 0
    flags = facts.all(e, ANY_DEGREE | NONNEG, first) | facts.any(e, MASKED | AS_CAPTURED, first)
    flags |= _clipped(facts, cases)
    zeros = facts.any(e, ANY_DEGREE, first)
    masks = zeros and (e.op is BRANCH or not facts.depends[e.ins[0]])
    return flags | MASKED if masks else flags


def _clipped(facts: Facts, xs: Sequence[int]) -> int:
    """`CLIPPED` and `RECTIFIED` if any of some values may be 0."""
    known = (facts.numbers[x] is not None and not facts.flags[x] & ANY_DEGREE for x in xs)
    pairs = zip(xs, known, strict=True)
    return CLIPPED | RECTIFIED if any(not k and facts.may_be_zero(x) for x, k in pairs) else 0


def _of_parts(facts: Facts, e: Equation) -> int:
    """A concatenation: an operand of zeros makes whole rows of zeros."""
    flags = facts.any(e, MAY_BE_0 | AS_CAPTURED) | facts.all(e, NONNEG | ANY_DEGREE)
    return flags | MASKED if facts.any(e, ANY_DEGREE) else flags


def _of_cast(facts: Facts, e: Equation) -> int:
    """Between floats everything is kept; made to bool, a value is a test whether it is 0."""
    x = e.ins[0]
    new = e.source.outvars[e.place].aval.dtype
    if facts.tape.floats[e.out]:
        masks = facts.flags[x] & ANY_DEGREE | MAY_BE_0  # numbers made of integers
        if np.issubdtype(e.source.invars[0].aval.dtype, np.complexfloating):
            return facts.flags[x] & ~(HUGE | NONNEG)
        return facts.flags[x] & ~HUGE if facts.tape.floats[x] else masks
    if new == np.bool_:
        if facts.flags[x] & (NONZERO | ZERO_TEST):
            return facts.flags[x] & (NONZERO | ZERO_TEST)
        return 0 if facts.may_be_zero(x) or not facts.tape.floats[x] else NONZERO
    return 0


def _of_comparison(facts: Facts, e: Equation) -> int:
    """`NONZERO` or `ZERO_TEST` if a comparison tells zeros of a value from the rest, else 0."""
    if len(e.ins) != 2:
        return 0
    (x, y), name = e.ins, e.op.name
    if facts.numbers[x] is not None:
        name = {"lt": "gt", "le": "ge", "gt": "lt", "ge": "le"}.get(name, name)
        x, y = y, x
    bound = facts.numbers[y]
    if bound is None or abs(bound) > EPSILON or facts.may_be_zero(x) or not facts.tape.floats[x]:
        return 0
    if name in ("ne", "eq") and bound == 0:
        return NONZERO if name == "ne" else ZERO_TEST
    if not facts.flags[x] & NONNEG or bound < 0:
        return 0
    if name == "gt" or (name == "ge" and bound > 0):
        return NONZERO
    return ZERO_TEST if name == "le" or (name == "lt" and bound > 0) else 0


def _unknown(facts: Facts, e: Equation) -> int:
    """Nothing: entries may be 0, one here and there or in whole rows."""
    del facts, e
    return MAY_BE_0


_BY_KIND: dict[Kind, Callable[[Facts, Equation], int]] = {
    Kind.VIEW: _first,
    Kind.CAST: _of_cast,
    Kind.PRODUCT: _of_factors,
    Kind.QUOTIENT: _of_quotient,
    Kind.SUM: _of_sum,
    Kind.POWER: _mixed,
    Kind.EXTREMUM: _of_extremum,
    Kind.SELECT: _of_cases,
    Kind.JOIN: _of_parts,
    Kind.REDUCTION: _mixed,
    Kind.CONTRACTION: _of_contraction,
    Kind.LOOKUP: _mixed,
    Kind.COMPARISON: _of_comparison,
    Kind.NONLINEAR: _unknown,
    Kind.UNSCALED: _unknown,
    Kind.OPAQUE: _unknown,
    Kind.FACTORS: _unknown,
    Kind.SOLUTION: _of_contraction,
    Kind.LOOP: _unknown,
}
