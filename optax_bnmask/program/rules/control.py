"""Programs within programs: calls, loops, branches."""

import math
from collections.abc import Sequence

from optax_bnmask import compat
from optax_bnmask.program.axes import touches
from optax_bnmask.program.context import Context, Eqn
from optax_bnmask.program.degree import ANY, CLIPPED, HUGE, PACKED, Degree
from optax_bnmask.program.interpreter import walk
from optax_bnmask.program.rules import rule
from optax_bnmask.program.rules.arithmetic import is_float

_BODY = ("jaxpr", "call_jaxpr", "fun_jaxpr", "fwd_jaxpr", "callee", "call")


@rule(
    "call",
    *("jit_p", "closed_call_p", "call_p", "remat_p", "remat_opt_p", "custom_jvp_call_p"),
    *("custom_vjp_call_p", "custom_vmap_p", "composite_p", "compute_on_p", "custom_lin_p"),
    *("xla_metadata_call_p", "linear_call_p", "eval_jaxpr_p"),
)
def call(ctx: Context, eqn: Eqn, *operands: Degree) -> Sequence[Degree]:
    """A function does what its body does."""
    for name in _BODY:
        body = eqn.params.get(name)
        inside = compat.open_jaxpr(body)
        if len(getattr(inside, "invars", ())) == len(operands):
            ctx.calls.append(eqn)
            outs = walk(ctx, body, operands)
            ctx.calls.pop()
            return outs
    ctx.unruled(eqn)
    out = ctx.pin(eqn, operands)
    return [out for _ in eqn.outvars]


@rule("call", "cond_p")
def cond(ctx: Context, eqn: Eqn, which: Degree, *operands: Degree) -> list[Degree]:
    """One of several functions: their results' degrees agree."""
    ctx.pin(eqn, (which,))
    branches = [_unpacked(ctx, eqn, walk(ctx, b, operands)) for b in eqn.params["branches"]]
    return [_either(ctx, eqn, outs) for outs in zip(*branches, strict=True)]


def _unpacked(ctx: Context, eqn: Eqn, degrees: Sequence[Degree]) -> list[Degree]:
    """The degrees where the mark of a packed factorisation would be lost, and with it the proof."""
    return [ctx.pin(eqn, (d,)) if d.mark & PACKED else d for d in degrees]


@rule("call", "while_p")
def while_loop(ctx: Context, eqn: Eqn, *operands: Degree) -> list[Degree]:
    """What is carried has one degree in every iteration; the test must not scale."""
    n_cond, n_body = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    cond_consts, body_consts = operands[:n_cond], operands[n_cond : n_cond + n_body]
    body = eqn.params["body_jaxpr"]
    carry = _carried(ctx, eqn, body, n_body, operands[n_cond + n_body :])
    ctx.pin(eqn, walk(ctx, eqn.params["cond_jaxpr"], (*cond_consts, *carry)))
    outs = _unpacked(ctx, eqn, walk(ctx, body, (*body_consts, *carry)))
    return [_either(ctx, eqn, pair) for pair in zip(carry, outs, strict=True)]


@rule("call", "scan_p")
def scan(ctx: Context, eqn: Eqn, *operands: Degree) -> list[Degree]:
    """What is carried has one degree in every iteration; what is scanned over, one for each.

    The body is read once. The axis that is scanned over becomes an axis that the values of the body
    do not show, so that a stack of layers may scale layer by layer.
    """
    n_consts, n_carry = compat.carry_of_scan(eqn.params)
    body, length = eqn.params["jaxpr"], eqn.params["length"]
    loop = -1 - len(ctx.hidden)
    ctx.hidden[loop] = length
    carry = _carried(ctx, eqn, body, n_consts, operands[n_consts : n_consts + n_carry])
    xs = [_slice_of(ctx, loop, d) for d in _unpacked(ctx, eqn, operands[n_consts + n_carry :])]
    outs = _unpacked(ctx, eqn, walk(ctx, body, (*operands[:n_consts], *carry, *xs)))
    ends = [ctx.layouts.uniform(d, (loop,)) for d in outs[:n_carry]]
    ends = [_either(ctx, eqn, pair) for pair in zip(carry, ends, strict=True)]
    return [*ends, *[_stack_of(ctx, loop, d) for d in outs[n_carry:]]]


def _either(ctx: Context, eqn: Eqn, degrees: Sequence[Degree]) -> Degree:
    """The degree of a value that is one of several."""
    clipped = any(d.mark & CLIPPED for d in degrees)
    out = ctx.agree(eqn, degrees).known(mark=CLIPPED if clipped else 0)
    return ctx.note("join", eqn, degrees, [out])[0]


def _carried(
    ctx: Context, eqn: Eqn, body: object, offset: int, start: Sequence[Degree]
) -> list[Degree]:
    """The degrees of the carried values within a loop."""
    inner = compat.open_jaxpr(body)
    carry = []
    for place, d in enumerate(start):
        variable = inner.invars[offset + place]
        if inner.outvars[place] is variable:  # handed on untouched
            carry.append(d)
            continue
        (start_degree,) = _unpacked(ctx, eqn, (d,))
        if not d.mark & HUGE:
            carry.append(_clipped(ctx.carried(eqn, start_degree, scales=is_float(variable))))
            continue
        within = _clipped(ctx.carried(eqn, ANY, scales=is_float(variable)))
        ctx.assume("infinity", d.const or math.inf, eqn, within)
        carry.append(within)
    return carry


def _clipped(d: Degree) -> Degree:
    """The degree of a value that an iteration may have clipped."""
    return d if d.is_zero or d.is_any else d.known(mark=CLIPPED, tag=d.tag)


def _slice_of(ctx: Context, loop: int, d: Degree) -> Degree:
    """One slice of a value that is scanned over, whichever it is."""
    if not d.along:
        return d
    joint = [key for key in d.along if len(key) > 1 and touches(Degree({}, {key: []}), (0,))]
    mark, tag = d.mark & CLIPPED, d.tag
    d = ctx.layouts.separated(d, joint)
    return d.moved(lambda a: loop if a == 0 else a - 1 if a > 0 else a).known(mark=mark, tag=tag)


def _stack_of(ctx: Context, loop: int, d: Degree) -> Degree:
    """The values that a loop puts out, one after the other."""
    del ctx
    return d.moved(lambda a: 0 if a == loop else a + 1 if a >= 0 else a).known(
        mark=d.mark & CLIPPED, tag=d.tag
    )


@rule("call", "linear_solve_p")
def linear_solve(ctx: Context, eqn: Eqn, *operands: Degree) -> Sequence[Degree]:
    """What the function given as its solver does."""
    lengths, jaxprs = eqn.params["const_lengths"], eqn.params["jaxprs"]
    before = lengths.matvec + lengths.vecmat
    consts = operands[before : before + lengths.solve]
    return walk(ctx, jaxprs.solve, (*consts, *operands[sum(lengths) :]))


@rule("opaque", "pure_callback_p", "io_callback_p", "ffi_call_p", "custom_partitioning_p")
def foreign(ctx: Context, eqn: Eqn, *operands: Degree) -> list[Degree]:
    """Code that JAX does not see: nothing it reads may scale."""
    ctx.unruled(eqn)
    out = ctx.pin(eqn, operands)
    return [out for _ in eqn.outvars]
