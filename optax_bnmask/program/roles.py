"""How each leaf meets the data: the second, local reading of the same rules.

Every input, contraction, lookup and nonlinearity gets an unknown of its own, a *gauge*, and nothing
is imposed: where degrees disagree, a new gauge starts. What remains is local scale. An equation in
which a gauge cancels, ``(x - mean) * rsqrt(var)``, is a normaliser, whoever wrote it; the first
gain folded into it or following it is its scale, the bias after that its bias.

A leaf seen through reshapes, casts, slices and transposes is still that leaf, and so is a function
of leaves alone, entry by entry, until it meets the data: contracted it is a weight, looked up an
embedding, multiplied a gain, added a bias.
"""

import dataclasses
import math
from collections.abc import Hashable, Iterable, Sequence

from optax_bnmask.analysis import Role
from optax_bnmask.program.context import Eqn, Site
from optax_bnmask.program.degree import ANY, ZERO, Degree
from optax_bnmask.program.forms import Form, Profile
from optax_bnmask.program.layout import Layouts
from optax_bnmask.program.rules.arithmetic import EPSILON, is_float
from optax_bnmask.program.rules.indexing import is_lookup
from optax_bnmask.program.tags import DATA, NONE, PRECEDENCE, Tag, Uses
from optax_bnmask.program.unknowns import Unknowns


class Local:
    """The reading that imposes nothing.

    Attributes:
      uses: What was seen of each leaf, by its number.
      biases: For each leaf, the biases added to its own output.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        self.unknowns = Unknowns()
        self.layouts = Layouts(self.unknowns, self._level_of)
        self.literals: dict[int, Degree] = {}
        self.calls: list[Eqn] = []
        self.hidden: dict[int, int] = {}
        self.devices: dict[Hashable, int] = {}
        self.uses = [Uses() for _ in sizes]
        self.biases: list[set[int]] = [set() for _ in sizes]
        self._sizes = sizes
        self._leaf_of_gauge: dict[int, int] = {}
        self._exponentials: set[int] = set()

    def leaf(self, number: int) -> Degree:
        """The degree of a leaf of the params."""
        d = self.free()
        (gauge,) = d.level or {}
        self._leaf_of_gauge[gauge] = number
        return d.known(tag=Tag(frozenset({number}), data=False))

    def argument(self, *, scales: bool = True) -> Degree:
        """The degree of any other input; integers do not scale."""
        return (self.free() if scales else ZERO).known(tag=DATA)

    def role(self, number: int) -> Role:
        """The role that a leaf was seen in; the first of `PRECEDENCE` if there are several."""
        return next((r for r in PRECEDENCE if r in self.uses[number].roles), Role.UNKNOWN)

    # What the rules ask.

    def free(self) -> Degree:
        """A degree with a gauge of its own."""
        return Degree({self.unknowns.scalar(): 1})

    def _level_of(self, profile: Profile) -> Form:
        forms = [form for _, form in profile if form is not None]
        if all(form == forms[0] for form in forms):
            return forms[0] if forms else {}
        return {self.unknowns.scalar(): 1}

    def agree(self, eqn: Eqn, degrees: Sequence[Degree]) -> Degree:
        """The common degree, or a new gauge where there is none."""
        del eqn
        result = ANY
        for d in degrees:
            if d.level is None:
                continue
            if result.level is None:
                result = d
            elif d.level != result.level or d.along != result.along:
                return self._merged(degrees)
        return result.bare()

    def _merged(self, degrees: Sequence[Degree]) -> Degree:
        """The union of degrees that agree wherever both are defined, if they do."""
        if not any(d.along for d in degrees):
            return self.free()
        keys = {key for d in degrees for key in d.along}
        if len(keys) != 1:
            return self.free()
        (key,) = keys
        length = 1
        for _, n in key:
            length *= n
        result: Profile = [(length, None)]
        for d in degrees:
            if d.level is None:
                continue
            own = self.layouts.whole(d, key, length)
            pieces = self.unknowns.aligned(result, own)
            if any(f is not None and g is not None and f != g for _, f, g in pieces):
                return self.free()
            result = [(n, g if f is None else f) for n, f, g in pieces]
        return self.layouts.tidy({}, {key: self.unknowns.merged(result)})

    def pin(self, eqn: Eqn, degrees: Sequence[Degree]) -> Degree:
        """A gauge of its own, unless nothing went in that scales."""
        if all(d.is_zero or d.is_any for d in degrees):
            return ZERO
        d = self.free()
        if eqn.primitive.name in ("exp", "exp2"):
            self._exponentials.update(d.level or ())
        return d

    def looked_up(self, eqn: Eqn, d: Degree) -> Degree:
        """A gauge of its own."""
        del eqn, d
        return self.free()

    def closed_over(self, d: Degree, value: object) -> Degree:
        """An array that varies may be data: it gets a gauge of its own."""
        size = math.prod(getattr(value, "shape", ()))
        if d.level is None or d.const is not None or size == 1:
            return d
        return (self.free() if d.is_zero else d).known(tag=Tag(fixed=size))

    def carried(self, eqn: Eqn, start: Degree, *, scales: bool) -> Degree:
        """A gauge of its own."""
        del eqn, start
        return self.argument(scales=scales)

    def shift(self, a: Degree, b: Degree) -> Form:
        """The number by which `a` exceeds `b`, or a new gauge."""
        if a.along == b.along:
            level = dict(a.level or {})
            for key, c in (b.level or {}).items():
                level[key] = level.get(key, 0) - c
            return {key: c for key, c in level.items() if c}
        return {self.unknowns.scalar(): 1}

    def assume(self, kind: str, value: float, eqn: Eqn, d: Degree) -> None:
        """This reading leans on nothing."""
        del kind, value, eqn, d

    def unruled(self, eqn: Eqn) -> None:
        """The other reading counts these."""
        del eqn

    # What this reading remembers.

    def note(self, kind: str, eqn: Eqn, ins: Sequence[Degree], outs: list[Degree]) -> list[Degree]:
        """Follows leaves and normalisers through one equation."""
        if all(d.tag is None for d in ins):
            return outs
        if kind == "spread":
            return self.spread(eqn, ins, outs)
        if kind == "contraction" and not _contracts(eqn):
            kind = "product"
        return [_NOTES[kind](self, eqn, ins, out) for out in outs]

    def vote(self, leaves: Iterable[int], role: Role, eqn: Eqn) -> None:
        """Records a role of some leaves."""
        site = Site(eqn, tuple(self.calls))
        for number in leaves:
            self.uses[number].roles.setdefault(role, site)

    def revote(self, leaves: Iterable[int], old: Role, new: Role, eqn: Eqn) -> None:
        """Takes back a role of some leaves for another."""
        for number in leaves:
            self.uses[number].roles.pop(old, None)
        self.vote(leaves, new, eqn)

    def size(self, leaves: frozenset[int]) -> int:
        """The number of entries of the largest of some leaves."""
        return max((self._sizes[number] for number in leaves), default=0)

    def view(self, eqn: Eqn, ins: Sequence[Degree], out: Degree) -> Degree:
        """The same entries: everything is remembered."""
        place = next(i for i, d in enumerate(ins) if d.tag is not None)
        del eqn
        return out.known(const=out.const, mark=out.mark, tag=ins[place].tag)

    def spread(self, eqn: Eqn, ins: Sequence[Degree], outs: list[Degree]) -> list[Degree]:
        """Several values side by side: each is remembered."""
        del eqn
        return [
            o.known(const=o.const, mark=o.mark, tag=d.tag) for d, o in zip(ins, outs, strict=False)
        ]

    def cast(self, eqn: Eqn, ins: Sequence[Degree], out: Degree) -> Degree:
        """As a view; numbers made from integers get a gauge of their own."""
        out = self.view(eqn, ins, out)
        if out.is_zero and out.tag.data and is_float(eqn.outvars[0]):
            return self.free().known(tag=out.tag)
        return out

    def pointwise(self, eqn: Eqn, ins: Sequence[Degree], out: Degree) -> Degree:
        """A function of leaves alone is still those leaves; data lose what is remembered."""
        tags = [d.tag for d in ins if d.tag is not None]
        leaves = NONE.union(*(t.leaves for t in tags)) if not any(t.data for t in tags) else NONE
        gains = NONE.union(*(t.gains for t in tags))
        root = {"sqrt": 1, "rsqrt": -1}.get(eqn.primitive.name, 0)
        tag = Tag(leaves, data=any(t.data for t in tags), gains=gains, root=root)
        return out.known(const=out.const, mark=out.mark, tag=tag)

    def reduction(self, eqn: Eqn, ins: Sequence[Degree], out: Degree) -> Degree:
        """A statistic of leaves is no leaf."""
        del eqn
        tags = [d.tag for d in ins if d.tag is not None]
        gains = NONE.union(*(t.gains for t in tags))
        return out.known(mark=out.mark, tag=Tag(data=any(t.data for t in tags), gains=gains))

    def opaque(self, eqn: Eqn, ins: Sequence[Degree], out: Degree) -> Degree:
        """Whatever comes out is data."""
        del eqn
        data = any(d.tag is not None and d.tag.data for d in ins)
        return out.known(const=out.const, mark=out.mark, tag=Tag(data=data))

    def product(self, eqn: Eqn, ins: Sequence[Degree], out: Degree) -> Degree:
        """A leaf that multiplies data is a gain; where a gauge cancels there is a normaliser."""
        x, y = self._beside_constants(ins)
        if x is None or y is None:  # times a constant
            return out.known(mark=out.mark, tag=x or (y and self._inverted(y, eqn)))
        y = self._inverted(y, eqn)
        tag = Tag(
            leaves=NONE if x.data or y.data else self._larger(x, y, eqn),
            data=x.data or y.data,
            normed=0 if (x.data and y.data) or (x.leaves and y.leaves) else max(x.normed, y.normed),
            gains=x.gains | y.gains,
            owners=x.owners | y.owners,
            root=x.root or y.root,
        )
        for factor, other in ((x, y), (y, x)):
            if (factor.leaves and not other.leaves) or self._is_gain(factor, other):
                tag = self._gained(eqn, tag, factor, other)
                break
        folded: frozenset[int] | None = None
        if self._cancels(ins[0], ins[1], out):
            remaining = (self._leaf_of_gauge.get(g, -1) for g in out.level or ())
            folded = tag.gains & frozenset(remaining)
        elif (x.centred and y.root < 0) or (y.centred and x.root < 0):
            # A difference times an inverse root: a normaliser on statistics that it was given.
            folded = y.gains if x.centred else x.gains
        if folded is not None:
            self.revote(folded, Role.GAIN, Role.NORM_SCALE, eqn)
            tag = dataclasses.replace(tag, normed=2 if folded else 1, root=0)
        return out.known(mark=out.mark, tag=tag)

    def _inverted(self, tag: Tag, eqn: Eqn) -> Tag:
        """A second factor as it is multiplied: the inverse, in a quotient."""
        if tag.root and eqn.primitive.name == "div":
            return dataclasses.replace(tag, root=-tag.root)
        return tag

    def _beside_constants(self, ins: Sequence[Degree]) -> list[Tag | None]:
        """The tags of two operands; none for an array that belongs to the other, a leaf."""
        x, y = (d.tag for d in ins[:2])
        if x is not None and y is not None:
            if x.fixed and y.leaves and self.size(y.leaves) >= x.fixed:
                return [None, y]
            if y.fixed and x.leaves and self.size(x.leaves) >= y.fixed:
                return [x, None]
        return [x, y]

    def _is_gain(self, factor: Tag, other: Tag) -> bool:
        """Whether a factor is a gain on something of leaves only that is larger than it."""
        return (
            bool(factor.leaves)
            and bool(other.leaves)
            and (self.size(factor.leaves) < self.size(other.leaves))
        )

    def _larger(self, x: Tag, y: Tag, eqn: Eqn) -> frozenset[int]:
        """Which leaves a product of functions of leaves is."""
        del eqn
        a, b = self.size(x.leaves), self.size(y.leaves)
        return x.leaves | y.leaves if a == b else x.leaves if a > b else y.leaves

    def _gained(self, eqn: Eqn, tag: Tag, factor: Tag, other: Tag) -> Tag:
        """What a product is when one factor is a leaf."""
        role = Role.NORM_SCALE if other.normed == 1 else Role.GAIN
        self.vote(factor.leaves, role, eqn)
        for number in factor.leaves:
            self.uses[number].shifted |= factor.shifted
        return dataclasses.replace(
            tag,
            normed=2 if other.normed == 1 else 0,
            root=other.root,
            gains=tag.gains | factor.leaves,
            owners=other.owners | factor.leaves,
        )

    def _cancels(self, a: Degree, b: Degree, out: Degree) -> bool:
        """Whether a gauge that both factors have is gone from the product."""
        x, y, z = a.level or {}, b.level or {}, out.level or {}
        gone = [g for g in x if g in y and g not in z]
        return any(g not in self._exponentials for g in gone)

    def quotient(self, eqn: Eqn, ins: Sequence[Degree], out: Degree) -> Degree:
        """As a product, with the second factor inverted."""
        return self.product(eqn, ins, out)

    def total(self, eqn: Eqn, ins: Sequence[Degree], out: Degree) -> Degree:
        """A leaf that is added to data is a bias."""
        tagged = [d for d, tag in zip(ins, self._beside_constants(ins), strict=True) if tag]
        if len(tagged) == 1:
            return self._with_constant(ins, tagged[0], out)
        x, y = tagged[0].tag, tagged[1].tag
        if not x.data and not y.data:
            return self._of_leaves(eqn, x, y, out)
        for leaf, other in ((x, y), (y, x)):
            if leaf.leaves:
                return self._biased(eqn, leaf, other, out)
        same = out.level == tagged[0].level == tagged[1].level
        tag = Tag(
            normed=min(x.normed, y.normed) if same else 0,
            gains=x.gains | y.gains,
            owners=x.owners & y.owners if not same else x.owners | y.owners,
            centred=eqn.primitive.name == "sub",
        )
        return out.known(mark=out.mark, tag=tag)

    def _with_constant(self, ins: Sequence[Degree], d: Degree, out: Degree) -> Degree:
        """A leaf with a constant added is still that leaf; a normalised value no longer is."""
        others = [e for e in ins if e is not d]
        harmless = all(
            e.is_any or (e.const is not None and abs(e.const) <= EPSILON) for e in others
        )
        tag = d.tag
        if not harmless:
            tag = Tag(tag.leaves, data=tag.data, gains=tag.gains, shifted=bool(tag.leaves))
        return out.known(mark=out.mark, tag=tag)

    def _of_leaves(self, eqn: Eqn, x: Tag, y: Tag, out: Degree) -> Degree:
        """Functions of leaves, added: a bias if one of them is normalised, else one more leaf."""
        for bias, other in ((x, y), (y, x)):
            if bias.leaves and not bias.normed and other.normed and bias.leaves != other.leaves:
                self.vote(bias.leaves, Role.NORM_BIAS, eqn)
                return out.known(tag=Tag(other.leaves, data=False, gains=other.gains))
        leaves = x.leaves | y.leaves
        return out.known(tag=Tag(leaves, data=False, gains=x.gains | y.gains))

    def _biased(self, eqn: Eqn, leaf: Tag, other: Tag, out: Degree) -> Degree:
        self.vote(leaf.leaves, Role.NORM_BIAS if other.normed else Role.BIAS, eqn)
        for owner in other.owners:
            self.biases[owner] |= leaf.leaves - {owner}
        return out.known(mark=out.mark, tag=Tag(owners=other.owners))

    def contraction(self, eqn: Eqn, ins: Sequence[Degree], out: Degree) -> Degree:
        """A leaf that is contracted is a weight, and a gain on it is no normaliser's."""
        x, y = (d.tag for d in ins[:2])
        if x is None or y is None:  # with constant coefficients
            tag = x or y or Tag()
            return out.known(tag=Tag(data=tag.data, gains=tag.gains))
        owners = NONE
        for weight, other in ((x, y), (y, x)):
            self.vote(weight.leaves, Role.WEIGHT, eqn)
            if not weight.data and other.data:
                self.revote(
                    [g for g in weight.gains if Role.NORM_SCALE in self.uses[g].roles],
                    Role.NORM_SCALE,
                    Role.GAIN,
                    eqn,
                )
            owners |= weight.leaves if weight.data else weight.leaves | weight.gains
        if x.data and y.data and eqn.invars[0] is eqn.invars[1]:
            return out.known(tag=Tag(gains=x.gains))
        return self.free().known(tag=Tag(data=x.data or y.data, owners=owners))

    def lookup(self, eqn: Eqn, ins: Sequence[Degree], out: Degree) -> Degree:
        """A leaf that is looked up is an embedding; one place of it is a slice."""
        table = ins[0].tag
        if table is None:
            return out.known(tag=DATA)
        if not is_lookup(eqn):
            return out.known(tag=table)
        self.vote(table.leaves, Role.EMBEDDING, eqn)
        return out.known(tag=Tag(owners=table.leaves))

    def join(self, eqn: Eqn, ins: Sequence[Degree], out: Degree) -> Degree:
        """Leaves beside data are learned inputs; leaves beside leaves remain leaves."""
        tags = [d.tag for d in ins if d.tag is not None]
        if all(d.tag is None or not d.tag.data for d in ins):
            return out.known(
                mark=out.mark, tag=Tag(NONE.union(*(t.leaves for t in tags)), data=False)
            )
        for t in tags:
            self.vote(t.leaves, Role.EMBEDDING, eqn)
        whole = len({t.normed for t in tags}) == 1
        gains = NONE.union(*(t.gains for t in tags))
        owners = tags[0].owners.intersection(*(t.owners for t in tags))
        normed = tags[0].normed if whole else 0
        return out.known(mark=out.mark, tag=Tag(normed=normed, gains=gains, owners=owners))

    def select(self, eqn: Eqn, ins: Sequence[Degree], out: Degree) -> Degree:
        """As a join, of the cases alone."""
        cases = ins[1:]
        if all(d.tag is None for d in cases):
            return out.known(mark=out.mark, tag=DATA)
        tagged = [d.tag for d in cases if d.tag is not None]
        if len(tagged) == 1 and all(
            d.is_any or d.const is not None for d in cases if d.tag is None
        ):
            return out.known(mark=out.mark, tag=tagged[0])
        if all(tag == tagged[0] for tag in tagged):
            return out.known(mark=out.mark, tag=tagged[0])
        return self.join(eqn, cases, out)


def _contracts(eqn: Eqn) -> bool:
    """Whether an equation of that kind sums over anything, or is a product entry by entry."""
    numbers = eqn.params["dimension_numbers"]
    return eqn.primitive.name != "dot_general" or bool(numbers[0][0])


_NOTES = {
    "view": Local.view,
    "cast": Local.cast,
    "pointwise": Local.pointwise,
    "reduction": Local.reduction,
    "opaque": Local.opaque,
    "packed": Local.opaque,
    "product": Local.product,
    "quotient": Local.quotient,
    "sum": Local.total,
    "contraction": Local.contraction,
    "lookup": Local.lookup,
    "join": Local.join,
    "select": Local.select,
}
