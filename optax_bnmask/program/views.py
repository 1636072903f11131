"""What is remembered of a value on the way from the leaves to the data, and what of a leaf."""

import dataclasses

from optax_bnmask.analysis import Role
from optax_bnmask.program.tape import Equation

NONE: frozenset[int] = frozenset()


@dataclasses.dataclass(frozen=True, slots=True)
class View:
    """What is remembered of a value.

    Attributes:
      leaves: The leaves that the value is, seen from elsewhere; none once it has met the data.
      data: Whether the value depends on anything but leaves and constants.
      normed: 0; 1 after a gauge has cancelled; 2 when a gain has followed.
      gains: The gains folded into the value since its last contraction.
      owners: The leaves whose output the value is: weights and gains whose bias may follow.
      shifted: Whether the leaf is seen with a constant added to it, ``1 + scale``.
      centred: Whether the value is a difference, ``x - mean``.
      root: 1 for a square root, -1 for an inverse one, and for what gains make of them.
      fixed: For an array that the program is closed over, its size. It may be data, or belong to a
        leaf, as a mask does; beside a leaf that is no smaller it is taken to be the latter.
    """

    leaves: frozenset[int] = NONE
    data: bool = True
    normed: int = 0
    gains: frozenset[int] = NONE
    owners: frozenset[int] = NONE
    shifted: bool = False
    centred: bool = False
    root: int = 0
    fixed: int = 0


DATA = View()


@dataclasses.dataclass(slots=True)
class Seen:
    """What was seen of one leaf.

    Attributes:
      roles: Every role that it was seen in, and the equation of the first time.
      shifted: Whether it was multiplied as ``constant + leaf``.
    """

    roles: dict[Role, Equation] = dataclasses.field(default_factory=dict)
    shifted: bool = False


PRECEDENCE = (
    Role.EMBEDDING,
    Role.WEIGHT,
    Role.NORM_SCALE,
    Role.NORM_BIAS,
    Role.GAIN,
    Role.BIAS,
)
