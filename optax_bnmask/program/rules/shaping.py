"""Moving, cutting, joining and reducing axes."""

from math import prod

from optax_bnmask.program.axes import touches
from optax_bnmask.program.context import Context, Eqn
from optax_bnmask.program.degree import ANY, CLIPPED, NONNEG, ZERO, Degree
from optax_bnmask.program.reshapes import reshaped
from optax_bnmask.program.rules import rule, shape_of
from optax_bnmask.program.rules.arithmetic import set_apart


def _known_as(x: Degree, out: Degree) -> Degree:
    """The degree `out` with what is known of every entry of `x`."""
    return out.known(const=x.const, mark=x.mark) if x.const is not None or x.mark else out


@rule("view", "reshape_p")
def reshape(ctx: Context, eqn: Eqn, x: Degree, *sizes: Degree) -> Degree:
    """The same entries in the same order: ``f(a*x) = a * f(x)``."""
    del sizes
    new = eqn.outvars[0].aval.shape
    return _known_as(x, reshaped(ctx.layouts, x, shape_of(eqn), new))


@rule("view", "transpose_p")
def transpose(ctx: Context, eqn: Eqn, x: Degree) -> Degree:
    """The same entries: ``f(a*x) = a * f(x)``."""
    del ctx
    order = eqn.params["permutation"]
    return _known_as(x, x.moved(lambda a: order.index(a) if a >= 0 else a))


@rule("view", "broadcast_in_dim_p")
def broadcast(ctx: Context, eqn: Eqn, x: Degree, *sizes: Degree) -> Degree:
    """The same entries repeated: ``f(a*x) = a * f(x)``."""
    del ctx, sizes
    where = eqn.params["broadcast_dimensions"]
    return _known_as(x, x.moved(lambda a: where[a] if a >= 0 else a))


@rule("view", "squeeze_p")
def squeeze(ctx: Context, eqn: Eqn, x: Degree) -> Degree:
    """The same entries: ``f(a*x) = a * f(x)``."""
    del ctx
    gone = {d % len(shape_of(eqn)) for d in eqn.params["dimensions"]}
    return _known_as(x, x.moved(lambda a: a - sum(g < a for g in gone) if a >= 0 else a))


@rule("view", "rev_p")
def reverse(ctx: Context, eqn: Eqn, x: Degree) -> Degree:
    """The same entries: ``f(a*x) = a * f(x)``."""
    return _known_as(x, ctx.layouts.uniform(x, eqn.params["dimensions"]))


@rule("view", "tile_p")
def tile(ctx: Context, eqn: Eqn, x: Degree) -> Degree:
    """The same entries repeated: ``f(a*x) = a * f(x)``."""
    repeated = [a for a, n in enumerate(eqn.params["reps"]) if n > 1]
    return _known_as(x, ctx.layouts.uniform(x, repeated))


@rule("view", "slice_p")
def cut(ctx: Context, eqn: Eqn, x: Degree) -> Degree:
    """Some of the entries: ``f(a*x) = a * f(x)``."""
    shape = shape_of(eqn)
    strides = eqn.params["strides"] or (1,) * len(shape)
    out = x
    if x.along:
        out = ctx.layouts.uniform(x, [a for a, n in enumerate(strides) if n > 1])
        bounds = zip(eqn.params["start_indices"], eqn.params["limit_indices"], strict=True)
        for axis, (lo, hi) in enumerate(bounds):
            if strides[axis] == 1:
                out = ctx.layouts.sliced(out, axis, shape[axis], lo, hi)
    return _known_as(x, out.bare())


@rule("view", "split_p")
def split(ctx: Context, eqn: Eqn, x: Degree) -> list[Degree]:
    """Some of the entries each: ``f(a*x) = a * f(x)``."""
    axis, size = eqn.params["axis"], shape_of(eqn)[eqn.params["axis"]]
    out: list[Degree] = []
    start = 0
    for n in eqn.params["sizes"]:
        out.append(_known_as(x, ctx.layouts.sliced(x, axis, size, start, start + n)))
        start += n
    return out


@rule("view", "unstack_p")
def unstack(ctx: Context, eqn: Eqn, x: Degree) -> list[Degree]:
    """Some of the entries each: ``f(a*x) = a * f(x)``."""
    axis, size = eqn.params["axis"], shape_of(eqn)[eqn.params["axis"]]
    out = []
    for i in range(size):
        part = ctx.layouts.sliced(x, axis, size, i, i + 1)
        out.append(_known_as(x, part.moved(lambda a: a - 1 if a > axis else a)))
    return out


def _common_mark(parts: tuple[Degree, ...]) -> int:
    """The flags that all parts have, and those that any part spoils."""
    mark, clipped = ~0, 0
    for d in parts:
        mark &= d.mark
        clipped |= d.mark & CLIPPED
    return (mark | clipped) & ~16


@rule("join", "concatenate_p")
def concatenate(ctx: Context, eqn: Eqn, *parts: Degree) -> Degree:
    """Joined entries keep each its own degree, segment by segment."""
    axis = eqn.params["dimension"]
    sizes = [v.aval.shape[axis] for v in eqn.invars]
    parts = tuple(set_apart(ctx, eqn, parts))
    return _joined(ctx, list(zip(parts, sizes, strict=True)), axis, _common_mark(parts))


@rule("join", "stack_p")
def stack(ctx: Context, eqn: Eqn, *parts: Degree) -> Degree:
    """Joined entries keep each its own degree, segment by segment."""
    axis = eqn.params["axis"]
    parts = tuple(set_apart(ctx, eqn, parts))
    moved = [d.moved(lambda a: a + 1 if a >= axis else a) for d in parts]
    return _joined(ctx, [(d, 1) for d in moved], axis, _common_mark(parts))


def _joined(ctx: Context, parts: list[tuple[Degree, int]], axis: int, mark: int) -> Degree:
    parts = [(d, n) for d, n in parts if n]
    if all(not d.along and d.level is not None and d.level == parts[0][0].level for d, _ in parts):
        out = parts[0][0].bare() if parts else ZERO
    else:
        resolved = [(ctx.layouts.resolved(d), n) for d, n in parts]
        out = ctx.layouts.joined(resolved, axis, ctx.shift)
    return out.known(mark=mark) if mark else out


@rule("join", "pad_p")
def pad(ctx: Context, eqn: Eqn, x: Degree, value: Degree) -> Degree:
    """Entries beside a constant: the degrees agree, and a zero agrees with any."""
    padded = [a for a, config in enumerate(eqn.params["padding_config"]) if any(config)]
    _, value = set_apart(ctx, eqn, (x, value))
    if value.level is not None:
        return ctx.agree(eqn, (ctx.layouts.uniform(x, padded), value))
    if not touches(x, padded) or x.level is None:
        return x.known(mark=CLIPPED | x.mark)
    shape = shape_of(eqn)
    for axis in padded:
        low, high, interior = eqn.params["padding_config"][axis]
        if interior or low < 0 or high < 0:
            x = ctx.layouts.uniform(x, (axis,))
        elif touches(x, (axis,)):
            parts = [(d, n) for d, n in ((ANY, low), (x, shape[axis]), (ANY, high)) if n]
            x = ctx.layouts.joined(parts, axis, ctx.shift)
    return x.known(mark=CLIPPED | x.mark)


@rule("reduction", "reduce_sum_p", "reduce_max_p", "reduce_min_p")
def reduce(ctx: Context, eqn: Eqn, x: Degree) -> Degree:
    """``sum(a*x) = a * sum(x)``, and so for max and min, where all summands scale alike."""
    # A sum of clipped values is 0 only where all of them are; the largest of a few may well be.
    kept = NONNEG if eqn.primitive.name == "reduce_sum" else NONNEG | CLIPPED
    return _without_axes(ctx, x, eqn.params["axes"]).known(mark=x.mark & kept)


@rule("reduction", "reduce_prod_p")
def reduce_product(ctx: Context, eqn: Eqn, x: Degree) -> Degree:
    """``prod(a*x) = a**n * prod(x)`` for n factors that scale alike."""
    axes = eqn.params["axes"]
    n = prod(shape_of(eqn)[a] for a in axes)
    if n == 0:
        return ZERO
    return ctx.layouts.power(_without_axes(ctx, x, axes), n)


@rule("opaque", "argmax_p", "argmin_p")
def place_of_extremum(ctx: Context, eqn: Eqn, x: Degree) -> Degree:
    """``argmax(a*x) = argmax(x)``, where all candidates scale alike."""
    ctx.layouts.uniform(x, eqn.params["axes"])
    return ZERO


def _without_axes(ctx: Context, x: Degree, axes: tuple[int, ...]) -> Degree:
    """The degree with these axes taken out, along which it must not vary."""
    if x.level is None or not x.along:
        return x.bare()
    x = ctx.layouts.uniform(x, axes)
    return x.moved(lambda a: a - sum(g < a for g in axes) if a >= 0 else a)


@rule("reduction", "cumsum_p", "cummax_p", "cummin_p")
def cumulate(ctx: Context, eqn: Eqn, x: Degree) -> Degree:
    """``f(a*x) = a * f(x)``, where all entries along the axis scale alike."""
    return ctx.layouts.uniform(x, (eqn.params["axis"],)).known(mark=x.mark & CLIPPED)


@rule(
    "opaque", "cumprod_p", "cumlogsumexp_p", "reduce_p", "reduce_window_p", "select_and_scatter_p"
)
def cumulate_products(ctx: Context, eqn: Eqn, *operands: Degree) -> list[Degree]:
    """Each entry would scale by its own power, or by an unknown function: none may scale."""
    out = ctx.pin(eqn, operands)
    return [out for _ in eqn.outvars]


@rule("reduction", "reduce_window_sum_p", "reduce_window_max_p", "reduce_window_min_p")
def pool(ctx: Context, eqn: Eqn, x: Degree) -> Degree:
    """``f(a*x) = a * f(x)``, where all entries of a window scale alike."""
    return ctx.layouts.uniform(x, _windowed(eqn)).known(mark=x.mark & (NONNEG | CLIPPED))


@rule("reduction", "select_and_scatter_add_p")
def unpool(ctx: Context, eqn: Eqn, source: Degree, operand: Degree) -> Degree:
    """Linear in the source, put where the operand is largest: ``f(a*s, b*x) = a * f(s, x)``."""
    ctx.layouts.uniform(operand, _windowed(eqn))
    return ctx.layouts.uniform(source, _windowed(eqn)).known(mark=CLIPPED)


@rule("reduction", "select_and_gather_add_p")
def pool_other(ctx: Context, eqn: Eqn, tangents: Degree, operand: Degree) -> Degree:
    """Linear in the first operand, taken where the second is largest."""
    ctx.layouts.uniform(operand, _windowed(eqn))
    return ctx.layouts.uniform(tangents, _windowed(eqn)).known(mark=tangents.mark & CLIPPED)


def _windowed(eqn: Eqn) -> list[int]:
    """The axes that a window moves over."""
    p = eqn.params
    rank = range(len(p["window_dimensions"]))
    strides = p["window_strides"]
    holes = p.get("base_dilation") or (1,) * len(rank)
    return [
        a
        for a in rank
        if p["window_dimensions"][a] > 1 or strides[a] > 1 or any(p["padding"][a]) or holes[a] > 1
    ]


@rule("reduction", "sort_p")
def sort(ctx: Context, eqn: Eqn, *operands: Degree) -> list[Degree]:
    """Sorting moves entries by keys whose order no common positive factor changes."""
    axis = eqn.params["dimension"]
    return [ctx.layouts.uniform(d, (axis,)).known(mark=d.mark & CLIPPED) for d in operands]


@rule("reduction", "top_k_p", "approx_top_k_p")
def largest(ctx: Context, eqn: Eqn, x: Degree) -> list[Degree]:
    """The largest entries scale like all entries; where they stand does not."""
    shape = shape_of(eqn)
    axis = eqn.params.get("axis", eqn.params.get("reduction_dimension", len(shape) - 1))
    found = ctx.layouts.uniform(x, (axis % len(shape),))
    return [found.known(mark=x.mark & CLIPPED), ZERO]
