"""How each leaf meets the data: a third loop over the same tape, which imposes nothing.

Every input, contraction, lookup and nonlinearity gets a *gauge*, an unknown scale of its own, and
where gauges disagree a new one starts. What remains is local scale. An equation in which a gauge
cancels, ``(x - mean) * rsqrt(var)``, is a normaliser, whoever wrote it; the first gain folded into
it or following it is its scale, the bias after that its bias.

A leaf seen through reshapes, casts, slices and transposes is still that leaf, and so is a function
of leaves alone, entry by entry, until it meets the data: contracted it is a weight, looked up an
embedding, multiplied a gain, added a bias.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence

from optax_bnmask import compat
from optax_bnmask.analysis import Role
from optax_bnmask.program.facts import Facts
from optax_bnmask.program.flags import EPSILON, EVERY
from optax_bnmask.program.gauges import Gauges
from optax_bnmask.program.registry import RULES, Kind
from optax_bnmask.program.rules.indexing import reads_several
from optax_bnmask.program.tape import CARRY, Equation
from optax_bnmask.program.views import DATA, NONE, PRECEDENCE, Seen, View

_DOT, _SUB = compat.primitive("dot_general_p"), compat.primitive("sub_p")


class Uses:
    """How the leaves of a program are used.

    Attributes:
      seen: What was seen of each leaf, by its number.
      biases: For each leaf, the biases added to its own output.
      views: What is remembered of each value; nothing of constants.
    """

    def __init__(self, facts: Facts, leaves: Sequence[int | None], sizes: Sequence[int]) -> None:
        self.facts, self.tape = facts, facts.tape
        self.gauges = Gauges(facts)
        self.seen = [Seen() for _ in sizes]
        self.biases: list[set[int]] = [set() for _ in sizes]
        self.views: dict[int, View] = {}
        self._sizes = sizes
        self._leaf_of_gauge: dict[int, int] = {}
        self._inputs(leaves)
        for e in self.tape.equations:
            for x in e.ins:
                if x in self.views:
                    self._read(e)
                    break
            else:
                self._read_constants(e)

    def role(self, number: int) -> Role:
        """The role that a leaf was seen in; the first of `PRECEDENCE` if there are several."""
        return next((r for r in PRECEDENCE if r in self.seen[number].roles), Role.UNKNOWN)

    def _inputs(self, leaves: Sequence[int | None]) -> None:
        tape, gauges = self.tape, self.gauges
        for x, number in zip(tape.ins, leaves, strict=True):
            if number is not None and tape.floats[x]:
                (gauge,) = gauges.start(x)
                self._leaf_of_gauge[gauge] = number
                self.views[x] = View(frozenset({number}), data=False)
            else:
                gauges.start(x)
                self.views[x] = DATA
        for x in tape.captured:
            size = math.prod(tape.shapes[x])
            if size == 1 or self.facts.flags[x] & EVERY or self.facts.numbers[x] is not None:
                continue
            gauges.start(x)
            self.views[x] = View(fixed=size)

    def _read_constants(self, e: Equation) -> None:
        """Constants stay constants, but within a loop what it makes of them is as good as data."""
        if e.op is CARRY:
            self.gauges.start(e.out)
            self.views[e.out] = DATA

    def _read(self, e: Equation) -> None:
        """Follows leaves and normalisers through one equation."""
        rule = RULES.get(e.op)
        kind = Kind.OPAQUE if rule is None else rule.kind
        if kind is Kind.CONTRACTION and not self._contracts(e):
            kind = Kind.PRODUCT
        self.gauges.read(e)
        self.views[e.out] = _NOTES[kind](self, e)

    def _contracts(self, e: Equation) -> bool:
        """Whether an equation of that kind sums over anything, or is a product entry by entry."""
        numbers = e.params.get("dimension_numbers")
        return e.op is not _DOT or bool(numbers and numbers[0][0])

    # What equations of each kind do.

    def vote(self, leaves: Iterable[int], role: Role, e: Equation) -> None:
        """Records a role of some leaves."""
        for number in leaves:
            self.seen[number].roles.setdefault(role, e)

    def revote(self, leaves: Iterable[int], old: Role, new: Role, e: Equation) -> None:
        """Takes back a role of some leaves for another."""
        for number in leaves:
            self.seen[number].roles.pop(old, None)
        self.vote(leaves, new, e)

    def size(self, leaves: frozenset[int]) -> int:
        """The number of entries of the largest of some leaves."""
        return max((self._sizes[number] for number in leaves), default=0)

    def _of(self, xs: Sequence[int]) -> list[View]:
        return [self.views[x] for x in xs if x in self.views]

    def view(self, e: Equation) -> View:
        """The same entries: everything is remembered."""
        return self._of(e.ins)[0]

    def cast(self, e: Equation) -> View:
        """As a view; numbers made from integers get a gauge of their own."""
        view = self.view(e)
        if view.data and self.tape.floats[e.out] and not self.tape.floats[e.ins[0]]:
            self.gauges.start(e.out)
        return view

    def pointwise(self, e: Equation) -> View:
        """A function of leaves alone is still those leaves; data lose what is remembered."""
        views = self._of(e.ins)
        data = any(v.data for v in views)
        leaves = NONE if data else NONE.union(*(v.leaves for v in views))
        gains = NONE.union(*(v.gains for v in views))
        root = {"sqrt": 1, "rsqrt": -1}.get(str(e.op), 0)
        return View(leaves, data=data, gains=gains, root=root)

    def reduction(self, e: Equation) -> View:
        """A statistic of leaves is no leaf."""
        views = self._of(e.ins)
        return View(data=any(v.data for v in views), gains=NONE.union(*(v.gains for v in views)))

    def opaque(self, e: Equation) -> View:
        """Whatever comes out is data."""
        return View(data=any(v.data for v in self._of(e.ins)))

    def loop(self, e: Equation) -> View:
        """What a body makes of what it carries is data; after the loop it is either."""
        if e.op is CARRY:
            self.gauges.start(e.out)
            return DATA
        return self._joined(e, e.ins[:2])

    def product(self, e: Equation) -> View:
        """A leaf that multiplies data is a gain; where a gauge cancels there is a normaliser."""
        x, y = self._beside_constants(e)
        if x is None or y is None:  # times a constant
            return x or (self._inverted(y, e) if y else DATA)
        y = self._inverted(y, e)
        view = View(
            leaves=NONE if x.data or y.data else self._larger(x, y),
            data=x.data or y.data,
            normed=0 if (x.data and y.data) or (x.leaves and y.leaves) else max(x.normed, y.normed),
            gains=x.gains | y.gains,
            owners=x.owners | y.owners,
            root=x.root or y.root,
        )
        for factor, other in ((x, y), (y, x)):
            if (factor.leaves and not other.leaves) or self._is_gain(factor, other):
                view = self._gained(e, view, factor, other)
                break
        folded: frozenset[int] | None = None
        if self.gauges.cancels(e):
            remaining = (self._leaf_of_gauge.get(g, -1) for g in self.gauges.level(e.out))
            folded = view.gains & frozenset(remaining)
        elif (x.centred and y.root < 0) or (y.centred and x.root < 0):
            # A difference times an inverse root: a normaliser on statistics that it was given.
            folded = y.gains if x.centred else x.gains
        if folded is not None:
            self.revote(folded, Role.GAIN, Role.NORM_SCALE, e)
            view = dataclasses.replace(view, normed=2 if folded else 1, root=0)
        return view

    @staticmethod
    def _inverted(view: View, e: Equation) -> View:
        """A second factor as it is multiplied: the inverse, in a quotient."""
        if view.root and RULES[e.op].kind is Kind.QUOTIENT:
            return dataclasses.replace(view, root=-view.root)
        return view

    def _beside_constants(self, e: Equation) -> list[View | None]:
        """The views of two operands; none for an array that belongs to the other, a leaf."""
        x, y = (self.views.get(v) for v in e.ins[:2])
        if x is not None and y is not None:
            if x.fixed and y.leaves and self.size(y.leaves) >= x.fixed:
                return [None, y]
            if y.fixed and x.leaves and self.size(x.leaves) >= y.fixed:
                return [x, None]
        return [x, y]

    def _is_gain(self, factor: View, other: View) -> bool:
        """Whether a factor is a gain on something of leaves only that is larger than it."""
        return (
            bool(factor.leaves)
            and bool(other.leaves)
            and (self.size(factor.leaves) < self.size(other.leaves))
        )

    def _larger(self, x: View, y: View) -> frozenset[int]:
        """Which leaves a product of functions of leaves is."""
        a, b = self.size(x.leaves), self.size(y.leaves)
        return x.leaves | y.leaves if a == b else x.leaves if a > b else y.leaves

    def _gained(self, e: Equation, view: View, factor: View, other: View) -> View:
        """What a product is when one factor is a leaf."""
        role = Role.NORM_SCALE if other.normed == 1 else Role.GAIN
        self.vote(factor.leaves, role, e)
        for number in factor.leaves:
            self.seen[number].shifted |= factor.shifted
        return dataclasses.replace(
            view,
            normed=2 if other.normed == 1 else 0,
            root=other.root,
            gains=view.gains | factor.leaves,
            owners=other.owners | factor.leaves,
        )

    def total(self, e: Equation) -> View:
        """A leaf that is added to data is a bias."""
        pairs = [(x, v) for x, v in zip(e.ins, self._beside_constants(e), strict=True) if v]
        if len(pairs) == 1:
            return self._with_constant(e, *pairs[0])
        (_, x), (_, y) = pairs
        if not x.data and not y.data:
            return self._of_leaves(e, x, y)
        for leaf, other in ((x, y), (y, x)):
            if leaf.leaves:
                return self._biased(e, leaf, other)
        same = self.gauges.are_the_same(e)
        return View(
            normed=min(x.normed, y.normed) if same else 0,
            gains=x.gains | y.gains,
            owners=x.owners & y.owners if not same else x.owners | y.owners,
            centred=e.op is _SUB,
        )

    def _with_constant(self, e: Equation, x: int, view: View) -> View:
        """A leaf with a constant added is still that leaf; a normalised value no longer is."""
        for other in e.ins:
            number = self.facts.numbers[other]
            every = self.facts.flags[other] & EVERY
            if other != x and not every and (number is None or abs(number) > EPSILON):
                leaf = bool(view.leaves)
                return View(view.leaves, data=view.data, gains=view.gains, shifted=leaf)
        return view

    def _of_leaves(self, e: Equation, x: View, y: View) -> View:
        """Functions of leaves, added: a bias if one of them is normalised, else one more leaf."""
        for bias, other in ((x, y), (y, x)):
            if bias.leaves and not bias.normed and other.normed and bias.leaves != other.leaves:
                self.vote(bias.leaves, Role.NORM_BIAS, e)
                return View(other.leaves, data=False, gains=other.gains)
        return View(x.leaves | y.leaves, data=False, gains=x.gains | y.gains)

    def _biased(self, e: Equation, leaf: View, other: View) -> View:
        self.vote(leaf.leaves, Role.NORM_BIAS if other.normed else Role.BIAS, e)
        for owner in other.owners:
            self.biases[owner] |= leaf.leaves - {owner}
        return View(owners=other.owners)

    def contraction(self, e: Equation) -> View:
        """A leaf that is contracted is a weight, and a gain on it is no normaliser's."""
        x, y = (self.views.get(v) for v in e.ins[:2])
        if x is None or y is None:  # with constant coefficients
            view = x or y or View()
            return View(data=view.data, gains=view.gains)
        owners = NONE
        for weight, other in ((x, y), (y, x)):
            self.vote(weight.leaves, Role.WEIGHT, e)
            if not weight.data and other.data:
                folded = [g for g in weight.gains if Role.NORM_SCALE in self.seen[g].roles]
                self.revote(folded, Role.NORM_SCALE, Role.GAIN, e)
            owners |= weight.leaves if weight.data else weight.leaves | weight.gains
        if x.data and y.data and e.ins[0] == e.ins[1]:
            return View(gains=x.gains)
        self.gauges.start(e.out)
        return View(data=x.data or y.data, owners=owners)

    def lookup(self, e: Equation) -> View:
        """A leaf that is looked up is an embedding; one place of it is a slice."""
        table = self.views.get(e.ins[0])
        if table is None:
            return DATA
        if not reads_several(e, self.facts):
            return table
        self.gauges.start(e.out)
        self.vote(table.leaves, Role.EMBEDDING, e)
        return View(owners=table.leaves)

    def join(self, e: Equation) -> View:
        """Leaves beside data are learned inputs; leaves beside leaves remain leaves."""
        return self._joined(e, e.ins)

    def _joined(self, e: Equation, xs: Sequence[int]) -> View:
        views = self._of(xs)
        if not any(v.data for v in views):
            return View(NONE.union(*(v.leaves for v in views)), data=False)
        for v in views:
            self.vote(v.leaves, Role.EMBEDDING, e)
        whole = len({v.normed for v in views}) == 1
        owners = views[0].owners.intersection(*(v.owners for v in views))
        gains = NONE.union(*(v.gains for v in views))
        return View(normed=views[0].normed if whole else 0, gains=gains, owners=owners)

    def select(self, e: Equation) -> View:
        """As a join, of the cases alone."""
        cases = e.ins[1:]
        views = self._of(cases)
        if not views:
            return DATA
        others = [x for x in cases if x not in self.views]
        known = all(
            self.facts.numbers[x] is not None or self.facts.flags[x] & EVERY for x in others
        )
        if (len(views) == 1 and known) or (not others and all(v == views[0] for v in views)):
            return views[0]
        return self._joined(e, cases)


_NOTES: dict[Kind, Callable[[Uses, Equation], View]] = {
    Kind.VIEW: Uses.view,
    Kind.CAST: Uses.cast,
    Kind.POWER: Uses.pointwise,
    Kind.EXTREMUM: Uses.pointwise,
    Kind.NONLINEAR: Uses.pointwise,
    Kind.REDUCTION: Uses.reduction,
    Kind.OPAQUE: Uses.opaque,
    Kind.COMPARISON: Uses.opaque,
    Kind.UNSCALED: Uses.opaque,
    Kind.FACTORS: Uses.reduction,
    Kind.SOLUTION: Uses.opaque,
    Kind.PRODUCT: Uses.product,
    Kind.QUOTIENT: Uses.product,
    Kind.SUM: Uses.total,
    Kind.CONTRACTION: Uses.contraction,
    Kind.LOOKUP: Uses.lookup,
    Kind.JOIN: Uses.join,
    Kind.SELECT: Uses.select,
    Kind.LOOP: Uses.loop,
}
