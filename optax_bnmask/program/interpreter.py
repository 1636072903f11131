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
        for variable, value in zip(inner.constvars, values, strict=True):
            env[variable] = ctx.closed_over(constant(value), value)
    env.update(zip(inner.invars, operands, strict=True))

    literals = ctx.literals

    def read(atom: Any) -> Degree:  # noqa: ANN401 - a variable or a literal
        if not isinstance(atom, compat.Literal):
            return env[atom]
        known = literals.get(id(atom))
        if known is None:
            known = literals[id(atom)] = constant(atom.val)
        return known

    for eqn in inner.eqns:
        outs = degrees_of(ctx, eqn, [read(atom) for atom in eqn.invars])
        if len(outs) == 1:
            env[eqn.outvars[0]] = outs[0]
        else:
            env.update(zip(eqn.outvars, outs, strict=True))
    return [read(atom) for atom in inner.outvars]


def degrees_of(ctx: Context, eqn: Eqn, ins: Sequence[Degree]) -> list[Degree]:
    """The degrees of the results of one equation."""
    plain = known = True
    marks = 0
    for d in ins:
        marks |= d.mark
        known = known and d.const is not None
        plain = plain and not d.level and d.level is not None and not d.along and d.tag is None
    if known and ins and (result := folded(eqn, ins)) is not None:
        return [result]
    if plain and not marks:
        return [ZERO] * len(eqn.outvars)
    rule = RULES.get(eqn.primitive)
    if rule is None or (marks & PACKED and rule.kind not in ("call", "packed")):
        if rule is None:
            ctx.unruled(eqn)
        out = ctx.pin(eqn, ins)
        return ctx.note("opaque", eqn, ins, [out for _ in eqn.outvars])
    outs = rule.apply(ctx, eqn, *ins)
    listed = [outs] if isinstance(outs, Degree) else list(outs)
    return listed if rule.kind == "call" else ctx.note(rule.kind, eqn, ins, listed)


__all__ = ["degrees_of", "walk"]
