"""Local scale: the gauge of every value, where nothing is imposed and a new one starts at need.

A gauge is a form in unknown scales. Values that were joined keep the gauge of each piece along the
axis of the joint, so that statistics which are stacked, averaged and taken apart again are still
what they were.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from optax_bnmask import compat
from optax_bnmask.program.demands import regrouped
from optax_bnmask.program.equations import NOTHING, Form, plus
from optax_bnmask.program.facts import Facts
from optax_bnmask.program.flags import EPSILON, EVERY, HUGE
from optax_bnmask.program.registry import AGREE, PIN, RULES, SAME, Law
from optax_bnmask.program.tape import COLLECT, MOVE, RESHAPE, SLICE, Equation

_JOINED = compat.primitive("concatenate_p")
_EXPONENTIALS = {compat.primitive("exp_p"), compat.primitive("exp2_p")}
_BELOW = {compat.primitive(name) for name in ("add_p", "sub_p", "max_p", "clamp_p")}
"""Operations in which a small constant may be an epsilon."""


class Pieces(NamedTuple):
    """The gauges of joined values, along the axis of the joint.

    Attributes:
      axis: The axis.
      gauges: The length and the gauge of each piece.
    """

    axis: int
    gauges: tuple[tuple[int, Form | None], ...]


Gauge = Form | Pieces | None
"""`None` where the entries are zeros, which have every gauge."""

_LOST: Final[Any] = object()
"""In the place of a gauge: there is none in common."""


def _product(a: Form | None, b: Form | None, *, k: Any) -> Form | None:  # noqa: ANN401 - a number
    return None if a is None or b is None else plus(a, b, k)


def _common(a: Form | None, b: Form | None) -> Any:  # noqa: ANN401 - a gauge, or `_LOST`
    return b if a is None else a if b is None or a == b else _LOST


def _piecewise(a: Gauge, b: Gauge, f: Callable[..., Any]) -> Any:  # noqa: ANN401 - a gauge, or `_LOST`
    """A function of two gauges, piece by piece; `_LOST` where the pieces are others."""
    if isinstance(a, Pieces):
        other = b if isinstance(b, Pieces) else Pieces(a.axis, tuple((n, b) for n, _ in a.gauges))
    elif isinstance(b, Pieces):
        a, other = Pieces(b.axis, tuple((n, a) for n, _ in b.gauges)), b
    else:
        return f(a, b)
    if a.axis != other.axis or [n for n, _ in a.gauges] != [n for n, _ in other.gauges]:
        return _LOST
    out = [(n, f(x, y)) for (n, x), (_, y) in zip(a.gauges, other.gauges, strict=True)]
    return _LOST if any(g is _LOST for _, g in out) else Pieces(a.axis, tuple(out))


class Gauges:
    """The gauge of each value of a tape; that of a constant is 0, of zeros any."""

    def __init__(self, facts: Facts) -> None:
        self.facts, self.tape = facts, facts.tape
        self._of: dict[int, Gauge] = {}
        self._exponentials: set[int] = set()
        self._fresh = itertools.count()

    def start(self, x: int) -> Form:
        """Gives a value a gauge of its own, if its entries may scale at all."""
        out: Form = {next(self._fresh): 1}
        self._of[x] = out if self.tape.floats[x] else NOTHING
        return out

    def of(self, x: int) -> Gauge:
        """The gauge of a value."""
        if x in self._of:
            return self._of[x]
        return None if self.facts.flags[x] & EVERY else NOTHING

    def level(self, x: int) -> Form:
        """The gauge of a value as a form; 0 where it has several."""
        found = self.of(x)
        return found if isinstance(found, dict) else NOTHING

    def cancels(self, e: Equation) -> bool:
        """Whether a gauge that both factors have is gone from the product."""
        x, y, z = self.level(e.ins[0]), self.level(e.ins[1]), self.level(e.out)
        return any(g in y and g not in z and g not in self._exponentials for g in x)

    def are_the_same(self, e: Equation) -> bool:
        """Whether two summands and their sum have one gauge."""
        a, b, c = (self.of(x) for x in (*e.ins[:2], e.out))
        return isinstance(a, dict) and a == b == c

    def read(self, e: Equation) -> None:
        """Finds the gauge of the result of an equation."""
        if e.op in _SPECIAL:
            self._of[e.out] = _SPECIAL[e.op](self, e)
            return
        law = RULES[e.op].law if e.op in RULES else PIN
        if law is not PIN and not isinstance(law, Law):
            law = law(e, self.facts)
        if law is PIN:
            self._squash(e)
            return
        gauge = self._by_law(e, law) if law.scales else NOTHING
        if gauge is _LOST:
            self.start(e.out)
        else:
            self._of[e.out] = gauge

    def _by_law(self, e: Equation, law: Law) -> Any:  # noqa: ANN401 - a gauge, or `_LOST`
        """The gauge of a result by the law of its equation."""
        if law.powers is AGREE:
            return self._agreed(e, law)
        gauge: Any = NOTHING
        for k, (x, power) in enumerate(zip(e.ins, law.powers or (), strict=False)):
            if power and gauge is not _LOST:
                own = self._moved(e, law, k, self.of(x))
                gauge = _piecewise(gauge, own, functools.partial(_product, k=power))
        return gauge

    def _squash(self, e: Equation) -> None:
        """A gauge of its own, unless nothing went in that scales."""
        if all(self.of(x) in (None, NOTHING) for x in e.ins):
            self._of[e.out] = NOTHING
            return
        fresh = self.start(e.out)
        if e.op in _EXPONENTIALS:
            self._exponentials.update(fresh)

    def _moved(self, e: Equation, law: Law, k: int, gauge: Gauge) -> Gauge:
        """The gauge of an operand along the axes of the result."""
        m = law.maps if law.maps == SAME else law.maps[k]
        if not isinstance(gauge, Pieces) or m == SAME:
            return gauge
        shown = len(self.tape.shapes[e.ins[k]])
        if gauge.axis >= shown and e.op not in (MOVE, COLLECT):
            return gauge._replace(axis=gauge.axis - shown + len(self.tape.shapes[e.out]))
        if m is not None and gauge.axis in m:
            return gauge._replace(axis=m[gauge.axis])
        return self._even(gauge)

    def _even(self, gauge: Gauge) -> Form | None:
        """One gauge for all pieces: theirs, if they have one."""
        if not isinstance(gauge, Pieces):
            return gauge
        forms = [f for _, f in gauge.gauges if f is not None]
        if all(f == forms[0] for f in forms):
            return forms[0] if forms else None
        return {next(self._fresh): 1}

    def _agreed(self, e: Equation, law: Law) -> Any:  # noqa: ANN401 - a gauge, or `_LOST`
        """The common gauge of operands, but for constants that stand for 0 or for infinity."""
        result: Any = None
        guard = self.facts.is_guard(e) if len(e.ins) == 3 else None
        for k, x in enumerate(e.ins):
            counts = k not in law.pinned and law.counts(k) and k != guard
            if counts and result is not _LOST and not self._stands_apart(e, x):
                result = _piecewise(result, self.of(x), _common)
        return result

    def _stands_apart(self, e: Equation, x: int) -> bool:
        """Whether an operand is a constant that stands for 0 or for infinity."""
        number = self.facts.numbers[x]
        if number is None or all(self.of(y) in (None, NOTHING) for y in e.ins if y != x):
            return False
        small = 0 < abs(number) <= EPSILON and e.op in _BELOW
        return bool(small or self.facts.flags[x] & HUGE)

    def _joined(self, e: Equation) -> Gauge:
        axis = e.params["dimension"]
        gauges: list[tuple[int, Form | None]] = []
        for x in e.ins:
            gauge, n = self.of(x), self.tape.shapes[x][axis]
            if isinstance(gauge, Pieces) and gauge.axis == axis:
                gauges += gauge.gauges
            elif n:
                gauges.append((n, self._even(gauge)))
        return self._simplest(Pieces(axis, tuple(gauges)))

    def _simplest(self, gauge: Pieces) -> Gauge:
        """A form where all pieces have it."""
        forms = [f for _, f in gauge.gauges]
        return forms[0] if forms and all(f == forms[0] for f in forms) else gauge

    def _cut(self, e: Equation) -> Gauge:
        gauge, bounds = self.of(e.ins[0]), e.params["bounds"]
        if not isinstance(gauge, Pieces) or gauge.axis >= len(bounds):
            return gauge
        low, high = bounds[gauge.axis]
        kept: list[tuple[int, Form | None]] = []
        start = 0
        for n, form in gauge.gauges:
            inside = min(start + n, high) - max(start, low)
            kept += [(inside, form)] if inside > 0 else []
            start += n
        out = Pieces(gauge.axis, tuple(kept))
        return self._even(out) if e.params["strides"][gauge.axis] > 1 else self._simplest(out)

    def _reshaped(self, e: Equation) -> Gauge:
        gauge, x = self.of(e.ins[0]), e.ins[0]
        if not isinstance(gauge, Pieces):
            return gauge
        old, new = self.tape.shapes[x], self.tape.shapes[e.out]
        if gauge.axis >= len(old):
            return gauge._replace(axis=gauge.axis - len(old) + len(new))
        for inside, outside in regrouped(old, new):
            there = [a for a in outside if new[a] > 1]
            if [a for a in inside if old[a] > 1] == [gauge.axis] and len(there) == 1:
                return gauge._replace(axis=there[0])
        return self._even(gauge)


_SPECIAL: dict[Any, Callable[[Gauges, Equation], Gauge]] = {
    _JOINED: Gauges._joined,
    SLICE: Gauges._cut,
    RESHAPE: Gauges._reshaped,
}
