"""One rule for each primitive: what it does to axes, to degrees, and to what is known of values.

A rule has a *kind*, which says all that operations of one idea have in common (a view keeps
everything that is known of its operand; a reduction keeps its sign; a contraction makes a weight of
a leaf), and a *law*, which says how the result scales with its operands, and along which axes::

    mul         a*x * b*y = a*b * (x*y)         powers (1, 1), every axis itself
    div         a*x / b*y = a/b * (x/y)         powers (1, -1)
    reduce_sum  sum(a*x) = a * sum(x)           powers (1,); what is summed over must not vary
    add         a*x + a*y = a * (x + y)         powers AGREE: both must scale alike
    tanh        none                            no law: what it reads must not scale

To rule a primitive of your own, call `rule` once, before the first analysis::

    from optax_bnmask.program.registry import Kind, Law, rule

    rule(Kind.VIEW, my_primitive)(Law())        # f(a*x) = a * f(x), entry by entry
"""

import dataclasses
import enum
from collections.abc import Callable, Mapping
from typing import Any, Final

from optax_bnmask import compat
from optax_bnmask.program.equations import Number
from optax_bnmask.program.flags import MAY_BE_0

Map = Mapping[int, int]
"""``{a: b}``: axis ``a`` of one value is ``b`` of another. Along axes left out it must not vary."""


class Kind(enum.Enum):
    """What operations of one idea have in common."""

    __hash__ = object.__hash__  # members are single objects; by name, as in `Enum`, it is slow

    VIEW = enum.auto()
    """Results are entries of the operands, some or all, perhaps repeated: keeps all facts."""
    CAST = enum.auto()
    """Results are the entries of the operand in another dtype."""
    PRODUCT = enum.auto()
    """Entry by entry; a leaf that multiplies data is a gain."""
    QUOTIENT = enum.auto()
    """A product with the second factor inverted."""
    SUM = enum.auto()
    """Entry by entry; a leaf that is added to data is a bias."""
    POWER = enum.auto()
    """A function of one operand with ``f(a*x) = a**k * f(x)``."""
    EXTREMUM = enum.auto()
    """One of the operands, entry by entry, whichever is larger or smaller."""
    SELECT = enum.auto()
    """One of the operands, entry by entry, as the first of them says."""
    JOIN = enum.auto()
    """Entries of several operands side by side, or one of them in the place of the other."""
    REDUCTION = enum.auto()
    """Entries mixed with entries of the same operand."""
    CONTRACTION = enum.auto()
    """A sum of products; a leaf that meets data there is a weight."""
    LOOKUP = enum.auto()
    """Entries at computed places; a leaf looked up at several is an embedding."""
    COMPARISON = enum.auto()
    """A predicate of how operands compare."""
    NONLINEAR = enum.auto()
    """A function of one operand without such a law, like `tanh`."""
    UNSCALED = enum.auto()
    """Integers, predicates, random numbers: nothing here scales, nor can."""
    OPAQUE = enum.auto()
    """Anything else."""
    FACTORS = enum.auto()
    """A packed factorisation, of which only a solver can make sense."""
    LOOP = enum.auto()
    """What a loop carries."""
    SOLUTION = enum.auto()
    """The solution of linear equations: the one reader of `FACTORS`."""


AGREE: Final = None
"""In the place of powers: the operands must be of one degree, which is the result's."""

SAME: Final[Any] = "same"
"""In the place of a `Map`: every axis is the same axis of the result."""


@dataclasses.dataclass(slots=True)  # not frozen, which takes twice as long to make
class Law:
    """How a result scales.

    Attributes:
      maps: For each operand, which of its visible axes is which of the result (hidden ones follow
        by themselves); along the others it must not vary. `SAME` for all operands, or for one.
        `None` for an operand whose scale does not matter, such as indices.
      powers: The degree of the result is the sum of the operands' degrees times these; or `AGREE`.
      scales: Whether the result scales at all: the answer of a comparison does not.
      pinned: The operands that must not scale.
      alike: The operands that must be of one degree, which counts once, for the first of them.
    """

    maps: Any = SAME
    powers: tuple[Number, ...] | None = (1,)
    scales: bool = True
    pinned: tuple[int, ...] = ()
    alike: tuple[int, ...] = ()

    def map_of(self, place: int) -> Any:  # noqa: ANN401 - a map, `SAME` or `None`
        """The map of an operand; `None` if its scale does not matter."""
        if self.maps is SAME:
            return SAME
        return self.maps[place] if place < len(self.maps) else None


PIN: Final = None
"""In the place of a law: no operand may scale."""


@dataclasses.dataclass(frozen=True, slots=True)
class Rule:
    """What to do at an equation.

    Attributes:
      kind: What it has in common with others.
      law: A `Law`, or a function of the equation and the reading that returns one; or `PIN`.
      facts: What is known of the result beyond what the kind tells: a function of the reading, the
        equation and the flags that the kind gives, returning the flags.
    """

    kind: Kind
    law: Any
    facts: Callable[..., int] | None = None


RULES: dict[Any, Rule] = {}
"""By primitive, or `Op` of the tape; filled when the families are imported, and by users."""


def rule(kind: Kind, *keys: Any, facts: Callable[..., int] | None = None) -> Callable[[Any], Any]:  # noqa: ANN401 - see below
    """Registers the law of some primitives.

    Args:
      kind: What they do.
      *keys: The primitives: objects, or JAX's attribute names such as ``"add_p"``; a name that this
        JAX does not have yet, or no longer has, is listed in `optax_bnmask.compat`.
      facts: As in `Rule`.

    Returns:
      A decorator of the law: a `Law`, a function that returns one, or `PIN`.

    Raises:
      ValueError: One of them has a rule already.
    """

    def register(law: Any) -> Any:  # noqa: ANN401 - a law or a function
        for key in keys:
            primitive = compat.primitive(key) if isinstance(key, str) else key
            if primitive is None:
                continue
            if primitive in RULES:
                raise ValueError(f"Each primitive has one rule. {key} would have two.")
            RULES[primitive] = Rule(kind, law, facts)
        return law

    return register


def known(*, keeps: int = ~0, adds: int = 0) -> Callable[..., int]:
    """For `Rule.facts`: a function that returns the kind's flags ``& keeps | adds``."""

    def facts(reading: object, e: object, flags: int) -> int:
        del reading, e
        return flags & keeps | adds

    return facts


ANYTHING: Final = known(keeps=0, adds=MAY_BE_0)
"""For `Rule.facts`: nothing is known of the result."""

UNRULED: Final = Rule(Kind.OPAQUE, PIN, ANYTHING)
"""In the place of the rule of a primitive that has none: no operand may scale."""
