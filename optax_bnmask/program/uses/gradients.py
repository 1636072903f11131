"""Which values move when the leaves do, and which leaves a gradient of the outputs reaches."""

from collections.abc import Iterable

from optax_bnmask import compat
from optax_bnmask.program.facts import dependents
from optax_bnmask.program.registry import RULES, Kind
from optax_bnmask.program.tape import Equation, Tape

_CUTS = {
    compat.primitive(f"{name}_p")
    for name in ("stop_gradient", "sign", "round", "floor", "ceil", "is_finite")
}
_RULED = {
    compat.primitive(f"{name}_p") for name in ("custom_jvp_call", "custom_vjp_call", "custom_lin")
}
"""Functions with derivatives of their own: a ``round`` in one is straight through, most often."""


def passes_gradient(tape: Tape, e: Equation) -> bool:
    """Whether the derivative of an equation is not 0 everywhere."""
    if not tape.floats[e.out] or (e.op in RULES and RULES[e.op].kind is Kind.UNSCALED):
        return False
    return e.op not in _CUTS or any(call.primitive in _RULED for call in e.calls)


def moved(tape: Tape, leaves: Iterable[int]) -> bytearray:
    """For each value, whether it has a derivative by some leaf."""
    return dependents(tape, leaves, passes_gradient)


def reached(tape: Tape) -> bytearray:
    """A 1 for each value that some output has a derivative by."""
    return tape.needed((x for x in tape.outs if tape.floats[x]), passes_gradient)
