"""Leaves and data that are reduced: statistics, and contractions that are written as sums."""

from optax_bnmask import compat
from optax_bnmask.program.registry import Kind
from optax_bnmask.program.tape import Equation
from optax_bnmask.program.uses.dimensions import Meeting, Places
from optax_bnmask.program.uses.record import Record
from optax_bnmask.program.uses.views import (
    NONE,
    Factor,
    View,
    features_of,
    made_by,
    merged,
)
from optax_bnmask.vocabulary import Role

_SUM = compat.primitive("reduce_sum_p")


def reduction(record: Record, e: Equation) -> View:
    """A statistic of leaves is no leaf; a product with data that is summed is a contraction."""
    views = [record.views[x] for x in e.ins if x in record.views]
    products = views[0].factors if e.op is _SUM else {}
    factors = products if products and _is_nothing_but_summed(record, e.ins[0]) else {}
    weights: dict[int, Places] = {}
    for leaf, factor in factors.items():
        gone = [a for a in e.params["axes"] if record.tape.shapes[e.ins[0]][a] > 1]
        is_norms = Role.NORM_SCALE in record.seen[leaf].roles
        if gone and all(factor.places[a] for a in gone) and not is_norms:
            record.promote(leaf, factor.combined, _written_out(record, e, factor), e, (factor.at,))
            weights[leaf] = record.moved(0, factor.places)
    out = merged(views) if len(views) > 1 else views[0]
    return View(
        data=out.data,
        contracted=out.contracted or bool(weights),
        gains=out.gains,
        owners=frozenset(weights),
        features=features_of(made_by(leaf, places) for leaf, places in weights.items()),
    )


def _is_nothing_but_summed(record: Record, x: int) -> bool:
    """Whether a product is read by sums alone, and so written for a contraction.

    The mean of ``h * gain`` that a LayerNorm subtracts from the same product makes no weight of it.
    """
    readers, writers = record.tape.readers, record.tape.writers
    if x in record.tape.outs or any(e.op is not _SUM for e in readers[x]):
        return False
    while (e := writers.get(x)) is not None:
        if e.kind not in (Kind.VIEW, Kind.CAST):
            return True
        x = e.ins[0]
        if x in record.tape.outs or len(readers[x]) > 1:
            return False
    return True


def _written_out(record: Record, e: Equation, factor: Factor) -> Meeting | None:
    """What a sum of products ``(x[..., None] * w).sum(-2)`` does to the axes of the whole leaf `w`.

    Axes of it along which the data `x` are the same are put out; along others it meets them index
    by index.
    """
    x, data, tape = e.ins[0], factor.at, record.tape
    if factor.pieces != {-1} or len(tape.full[x]) != len(tape.full[data]):
        return None
    found: dict[str, frozenset[int]] = dict.fromkeys(("reduction", "output", "batch"), NONE)
    entries = {"reduction": 1, "output": 1, "batch": 1}
    for a, (n, own) in enumerate(zip(tape.full[x], factor.places, strict=True)):
        kept = "batch" if a >= len(tape.shapes[x]) or not record.flat.of(data)[a] else "output"
        what = "reduction" if a in e.params["axes"] else kept
        found[what] |= own
        entries[what] *= n if own else 1
    return Meeting(**found, is_same=False, sizes=(entries["reduction"], entries["output"]))
