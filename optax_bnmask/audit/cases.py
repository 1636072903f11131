"""One leaf as an audit judges it, and how several leaves are named in words."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from optax_bnmask.audit.behaviour import Behaviour
from optax_bnmask.audit.messages import Message
from optax_bnmask.audit.outcome import Finding
from optax_bnmask.families import listed
from optax_bnmask.vocabulary import Leaf, Role
from optax_bnmask.wording import counted

SAME: Final = 1.05
"""Rates that differ by a smaller factor are one rate."""

_NAMED: Final = 5
"""The number of leaves named in a message."""


@dataclasses.dataclass(frozen=True, slots=True)
class Case:
    """One leaf: what it is, what is done to it, and what should be done.

    Attributes:
      leaf: What the analysis knows of it.
      behaviour: What the optimizer does to it.
      wanted: Whether it should decay.
      rounded_away: Whether rounding to its dtype undoes its decay.
    """

    leaf: Leaf
    behaviour: Behaviour
    wanted: bool
    rounded_away: bool = False

    @property
    def reached(self) -> bool:
        """Whether a gradient reaches it; true of a leaf that the program does not use."""
        return self.leaf.reached or self.leaf.role is Role.UNUSED

    @property
    def path(self) -> str:
        """Its canonical path."""
        return self.leaf.path

    @property
    def decays(self) -> bool:
        """Whether it loses a share of itself."""
        return self.behaviour.rate > 0

    @property
    def uneven(self) -> bool:
        """Whether parts of it decay at different rates."""
        return self.behaviour.lowest_rate * SAME < self.behaviour.rate

    @property
    def frozen(self) -> bool:
        """Whether nothing moves it."""
        it = self.behaviour
        return not (it.moved_by_gradient or it.rate or it.pulled_to_start or it.not_finite)


Cases = Sequence[Case]


def finding(message: Message, cases: Cases, **fields: object) -> Iterator[Finding]:
    """Yields a finding about leaves, if there are any; `fields` are those of the text by name."""
    if cases:
        severity, kind, text = message
        paths = tuple(case.path for case in cases)
        yield Finding(severity, kind, paths, text.format(named(cases), **fields))


def named(cases: Cases) -> str:
    """How many leaves there are, and the names of the first."""
    return f"{count(cases)}: {some(cases)}"


def some(cases: Cases) -> str:
    """The names of the first leaves, those of repeated blocks once, and how many more there are."""
    return listed([case.path for case in cases], _NAMED)


def count(cases: Cases) -> str:
    """How many leaves there are, in words."""
    return counted(len(cases), "leaf", "leaves")


def without(cases: Cases, *others: Cases) -> list[Case]:
    """The leaves that are in none of the others."""
    gone = {case.path for other in others for case in other}
    return [case for case in cases if case.path not in gone]


def by_path(cases: Cases) -> Mapping[str, Case]:
    """The leaves by their paths."""
    return {case.path: case for case in cases}
