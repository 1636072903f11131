"""Programs within programs, opened on the tape: calls, loops, branches."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Final

from optax_bnmask import compat
from optax_bnmask.program.tape import BRANCH, CARRIED, CARRY, MOVE, Writer, lowering

_BODY = ("jaxpr", "call_jaxpr", "fun_jaxpr", "fwd_jaxpr", "callee", "call")
"""The parameters that hold the program of a call, whichever kind it is."""


_NAMES = (
    *("jit_p", "closed_call_p", "call_p", "remat_p", "remat_opt_p", "custom_jvp_call_p"),
    *("custom_vjp_call_p", "custom_vmap_p", "composite_p", "compute_on_p", "custom_lin_p"),
    *("xla_metadata_call_p", "linear_call_p", "eval_jaxpr_p"),
)

CALLS: Final = frozenset(map(compat.primitive, _NAMES)) - {None}
"""The primitives that run a jaxpr among their parameters, and do nothing else."""


def body_of_call(params: Mapping[str, Any], n: int) -> Any:  # noqa: ANN401 - a jaxpr
    """The jaxpr of `n` inputs among the parameters of a call; `None` if there is none."""
    for name in _BODY:
        inside = compat.open_jaxpr(params.get(name))
        if hasattr(inside, "invars") and len(inside.invars) == n:
            return params[name]
    return None


@lowering(*_NAMES)
def call(w: Writer, *ins: int) -> list[int] | None:
    """Writes the body of a call in its place."""
    body = body_of_call(w.params, len(ins))
    return None if body is None else w.within().run(body, *ins)  # no rule: pinned


@lowering("call_hi_primitive_p")
def high_level(w: Writer, *ins: int) -> list[int] | None:
    """Writes what JAX itself would expand a function to, as `jnp.searchsorted` since 0.12."""
    body = compat.expanded(w.eqn)
    return None if body is None else w.within().run(body, *ins)


@lowering("linear_solve_p")
def linear_solve(w: Writer, *ins: int) -> list[int]:
    """Writes the function that is given as the solver."""
    lengths, solve = w.params["const_lengths"], w.params["jaxprs"].solve
    before = lengths.matvec + lengths.vecmat
    return w.within().run(solve, *ins[before : before + lengths.solve], *ins[sum(lengths) :])


@lowering("cond_p")
def cond(w: Writer, which: int, *ins: int) -> list[int]:
    """Writes all branches, and a `BRANCH` where they return different values."""
    branches = [w.within().run(branch, *ins) for branch in w.params["branches"]]
    results = enumerate(zip(*branches, strict=True))
    return [
        cases[0]
        if len(set(cases)) == 1
        else w.emit(BRANCH, (which, *cases), w.eqn.outvars[place].aval.shape, place)
        for place, cases in results
    ]


@lowering("while_p")
def while_loop(w: Writer, *ins: int) -> list[int]:
    """Writes test and body once. Carries have one degree in all iterations, the test 0."""
    p, inner = w.params, w.within()
    n_test, n = p["cond_nconsts"], p["cond_nconsts"] + p["body_nconsts"]
    first = len(w.tape.equations)
    carry = _carries(inner, ins[n:])
    test = inner.run(p["cond_jaxpr"], *ins[:n_test], *carry)
    outs = inner.run(p["body_jaxpr"], *ins[n_test:n], *carry)
    return _ends(w, first, outs, test)


@lowering("scan_p")
def scan(w: Writer, *ins: int) -> list[int]:
    """Writes the body once, with the iterations as a hidden axis of what is scanned and stacked.

    In 5 iterations over (5, 3, 3) the body reads (3, 3 | 5), and what it puts out, (2, 3 | 5), is
    stacked to (5, 2, 3). A carry has one degree in all iterations: it does not vary along the
    hidden axis. One that the body returns unchanged (as the same value) is a constant of the loop.
    """
    tape, length = w.tape, w.params["length"]
    n_consts, n_carry = compat.carry_of_scan(w.params)
    inner = w.within([max(length, 1)])  # a loop of no iterations reads as one of one
    consts = [broadcast_into(inner, x) for x in ins[:n_consts]]
    first = len(tape.equations)
    carry = _carries(inner, ins[n_consts : n_consts + n_carry])
    rows = []
    for x in ins[n_consts + n_carry :]:  # the first axis becomes the last hidden one
        shape = tape.shapes[x][1:]
        to = {0: len(shape) + len(w.frame.hidden), **{a + 1: a for a in range(len(shape))}}
        rows.append(inner.move(x, to, shape))
    outs = inner.run(w.params["jaxpr"], *consts, *carry, *rows)
    stacks = []
    for x in outs[n_carry:]:  # and the other way round
        shape, deep = tape.shapes[x], len(w.frame.hidden)
        to = {a: a + 1 for a in range(len(shape))}
        stacks.append(w.move(x, {**to, len(shape) + deep: 0}, (length, *shape)))
    ends = _ends(w, first, outs[:n_carry])
    return [*(ends if length else ins[n_consts : n_consts + n_carry]), *stacks]


def broadcast_into(inner: Writer, x: int) -> int:
    """A value from outside a loop or mesh as it is inside: constant along the new hidden axes."""
    tape = inner.tape
    if tape.hidden[x] == inner.frame.hidden or x in tape.literals or x in tape.captured:
        return x
    return inner.move(x, {a: a for a in range(len(tape.shapes[x]))}, tape.shapes[x])


def _carries(inner: Writer, start: Sequence[int]) -> list[int]:
    """Writes a `CARRY` for each starting value; returns these."""
    return [inner.emit(CARRY, (x,), inner.tape.shapes[x]) for x in start]


def _ends(w: Writer, first: int, outs: Sequence[int], test: Sequence[int] = ()) -> list[int]:
    """Writes a `CARRIED` for each changed carry; returns the carries after the loop.

    Args:
      w: The loop.
      first: The place on the tape of its first `CARRY`; the others follow.
      outs: The new values of the carries that the body returns.
      test: The test of a ``while``.
    """
    tape, ends = w.tape, list[int]()
    for place, out in enumerate(outs):
        carry = tape.equations[first + place]
        if carry.out == out:
            to = {a: a for a in range(len(tape.full[carry.ins[0]]))}
            tape.equations[first + place] = dataclasses.replace(carry, op=MOVE, params={"to": to})
            ends.append(carry.ins[0])
        else:
            ends.append(w.emit(CARRIED, (carry.out, out, *test), tape.shapes[carry.out], place))
    return ends
