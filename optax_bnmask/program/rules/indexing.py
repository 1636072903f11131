"""Reading and writing at places that are computed."""

import numpy as np

from optax_bnmask import compat
from optax_bnmask.program.axes import touches
from optax_bnmask.program.context import Context, Eqn
from optax_bnmask.program.degree import CLIPPED, ZERO, Degree
from optax_bnmask.program.rules import rule, shape_of
from optax_bnmask.program.rules.arithmetic import set_apart


@rule("lookup", "gather_p")
def gather(ctx: Context, eqn: Eqn, table: Degree, places: Degree) -> Degree:
    """``(a*x)[i] = a * x[i]``; axes that are looked up along must scale alike."""
    del places
    out = table
    if table.along:
        numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
        shape = shape_of(eqn)
        batching = numbers.operand_batching_dims
        kept = [a for a in range(len(shape)) if a not in (*numbers.collapsed_slice_dims, *batching)]
        whole = [a for a in kept if sizes[a] == shape[a]]
        out = ctx.layouts.uniform(table, [a for a in range(len(shape)) if a not in whole])
        to = dict(zip(kept, numbers.offset_dims, strict=True))
        out = out.moved(lambda a: to[a] if a >= 0 else a)
    filled = eqn.params["fill_value"] if "FILL" in str(eqn.params["mode"]) else None
    if filled is not None and filled != 0 and np.isfinite(filled):
        out = ctx.agree(eqn, (out, ZERO))
    found = ctx.looked_up(eqn, out) if is_lookup(eqn) else out
    return found.known(mark=CLIPPED if filled == 0 else table.mark & CLIPPED)


def is_lookup(eqn: Eqn) -> bool:
    """Whether a gather reads more than one place."""
    return int(np.prod(eqn.invars[1].aval.shape[:-1], dtype=np.int64)) > 1


@rule("view", "dynamic_slice_p")
def dynamic_slice(ctx: Context, eqn: Eqn, x: Degree, *places: Degree) -> Degree:
    """``(a*x)[i:i+n] = a * x[i:i+n]``; axes that are cut at unknown places must scale alike."""
    clipped = x.mark & CLIPPED
    if not x.along:
        return x.known(mark=clipped)
    shape, sizes = shape_of(eqn), eqn.params["slice_sizes"]
    for axis in range(len(shape)):
        if sizes[axis] == shape[axis] or not touches(x, (axis,)):
            continue
        start = places[axis].const
        if start is None or isinstance(eqn.invars[0], compat.Literal):
            x = ctx.layouts.uniform(x, (axis,))
        else:
            lo = min(max(int(start), 0), shape[axis] - sizes[axis])
            x = ctx.layouts.sliced(x, axis, shape[axis], lo, lo + sizes[axis])
    return x.known(mark=clipped)


@rule("join", "dynamic_update_slice_p")
def dynamic_update_slice(
    ctx: Context, eqn: Eqn, x: Degree, update: Degree, *places: Degree
) -> Degree:
    """Entries of both remain: the degrees agree."""
    del places
    partial = [a for a, n in enumerate(shape_of(eqn)) if shape_of(eqn, 1)[a] != n]
    x, update = set_apart(ctx, eqn, (x, update))
    x, update = ctx.layouts.uniform(x, partial), ctx.layouts.uniform(update, partial)
    return ctx.agree(eqn, (x, update)).known(mark=CLIPPED)


@rule("join", "scatter_p", "scatter_add_p", "scatter_sub_p", "scatter_max_p", "scatter_min_p")
def scatter(ctx: Context, eqn: Eqn, x: Degree, places: Degree, update: Degree) -> Degree:
    """Entries of both remain, or their sums: the degrees agree.

    `scatter` may also put each entry through a function, about which nothing is known.
    """
    del places
    if eqn.primitive.name == "scatter" and eqn.params.get("update_jaxpr") is not None:
        return ctx.pin(eqn, (x, update))
    x, update = set_apart(ctx, eqn, (x, update))
    x = ctx.layouts.uniform(x, range(len(shape_of(eqn))))
    update = ctx.layouts.uniform(update, range(len(shape_of(eqn, 2))))
    return ctx.agree(eqn, (x, update)).known(mark=CLIPPED)


@rule("join", "scatter_mul_p")
def scatter_mul(ctx: Context, eqn: Eqn, x: Degree, places: Degree, update: Degree) -> Degree:
    """Some entries are multiplied: the factors must not scale."""
    del places
    ctx.pin(eqn, (update,))
    return x.known(mark=x.mark & CLIPPED)
