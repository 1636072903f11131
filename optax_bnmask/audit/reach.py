"""Which leaves no gradient reaches, read off the program that an analysis is of."""

import functools
import operator
from collections.abc import Sequence
from typing import Any, Final

from optax_bnmask import compat
from optax_bnmask.analysis import Analysis, Role
from optax_bnmask.program.trace import Program

_CUTS: Final = frozenset(
    map(compat.primitive, ("stop_gradient_p", "sign_p", "floor_p", "ceil_p", "round_p"))
)
"""Operations whose derivative is 0."""

_CALLS: Final = frozenset(
    found
    for name in ("jit_p", "closed_call_p", "call_p", "remat_p")
    if (found := compat.primitive(name)) is not None
)
"""Calls without a derivative of their own, which differ from their body in nothing."""


def unreached(analysis: Analysis) -> frozenset[str]:
    """The used leaves that no gradient of any output flows to.

    Each value carries the set of leaves that its gradient would flow to, as bits. What is not known
    to cut a gradient lets it pass, so no leaf is named that one might reach.

    Args:
      analysis: What is known of the model.

    Returns:
      Their paths; none if the analysis has no program, or no gradient reaches anything.

    Example:
      Of ``f(p, x) = x @ p["w"] - stop_gradient(x @ p["teacher"])`` it is ``{"teacher"}``.
    """
    program = getattr(analysis.proof, "program", None)
    if not isinstance(program, Program):
        return frozenset()
    bits = [0 if place is None else 1 << place for place in program.inputs]
    reached = functools.reduce(operator.or_, _flow(program.jaxpr, bits), 0)
    if not reached:
        return frozenset()
    return frozenset(
        path
        for place, path in enumerate(program.paths)
        if not reached & (1 << place) and analysis[path].role is not Role.UNUSED
    )


def _flow(program: Any, ins: Sequence[int]) -> list[int]:  # noqa: ANN401 - a jaxpr
    """The leaves that the gradients of the results of a program flow to."""
    jaxpr = compat.open_jaxpr(program)
    env = dict(zip(jaxpr.invars, ins, strict=True))

    def read(atom: Any) -> int:  # noqa: ANN401 - JAX keeps its type private
        return 0 if isinstance(atom, compat.Literal) else env.get(atom, 0)

    for eqn in jaxpr.eqns:
        operands = [*map(read, eqn.invars)]
        body = next((v for v in eqn.params.values() if hasattr(compat.open_jaxpr(v), "eqns")), None)
        if eqn.primitive in _CALLS and body is not None:
            outs = _flow(body, operands)
        else:
            passes = eqn.primitive not in _CUTS
            outs = [functools.reduce(operator.or_, operands, 0) if passes else 0] * len(eqn.outvars)
        floats = (compat.is_inexact(var.aval.dtype) for var in eqn.outvars)
        pairs = zip(outs, floats, strict=True)
        env.update(zip(eqn.outvars, (out if f else 0 for out, f in pairs), strict=True))
    return [*map(read, jaxpr.outvars)]
