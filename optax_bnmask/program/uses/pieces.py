"""The gauges of values that were joined: one for each piece, along the axis of the joint.

``concatenate([a, b])`` of 3 and 5 entries has the pieces ``((3, {u: 1}), (5, {v: 1}))``, its square
twice these, and its square times a leaf ``((3, {u: 2, g: 1}), (5, {v: 2, g: 1}))``.
"""

from collections.abc import Callable
from typing import Any, Final, NamedTuple

from optax_bnmask.program.equations import NOTHING, Form, Number, plus, quotient


class Pieces(NamedTuple):
    """The gauges of joined values, along the axis of the joint.

    Attributes:
      axis: The axis.
      gauges: The length and the gauge of each piece.
      joint: The value that was joined: these are its gauges times a number, plus a form that is the
        same for all pieces. None, -1, until that is said.
    """

    axis: int
    gauges: tuple[tuple[int, Form | None], ...]
    joint: int = -1

    @property
    def forms(self) -> list[Form | None]:
        """The gauge of each piece."""
        return [form for _, form in self.gauges]

    @property
    def simplest(self) -> "Gauge":
        """One form if all pieces have it, zeros (padding) aside; else the pieces as they are."""
        forms = [form for form in self.forms if form is not None]
        if any(form != forms[0] for form in forms):
            return self
        return forms[0] if forms else None

    def alike(self, form: Form | None) -> "Pieces":
        """As many pieces, all of one form."""
        return self._replace(gauges=tuple((n, form) for n, _ in self.gauges))

    def between(self, low: int, high: int) -> "Pieces":
        """The pieces, or parts of them, between two indices."""
        kept: list[tuple[int, Form | None]] = []
        start = 0
        for n, form in self.gauges:
            inside = min(start + n, high) - max(start, low)
            kept += [(inside, form)] if inside > 0 else []
            start += n
        return Pieces(self.axis, tuple(kept))

    def each(self, f: Callable[[Form], Form]) -> "Pieces":
        """Applies `f` to the gauge of each piece, unless that is `None`, and returns the pieces."""
        kept = tuple((n, form and f(form)) for n, form in self.gauges)
        return self if kept == self.gauges else Pieces(self.axis, kept)

    def in_terms_of(self, base: "Pieces", unknown: int) -> Form:
        """The one gauge of all pieces, once those of the joint, `base`, are one unknown."""
        pairs = zip(self.forms, base.forms, strict=True)
        known = [(own, its) for own, its in pairs if own is not None and its is not None]
        if not known:
            return NOTHING
        own, its = known[0]
        power: Number = 0
        for other, other_base in known[1:]:
            if gap := plus(other_base, its, -1):
                u, c = next(iter(gap.items()))
                power = quotient(plus(other, own, -1).get(u, 0), c)
                break
        return plus(plus(own, its, -power), {unknown: 1}, power) if power else own


Gauge = Form | Pieces | None
"""`None` where the entries are zeros, which have every gauge."""

LOST: Final[Any] = object()
"""In the place of a gauge: there is none in common."""


def product(a: Form | None, b: Form | None, *, k: Number) -> Form | None:
    """The gauge of ``x * y**k``."""
    return None if a is None or b is None else plus(a, b, k)


def piecewise(a: Gauge, b: Gauge, f: Callable[..., Any]) -> Any:  # noqa: ANN401 - a gauge, or `LOST`
    """A function of two gauges, piece by piece; `LOST` where the pieces are others."""
    if isinstance(a, Pieces):
        other = b if isinstance(b, Pieces) else a.alike(b)
    elif isinstance(b, Pieces):
        a, other = b.alike(a), b
    else:
        return f(a, b)
    if a.axis != other.axis or [n for n, _ in a.gauges] != [n for n, _ in other.gauges]:
        return LOST
    out = [(n, f(x, y)) for (n, x), y in zip(a.gauges, other.forms, strict=True)]
    if any(form is LOST for _, form in out):
        return LOST
    return Pieces(a.axis, tuple(out), a.joint if a.joint == other.joint else -1)
