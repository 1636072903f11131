"""Leaves and data, entry by entry: gains, biases, normalisers."""

import math
from collections.abc import Iterable, Mapping

from optax_bnmask import compat
from optax_bnmask.program.flags import ANY_DEGREE, AS_CAPTURED, EPSILON
from optax_bnmask.program.registry import Kind
from optax_bnmask.program.tape import Equation
from optax_bnmask.program.uses.experts import revote_chosen
from optax_bnmask.program.uses.record import Record
from optax_bnmask.program.uses.views import (
    DATA,
    NONE,
    Combined,
    Factor,
    View,
    features_of,
    made_by,
    merged,
)
from optax_bnmask.vocabulary import Role

_SUB = compat.primitive("sub_p")
_ROOTS = {compat.primitive("sqrt_p"): 1, compat.primitive("rsqrt_p"): -1}
_ROUNDED = {compat.primitive(f"{name}_p") for name in ("round", "floor", "ceil")}


def pointwise(record: Record, e: Equation) -> View:
    """A function of leaves alone is still those leaves; data lose what is remembered.

    A leaf that has met data is still there if it is rounded or cut off, ``clip(w / scale, -1, 1)``,
    and lost in any other function of both: ``exp(dt * a)`` is what `a` does, and no weight.
    """
    root = 0 if record.moves[e.ins[0]] else _ROOTS.get(e.op, 0)
    out = merged(beside_their_own(record, record.all_along()), root=root)
    if out.combined and not (e.op in _ROUNDED or e.kind is Kind.EXTREMUM):
        out = out._replace(combined={})
    _keep_gauge(record, e, out)
    return out


def root_of_captured(record: Record, e: Equation) -> View | None:
    """The view of a root of constants, if these are arrays that are all 0 now, and else nothing.

    A running variance that the program is closed over may be: what is divided by its root is
    divided by data.
    """
    if e.op not in _ROOTS or not record.facts.flags[e.ins[0]] & AS_CAPTURED:
        return None
    record.gauges.start(e.out)
    return View(root=_ROOTS[e.op])


def _keep_gauge(record: Record, e: Equation, view: View) -> None:
    """Remembers that the gauge of a function of one leaf is that of the leaf."""
    if len(view.leaves) == 1:
        level, (leaf,) = record.gauges.level(e.out), view.leaves
        if len(level) == 1:
            record.gauges.leaf_of.setdefault(next(iter(level)), leaf)


def product(record: Record, e: Equation) -> View:
    """A leaf that multiplies data is a gain; where a gauge cancels there is a normaliser."""
    x, y = _beside_constants(record)
    if x is None or y is None:  # times a constant
        return x or (_inverted(y, e) if y else DATA)
    y = _inverted(y, e)
    view = merged(
        (x, y),
        normed=_still_normed(record, e, x, y),
        cancelled=x.cancelled | y.cancelled,
        owners=x.owners | y.owners,
        root=x.root or y.root,
    )
    for factor, other, k in ((x, y, 1), (y, x, 0)):
        if factor.leaves and (not other.is_pure or _is_gain(record, e, factor, other)):
            view = _gained(record, e, k, view, (factor, other))
            break
    revote_chosen(record, e, (x, y), Role.GAIN)
    return _normalised(record, e, view, x, y)


def _inverted(view: View, e: Equation) -> View:
    """The view of a second factor; in a quotient a square root is an inverse one."""
    if view.root and e.kind is Kind.QUOTIENT:
        return view._replace(root=-view.root)
    return view


def _normalised(record: Record, e: Equation, view: View, x: View, y: View) -> View:
    """The view of a product, which may be a normaliser; gains may be folded into it."""
    by = record.gauges.cancelled(e)
    if by:
        remaining = {record.gauges.leaf_of.get(u, -1) for u in record.gauges.level(e.out)}
        folded = view.gains & remaining
    elif (x.centred and y.root < 0) or (y.centred and x.root < 0):
        # A difference times an inverse root: a normaliser on statistics that it was given.
        folded = y.gains if x.centred else x.gains
        if record.facts.depends[e.ins[0 if x.centred else 1]]:
            record.given.append(e)
    else:
        return view
    record.revote(folded, Role.GAIN, Role.NORM_SCALE, e)
    return view._replace(normed=2 if folded else 1, cancelled=by, root=0)


def _still_normed(record: Record, e: Equation, x: View, y: View) -> int:
    """`View.normed` of a product with a normalised value: is it still normalised?

    It is with a statistic of leaves; with one that no gradient reaches, as in BatchRenorm; and with
    the very value that was normalised, as in GRN, ``x * normalised(size(x))``.
    """
    if bool(x.normed) == bool(y.normed):
        return 0
    k, normed, other = (1, x, y) if x.normed else (0, y, x)
    if other.is_pure:
        return 0 if other.leaves else normed.normed
    given = other.broad and not record.moves[e.ins[k]]
    level = record.gauges.level(e.ins[k])
    same = bool(level) and all(u in normed.cancelled for u in level)
    return normed.normed if given or same else 0


def _is_gain(record: Record, e: Equation, factor: View, other: View) -> bool:
    """Whether a factor of leaves is a gain of the other one, leaves as well.

    It is the same along an axis along which the other is not; or both vary along one axis, and the
    other was normalised, as a single learned query before its norm's gain.
    """
    one, two = (
        {a for places in v.leaves.values() for a in record.own(places, e.out)}
        for v in (factor, other)
    )
    return one < two or (len(one) == 1 and one == two and bool(other.normed > factor.normed))


def _gained(record: Record, e: Equation, k: int, view: View, factors: tuple[View, View]) -> View:
    """The view of a product of a leaf and something else, which is the operand at `k`."""
    factor, other = factors
    role = Role.NORM_SCALE if other.normed == 1 else Role.GAIN
    record.vote(factor.leaves, role, e)
    combined, features = dict(view.combined), [view.features]
    linear: dict[int, Factor] = {}
    for number, places in factor.leaves.items():
        seen = record.seen[number]
        seen.shifted |= factor.shifted
        seen.axes = len(record.own(places, e.out))
        if not other.is_pure:
            lacking = _constant_axes(record, e.ins[k], record.own(places, e.out))
            if lacking:
                features.append(made_by(number, places, lacking))
            new = Combined(places, role, e, modulated=bool(lacking))
            data = record.unshifted(e.ins[k]) if factor.piece >= 0 else e.ins[k]
            linear[number] = Factor(places, frozenset({factor.piece}), e.ins[k], data, new)
            if seen.axes > 1:  # with one axis it cannot be summed over and put out
                combined[number] = new
    return view._replace(
        combined=combined,
        factors=linear,
        normed=2 if other.normed == 1 else 0,
        root=other.root,
        gains=view.gains | frozenset(factor.leaves),
        owners=other.owners | frozenset(factor.leaves),
        features=features_of(features),
    )


def _constant_axes(record: Record, x: int, axes: Iterable[int]) -> set[int]:
    """Those of some axes of the result along which an operand is seen not to vary."""
    return {a for a in axes if not record.is_alike(x) or record.flat.of(x)[a]}


def _beside_constants(record: Record) -> list[View | None]:
    """The views of two operands; none for an array that belongs to the other, a leaf."""
    x, y = record.along(0), record.along(1)
    if x is not None and y is not None and (x.fixed or y.fixed):
        if belongs(record, x, y):
            return [None, y]
        if belongs(record, y, x):
            return [x, None]
    return [x, y]


def belongs(record: Record, one: View, other: View) -> bool:
    """Whether an array is a mask, say, of the leaf that it meets."""
    return bool(one.fixed and other.leaves) and _size(record, other.leaves) >= one.fixed


def beside_their_own(record: Record, views: list[View]) -> list[View]:
    """The views of operands, without arrays that belong to the others."""
    if not any(v.fixed for v in views):
        return views
    return [v for v in views if not any(belongs(record, v, other) for other in views)]


def _size(record: Record, leaves: Iterable[int]) -> int:
    """The number of entries of the largest of some leaves."""
    return max(math.prod(record.shapes[number]) for number in leaves)


def total(record: Record, e: Equation) -> View:
    """A leaf that is added to data is a bias."""
    x, y = _beside_constants(record)
    if x is None or y is None:
        return _with_constant(record, e, 0 if y is None else 1, x or y or DATA)
    if x.is_pure and y.is_pure:
        return _of_leaves(record, e, x, y)
    for leaf, other in ((x, y), (y, x)):
        if leaf.leaves:
            return _biased(record, e, leaf, other, 1 if leaf is x else 0)
    revote_chosen(record, e, (x, y), Role.BIAS)
    same = record.gauges.are_the_same(e)
    return merged(
        (x, y),
        factors=_taps(record, e, x, y),
        normed=_both_normed(record, e, x, y),
        owners=x.owners & y.owners if not same else x.owners | y.owners,
        centred=e.op is _SUB and not record.moves[e.ins[1]],
    )


def _both_normed(record: Record, e: Equation, x: View, y: View) -> int:
    """`View.normed` of a sum: the less of both if both are normalised, or with a given shift."""
    if x.normed and y.normed:
        return min(x.normed, y.normed)
    k, normed, other = (1, x, y) if x.normed else (0, y, x)
    return normed.normed if other.broad and not record.moves[e.ins[k]] else 0


def _taps(record: Record, e: Equation, x: View, y: View) -> Mapping[int, Factor]:
    """Leaves of which different slices are multiplied with one value, shifted, and added up.

    That is a convolution of each channel by itself, ``x[:-1] * k[0] + x[1:] * k[1]``, and the leaf
    its kernel.
    """
    out = {}
    for leaf in x.factors.keys() & y.factors.keys():
        a, b = x.factors[leaf], y.factors[leaf]
        shifted = a.at != b.at and a.of == b.of
        if shifted and not a.pieces & b.pieces and -1 not in a.pieces | b.pieces:
            record.promote(leaf, a.combined, None, e)
            record.promote(leaf, b.combined, None, e)
            out[leaf] = a._replace(pieces=a.pieces | b.pieces)
    return out


def _with_constant(record: Record, e: Equation, place: int, view: View) -> View:
    """A leaf with a constant added is still that leaf; a normalised value no longer is.

    An array that the program is closed over may be a running mean though it is all 0 now.
    """
    other = e.ins[1 - place]
    number, flags = record.facts.numbers[other], record.facts.flags[other]
    if flags & ANY_DEGREE and flags & AS_CAPTURED and e.op is _SUB and place == 0:
        return view._replace(centred=not view.leaves)
    if flags & ANY_DEGREE or (number is not None and abs(number) <= EPSILON):
        return view
    out = merged([view], shifted=bool(view.leaves))
    _keep_gauge(record, e, out)
    return out


def _of_leaves(record: Record, e: Equation, x: View, y: View) -> View:
    """Functions of leaves, added: a bias if one of them is normalised, else one more leaf."""
    for bias, other in ((x, y), (y, x)):
        if bias.leaves and not bias.normed and other.normed and bias.leaves != other.leaves:
            record.vote(bias.leaves, Role.NORM_BIAS, e)
            return merged((x, y))._replace(gains=other.gains)
    return merged((x, y))


def _biased(record: Record, e: Equation, leaf: View, other: View, k: int) -> View:
    """The view of a sum when one summand is a leaf and the other, the operand at `k`, is data."""
    combined, long = dict(other.combined), sum(n > 1 for n in record.tape.full[e.out])
    for number, places in leaf.leaves.items():
        if number in combined:  # something of its own, ``w + stop_gradient(round(w / s) * s - w)``
            continue
        own = record.own(places, e.out)
        lacking = _constant_axes(record, e.ins[k], own) if len(own) == 1 else NONE
        role = _role_of_summand(record, number, own - lacking, other)
        record.vote([number], role, e)
        if role is not Role.EMBEDDING:
            for owner in other.owners - {number}:
                record.biases[owner].add(number)
        if len(own) == long > 1:  # it varies along all axes: perhaps a weight
            combined[number] = Combined(places, role, e)
    return View(
        combined=combined,
        data=other.data,
        contracted=other.contracted,
        owners=other.owners,
        features=other.features,
    )


def _role_of_summand(record: Record, number: int, own: set[int], other: View) -> Role:
    """What a leaf is that is added to data, by the axes along which it varies.

    If no other leaf's output made one of them, it is an axis of the data's positions, and the leaf
    a table of those. Not so where a normaliser's gain varied along as many axes, or nothing is
    known of the axes, and there is but one; nor along the only one, if the data lack it.
    """
    affine = other.normed == 2 and any(record.seen[g].axes == len(own) for g in other.gains)
    made = {a for a, of in enumerate(other.features) if any(leaf != number for leaf, _ in of)}
    known = len(own) > 1 or (made and not other.normed)
    if own - made and known and not affine:
        return Role.EMBEDDING
    return Role.NORM_BIAS if other.normed else Role.BIAS
