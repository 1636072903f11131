"""What a judgement of an optimizer rests on, leaf by leaf, and how leaves are named in words."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from optax_bnmask.audit.observations import Behaviour
from optax_bnmask.audit.outcome import Finding
from optax_bnmask.families import listed
from optax_bnmask.vocabulary import Leaf, Role
from optax_bnmask.wording import counted

SAME: Final = 1.05
"""Rates that differ by less are one rate."""

_NAMED: Final = 5
"""So many leaves are named in a message."""


@dataclasses.dataclass(frozen=True, slots=True)
class Case:
    """One leaf: what it is, what is done to it, and what should be.

    Attributes:
      leaf: What is known of it.
      does: What the optimizer does to it.
      wanted: Whether it should decay.
      lost: Whether its decay is less than its dtype can tell.
    """

    leaf: Leaf
    does: Behaviour
    wanted: bool
    lost: bool = False

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
        return self.does.rate > 0

    @property
    def uneven(self) -> bool:
        """Whether parts of it decay at different rates."""
        return self.does.least * SAME < self.does.rate

    @property
    def frozen(self) -> bool:
        """Whether nothing moves it."""
        does = self.does
        return not (does.moved or does.rate or does.recalled or does.broken)


Cases = Sequence[Case]


def finding(severity: str, kind: str, cases: Cases, message: str) -> Iterator[Finding]:
    """A finding about leaves, if there are any.

    Args:
      severity: Of `Finding`.
      kind: Of `Finding`.
      cases: The leaves.
      message: In which ``{}`` stands for their number and their names.

    Yields:
      The finding.
    """
    if cases:
        paths = tuple(case.path for case in cases)
        yield Finding(severity, kind, paths, message.format(named(cases)))


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
