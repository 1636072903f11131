"""Laws of what moves, cuts and joins axes, and of loops, which carry changes along with values."""

from itertools import chain
from typing import Any

from optax_bnmask.program.maps import regrouped
from optax_bnmask.program.shifts.changes import (
    Changes,
    Places,
    constant_along,
    moved,
    varies,
    varying,
)
from optax_bnmask.program.shifts.entrywise import bundled, common, finite_ones
from optax_bnmask.program.shifts.reading import Shifts, losing, shifting
from optax_bnmask.program.tape import CARRIED, CARRY, MOVE, RESHAPE, SLICE, Equation


@shifting(MOVE)
def move(shifts: Shifts, e: Equation) -> Changes | None:
    """The change of a value whose axes are renamed; along new axes it is constant."""
    to, rank, x = e.params["to"], len(shifts.tape.full[e.out]), e.ins[0]
    if x in shifts.means:
        shifts.means[e.out] = moved(shifts.means[x], to, rank)
    return moved(shifts.of(x), to, rank)


@shifting(RESHAPE)
def reshape(shifts: Shifts, e: Equation) -> Changes | None:
    """The change of a reshaped value: constant along a group of axes if it was along all of it.

    (32, 7, 7, 8) merged to (1568, 8) is constant along the 1568 if it was along 32, 7 and 7.
    """
    tape = shifts.tape
    old, new = tape.shapes[e.ins[0]], tape.shapes[e.out]
    groups = [
        ([a for a in inside if old[a] > 1], [q for q in outside if new[q] > 1])
        for inside, outside in regrouped(old, new)
    ]
    hidden = [([len(old) + j], [len(new) + j]) for j in range(len(tape.hidden[e.out]))]
    groups += hidden

    def places_of(places: Places) -> list[Any]:
        out: list[Any] = [None] * len(tape.full[e.out])
        for inside, outside in groups:
            of_group = [places[a] for a in inside]
            for q in outside if of_group.count(None) < len(of_group) else ():
                out[q] = of_group[0] if len(inside) == len(outside) == 1 else "anew"
        return out

    # The key: of one source, reshapes from `old` to `new` hold the same entries in the same places.
    return _some_entries(shifts, e, places_of, (old, new))


@shifting(SLICE, "rev_p", "dynamic_slice_p")
def part(shifts: Shifts, e: Equation) -> Changes | None:
    """The change of some of the entries, or of reversed ones.

    Along axes that are whole it is what it was. Along others it is constant if it was, or else
    varies ``"anew"``, as no axis of the source does; a slice at computed places, which may differ
    from iteration to iteration, then varies along hidden axes as well.
    """
    shape, p, law = shifts.tape.shapes[e.ins[0]], e.params, shifts.facts.law(e)
    if e.op is SLICE:
        pairs = zip(shape, p["bounds"], p["strides"], strict=True)
        whole = [tuple(bounds) == (0, n) and stride == 1 for n, bounds, stride in pairs]
    else:
        whole = [law is not None and a in law.map_of(0) for a in range(len(shape))]
    is_computed = len(e.ins) > 1

    def places_of(places: Places) -> list[Any]:
        is_new = [
            place is not None and a < len(whole) and not whole[a] for a, place in enumerate(places)
        ]
        if is_computed and any(is_new):
            is_new[len(whole) :] = [True] * (len(places) - len(whole))
        return ["anew" if new else place for new, place in zip(is_new, places, strict=True)]

    return _some_entries(shifts, e, places_of, (e.op, str(p), e.ins[1:]))


def _some_entries(shifts: Shifts, e: Equation, places_of: Any, key: Any) -> Changes:  # noqa: ANN401 - a function; what is hashable
    """The change of entries of an operand at other places: of the same source, or a view of it.

    Args:
      shifts: The reading.
      e: The equation.
      places_of: Of the places of the operand, those of the result; ``"anew"`` for an axis whose
        entries are others than those of any axis of the source.
      key: What tells such views of one source apart.
    """
    out: Changes = {}
    shape = shifts.tape.full[e.out]
    for (source, places), c in shifts.of(e.ins[0]).items():
        new = places_of(places)
        if "anew" in new:
            constant = constant_along(new)
            found = shifts.view(e, source, (key, places, tuple(constant)), constant)
            if found is None:
                continue
            term = found, varying(constant, shape)
        else:
            term = source, tuple([p if n > 1 else None for p, n in zip(new, shape, strict=True)])
        out[term] = out.get(term, 0) + c
    return {term: c for term, c in out.items() if c}


@shifting("concatenate_p")
def join(shifts: Shifts, e: Equation) -> Changes | None:
    """The change of a concatenation: constant along its axis only if all pieces change alike.

    Padding with minus infinity, as before a maximum, changes like whatever it is beside.
    """
    axis, shapes = e.params["dimension"], shifts.tape.shapes
    changes = finite_ones(shifts, e, [x for x in e.ins if shapes[x][axis]])
    found = common(changes)
    if found is not None and not any(varies(term, [axis]) for term in found):
        return found
    found = shifts.fresh_for_each(
        e, chain(*changes), lambda constant: [c and a != axis for a, c in enumerate(constant)]
    )
    return bundled(shifts, e, found)


@shifting("dynamic_update_slice_p", "scatter_p", "scatter_add_p", "scatter_sub_p")
def put(shifts: Shifts, e: Equation) -> Changes | None:
    """The change of an array that others are put into: constant where whole rows are put.

    Along other axes some places change alone, and which may differ from iteration to iteration.
    """
    law = shifts.facts.law(e)
    if law is None:
        return losing(shifts, e)
    out: Changes = {}
    for x, to in zip(e.ins, law.maps, strict=True):
        out |= shifts.fresh_by(e, shifts.of(x), to or {})
    return bundled(shifts, e, out)


@shifting(CARRY)
def carry(shifts: Shifts, e: Equation) -> Changes | None:
    """The change of a carry: by all that changes its start, or what the body hands on.

    The second is not known before the body is read. So the body is read with what is known, and
    once more for as long as it then hands on more than that. Along the iterations, the hidden axis
    that comes last, it is not taken to be constant.
    """
    deep, rank = (len(shifts.tape.full[x]) for x in (e.ins[0], e.out))
    shifts.hand_on(e.out, moved(shifts.of(e.ins[0]), {a: a for a in range(deep)}, rank))
    return _carried(shifts, e, e.out)


@shifting(CARRIED)
def carried(shifts: Shifts, e: Equation) -> Changes | None:
    """The change of a carry after the loop: of what the body hands on, or if none ran, the start.

    The number of iterations must not hang on what changes.
    """
    inside, handed_on, *tests = e.ins
    for x in tests:
        shifts.lose(shifts.of(x))
    changes, rank = shifts.of(handed_on), len(shifts.tape.full[e.out])
    shifts.unsettled |= shifts.hand_on(inside, changes)
    if e.name == "scan" and e.source.params["length"]:
        return shifts.fresh_for_each(e, changes, lambda constant: constant[:rank])
    return _carried(shifts, e, inside)


def _carried(shifts: Shifts, e: Equation, inside: int) -> Changes | None:
    """A new source for all that changes a carry in any iteration, constant where all that is."""
    starts, constant = shifts.carries[inside]
    known = [shifts.source.get(start) for start in sorted(starts)]
    sources = [source for source in known if source and not source.lost]  # now, or read before
    deep, rank = (len(shifts.tape.full[x]) for x in (e.ins[0], e.out))
    along = [c and (a < deep or e.op is CARRIED) for a, c in enumerate(constant)]
    return shifts.fresh(e, sources, along[:rank]) if sources else None
