"""One rule for each primitive of JAX: what it does to the degrees of its operands.

Rules come in families: one idea, the primitives that it holds for, and the identity that it rests
on. A primitive without a rule is taken to depend on the scale of everything that it reads.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from optax_bnmask import compat
from optax_bnmask.program.context import Context, Eqn
from optax_bnmask.program.degree import Degree

RuleFunction = Callable[..., Degree | Sequence[Degree]]


class Rule(NamedTuple):
    """What to do at an equation.

    Attributes:
      apply: ``(ctx, eqn, *degrees)`` to the degree of the output, or of each output.
      kind: What the operands do there: ``"product"``, ``"quotient"``, ``"sum"``, ``"pointwise"``,
        ``"view"``, ``"reduction"``, ``"contraction"``, ``"lookup"``, ``"join"``, ``"call"``,
        ``"opaque"``.
    """

    apply: RuleFunction
    kind: str


RULES: dict[Any, Rule] = {}
"""The rule of each primitive; filled when the families are imported, and never after."""


def rule(kind: str, *names: str) -> Callable[[RuleFunction], RuleFunction]:
    """Registers a rule for the primitives of those names.

    Args:
      kind: See `Rule`.
      *names: Attribute names, such as ``"add_p"``; a name that this JAX does not have yet, or no
        longer has, is listed in `optax_bnmask.compat`.

    Returns:
      The decorator.
    """

    def register(function: RuleFunction) -> RuleFunction:
        for name in names:
            key = compat.primitive(name)
            if key is not None:
                if key in RULES:
                    raise ValueError(f"Each primitive has one rule. `{name}` would have two.")
                RULES[key] = Rule(function, kind)
        return function

    return register


def shape_of(eqn: Eqn, place: int = 0) -> tuple[int, ...]:
    """The shape of an operand."""
    return eqn.invars[place].aval.shape


__all__ = ["RULES", "Context", "Rule", "rule", "shape_of"]
