"""Which values move when the leaves do, and which leaves a gradient of the outputs reaches."""

from collections.abc import Sequence

from optax_bnmask import compat
from optax_bnmask.program.facts import dependents
from optax_bnmask.program.registry import RULES, Kind
from optax_bnmask.program.tape import Tape

_CUTS = {
    compat.primitive(f"{name}_p")
    for name in ("stop_gradient", "sign", "round", "floor", "ceil", "is_finite")
}
_RULED = {
    compat.primitive(f"{name}_p") for name in ("custom_jvp_call", "custom_vjp_call", "custom_lin")
}
"""Functions with derivatives of their own: a ``round`` in one is straight through, most often."""


def differentiable(tape: Tape) -> bytearray:
    """A 1 for each value whose derivative by what it is computed from is not 0 everywhere."""
    out = bytearray(len(tape.shapes))
    for e in tape.equations:
        if tape.floats[e.out] and not (e.op in RULES and RULES[e.op].kind is Kind.UNSCALED):
            cut = e.op in _CUTS and not any(call.primitive in _RULED for call in e.calls)
            out[e.out] = not cut
    return out


def moved(tape: Tape, differentiable: Sequence[int]) -> bytearray:
    """For each value, whether it has a derivative by some leaf."""
    return dependents(tape, tape.leaves, differentiable)


def reached(tape: Tape, differentiable: Sequence[int]) -> bytearray:
    """A 1 for each value that some output has a derivative by."""
    return tape.needed((x for x in tape.outs if tape.floats[x]), differentiable)
