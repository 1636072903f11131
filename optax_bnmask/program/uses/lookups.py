"""Leaves that are looked up: by data, as embeddings are, or in an order that no data decide."""

from collections.abc import Collection

from optax_bnmask.program.rules.indexing import reads_several
from optax_bnmask.program.tape import Equation
from optax_bnmask.program.uses.dimensions import Places
from optax_bnmask.program.uses.indicating import is_lookup
from optax_bnmask.program.uses.record import Record
from optax_bnmask.program.uses.views import (
    DATA,
    Combined,
    View,
    all_of,
    features_of,
    made_by,
)
from optax_bnmask.vocabulary import Role


def is_arranged(record: Record, e: Equation, k: int) -> bool:
    """Whether an operand is leaves, and the other an indicator without data, as a permutation."""
    view, other, facts = record.views.get(e.ins[k]), e.ins[1 - k], record.facts
    knows = facts.depends[other] or facts.depends_on_data[other]
    return bool(view and view.leaves and not knows and is_lookup(record, e, 1 - k))


def by_a_constant_indicator(record: Record, e: Equation, k: int) -> View:
    """A leaf whose entries along some axes are put in another order: still that leaf."""
    record.gauges.read(e, record.law)
    own, others = record.to(k), set(record.to(1 - k).values())
    summed = [a for a in range(len(record.tape.full[e.ins[k]])) if a not in own]
    leaves = _moved_to(record, k, summed, others - set(own.values()))
    return (record.along(k) or DATA)._replace(leaves=leaves, piece=e.out)


def lookup(record: Record, e: Equation) -> View:
    """A leaf that is looked up is an embedding; one place of it is a slice.

    Places that are the same whatever the data are put entries in another order, ``w[permutation]``,
    or leave some out: that is still the leaf.
    """
    seen = record.along(0)
    if seen is None:
        return DATA
    if not reads_several(e, record.facts):
        return seen._replace(piece=e.out) if seen.leaves else seen
    knows_data = record.facts.depends_on_data[e.ins[1]]
    if seen.leaves and not knows_data and (along := _arranged(record, e)) is not None:
        return seen._replace(leaves=along, piece=e.out)
    if seen.leaves:  # rows of what is computed, such as the size of each graph, keep their gauge
        record.gauges.start(e.out)
    record.vote(seen.leaves, Role.EMBEDDING, e)
    met = {n: Combined(_looked_up(record, e, p), Role.EMBEDDING, e) for n, p in seen.leaves.items()}
    made = (made_by(n, places) for n, places in seen.leaves.items())
    features = features_of([seen.features, *made])
    return View(combined=met, owners=frozenset(met), features=features)


def _arranged(record: Record, e: Equation) -> dict[int, Places] | None:
    """Where leaves' axes are once single entries along some axes are looked up.

    In ``w[:, [[0, 1], [1, 0]]]`` of a kernel (3, 2), both axes of the places are parts of axis 1.

    Returns:
      `None` where slices are looked up, or as many places as a batch has.
    """
    numbers, shown = e.params["dimension_numbers"], len(record.tape.shapes[e.out])
    looked_up = set(numbers.start_index_map)
    if numbers.operand_batching_dims or not looked_up <= set(numbers.collapsed_slice_dims):
        return None
    placed = set(range(shown)) - set(numbers.offset_dims)
    return _moved_to(record, 0, looked_up, placed)


def _moved_to(
    record: Record, k: int, axes: Collection[int], to: Collection[int]
) -> dict[int, Places]:
    """Where the axes of leaves are in the result if some axes of operand `k` are those at `to`."""
    before, seen = record.views[record.e.ins[k]].leaves, record.along(k)
    after, out = seen.leaves if seen else {}, dict[int, Places]()
    for number, places in before.items():
        own = all_of([places[a] for a in axes])
        out[number] = tuple(own if q in to else p for q, p in enumerate(after[number]))
    return out


AT = frozenset({-1})
"""In the place of a leaf's own axes: the leaf was looked up by data along this one."""


def _looked_up(record: Record, e: Equation, places: Places) -> Places:
    """Where a leaf's axes are in the result of a gather, whose axes of places are marked."""
    shown, offset = len(record.tape.shapes[e.out]), e.params["dimension_numbers"].offset_dims
    is_place = [a < shown and a not in offset for a in range(len(places))]
    return tuple(AT if at and not own else own for at, own in zip(is_place, places, strict=True))
