"""Laws of what mixes entries: a sum of n entries that all change by d changes by ``n*d``."""

import math
from collections.abc import Sequence
from functools import partial
from math import prod
from typing import Final

from optax_bnmask import compat
from optax_bnmask.program.registry import Kind, Map
from optax_bnmask.program.rules.indexing import filling
from optax_bnmask.program.rules.shaping import windowed
from optax_bnmask.program.shifts.changes import (
    Changes,
    Term,
    alive,
    constant_along,
    every_place,
    is_any,
    moved,
    varies,
)
from optax_bnmask.program.shifts.reading import Shifts, losing, shifting
from optax_bnmask.program.tape import COLLECT, CONTRACT, Equation

_CONV: Final = compat.primitive("conv_general_dilated_p")
_SUMS: Final = ("psum", "psum_invariant")
_CHOICES: Final = ("pmax", "pmin", "all_gather", "all_gather_invariant", "shard_map", "ppermute")


@shifting(
    *("reduce_max_p", "reduce_min_p", "reduce_window_max_p", "reduce_window_min_p"),
    *("argmax_p", "argmin_p", "sort_p", "top_k_p"),
)
def order(shifts: Shifts, e: Equation) -> Changes | None:
    """Entries that change alike keep their order: ``max(x + d) = max(x) + d``.

    And ``argmax(x + d) = argmax(x)``. The padding of a maximum is minus infinity, never the
    largest. Entries that are sorted by others are moved, and change as they do.
    """
    if (law := shifts.facts.law(e)) is None:
        return losing(shifts, e)
    rank, out = len(shifts.tape.full[e.out]), Changes()
    for k, x in enumerate(e.ins):
        to = shifts.to(e, k, law)
        changes = _alike(shifts, x, to)
        if not law.scales:
            shifts.cancels(e, (source for source, _ in changes))
        elif law.powers and law.powers[k]:
            out |= moved(changes, to, rank)
    return out


def _alike(shifts: Shifts, x: int, to: Map) -> Changes:
    """The terms of an operand's change that are constant along all axes left out of a map.

    Others are lost.
    """
    changes, gone = shifts.of(x), _left_out(shifts, x, to)
    shifts.lose(term for term in changes if varies(term, gone))
    return alive(changes)


def _left_out(shifts: Shifts, x: int, to: Map) -> list[int]:
    return [a for a in range(len(shifts.tape.full[x])) if a not in to]


@shifting("reduce_sum_p")
def total(shifts: Shifts, e: Equation) -> Changes | None:
    """``sum(x + d) - sum(x) = n*d`` over n entries that change alike."""
    law = shifts.facts.law(e)
    return _summed(shifts, e, shifts.to(e, 0, law)) if law else losing(shifts, e)


def _summed(shifts: Shifts, e: Equation, to: Map) -> Changes:
    """The change of a sum over the axes left out of `to`, which maps the others.

    The change of ``x**2``, summed over n entries along which that of `x` is constant, is n times
    that of ``mean(x)**2``.
    """
    x, rank = e.ins[0], len(shifts.tape.full[e.out])
    shape, gone = shifts.tape.full[x], _left_out(shifts, x, to)
    count, means, mixed = prod(shape[a] for a in gone), Changes(), Changes()
    for term, c in shifts.of(x).items():
        if (found := _mean_over(shifts, term, gone)) is not None:
            means[found] = c * count
        else:
            mixed[term] = c
    out = moved(means, to, rank) | shifts.fresh_by(e, mixed, to)
    if not alive(mixed):
        whole = {(shifts.square(x, frozenset()), every_place(shape)): 1}
        (mean, c), *_ = (shifts.means.get(x) or whole).items()
        if (over := _mean_over(shifts, mean, gone)) is not None:
            shifts.means[e.out] = moved({over: c * count}, to, rank)
    return out


def _mean_over(shifts: Shifts, term: Term, gone: Sequence[int]) -> Term | None:
    """What a term becomes in a mean over the axes `gone`; `None` if that is not known."""
    source, places = term
    over = frozenset(place for a in gone if (place := places[a]) is not None)
    if not over:
        return term
    if source.square is None:
        return None
    x, already = source.square
    inner = alive(shifts.of(x))
    varying = [t for t in inner if varies(t, over)]
    if len(varying) == len(inner):
        return None
    shifts.lose(varying)  # their squares are not known; without them those of the others are
    flat = tuple([None if a in gone else place for a, place in enumerate(places)])
    return shifts.square(x, already | over), flat


@shifting("cumsum_p")
def cumulate(shifts: Shifts, e: Equation) -> Changes | None:
    """The change of a cumulative sum: constant along the other axes where the operand's is."""
    law = shifts.facts.law(e)
    return shifts.fresh_by(e, shifts.of(e.ins[0]), shifts.to(e, 0, law)) if law else None


@shifting("reduce_window_sum_p")
def pool(shifts: Shifts, e: Equation) -> Changes | None:
    """Sums of n entries that change alike, as in `total`.

    Padding adds zeros to a sum, so that its change is no longer constant.
    """
    p, changes = e.params, shifts.of(e.ins[0])
    axes = windowed(e)
    holes = p["base_dilation"] or (1,) * len(p["padding"])
    ragged = [a for a in axes if any(p["padding"][a]) or holes[a] > 1]
    even = {
        term: c * prod(p["window_dimensions"])
        for term, c in changes.items()
        if not ragged and not varies(term, axes)
    }
    rest = [term for term in changes if term not in even]
    return even | shifts.fresh_for_each(
        e, rest, lambda c: [x and a not in ragged for a, x in enumerate(c)]
    )


@shifting(COLLECT)
def collect(shifts: Shifts, e: Equation) -> Changes | None:
    """The changes of what a collective gives, from those of the parts on all devices.

    In a sum over devices terms that are the same on all add up; of a maximum, or of entries that
    are sent, only what is constant over the devices remains. Others lose all.
    """
    if e.source.params.get("axis_index_groups") or e.params["clips"]:
        return losing(shifts, e)
    to = e.params["to"]
    if e.name in _SUMS:
        return _summed(shifts, e, to)
    if e.name not in _CHOICES:
        return losing(shifts, e)
    return moved(_alike(shifts, e.ins[0], to), to, len(shifts.tape.full[e.out]))


@shifting("dot_general_p", "conv_general_dilated_p", CONTRACT)
def contract(shifts: Shifts, e: Equation) -> Changes | None:
    """``(x + d) @ y - x @ y = d @ y``: constant along an axis of the result where `d` and `y` are.

    With keys (batch, key, feature), queries (batch, query, feature) and the bias of the keys as
    `d`, the change of (batch, query, key) is constant along the keys.
    """
    law = shifts.facts.law(e)
    if law is None or not law.scales or e.params.get("batch_group_count", 1) > 1:
        return losing(shifts, e)
    out = Changes()
    for k in (0, 1):
        if changes := _with_hope(shifts, e, k):
            maps = {**shifts.to(e, 0, law), **_space(e)}, shifts.to(e, 1, law)
            own, others = ({q: a for a, q in maps[j].items()} for j in (k, 1 - k))
            of = partial(_remaining, shifts, e, (own, others), shifts.flat.of(e.ins[1 - k]))
            out |= shifts.fresh_for_each(e, changes, of)
    return out


def _remaining(
    shifts: Shifts, e: Equation, maps: tuple[Map, Map], flat: Sequence[bool], constant: list[bool]
) -> list[bool]:
    """Where the result of a contraction is constant.

    Args:
      shifts: The reading.
      e: The contraction.
      maps: Of the operand that changes and of the other: which of its axes one of the result is.
      flat: Where the other does not vary.
      constant: Where the change does not.
    """
    own, others = maps
    found = {q: constant[a] for q, a in own.items()}
    found |= {q: flat[a] and found.get(q, True) for q, a in others.items()}
    return [found.get(q, False) for q in range(len(shifts.tape.full[e.out]))]


def _with_hope(shifts: Shifts, e: Equation, k: int) -> Changes:
    """The change of an operand, lost at once if the result could be constant along no axis.

    So it is with most kernels, which is why this is asked before anything else is looked up.
    """
    x, y = e.ins[k], e.ins[1 - k]
    changes, shape = shifts.of(x), shifts.tape.full
    if (
        y in shifts.pure
        or any(is_any(constant_along(places), shape[x]) for _, places in changes)
        or is_any(shifts.flat.of(y), shape[y])
    ):
        return changes
    shifts.lose(changes)
    return {}


def _space(e: Equation) -> dict[int, int]:
    """The axes that a convolution moves along without padding: what is constant there stays so."""
    if e.op is not _CONV and e.op is not CONTRACT:
        return {}
    p = e.source.params
    numbers = p["dimension_numbers"]
    grouped = e.op is CONTRACT  # there is one more axis, of groups, before the features
    (_, feature, *space), (_, to_feature, *to_space) = numbers.lhs_spec, numbers.out_spec
    rows = zip(space, to_space, p["padding"], p["lhs_dilation"], strict=True)
    return {
        a + (grouped and a > feature): q + (grouped and q > to_feature)
        for a, q, padding, holes in rows
        if not any(padding) and holes == 1
    }


@shifting(Kind.LOOKUP)
def gather(shifts: Shifts, e: Equation) -> Changes | None:
    """The change of entries at computed places: as it was, if constant along the axes of places.

    Or else it is constant along axes that are taken whole and along which it was. Rows with places
    of their own, as in ``x[i, places[i]]``, differ though `x` changes by the same in all of them;
    and so, for all that is known, do iterations.
    """
    law, x, number = shifts.facts.law(e), e.ins[0], filling(e)
    if law is None or (number is not None and math.isfinite(number)):
        return losing(shifts, e)
    to, changes = shifts.to(e, 0, law), shifts.of(x)
    axes = _left_out(shifts, x, to)
    whole = {term: c for term, c in changes.items() if not varies(term, axes)}
    some = [term for term in changes if term not in whole]
    apart = e.params["dimension_numbers"].operand_batching_dims
    alike = {a: q for a, q in law.map_of(0).items() if a not in apart}
    return moved(whole, to, len(shifts.tape.full[e.out])) | shifts.fresh_by(e, some, alike)
