"""Local scale: what cancels where, with nothing imposed on anything. This finds normalisers.

The *gauge* of a value says how it scales with the inputs, contractions and nonlinearities before
it: a form in unknown scales, of which each of these has one of its own. Where summands disagree, a
new unknown starts. Values that were joined keep the gauge of each piece along the axis of the
joint, so that statistics which are stacked, averaged and taken apart again are still what they
were. Once something is summed over the joint, all that was computed from the joined value has one
unknown instead, which starts there: ``z = concatenate([a, b])`` has one, and ``z * z`` its double,
whichever of them is summed first. And a sum of sizes, ``mean(a**2) + mean(b**2)``, is a size of all
that they are sizes of: those cancel where they are divided by it, and nowhere else.

A *normaliser* is a quotient in which an unknown cancels, and whose divisor is a size of what it
divides, that is

- made of squares or magnitudes: ``x / mean(x)`` is none, nor is ``sum(m*h) / sum(m)``;
- reduced more often than what it divides, so that each entry is compared with others. In
  ``sum(|m|*h) / sum(|m|)`` both are summed once, and `h` is what remains. If nothing but leaves
  remains, both may be reduced, as in the ``mean / std`` of a folded BatchNorm.

How often a value was reduced, and whether it is a size, is in its `trails`.
"""

import functools
import itertools
from collections.abc import Callable, Sequence, Set
from typing import Any

from optax_bnmask import compat
from optax_bnmask.program.equations import NOTHING, Form, plus, times
from optax_bnmask.program.facts import Facts
from optax_bnmask.program.flags import ANY_DEGREE, EPSILON, HUGE, NONNEG
from optax_bnmask.program.registry import AGREE, PIN, SAME, Kind, Law
from optax_bnmask.program.tape import COLLECT, MOVE, RESHAPE, SLICE, Equation
from optax_bnmask.program.uses.dimensions import reshaped
from optax_bnmask.program.uses.pieces import LOST, Gauge, Pieces, piecewise, product
from optax_bnmask.program.uses.sizes import Sizes
from optax_bnmask.program.uses.trails import START, Mark, Trails

_ADD, _MIN, _JOINED = (compat.primitive(f"{name}_p") for name in ("add", "min", "concatenate"))
_SEEN = {Kind.VIEW, Kind.CAST}
_BELOW = {compat.primitive(name) for name in ("add_p", "sub_p", "max_p", "clamp_p")}
"""Operations in which a small constant may be an epsilon."""


class Gauges:
    """The gauge of each value of a tape; that of a constant is 0, of zeros any.

    Attributes:
      leaf_of: The leaf whose gauge an unknown is.
      inputs: The unknowns of other inputs.
    """

    def __init__(self, facts: Facts) -> None:
        self.facts, self.tape = facts, facts.tape
        self.leaf_of: dict[int, int] = {}
        self.inputs: set[int] = set()
        self._of: dict[int, Gauge] = {}
        self._former: dict[int, set[int]] = {}
        self._all_pieces: dict[int, tuple[Pieces, Form]] = {}
        self._joints: dict[int, Pieces] = {}
        self._evened: dict[int, int] = {}
        self._sizes = Sizes()
        self._trails = Trails(facts)
        self._fresh = itertools.count()

    def start_input(self, x: int, leaf: int | None = None) -> None:
        """Gives an input a gauge, that of a leaf or of something else."""
        unknown = self.start(x)
        if leaf is None:
            self.inputs.add(unknown)
        else:
            self.leaf_of[unknown] = leaf

    def start(self, x: int, mark: Mark = START) -> int:
        """Gives a value a gauge of its own, if its entries may scale at all."""
        unknown = next(self._fresh)
        self._of[x] = {unknown: 1} if self.tape.floats[x] else NOTHING
        self._trails.start(x, unknown, mark)
        return unknown

    def start_from_nothing(self, x: int) -> None:
        """Gives a value the gauge of zeros, `None`: a sum that a loop has not begun yet."""
        self._of[x] = None

    def of(self, x: int) -> Gauge:
        """The gauge of a value."""
        gauge = self._of.get(x, LOST)
        if type(gauge) is Pieces and gauge.joint in self._evened:
            self._former.setdefault(x, set()).update(self._unknowns_of_pieces(x, gauge))
            base, unknown = self._joints[gauge.joint], self._evened[gauge.joint]
            gauge = self._of[x] = gauge.in_terms_of(base, unknown)
        if gauge is not LOST:
            return gauge
        return None if self.facts.flags[x] & ANY_DEGREE else NOTHING

    def level(self, x: int) -> Form:
        """The gauge of a value as a form; 0 where it has several."""
        found = self.of(x)
        return found if isinstance(found, dict) else NOTHING

    def root(self, x: int) -> int:
        """The value that a value equals, see `Trails.root`."""
        return self._trails.root(x)

    def cancelled(self, e: Equation) -> frozenset[int]:
        """The unknowns that a product or a quotient normalises by; none if it is no normaliser."""
        x, y = e.ins[:2]
        a, b, rest = self._unknowns(x), self._unknowns(y), self._unknowns(e.out)
        gone = a.keys() & b.keys() - rest.keys()
        if not gone:
            return self._cancelled_by_sums(e) if self._sizes.of else frozenset()
        marks = self._trails.marks((x, y), gone, self._all_unknowns)
        inverted = e.kind is Kind.QUOTIENT
        only_leaves = all(u in self.leaf_of for u in rest)

        def is_normaliser(u: int) -> bool:
            """Whether one of two factors is a size of the other, by the trail of an unknown."""
            one, other = marks[u] if inverted or b[u] < 0 else reversed(marks[u])
            more = other.reduced > one.reduced or (only_leaves and other.reduced == one.reduced > 0)
            return other.is_size and more

        return frozenset(filter(is_normaliser, gone))

    def _cancelled_by_sums(self, e: Equation) -> frozenset[int]:
        """The unknowns that cancel where they are divided by a sum of sizes."""
        x, y = e.ins[:2]
        inverted, sizes = e.kind is Kind.QUOTIENT, self._sizes.of
        if not inverted and any(c < 0 and u in sizes for u, c in self._unknowns(x).items()):
            x, y = y, x
        a, b, rest = self._unknowns(x), self._unknowns(y), self._unknowns(e.out)
        found = set[int]()
        for w in sizes.keys() & b.keys() - rest.keys():
            gone = (a.keys() - rest.keys()) & sizes[w][0]
            if gone and (inverted or b[w] < 0):
                ((size,),) = self._trails.marks((y,), {w}, self._all_unknowns).values()
                marks = self._trails.marks((x,), gone, self._all_unknowns)
                found |= {u for u in gone if size.is_size and size.reduced > marks[u][0].reduced}
        return frozenset(found)

    def are_the_same(self, e: Equation) -> bool:
        """Whether two summands and their sum have one gauge."""
        a, b, c = (self.of(x) for x in (*e.ins[:2], e.out))
        return isinstance(a, dict) and a == b == c

    def read(self, e: Equation, law: Law | None) -> None:
        """Finds the gauge of the result of an equation, which has that law."""
        if law is not PIN and e.kind in _SEEN and type(self._of.get(e.ins[0])) is dict:
            self._of[e.out] = self._of[e.ins[0]]  # as most equations have it
            return
        if e.op in _SPECIAL:
            self._of[e.out] = _SPECIAL[e.op](self, e)
            self._note_joint(e.out)
            return
        if law is PIN:
            if any(x in self._of and self.tape.floats[x] for x in e.ins):
                self.start(e.out)
            else:
                self._of[e.out] = NOTHING
            return
        gauge = self._by_law(e, law) if law.scales else NOTHING
        if gauge is LOST:
            self.start(e.out)
        else:  # pieces that a normaliser cancels are alike again
            self._of[e.out] = gauge.simplest if isinstance(gauge, Pieces) else gauge
            self._note_joint(e.out)

    def _all_unknowns(self, x: int) -> Set[int]:
        """The unknowns of the gauge of a value, and those that it had before it got another one."""
        gauge = self._of.get(x)
        if type(gauge) is dict and x not in self._former:  # as most equations have it
            return gauge.keys()
        unknowns = self._unknowns(x).keys()
        return unknowns | self._former[x] if x in self._former else unknowns

    def _unknowns(self, x: int) -> Form:
        """The gauge of a value, that of all its pieces together."""
        gauge = self._of.get(x)
        if isinstance(gauge, Pieces):
            gauge = self.of(x)  # it may have been evened meanwhile
        return self._unknowns_of_pieces(x, gauge) if isinstance(gauge, Pieces) else gauge or NOTHING

    def _unknowns_of_pieces(self, x: int, gauge: Pieces) -> Form:
        known = self._all_pieces.get(x)
        if known is None or known[0] is not gauge:
            every = {u: c for form in gauge.forms for u, c in (form or NOTHING).items()}
            known = self._all_pieces[x] = (gauge, every)
        return known[1]

    def _note_joint(self, x: int) -> None:
        """Makes a value whose pieces are those of no other the joint of what is computed of it."""
        gauge = self._of[x]
        if type(gauge) is Pieces and gauge.joint < 0:
            self._of[x] = self._joints[x] = gauge._replace(joint=x)

    def _by_law(self, e: Equation, law: Law) -> Any:  # noqa: ANN401 - a gauge, or `LOST`
        """The gauge of a result by the law of its equation."""
        if law.powers is AGREE:
            return self._agreed(e, law)
        if len(e.ins) == 1 and isinstance(first := self._of.get(e.ins[0]), dict):
            return times(first, (law.powers or (0,))[0])
        gauge: Any = NOTHING
        for k, (x, power) in enumerate(zip(e.ins, law.powers or (), strict=False)):
            if power and gauge is not LOST:
                own = self.of(x)
                if type(own) is dict and type(gauge) is dict:
                    gauge = plus(gauge, own, power)
                elif own != NOTHING:
                    own = self._moved(e, law, k, own)
                    if gauge is NOTHING and power == 1:
                        gauge = own
                    else:
                        gauge = piecewise(gauge, own, functools.partial(product, k=power))
        return self._without_sizes(gauge) if self._sizes.of else gauge

    def _without_sizes(self, gauge: Any) -> Any:  # noqa: ANN401 - a gauge, or `LOST`
        """What remains of a gauge once sums of sizes cancel what they are sizes of."""
        if isinstance(gauge, Pieces):
            return gauge.each(self._sizes.rest)
        return self._sizes.rest(gauge) if isinstance(gauge, dict) else gauge

    def _moved(self, e: Equation, law: Law, k: int, gauge: Gauge) -> Gauge:
        """The gauge of an operand along the axes of the result."""
        m = law.map_of(k)
        if not isinstance(gauge, Pieces) or m is SAME:
            return gauge
        shown = len(self.tape.shapes[e.ins[k]])
        if gauge.axis >= shown and e.op not in (MOVE, COLLECT):
            return gauge._replace(axis=gauge.axis - shown + len(self.tape.shapes[e.out]))
        if m is not None and gauge.axis in m:
            return gauge._replace(axis=m[gauge.axis])
        return self._even(e.ins[k])

    def _even(self, x: int) -> Form | None:
        """One form for all pieces of a value: the one that all have, or else a new unknown."""
        gauge = self.of(x)
        if not isinstance(gauge, Pieces):
            return gauge
        simplest = gauge.simplest
        if isinstance(simplest, Pieces):
            joint = gauge.joint
            self._former.setdefault(joint, set()).update(self._unknowns(joint))
            forms = [(joint, form) for form in self._joints[joint].forms if form is not None]
            self._evened[joint] = self._start_sum(joint, forms)
            return self.level(x)
        return simplest

    def _agreed(self, e: Equation, law: Law) -> Any:  # noqa: ANN401 - a gauge, or `LOST`
        """The common gauge of operands, but for constants that stand for 0 or for infinity."""
        if len(e.ins) == 2 and not law.pinned:
            first = self._of.get(e.ins[0])
            if type(first) is dict and first == self._of.get(e.ins[1]):
                return first
        result: Any = None
        pieces: list[Pieces] = []
        guard = self.facts.guard_operand(e) if len(e.ins) == 3 else None
        for k, x in enumerate(e.ins):
            counts = k not in law.pinned and law.map_of(k) is not None and k != guard
            if counts and result is not LOST and not self._stands_apart(e, x):
                own = self.of(x)
                pieces += [own] if isinstance(own, Pieces) else []
                result = own if result is None else piecewise(result, own, self._common)
        if pieces and isinstance(result, Pieces) and result not in pieces:
            return result._replace(joint=-1)  # some pieces of one operand, some of another
        if result is LOST and e.op is _ADD and self.facts.any(e, NONNEG):  # sizes, perhaps
            both = [(x, own) for x in e.ins if isinstance(own := self.of(x), dict)]
            if len(both) == len(e.ins):
                self._start_sum(e.out, both)
                return self._of[e.out]
        return result

    def _start_sum(self, x: int, summands: Sequence[tuple[int, Form]]) -> int:
        """Starts an unknown in a joint, or a sum; of sizes, it is a size of what these are of.

        Args:
          x: The joint, or the sum.
          summands: For each a value, and its gauge there.
        """
        of = self._sizes.common([form for _, form in summands], (self.leaf_of, self.inputs))
        if of is None:
            return self.start(x)
        pairs = [(y, u) for y, form in summands for u in form]
        marks = [self._trails.marks((y,), {u}, self._all_unknowns)[u][0] for y, u in pairs]
        least = Mark(min(m.reduced for m in marks), all(m.is_size for m in marks))
        unknown = self.start(x, least)
        if least.is_size and least.reduced:
            self._sizes.of[unknown] = of
        return unknown

    def _common(self, a: Form | None, b: Form | None) -> Any:  # noqa: ANN401 - a gauge, or `LOST`
        """The gauge of a sum of two values; `LOST` if they have none in common.

        What is computed keeps its own beside inputs: beside a bias, a learned epsilon, or running
        statistics that are mixed into those of the batch.
        """
        if a is None or b is None or a == b:
            return b if a is None else a
        plain = [all(u in self.leaf_of or u in self.inputs for u in f) for f in (a, b)]
        return LOST if plain[0] == plain[1] or not (a and b) else b if plain[0] else a

    def _stands_apart(self, e: Equation, x: int) -> bool:
        """Whether an operand is a constant that stands for 0 or for infinity."""
        number = self.facts.numbers[x]
        if number is None:
            return False
        small = 0 < abs(number) <= EPSILON and e.op in _BELOW
        ceiling = e.op is _MIN and number * EPSILON >= 1  # above a reciprocal
        apart = small or ceiling or self.facts.flags[x] & HUGE
        return bool(apart and any(self.of(y) not in (None, NOTHING) for y in e.ins if y != x))

    def _joined(self, e: Equation) -> Gauge:
        axis = e.params["dimension"]
        gauges: list[tuple[int, Form | None]] = []
        for x in e.ins:
            gauge, n = self.of(x), self.tape.shapes[x][axis]
            if isinstance(gauge, Pieces) and gauge.axis == axis:
                gauges += gauge.gauges
            elif n:
                gauges.append((n, self._even(x)))
        return Pieces(axis, tuple(gauges)).simplest

    def _cut(self, e: Equation) -> Gauge:
        gauge, bounds = self.of(e.ins[0]), e.params["bounds"]
        if not isinstance(gauge, Pieces) or gauge.axis >= len(bounds):
            return gauge
        if e.params["strides"][gauge.axis] > 1:
            return self._even(e.ins[0])
        return gauge.between(*bounds[gauge.axis]).simplest

    def _reshaped(self, e: Equation) -> Gauge:
        (x,), gauge = e.ins, self.of(e.ins[0])
        if not isinstance(gauge, Pieces):
            return gauge
        old, new = self.tape.shapes[x], self.tape.shapes[e.out]
        places = reshaped(tuple(frozenset({a}) for a in range(len(self.tape.full[x]))), old, new)
        there = [q for q, own in enumerate(places) if own == {gauge.axis}]
        return gauge._replace(axis=there[0]) if len(there) == 1 else self._even(x)


_SPECIAL: dict[Any, Callable[[Gauges, Equation], Gauge]] = {
    _JOINED: Gauges._joined,
    SLICE: Gauges._cut,
    RESHAPE: Gauges._reshaped,
}
