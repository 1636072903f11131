"""Linear forms over the rationals, and profiles of them along an axis.

A *form* ``{unknown: coefficient}`` leaves out what has coefficient 0. A *profile* is a list of
segments ``(length, form)``; where the form is `None`, the values are constants that have every
degree at once.
"""

from fractions import Fraction

Number = int | Fraction


Form = dict[int, Number]


Segment = tuple[int, Form | None]


Profile = list[Segment]


NOTHING: Form = {}


def plus(a: Form, b: Form, k: Number = 1) -> Form:
    """``a + k*b``."""
    if not b:
        return a
    if not a and k == 1:
        return b
    out = dict(a)
    for unknown, c in b.items():
        total = out.get(unknown, 0) + k * c
        if total:
            out[unknown] = total
        else:
            out.pop(unknown, None)
    return out


def times(a: Form, k: Number) -> Form:
    """``k*a``."""
    if k == 1 or not a:
        return a
    if type(k) is int:
        return {unknown: k * c for unknown, c in a.items()} if k else NOTHING
    return {unknown: _exact(k * c) for unknown, c in a.items()}


def _exact(q: Number) -> Number:
    """The number as an `int` where it is one, which is many times faster."""
    return q.numerator if q.denominator == 1 else q


def quotient(a: Number, b: Number) -> Number:
    """``a/b`` exactly, as an `int` where it is one."""
    q = Fraction(a) / Fraction(b)
    return q.numerator if q.denominator == 1 else q
