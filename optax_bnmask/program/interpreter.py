"""The walk: one pass over a jaxpr, a degree for every value."""

from collections.abc import Sequence
from typing import Any


from optax_bnmask import compat
from optax_bnmask.program.constants import constant, folded
from optax_bnmask.program.context import Context, Eqn
from optax_bnmask.program.degree import PACKED, ZERO, Degree
from optax_bnmask.program.rules import RULES


def walk(
    ctx: Context,
    jaxpr: Any,  # noqa: ANN401 - closed or not, JAX's type is in flux
    operands: Sequence[Degree],
    consts: Sequence[Any] | None = None,
) -> list[Degree]:
    """Reads a program.

    Args:
      ctx: Who reads.
      jaxpr: The program, closed or not.
      operands: The degrees of its arguments.
      consts: The values of its constant inputs, unless it is closed over them.

    Returns:
      The degrees of its results.
    """
    inner = compat.open_jaxpr(jaxpr)
    env: dict[Any, Degree] = {}
    if inner.constvars:
        values = compat.consts_of(jaxpr) if consts is None else consts
        env.update(zip(inner.constvars, map(constant, values), strict=True))
    env.update(zip(inner.invars, operands, strict=True))

    def read(atom: Any) -> Degree:  # noqa: ANN401 - a variable or a literal
        return constant(atom.val) if isinstance(atom, compat.Literal) else env[atom]

    for eqn in inner.eqns:
        ins = [read(atom) for atom in eqn.invars]
        env.update(zip(eqn.outvars, degrees_of(ctx, eqn, ins), strict=True))
    return [read(atom) for atom in inner.outvars]


def degrees_of(ctx: Context, eqn: Eqn, ins: Sequence[Degree]) -> list[Degree]:
    """The degrees of the results of one equation."""
    if (known := folded(eqn, ins)) is not None:
        return [known]
    if all(d.is_zero and not d.mark and d.tag is None for d in ins):
        return [ZERO] * len(eqn.outvars)
    rule = RULES.get(eqn.primitive)
    if rule is None or (rule.kind not in ("call", "packed") and any(d.mark & PACKED for d in ins)):
        if rule is None:
            ctx.unruled(eqn)
        out = ctx.pin(eqn, ins)
        return ctx.note("opaque", eqn, ins, [out for _ in eqn.outvars])
    outs = rule.apply(ctx, eqn, *ins)
    listed = [outs] if isinstance(outs, Degree) else list(outs)
    return listed if rule.kind == "call" else ctx.note(rule.kind, eqn, ins, listed)


__all__ = ["degrees_of", "walk"]
