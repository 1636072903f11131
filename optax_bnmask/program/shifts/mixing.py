"""Laws of what mixes entries: a sum of n entries that all change by d changes by ``n*d``."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from math import prod
from typing import Final

from optax_bnmask import compat
from optax_bnmask.program.maps import operand_map
from optax_bnmask.program.registry import Kind, Law
from optax_bnmask.program.rules.indexing import filling
from optax_bnmask.program.rules.shaping import windowed
from optax_bnmask.program.shifts.changes import Changes, Term, alive, every_place, moved, without
from optax_bnmask.program.shifts.reading import Shifts, losing, shifting
from optax_bnmask.program.tape import COLLECT, CONTRACT, Equation

_CONV: Final = compat.primitive("conv_general_dilated_p")
_SUMS: Final = ("psum", "psum_invariant")
_CHOICES: Final = ("pmax", "pmin", "all_gather", "all_gather_invariant", "shard_map", "ppermute")


@shifting("reduce_sum_p")
def total(shifts: Shifts, e: Equation) -> Changes | None:
    """``sum(x + d) - sum(x) = n*d`` over n entries that change alike."""
    shape, gone = shifts.tape.full[e.ins[0]], e.params["axes"]
    kept = {a: q for q, a in enumerate(a for a in range(len(shape)) if a not in gone)}
    return _summed(shifts, e, gone, kept)


def _summed(shifts: Shifts, e: Equation, gone: Sequence[int], kept: dict[int, int]) -> Changes:
    """The change of a sum over the axes `gone`; `kept` maps the others to axes of the result.

    The change of ``x**2``, summed over n entries along which that of `x` is constant, is n times
    that of ``mean(x)**2``.
    """
    x, rank = e.ins[0], len(shifts.tape.full[e.out])
    shape = shifts.tape.full[x]
    count, out, mixed = prod(shape[a] for a in gone), Changes(), Changes()
    for term, c in shifts.of(x).items():
        if (found := _mean_over(shifts, term, gone)) is not None:
            out |= _placed({found: c * count}, kept, rank)
        else:
            mixed[term] = c
    back = {q: a for a, q in kept.items()}
    out |= shifts.fresh_for_each(
        e, [mixed], lambda constant: [q not in back or constant[back[q]] for q in range(rank)]
    )
    if not alive(mixed):
        whole = {(shifts.square(x, frozenset()), every_place(shape)): 1}
        (mean, c), *_ = (shifts.means.get(x) or whole).items()
        if (over := _mean_over(shifts, mean, gone)) is not None:
            shifts.means[e.out] = _placed({over: c * count}, kept, rank)
    return out


def _placed(changes: Changes, kept: dict[int, int], rank: int) -> Changes:
    return moved(changes, kept, rank) or {}


def _mean_over(shifts: Shifts, term: Term, gone: Sequence[int]) -> Term | None:
    """What a term becomes in a mean over the axes `gone`; `None` if that is not known."""
    source, places = term
    over = frozenset(place for a in gone if (place := places[a]) is not None)
    flat = tuple([None if a in gone else place for a, place in enumerate(places)])
    if not over:
        return term
    if source.square is None:
        return None
    x, already = source.square
    inner = alive(shifts.of(x))
    varying = {t: c for t, c in inner.items() if any(t[1][a] is not None for a in over)}
    if len(varying) == len(inner):
        return None
    shifts.lose(varying)  # their squares are not known; without them those of the others are
    return shifts.square(x, already | over), flat


@shifting("reduce_max_p", "reduce_min_p")
def extreme(shifts: Shifts, e: Equation) -> Changes | None:
    """``max(x + d) = max(x) + d`` over entries that change alike."""
    gone = e.params["axes"]
    changes = _constant(shifts, e.ins[0], gone)
    return {(source, without(places, gone)): c for (source, places), c in changes.items()}


def _constant(shifts: Shifts, x: int, axes: Sequence[int]) -> Changes:
    """The terms of an operand's change that are constant along some axes; others are lost."""
    changes = shifts.of(x)
    shifts.lose(
        {term: c for term, c in changes.items() if any(term[1][a] is not None for a in axes)}
    )
    return alive(changes)


@shifting("argmax_p", "argmin_p")
def place_of_extreme(shifts: Shifts, e: Equation) -> None:
    """``argmax(x + d) = argmax(x)`` over entries that change alike."""
    changes = _constant(shifts, e.ins[0], e.params["axes"])
    shifts.cancels(e, [source for source, _ in changes])


@shifting("sort_p")
def sort(shifts: Shifts, e: Equation) -> Changes | None:
    """Entries that change alike keep their order."""
    for x in e.ins:
        _constant(shifts, x, [e.params["dimension"]])
    return alive(shifts.of(e.ins[e.place]))


@shifting("top_k_p")
def largest(shifts: Shifts, e: Equation) -> Changes | None:
    """Entries that change alike keep their order: which are the largest does not change."""
    rank = len(shifts.tape.shapes[e.out])
    changes = _constant(shifts, e.ins[0], [e.params.get("axis", rank - 1) % rank])
    return changes if e.place == 0 else None


@shifting("cumsum_p")
def cumulate(shifts: Shifts, e: Equation) -> Changes | None:
    """The change of a cumulative sum: constant along the other axes where the operand's is."""
    axis = e.params["axis"]
    return shifts.fresh_for_each(
        e, [shifts.of(e.ins[0])], lambda c: [x and a != axis for a, x in enumerate(c)]
    )


@shifting("reduce_window_sum_p", "reduce_window_max_p", "reduce_window_min_p")
def pool(shifts: Shifts, e: Equation) -> Changes | None:
    """Sums of n entries that change alike, or their maximum, as in `total` and `extreme`.

    Padding adds zeros to a sum, so that its change is no longer constant; to a maximum it adds
    minus infinity, which is never the largest.
    """
    p, changes = e.params, shifts.of(e.ins[0])
    axes = windowed(e)
    if e.op.name != "reduce_window_sum":
        return _constant(shifts, e.ins[0], axes)
    holes = p["base_dilation"] or (1,) * len(p["padding"])
    ragged = [a for a in axes if any(p["padding"][a]) or holes[a] > 1]
    even = {
        term: c * prod(p["window_dimensions"])
        for term, c in changes.items()
        if not ragged and all(term[1][a] is None for a in axes)
    }
    rest = {term: c for term, c in changes.items() if term not in even}
    return even | shifts.fresh_for_each(
        e, [rest], lambda c: [x and a not in ragged for a, x in enumerate(c)]
    )


@shifting(COLLECT)
def collect(shifts: Shifts, e: Equation) -> Changes | None:
    """The changes of what a collective gives, from those of the parts on all devices.

    In a sum over devices terms that are the same on all add up; of a maximum, or of entries that
    are sent, only what is constant over the devices remains. Others lose all.
    """
    x, kept = e.ins[0], e.params["to"]
    gone = [a for a in range(len(shifts.tape.full[x])) if a not in kept]
    if e.source.params.get("axis_index_groups") or e.params["clips"]:
        return losing(shifts, e)
    if e.name in _SUMS:
        return _summed(shifts, e, gone, kept)
    if e.name not in _CHOICES:
        return losing(shifts, e)
    return _placed(_constant(shifts, x, gone), kept, len(shifts.tape.full[e.out]))


@shifting("dot_general_p", "conv_general_dilated_p", CONTRACT)
def contract(shifts: Shifts, e: Equation) -> Changes | None:
    """``(x + d) @ y - x @ y = d @ y``: constant along an axis of the result where `d` and `y` are.

    With keys (batch, key, feature), queries (batch, query, feature) and the bias of the keys as
    `d`, the change of (batch, query, key) is constant along the keys.
    """
    law = shifts.facts.law(e)
    if law is None or not law.scales or e.params.get("batch_group_count", 1) > 1:
        return losing(shifts, e)
    out, maps = Changes(), list[dict[int, int]]()
    for k in (0, 1):
        if changes := _with_hope(shifts, e, k):
            maps = maps or _axes_of_operands(shifts, e, law)
            flat = shifts.flat.of(e.ins[1 - k])
            of = partial(_remaining, shifts, e, (maps[k], maps[1 - k]), flat)
            out |= shifts.fresh_for_each(e, [changes], of)
    return out


def _axes_of_operands(shifts: Shifts, e: Equation, law: Law) -> list[dict[int, int]]:
    """For both operands, ``{axis of the result: axis of the operand}``."""
    to = [operand_map(shifts.tape, e, k, law.map_of(k)) for k in (0, 1)]
    return [{q: a for a, q in m.items()} for m in ({**to[0], **_space(e)}, to[1])]


def _remaining(
    shifts: Shifts,
    e: Equation,
    maps: tuple[Mapping[int, int], Mapping[int, int]],
    flat: Sequence[bool],
    constant: Sequence[bool],
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
    changes, shape = shifts.of(x), shifts.tape.full[x]
    if not changes or y in shifts.pure:
        return changes
    for _, places in changes:
        for a, place in enumerate(places):
            if place is None and shape[a] > 1:
                return changes
    for n, flat in zip(shifts.tape.full[y], shifts.flat.of(y), strict=True):
        if flat and n > 1:
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
    of their own, as in ``x[i, places[i]]``, differ though `x` changes by the same in all of them.
    """
    law, x, number = shifts.facts.law(e), e.ins[0], filling(e)
    if law is None or (number is not None and math.isfinite(number)):
        return losing(shifts, e)
    to = operand_map(shifts.tape, e, 0, law.map_of(0))
    back = {q: a for a, q in to.items()}
    rank, shown = len(shifts.tape.full[e.out]), len(shifts.tape.shapes[e.out])
    axes = [a for a in range(len(shifts.tape.full[x])) if a not in to]
    whole, some = Changes(), Changes()
    for term, c in shifts.of(x).items():
        (some if any(term[1][a] is not None for a in axes) else whole)[term] = c

    apart = e.params["dimension_numbers"].operand_batching_dims

    def constant(c: Sequence[bool]) -> list[bool]:  # places may differ from iteration to iteration
        return [
            q < shown and back.get(q) is not None and back[q] not in apart and c[back[q]]
            for q in range(rank)
        ]

    return _placed(whole, dict(to), rank) | shifts.fresh_for_each(e, [some], constant)
