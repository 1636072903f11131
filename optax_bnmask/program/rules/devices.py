"""Programs on many devices: parts of arrays, and what the devices tell each other.

Along an axis that is split over devices, each device has a part. As with the iterations of a loop,
the axis of the mesh becomes an axis that the values inside do not show, so that the exponents of a
leaf may differ from device to device as they may from index to index.
"""

from collections.abc import Callable, Iterable, Sequence
from math import prod

from optax_bnmask.program.axes import touches_key
from optax_bnmask.program.context import Context, Eqn
from optax_bnmask.program.degree import CLIPPED, Degree
from optax_bnmask.program.interpreter import walk
from optax_bnmask.program.reshapes import reshaped
from optax_bnmask.program.rules import rule, shape_of


@rule("call", "shard_map_p")
def shard_map(ctx: Context, eqn: Eqn, *operands: Degree) -> list[Degree]:
    """Every device does the same to its part."""
    outside, sizes = ctx.devices, eqn.params["mesh"].shape
    inside: dict[str, int] = {}
    for name in sorted(eqn.params["newly_manual_axes"], key=str):
        inside[name] = -1 - len(ctx.hidden)
        ctx.hidden[inside[name]] = sizes[name]
    ctx.devices = {**outside, **inside}
    ins = [
        _part_of(ctx, d, v.aval.shape, _split_over(ctx, spec))
        for d, v, spec in zip(operands, eqn.invars, eqn.params["in_specs"], strict=True)
    ]
    outs = walk(ctx, eqn.params["jaxpr"], ins)
    wholes = []
    for d, v, spec in zip(outs, eqn.outvars, eqn.params["out_specs"], strict=True):
        split = _split_over(ctx, spec)
        same = set(inside.values()).difference(*split)  # one value for all these devices
        wholes.append(_whole_of(ctx, ctx.layouts.uniform(d, same), v.aval.shape, split))
    ctx.devices = outside
    return wholes


def _split_over(ctx: Context, spec: Sequence[object]) -> list[list[int]]:
    """For each axis of an array, the hidden axes that it is split over, the slowest first."""
    names = [entry if isinstance(entry, tuple) else (entry,) if entry else () for entry in spec]
    return [[ctx.devices[name] for name in along] for along in names]


def _part_of(
    ctx: Context, d: Degree, shape: Sequence[int], split: Sequence[Sequence[int]]
) -> Degree:
    """The degree of one device's part, whichever it is."""
    part, shape = d, list(shape)
    for axis, hidden in reversed(list(enumerate(split))):
        if not part.along or not hidden:
            continue
        shape[axis] //= prod(ctx.hidden[h] for h in hidden)
        apart, whole = _apart_and_whole(ctx, shape, axis, hidden)
        part = reshaped(ctx.layouts, part, whole, apart)
        shown = range(axis, axis + len(hidden))
        behind = [
            key for key in part.along if touches_key(key[1:], shown) and key[0][0] not in shown
        ]
        part = ctx.layouts.separated(part, behind).moved(_hiding(axis, hidden))
    return part.known(const=d.const, mark=d.mark, tag=d.tag)


def _whole_of(
    ctx: Context, d: Degree, shape: Sequence[int], split: Sequence[Sequence[int]]
) -> Degree:
    """The degree of all devices' parts, one after the other along the axes that were split."""
    whole = d
    parts = [prod(ctx.hidden[h] for h in hidden) for hidden in split]
    local = [n // k for n, k in zip(shape, [*parts, *[1] * len(shape)], strict=False)]
    for axis, hidden in enumerate(split):
        whole = _gathered(ctx, whole, local, axis, hidden)
        local[axis] = shape[axis]
    return whole.known(const=d.const, mark=d.mark, tag=d.tag)


def _gathered(
    ctx: Context, d: Degree, shape: Sequence[int], axis: int, hidden: Sequence[int]
) -> Degree:
    """The degree of the parts that some hidden axes stand for, one after the other."""
    if not d.along or not hidden:
        return d
    apart, whole = _apart_and_whole(ctx, shape, axis, hidden)
    return reshaped(ctx.layouts, d.moved(_showing(axis, hidden)), apart, whole)


def _apart_and_whole(
    ctx: Context, shape: Sequence[int], axis: int, hidden: Sequence[int]
) -> tuple[list[int], list[int]]:
    """The shape of all parts of that shape, with the hidden axes before `axis`, and within it."""
    counts = [ctx.hidden[h] for h in hidden]
    before, n, after = shape[:axis], shape[axis], shape[axis + 1 :]
    return [*before, *counts, n, *after], [*before, n * prod(counts), *after]


def _hiding(axis: int, hidden: Sequence[int]) -> Callable[[int], int]:
    """The axes' names once those from `axis` on, as many as there are, have become `hidden`."""
    n = len(hidden)
    return lambda a: a if a < axis else hidden[a - axis] if a < axis + n else a - n


def _showing(axis: int, hidden: Sequence[int]) -> Callable[[int], int]:
    """The axes' names once `hidden` have become those from `axis` on."""
    n = len(hidden)
    return lambda a: axis + hidden.index(a) if a in hidden else a if a < axis else a + n


def _across(ctx: Context, eqn: Eqn) -> list[int]:
    """The hidden axes of the devices that an equation speaks of."""
    names = eqn.params.get("axes", eqn.params.get("axis_name", ()))
    names = names if isinstance(names, Iterable) and not isinstance(names, str) else (names,)
    return [ctx.devices[name] for name in names if name in ctx.devices]


@rule(
    "spread",
    *("pvary_p", "optimization_barrier_p", "device_put_p", "sharding_constraint_p", "reshard_p"),
    *("layout_constraint_p", "xla_metadata_value_p"),
)
def same_value(ctx: Context, eqn: Eqn, *operands: Degree) -> list[Degree]:
    """``f(x) = x``: where a value lies is all that changes."""
    del ctx, eqn
    return list(operands)


@rule(
    "spread",
    *("ppermute_p", "psum_invariant_p", "pbroadcast_p", "preduced_p", "unreduced_psum_p"),
    *("vary_unreduced_cast_p", "reduced_vary_cast_p"),
)
def spread(ctx: Context, eqn: Eqn, *operands: Degree) -> list[Degree]:
    """``f(a*x) = a * f(x)`` across devices, all of which hold values of one degree."""
    # Who gets nothing has zeros.
    clips = eqn.primitive.name == "ppermute" and len(eqn.params["perm"]) < _count(ctx, eqn)
    out = []
    for place, (d, v) in enumerate(zip(operands, eqn.outvars, strict=False)):
        shape = shape_of(eqn, place)
        axes = () if shape == v.aval.shape else range(len(shape))
        mark = CLIPPED if clips else d.mark & CLIPPED
        out.append(ctx.layouts.uniform(d, [*_across(ctx, eqn), *axes]).known(mark=mark))
    return out


@rule("spread", "psum_p", "pmax_p", "pmin_p")
def reduce_across(ctx: Context, eqn: Eqn, *operands: Degree) -> list[Degree]:
    """``sum(a*x) = a * sum(x)`` across devices, and over the axes that `vmap` made of them."""
    axes = [axis for axis in eqn.params["axes"] if isinstance(axis, int)]
    reduced = [ctx.layouts.uniform(d, [*axes, *_across(ctx, eqn)]) for d in operands]
    return [
        d.moved(lambda a: a - sum(0 <= g < a for g in axes)).known(mark=d.mark & CLIPPED)
        for d in reduced
    ]


@rule("view", "all_gather_p", "all_gather_invariant_p", "all_gather_reduced_p")
def all_gather(ctx: Context, eqn: Eqn, x: Degree) -> Degree:
    """The devices' parts, joined along an axis that is there, or is new."""
    axis, shape, tiled = eqn.params["all_gather_dimension"], shape_of(eqn), eqn.params["tiled"]
    hidden, clipped = _across(ctx, eqn), x.mark & CLIPPED
    if eqn.params.get("axis_index_groups") or _count(ctx, eqn) != eqn.params["axis_size"]:
        x = ctx.layouts.uniform(x, [*hidden, axis] if tiled else hidden)
        hidden = hidden[:0]  # groups have an order of their own
    if not tiled:
        x = x.moved(lambda a: a + 1 if a >= axis else a)
        shape = (*shape[:axis], 1, *shape[axis:])
    return _gathered(ctx, x, shape, axis, hidden).known(mark=clipped)


def _count(ctx: Context, eqn: Eqn) -> int:
    """How many devices an equation speaks of."""
    return prod(ctx.hidden[h] for h in _across(ctx, eqn))


@rule("view", "all_to_all_p", "reduce_scatter_p", "ragged_all_to_all_p")
def exchange(ctx: Context, eqn: Eqn, x: Degree, *rest: Degree) -> Degree:
    """Parts change hands: along the axes that they are parts of, all are of one degree."""
    p = eqn.params
    named = (p.get("scatter_dimension"), p.get("split_axis"), p.get("concat_axis"))
    axes = [a for a in named if a is not None] if p.get("tiled") else range(len(shape_of(eqn)))
    every = [*axes, *_across(ctx, eqn)]
    out, clipped = ctx.layouts.uniform(x, every), x.mark & CLIPPED
    if rest:
        out = ctx.agree(eqn, (out, ctx.layouts.uniform(rest[0], every)))
    return out.known(mark=clipped)
