"""Programs on many devices, opened on the tape: an axis of the mesh is a hidden axis of values.

Along an axis that is split over devices, each device has a part. As with the iterations of a loop,
its parts become a hidden axis, so that exponents may differ from device to device as they may from
index to index. With (8, 3) over 2 devices, one device sees ``(4, 3 | 2)``.
"""

from collections.abc import Collection, Iterable, Sequence
from math import prod

from optax_bnmask import compat
from optax_bnmask.program.control import broadcast_into
from optax_bnmask.program.tape import COLLECT, Writer, lowering

Split = Sequence[Sequence[int]]
"""For each visible axis, the hidden axes that it is split over, the slowest first."""


@lowering("shard_map_p")
def shard_map(w: Writer, *ins: int) -> list[int]:
    """Writes the program of one device, once: (8, 3) split over 2 devices is (4, 3 | 2) in it."""
    sizes, names = w.params["mesh"].shape, sorted(w.params["newly_manual_axes"], key=str)
    devices = {name: len(w.frame.hidden) + place for place, name in enumerate(names)}
    inner = w.within([sizes[name] for name in names], devices)

    def split(spec: Iterable[object], rank: int) -> Split:
        named = [entry if isinstance(entry, tuple) else (entry,) if entry else () for entry in spec]
        over = [[devices[name] for name in along if name in devices] for along in named]
        return [*over, *[[]] * (rank - len(over))]

    shapes = w.tape.shapes
    parts = [
        _part(w, inner, x, split(spec, len(shapes[x])))
        for x, spec in zip(ins, w.params["in_specs"], strict=True)
    ]
    outs = inner.run(w.params["jaxpr"], *parts)
    return [
        _whole(w, inner, x, split(spec, len(shapes[x])))
        for x, spec in zip(outs, w.params["out_specs"], strict=True)
    ]


def _places(split: Split) -> dict[int, int]:
    """The map from an array with its parts apart, ``(2, 4, 3)``, to one device's, ``(4, 3 | 2)``.

    For its `split`, ``[[0], []]``, this is ``{0: 2, 1: 0, 2: 1}``.
    """
    to: dict[int, int] = {}
    for axis, along in enumerate(split):
        for h in along:
            to[len(to)] = len(split) + h
        to[len(to)] = axis
    return to


def _part(w: Writer, inner: Writer, x: int, split: Split) -> int:
    """A value as one device has it: (8, 3) is reshaped to (2, 4, 3), and moved to (4, 3 | 2)."""
    if not any(split):
        return broadcast_into(inner, x)
    counts = [_counts(inner, along) for along in split]
    pairs = list(zip(w.tape.shapes[x], counts, strict=True))
    apart = w.reshape(x, [m for n, c in pairs for m in (*c, n // prod(c))])
    local = [n // prod(c) for n, c in pairs]
    return inner.move(apart, _places(split), local)


def _whole(w: Writer, inner: Writer, x: int, split: Split) -> int:
    """The reverse of `_part`: (4, 3 | 2) is collected to (2, 4, 3), and reshaped to (8, 3)."""
    local = w.tape.shapes[x]
    sizes = [*local, *inner.frame.hidden]
    places = _places(split)
    to = {b: a for a, b in places.items()}
    to |= {len(local) + j: len(places) + j for j in range(len(w.frame.hidden))}
    known = {b: a for b, a in to.items() if b < len(w.tape.full[x])}  # constants hide nothing
    apart = [sizes[b] for b in places.values()]
    shown = w.emit(COLLECT, (x,), apart, to=known, clips=False)
    counts = [_counts(inner, along) for along in split]
    return w.reshape(shown, [n * prod(c) for n, c in zip(local, counts, strict=True)])


def _counts(w: Writer, across: Sequence[int]) -> list[int]:
    """How many devices there are along each of some hidden axes."""
    return [w.frame.hidden[h] for h in across]


def _across(w: Writer) -> list[int]:
    """The hidden axes that are the axes of the mesh which a collective names."""
    names = w.params.get("axes", w.params.get("axis_name", ()))
    names = names if isinstance(names, Iterable) and not isinstance(names, str) else (names,)
    return [w.frame.devices[name] for name in names if name in w.frame.devices]


def _collected(
    w: Writer, x: int, place: int, mixed: Collection[int], gone: Collection[int] = ()
) -> int:
    """Writes a result whose entries come from several devices.

    Args:
      w: The collective.
      x: Its operand.
      place: Which of its results.
      mixed: The axes, hidden ones behind the visible, along which entries are mixed.
      gone: The visible axes that are reduced.
    """
    kept = [a for a in range(len(w.tape.full[x])) if a not in gone]
    to = {a: q for q, a in enumerate(kept) if a not in mixed}
    # A device that receives nothing in a `ppermute` has zeros.
    sent = len(w.params["perm"]) if w.eqn.primitive.name == "ppermute" else None
    clips = sent is not None and sent < prod(_counts(w, _across(w)))
    return w.emit(COLLECT, (x,), w.eqn.outvars[place].aval.shape, place, to=to, clips=clips)


@lowering(
    *("pvary_p", "optimization_barrier_p", "device_put_p", "sharding_constraint_p", "reshard_p"),
    *("layout_constraint_p", "xla_metadata_value_p"),
)
def same_value(w: Writer, *ins: int) -> list[int]:
    """``f(x) = x``: where a value lies is all that changes."""
    del w
    return list(ins)


@lowering(
    *("ppermute_p", "psum_invariant_p", "pbroadcast_p", "preduced_p", "unreduced_psum_p"),
    *("vary_unreduced_cast_p", "reduced_vary_cast_p"),
)
def spread(w: Writer, *ins: int) -> list[int]:
    """``f(a*x) = a * f(x)`` across devices, all of which hold values of one degree."""
    out = []
    for place, (x, v) in enumerate(zip(ins, w.eqn.outvars, strict=False)):
        shape = w.tape.shapes[x]
        every = () if shape == v.aval.shape else range(len(shape))
        out.append(_collected(w, x, place, [*every, *(len(shape) + h for h in _across(w))]))
    return out


@lowering("psum_p", "pmax_p", "pmin_p")
def reduce_across(w: Writer, *ins: int) -> list[int]:
    """``sum(a*x) = a * sum(x)`` across devices, and over the axes that `vmap` made of them."""
    gone = [axis for axis in w.params["axes"] if isinstance(axis, int)]
    return [
        _collected(w, x, place, [len(w.tape.shapes[x]) + h for h in _across(w)], gone)
        for place, x in enumerate(ins)
    ]


@lowering("all_gather_p", "all_gather_invariant_p", "all_gather_reduced_p")
def all_gather(w: Writer, x: int) -> list[int]:
    """The devices' parts, joined: (4, 3 | 2) to (8, 3) if ``tiled``, else to (2, 4, 3)."""
    axis, shape, across = w.params["all_gather_dimension"], w.tape.shapes[x], _across(w)
    full, counts = len(w.tape.full[x]), _counts(w, across)
    if w.params.get("axis_index_groups") or prod(counts) != w.params["axis_size"]:
        # In groups, parts come in another order than in the mesh: all must have one degree.
        mixed = [*(len(shape) + h for h in across), *([axis] if w.params["tiled"] else ())]
        new = 0 if w.params["tiled"] else 1
        to = {a: a + new * (a >= axis) for a in range(full) if a not in mixed}
        return [w.emit(COLLECT, (x,), w.shape, 0, to=to, clips=False)]
    to = {a: a + len(across) * (a >= axis) for a in range(full)}
    to |= {len(shape) + h: axis + place for place, h in enumerate(across)}
    apart = (*shape[:axis], *counts, *shape[axis:])
    return [w.reshape(w.emit(COLLECT, (x,), apart, 0, to=to, clips=False), w.shape)]


@lowering("all_to_all_p", "reduce_scatter_p", "ragged_all_to_all_p")
def exchange(w: Writer, *ins: int) -> list[int]:
    """Parts change devices: along axes that are split or joined, degrees must not vary."""
    p, across = w.params, _across(w)
    named = (p.get("scatter_dimension"), p.get("split_axis"), p.get("concat_axis"))

    def exchanged(x: int) -> int:
        shown = len(w.tape.shapes[x])
        mixed = [a for a in named if a is not None] if p.get("tiled") else range(shown)
        to = {a: a for a in range(shown) if a not in mixed}
        deep = range(len(w.tape.hidden[x]))
        to |= {shown + j: len(w.shape) + j for j in deep if j not in across}
        return w.emit(COLLECT, (x,), w.shape, 0, to=to, clips=False)

    if w.eqn.primitive.name != "ragged_all_to_all":
        return [exchanged(ins[0])]
    parts = [exchanged(x) for x in ins[:2]]  # entries not overwritten remain: degrees agree
    return [w.emit(compat.primitive("add_p"), parts, w.shape, 0)]
