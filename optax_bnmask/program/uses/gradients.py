"""Which values move when the leaves do, and which leaves a gradient of the outputs reaches."""

from collections.abc import Sequence

from optax_bnmask import compat
from optax_bnmask.program.dependence import dependents, needed
from optax_bnmask.program.registry import Kind
from optax_bnmask.program.tape import Tape

_STOP, _TRIANGULAR, _SOLVE = (
    compat.primitive(f"{name}_p") for name in ("stop_gradient", "triangular_solve", "linear_solve")
)
_CUTS = {
    compat.primitive(f"{name}_p")
    for name in ("stop_gradient", "sign", "round", "floor", "ceil", "is_finite")
}
_RULED = {
    compat.primitive(f"{name}_p") for name in ("custom_jvp_call", "custom_vjp_call", "custom_lin")
}
"""Functions with derivatives of their own, of which nothing in them tells where they are 0: a
``round`` in one is straight through, most often, and a ``v > 0`` a spike with a surrogate."""


def differentiable(tape: Tape) -> bytearray:
    """A 1 for each value whose derivative by what it is computed from is not 0 everywhere."""
    out = bytearray(len(tape.shapes))
    for e in tape.equations:
        smooth = tape.floats[e.out] and e.kind is not Kind.UNSCALED and e.op not in _CUTS
        out[e.out] = smooth or any(call.primitive in _RULED for call in e.calls)
    for e in tape.equations:
        if e.op is _TRIANGULAR and any(call.primitive is _SOLVE for call in e.calls):
            _uncut(tape, e.ins[0], out)
    return out


def _uncut(tape: Tape, x: int, differentiable: bytearray) -> None:
    """Opens the cuts before a matrix that a linear system is solved with.

    `jax.lax.custom_linear_solve` has its derivative from the matrix itself, and is given factors of
    it that are cut off, since none is needed through them.
    """
    waiting, seen = [x], {x}
    while waiting:
        e = tape.writers.get(waiting.pop())
        if e is not None and e.op is _STOP:
            differentiable[e.out] = 1
        elif e is not None:
            new = [y for y in e.ins if y not in seen]
            seen.update(new)
            waiting += new


def moved(tape: Tape, differentiable: Sequence[int]) -> bytearray:
    """For each value, whether it has a derivative by some leaf."""
    return dependents(tape, tape.leaves, differentiable)


def reached(tape: Tape, differentiable: Sequence[int]) -> bytearray:
    """A 1 for each value that some output has a derivative by."""
    return needed(tape, (x for x in tape.outs if tape.floats[x]), differentiable)
