"""Laws of what is done entry by entry: sums keep changes, products scale them, the rest pins."""

import math
from collections.abc import Sequence
from fractions import Fraction
from functools import partial
from itertools import chain
from math import prod

import jax.numpy as jnp

from optax_bnmask import compat
from optax_bnmask.program.registry import PIN, Kind
from optax_bnmask.program.shifts.changes import (
    Changes,
    Places,
    Source,
    constant_along,
    every_place,
    is_any,
    plus,
    times,
    varying,
)
from optax_bnmask.program.shifts.reading import Shifts, losing, shifting
from optax_bnmask.program.tape import MOVE, RESHAPE, Equation

_SUB, _MAX, _NEG = (compat.primitive(f"{name}_p") for name in ("sub", "max", "neg"))
_LINEAR = {Kind.VIEW, Kind.CAST, Kind.SUM, Kind.PRODUCT, Kind.QUOTIENT}
_NEAR = 8
"""Among so many values computed of one it is looked for a broadcast."""


@shifting("copy_p", "stop_gradient_p", "name_p")
def same(shifts: Shifts, e: Equation) -> Changes | None:
    """``(x + d) - x = d``: the change of the operand."""
    return multiple(shifts, e, e.ins[0], 1)


def multiple(shifts: Shifts, e: Equation, x: int, number: Fraction | int) -> Changes | None:
    """``c*(x + d) - c*x = c*d``."""
    changes = shifts.along(x, e.out)
    if not number:
        shifts.cancels(e, (source for source, _ in changes))
        return None
    if x in shifts.means and shifts.tape.full[x] == shifts.tape.full[e.out]:
        shifts.means[e.out] = times(shifts.means[x], number)
    return changes if number == 1 else times(changes, number)


@shifting("neg_p")
def negative(shifts: Shifts, e: Equation) -> Changes | None:
    """``-(x + d) + x = -d``."""
    return multiple(shifts, e, e.ins[0], -1)


@shifting("tie_p")
def second(shifts: Shifts, e: Equation) -> Changes | None:
    """The second operand as it is."""
    return multiple(shifts, e, e.ins[1], 1)


@shifting(Kind.CAST, "reduce_precision_p")
def cast(shifts: Shifts, e: Equation) -> Changes | None:
    """A float in another dtype changes by ``x + d - x = d``.

    Integers are given up, and floats of 8 bits; so are complex numbers of which a part is left.
    """
    dtypes = (v.aval.dtype for v in (e.source.invars[0], e.source.outvars[0]))
    before, after = (jnp.issubdtype(dtype, jnp.complexfloating) for dtype in dtypes)
    kept = shifts.tape.floats[e.out] and shifts.facts.law(e) is not PIN and before == after
    return same(shifts, e) if kept else losing(shifts, e)


@shifting(Kind.SUM)
def total(shifts: Shifts, e: Equation) -> Changes | None:
    """``(x + d) - (y + d) = x - y``: what both change by is gone."""
    x, y = (shifts.along(operand, e.out) for operand in e.ins)
    if not y:
        return x
    k = -1 if e.op is _SUB else 1
    changes, gone = plus(x, y, k)
    shifts.cancels(e, gone)
    return bundled(shifts, e, changes)


def bundled(shifts: Shifts, e: Equation, changes: Changes) -> Changes:
    """Merges terms that are constant along the same axes into one, of a new source.

    So a residual stream has few terms. The changes of squares stay apart, since only as such they
    cancel, and so do those that are constant along no axis, which `_scaled` keeps.
    """
    shape = shifts.tape.full[e.out]
    plain, constancies = Changes(), set[tuple[bool, ...]]()
    for (source, places), c in changes.items():
        constant = constant_along(places)
        if source.square is None and (e.out in shifts.pure or is_any(constant, shape)):
            plain[source, places] = c
            constancies.add(tuple(constant))
    if len(plain) == len(constancies):
        return changes
    rest = {term: c for term, c in changes.items() if term not in plain}
    return rest | shifts.fresh_for_each(e, plain, lambda constant: constant)


@shifting(Kind.PRODUCT)
def product(shifts: Shifts, e: Equation) -> Changes | None:
    """``(x + d)*y - x*y = d*y``: constant where both `d` and `y` are.

    With a bias of queries (axes: batch, query, feature) scaled by a gain over features, the change
    is still the same for each batch and query.
    """
    x, y = e.ins
    if x == y:
        return square(shifts, e)
    for operand, factor in ((x, y), (y, x)):
        number = shifts.flat.number(factor)
        if number is not None and math.isfinite(number):
            return multiple(shifts, e, operand, exact(number, e))
    return _scaled(shifts, e, (x, y))


@shifting(Kind.QUOTIENT)
def quotient(shifts: Shifts, e: Equation) -> Changes | None:
    """``(x + d)/y - x/y = d/y``: constant where both are."""
    x, y = e.ins
    number = shifts.flat.number(y)
    if number is not None and math.isfinite(number) and number:
        return multiple(shifts, e, x, 1 / Fraction(exact(number, e)))
    return entrywise(shifts, e) if shifts.of(y) else _scaled(shifts, e, (x, y))


def _scaled(shifts: Shifts, e: Equation, operands: tuple[int, int]) -> Changes:
    """The change of each factor times the other.

    A source times a factor is the same new source wherever it is computed, whatever the other axes
    there: neither ``x*g - mean(x)*g`` nor ``x*g + (b - mean(x)*g)`` changes. An axis of the new
    source is one of the old source, one of the factor, or both. What is constant along some axis is
    kept, though times ``g`` it may be constant along none; so is what is broadcast afterwards.
    """
    out: Changes = {}
    shape = shifts.tape.full[e.out]
    for x, y in (operands, operands[::-1]):
        if not (changes := shifts.along(x, e.out)):
            continue
        flat = shifts.flat.along(y, e.out)
        factor, of_factor = _behind_moves(shifts, y)
        of_factor = (None,) * (len(shape) - len(of_factor)) + of_factor  # of numbers
        for (source, places), c in changes.items():
            before = constant_along(places)
            constant = both(before, flat)
            axes = [
                None if q is None else (places[q], None if flat[q] else of_factor[q])
                for q in varying(constant, shape)
            ]
            of_new = sorted({pair for pair in axes if pair}, key=str)
            hope = is_any(before, shape) or _is_broadcast(shifts, e.out)
            key = e.op, factor, tuple(of_new)
            new = shifts.view(e, source, key, constant, may_cancel=hope)
            if new is not None:
                term = new, tuple([pair and of_new.index(pair) for pair in axes])
                out[term] = out.get(term, 0) + c
    return out


def _is_broadcast(shifts: Shifts, x: int) -> bool:
    """Whether a value, or what is its multiple or a sum with it, is broadcast next."""
    tape, values = shifts.tape, [x]
    for y in values:
        for e in tape.readers.get(y, ()):
            if e.kind in _LINEAR:
                if prod(tape.full[e.out]) > prod(tape.full[y]):
                    return True
                values += [e.out] if len(values) < _NEAR else []
    return False


def _behind_moves(shifts: Shifts, x: int) -> tuple[int, Places]:
    """What a value is moved from, and which of its axes each is; `None` for axes of length 1.

    So a factor of shape (32, 1) is the same one broadcast to (32, 8).
    """
    tape = shifts.tape
    places = every_place(tape.full[x])
    while (e := tape.writers.get(x)) is not None and e.op is MOVE:
        (x,) = e.ins
        back = {q: a for a, q in e.params["to"].items() if tape.full[x][a] > 1}
        places = tuple([None if q is None else back.get(q) for q in places])
    return x, places


def exact(number: float, e: Equation) -> Fraction | int:
    """The number that a float stands for: 0.33333334 is a third, others are what they are.

    A number of `p` bits is taken for the reciprocal of an integer below ``2**(p - 1)`` that rounds
    to it: up to there these are farther apart than floats are, so that there is but one.
    """
    if number == int(number):
        return int(number)
    dtype = e.source.outvars[e.place].aval.dtype
    epsilon = float(jnp.finfo(dtype).eps)
    below = round(1 / number) if abs(number) > epsilon else 0
    if 0 < abs(below) * epsilon < 0.5 and abs(number * below - 1) <= epsilon / 2:
        return Fraction(1, below)
    return Fraction(number)


@shifting(Kind.POWER)
def power(shifts: Shifts, e: Equation) -> Changes | None:
    """The change of a square is a source of its own, see `square`; other powers are nonlinear."""
    exponent = 2 if e.op.name == "square" else e.params.get("y")
    if exponent == 1:
        return same(shifts, e)
    return square(shifts, e) if exponent == 2 else entrywise(shifts, e)


def square(shifts: Shifts, e: Equation) -> Changes | None:
    """``(x + d)**2 - x**2``, whose mean the change of ``mean(x)**2`` may cancel.

    If `d` is constant along what the mean is over, then
    ``mean((x + d)**2) - mean(x**2) = 2*d*mean(x) + d**2 = (mean(x) + d)**2 - mean(x)**2``.
    So a variance that is computed as ``mean(x**2) - mean(x)**2`` does not change.
    """
    x = e.ins[0]
    if x in shifts.pure:
        return entrywise(shifts, e)
    if x in shifts.means:
        (((mean, places), c),) = shifts.means[x].items()
        return {(mean, places): c * c}
    return {(shifts.square(x, frozenset()), every_place(shifts.tape.full[x])): 1}


@shifting(Kind.NONLINEAR)
def entrywise(shifts: Shifts, e: Equation) -> Changes | None:
    """Of a nonlinearity the change is constant where its operands and their changes are."""
    sources, constant = list[Source](), [True] * len(shifts.tape.full[e.out])
    for x in e.ins:
        constant = both(constant, shifts.flat.along(x, e.out))
        for source, places in shifts.along(x, e.out):
            sources.append(source)
            constant = both(constant, constant_along(places))
    return shifts.fresh(e, sources, constant) if sources else None


def both(a: Sequence[bool], b: Sequence[bool]) -> list[bool]:
    """Entry by entry, whether both are true."""
    return [x and y for x, y in zip(a, b, strict=True)]


@shifting(Kind.EXTREMUM)
def extremum(shifts: Shifts, e: Equation) -> Changes | None:
    """``max(x + d, y + d) = max(x, y) + d``; minus infinity is never the larger."""
    if e.op.name not in ("max", "min", "clamp"):
        return losing(shifts, e)
    never = -math.inf if e.op is _MAX else math.inf
    counted = [x for x in e.ins if e.op.name == "clamp" or shifts.flat.number(x) != never]
    found = common([shifts.along(x, e.out) for x in counted])
    return entrywise(shifts, e) if found is None else found


def common(changes: Sequence[Changes]) -> Changes | None:
    """The change of several values if all change alike."""
    return changes[0] if all(c == changes[0] for c in changes[1:]) else None


@shifting(Kind.COMPARISON)
def comparison(shifts: Shifts, e: Equation) -> Changes | None:
    """``(x + d < y + d) = (x < y)``."""
    changes = common([shifts.along(x, e.out) for x in e.ins])
    if changes is None:
        return losing(shifts, e)
    shifts.cancels(e, (source for source, _ in changes))
    return None


@shifting("is_finite_p")
def finite(shifts: Shifts, e: Equation) -> None:
    """Finite numbers stay finite: the answer does not change."""
    del shifts, e


@shifting(Kind.SELECT)
def choice(shifts: Shifts, e: Equation) -> Changes | None:
    """One of several cases, whose change is that of all if they change alike.

    What masks are filled with, minus infinity, changes by whatever is added. Where the cases change
    by different amounts, the change of each is there only where it is chosen.
    """
    which, *cases = e.ins
    if shifts.of(which):
        return losing(shifts, e)
    number = shifts.flat.number(which)
    if number is not None:
        return multiple(shifts, e, cases[int(number)], 1)
    if (real := _if_finite(shifts, which, cases)) is not None:
        return multiple(shifts, e, real, 1)
    changes = finite_ones(shifts, e, cases)
    if (found := common(changes)) is not None:
        return found
    flat = shifts.flat.along(which, e.out)
    return bundled(shifts, e, shifts.fresh_for_each(e, chain(*changes), partial(both, flat)))


def finite_ones(shifts: Shifts, e: Equation, operands: Sequence[int]) -> list[Changes]:
    """The changes of operands, but for those infinite ones that change by whatever is added."""
    changes = [(x, shifts.along(x, e.out)) for x in operands]
    some = [c for _, c in changes if c]
    return [c for x, c in changes if c or not shifts.is_infinite(e, x, some)]


def _if_finite(shifts: Shifts, which: int, cases: Sequence[int]) -> int | None:
    """The maximum `m` of ``where(isfinite(m), m, 0)``, as in a `logsumexp`; else `None`.

    A maximum is taken to be finite. Other values may be infinite, where a mask has filled them or a
    lookup was out of bounds, and become 0.
    """
    e = shifts.tape.writers.get(which)
    if e is None or e.op.name != "is_finite" or len(cases) != 2 or e.ins[0] != cases[1]:
        return None
    x = cases[1]
    while (e := shifts.tape.writers.get(x)) is not None and e.op.name != "reduce_max":
        unchanged = [y for y in e.ins if shifts.flat.number(y) != -math.inf]
        if len(unchanged) > 1 or (e.op is not _MAX and not _is_moved(e)):
            return None
        (x,) = unchanged
    return cases[1] if e is not None else None


def _is_moved(e: Equation) -> bool:
    """Whether the result of an equation has the entries of its operand, elsewhere."""
    return e.op is MOVE or e.op is RESHAPE or e.op.name == "stop_gradient"
