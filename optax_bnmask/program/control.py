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
"""The primitives that do what a program does that they hold, and nothing else."""


def body_of_call(params: Mapping[str, Any], n: int) -> Any:  # noqa: ANN401 - a jaxpr
    """The program that a call of `n` operands holds; `None` where it cannot be told."""
    for name in _BODY:
        inside = compat.open_jaxpr(params.get(name))
        if hasattr(inside, "invars") and len(inside.invars) == n:
            return params[name]
    return None


@lowering(*_NAMES)
def call(w: Writer, *ins: int) -> list[int] | None:
    """A function does what its body does."""
    body = body_of_call(w.params, len(ins))
    return None if body is None else w.within().run(body, *ins)  # no rule: pinned


@lowering("linear_solve_p")
def linear_solve(w: Writer, *ins: int) -> list[int]:
    """What the function given as its solver does."""
    lengths, solve = w.params["const_lengths"], w.params["jaxprs"].solve
    before = lengths.matvec + lengths.vecmat
    return w.within().run(solve, *ins[before : before + lengths.solve], *ins[sum(lengths) :])


@lowering("cond_p")
def cond(w: Writer, which: int, *ins: int) -> list[int]:
    """One of several functions: where they return one and the same value, it is that."""
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
    """What is carried has one degree in every iteration; the test must not scale."""
    p, inner = w.params, w.within()
    n_test, n = p["cond_nconsts"], p["cond_nconsts"] + p["body_nconsts"]
    first = len(w.tape.equations)
    carry = _carries(inner, ins[n:])
    test = inner.run(p["cond_jaxpr"], *ins[:n_test], *carry)
    outs = inner.run(p["body_jaxpr"], *ins[n_test:n], *carry)
    return _ends(w, first, outs, test)


@lowering("scan_p")
def scan(w: Writer, *ins: int) -> list[int]:
    """The body once, with the iterations as a hidden axis of what is scanned over and put out.

    A carry has one degree in every iteration, so that it does not vary along that axis. One that
    the body hands on as it is (visible once calls are inlined: it is the same value) is a constant
    of the loop.
    """
    tape, length = w.tape, w.params["length"]
    n_consts, n_carry = compat.carry_of_scan(w.params)
    inner = w.within([max(length, 1)])  # a loop of no iterations reads as one of one
    consts = [entered(inner, x) for x in ins[:n_consts]]
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
    return [*_ends(w, first, outs[:n_carry]), *stacks]


def entered(inner: Writer, x: int) -> int:
    """A value of the outside within a frame that hides more axes, along which it is the same."""
    tape = inner.tape
    if tape.hidden[x] == inner.frame.hidden or x in tape.literals or x in tape.captured:
        return x
    return inner.move(x, {a: a for a in range(len(tape.shapes[x]))}, tape.shapes[x])


def _carries(inner: Writer, start: Sequence[int]) -> list[int]:
    """What is carried, as the body sees it."""
    return [inner.emit(CARRY, (x,), inner.tape.shapes[x]) for x in start]


def _ends(w: Writer, first: int, outs: Sequence[int], test: Sequence[int] = ()) -> list[int]:
    """What is carried, after the loop.

    Args:
      w: The loop.
      first: The place on the tape of its first `CARRY`; the others follow.
      outs: What the body hands on.
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
