"""Leaves and data where entries are summed, looked up or joined: weights and embeddings."""

from collections.abc import Collection, Mapping

from optax_bnmask import compat
from optax_bnmask.program.flags import ANY_DEGREE
from optax_bnmask.program.tape import CARRY, Equation
from optax_bnmask.program.uses.dimensions import Meeting
from optax_bnmask.program.uses.entrywise import beside_their_own
from optax_bnmask.program.uses.indicating import hot_sums, is_lookup
from optax_bnmask.program.uses.lookups import AT, by_a_constant_indicator, is_arranged
from optax_bnmask.program.uses.record import Record
from optax_bnmask.program.uses.views import (
    DATA,
    Combined,
    View,
    all_of,
    features_of,
    leaves_of,
    made_by,
    merged,
)
from optax_bnmask.vocabulary import NORMS, Role

_CONVOLUTION = compat.primitive("conv_general_dilated_p")
_SCATTERS = {
    compat.primitive(f"{name}_p")
    for name in ("scatter", "scatter_add", "scatter_sub", "scatter_max", "scatter_min")
}


def contraction(record: Record, e: Equation) -> View:
    """A leaf that is contracted is a weight, but for one that a constant puts in another order."""
    if record.indicators and record.law is not None:
        for k in (0, 1):
            if is_arranged(record, e, k):
                return by_a_constant_indicator(record, e, k)
    return _contraction(record, e)


def _contraction(record: Record, e: Equation) -> View:
    """A leaf that is contracted is a weight, and a gain on it is no normaliser's."""
    x, y = (record.views.get(v) for v in e.ins[:2])
    if x is None or y is None:
        record.gauges.read(e, record.law)
        return _with_coefficients(record, e, 0 if y is None else 1)
    if record.law is None:
        record.gauges.start(e.out)
        return opaque(record, e)
    same = x.data and y.data and record.gauges.root(e.ins[0]) == record.gauges.root(e.ins[1])
    if same:  # a sum of squares
        record.gauges.read(e, record.law)
        return View(gains=x.gains)
    hows = [record.meetings(k, view.leaves) for k, view in enumerate((x, y))]
    for k, how in enumerate(hows):
        if how and all(h.is_same for h in how.values()):
            record.gauges.read(e, record.law)
            return _diagonal(record, e, k)
    record.gauges.start(e.out)
    out = View(data=x.data or y.data, contracted=True, features=record.features())
    for k, (one, how) in enumerate(zip((x, y), hows, strict=True)):
        if how or one.combined or not one.data:
            out = _contracted(record, e, k, how, out)
    return out


def _contracted(
    record: Record, e: Equation, k: int, hows: Mapping[int, Meeting], out: View
) -> View:
    """Adds to the view of a contraction what the operand at `k` brings, and how its leaves meet."""
    one, other = (record.views.get(e.ins[j], DATA) for j in (k, 1 - k))
    owners = set(one.leaves if one.data else (*one.leaves, *one.gains))
    combined, features = dict(out.combined), [out.features]
    for number, how in hows.items():
        places = record.moved(k, one.leaves[number])
        if not how.is_same:
            features.append(made_by(number, places))
            _continue(record, e, k, how)
        if how.is_same:
            if how.output and number in one.gains and other.data:  # the size of a weight's column
                record.revote([number], Role.NORM_SCALE, Role.GAIN, e)
        elif is_lookup(record, e, 1 - k):
            record.vote([number], Role.EMBEDDING, e)
            combined[number] = Combined(places, Role.EMBEDDING, e)
        elif one.data or other.data or NORMS.isdisjoint(record.seen[number].roles):
            record.promote(number, None, _matrices(record, e, k, number, how), e)
        # Else a learned query, normalised, meets a kernel before it meets any data.
    weights = _weights_of_products(record, e, k)
    features += [made_by(n, record.moved(k, one.combined[n].places)) for n in weights]
    _keep_columns(record, e, k, one, other)
    owners.update(weights)
    return out._replace(
        combined=combined, owners=out.owners | owners, features=features_of(features)
    )


def _weights_of_products(record: Record, e: Equation, k: int) -> list[int]:
    """Makes weights of the leaves whose product with data the operand at `k` is; returns these."""
    one, other = (record.views.get(e.ins[j], DATA) for j in (k, 1 - k))
    out = []
    for number, m in one.combined.items():
        applied = other.data or _is_modulated_kernel(e, k, m, other)
        if not applied or number in other.combined or number in other.leaves:
            continue
        how = record.meeting(k, m.places, _repeated(m))
        reduction, output = how.reduction - AT, how.output - AT
        if reduction and output and not how.is_same:
            _continue(record, e, k, how)
            found = how._replace(reduction=reduction, output=output, batch=how.batch - AT)
            record.promote(number, m, found, e)
            out.append(number)
    return out


def _matrices(record: Record, e: Equation, k: int, number: int, how: Meeting) -> Meeting | None:
    """How a leaf is contracted that is a matrix for each choice; `None` if it meets itself."""
    one, other = (record.views.get(e.ins[j], DATA) for j in (k, 1 - k))
    if number in other.leaves:
        return None
    chosen = all_of([one.leaves[number][a] for a in hot_sums(record, e, k)])
    return how._replace(reduction=how.reduction - chosen, batch=how.batch | chosen)


def _keep_columns(record: Record, e: Equation, k: int, kernel: View, other: View) -> None:
    """Calls a leaf a gain that is the size of the columns of a kernel made of leaves, as DoRA's."""
    for number, factor in kernel.factors.items():
        if other.data and not kernel.data and record.meeting(k, factor.places).output:
            record.revote([number], Role.NORM_SCALE, Role.GAIN, e)


def _is_modulated_kernel(e: Equation, k: int, met: Combined, other: View) -> bool:
    """Whether a leaf times data is the kernel of a convolution of leaves, before any other data.

    So is the first layer of StyleGAN, whose input is learned. In a plain product nothing tells such
    a kernel from gains of several members of an ensemble, ``(x[None] * gain[:, None]) @ kernel``.
    """
    is_kernel = k == 1 and e.source.primitive is _CONVOLUTION
    return met.modulated and is_kernel and (other.contracted or bool(other.leaves))


def _repeated(met: Combined) -> Collection[int]:
    """The axes along which a leaf that data have modulated is only repeated."""
    return [a for a, own in enumerate(met.places) if not own] if met.modulated else ()


def _continue(record: Record, e: Equation, k: int, how: Meeting) -> None:
    """Records axes of other leaves for each index of which the leaf at `k` has a matrix.

    In ``einsum("tef,efd->ted", silu(einsum("td,edf->tef", x, up)), down)``, which is a mixture of
    experts, axis 0 of `up` is such an axis.
    """
    other, own = record.to(1 - k), record.to(k).values()
    matched = [a for a, r in other.items() if r in own]
    features = record.views.get(e.ins[1 - k], DATA).features if matched else ()
    if not features:
        return
    summed = {leaf for a, made in enumerate(features) if a not in other for leaf, _ in made}
    sizes = record.tape.full[e.ins[1 - k]]
    for a in matched:
        for leaf, axis in features[a]:
            # Of a filter for each channel only the window is summed over, which no leaf made.
            is_matrix = min(how.sizes) > 1 or leaf in summed
            if is_matrix and record.shapes[leaf][axis] == sizes[a]:
                record.seen[leaf].batch.add(axis)


def _with_coefficients(record: Record, e: Equation, k: int) -> View:
    """The operand at `k` contracted with constants: looked up, or mixed."""
    seen = record.along(k) or DATA
    if is_lookup(record, e, 1 - k):
        return seen
    return View(
        data=seen.data, contracted=seen.contracted, gains=seen.gains, features=seen.features
    )


def _diagonal(record: Record, e: Equation, k: int) -> View:
    """A leaf spread over a matrix that is 0 elsewhere multiplies entry by entry: a gain."""
    leaves = frozenset(record.views[e.ins[k]].leaves)
    other = record.along(1 - k) or DATA
    record.vote(leaves, Role.NORM_SCALE if other.normed == 1 else Role.GAIN, e)
    return View(
        data=other.data,
        contracted=other.contracted,
        normed=2 if other.normed == 1 else 0,
        gains=other.gains | leaves,
        owners=other.owners | leaves,
        features=record.features(),
    )


def opaque(record: Record, e: Equation) -> View:
    """Whatever comes out is data."""
    views = [record.views[x] for x in e.ins if x in record.views]
    out = merged(views)
    return View(data=out.data, contracted=out.contracted)


def join(record: Record, e: Equation) -> View:
    """Leaves beside data are learned inputs; leaves beside leaves remain leaves."""
    if e.op in _SCATTERS:
        views = (_scattered(record, e, k) for k in (0, 2))
        return _joined(record, e, [v for v in views if v is not None])
    return _joined(record, e, record.all_along())


def _scattered(record: Record, e: Equation, k: int) -> View | None:
    """The view of what is put into an array, or of that array, along the axes of the result.

    A leaf's axis along which it is put at some places only may lie along any axis that no other
    does, and is noted for all of these.
    """
    view, seen = record.views.get(e.ins[k]), record.along(k)
    if view is None or seen is None or not view.leaves:
        return seen
    if k == 0:  # which has the axes of the result
        return view
    leaves = {}
    for number, places in seen.leaves.items():
        lost = all_of(view.leaves[number]) - all_of(places)
        leaves[number] = tuple(own or lost for own in places)
    return seen._replace(leaves=leaves)


def _joined(record: Record, e: Equation, views: list[View]) -> View:
    """The view of several values in one array, or of one of them; leaves are learned inputs."""
    out = merged(views)._replace(broad=False)
    if out.is_pure:
        return out
    for v in views:
        record.vote(v.leaves, Role.EMBEDDING, e)
    whole = len({v.normed for v in views}) == 1
    return out._replace(
        normed=views[0].normed if whole else 0,
        owners=views[0].owners.intersection(*(v.owners for v in views)),
    )


def select(record: Record, e: Equation) -> View:
    """What is chosen from is joined: leaves beside data are learned inputs.

    A leaf beside a function of itself and of data is one, too, as the mask token of ``where(seen,
    x * t, t)`` is, unless it turns out to be a weight: ``x @ where(ok, w / norm(w @ u), w)``.
    """
    views = beside_their_own(record, record.all_along(1))
    if not views:
        return DATA
    facts, others = record.facts, [x for x in e.ins[1:] if x not in record.views]
    known = all(facts.numbers[x] is not None or facts.flags[x] & ANY_DEGREE for x in others)
    if (len(views) == 1 and known) or (not others and all(v == views[0] for v in views)):
        return views[0]
    out = _joined(record, e, views)
    beside = leaves_of(views).keys() & out.combined.keys()
    learned = {n: out.combined[n]._replace(role=Role.EMBEDDING, at=e) for n in beside}
    return out._replace(combined={**out.combined, **learned}) if learned else out


def loop(record: Record, e: Equation) -> View:
    """The view of a carry: data in the body; after the loop, start and result are joined."""
    if e.op is CARRY:
        return carried(record, e, record.along(0) or DATA)
    return _joined(record, e, record.all_along(0, 2))


def carried(record: Record, e: Equation, start: View) -> View:
    """The view of a carry. One that starts from 0 may be a sum, with the gauge of what is added."""
    if record.facts.flags[e.ins[0]] & ANY_DEGREE:
        record.gauges.start_from_nothing(e.out)
    else:
        record.gauges.start(e.out)
    met = {n: Combined(places, None, e) for n, places in start.leaves.items()}
    return View(combined={**start.combined, **met}, features=start.features)
