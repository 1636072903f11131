"""Findings on several leaves together: groups treated unequally, and how much decays in all."""

from collections.abc import Iterator
from typing import Final

from optax_bnmask.analysis import Analysis
from optax_bnmask.audit import messages
from optax_bnmask.audit.cases import Case, Cases, by_path, finding, without
from optax_bnmask.audit.outcome import Finding
from optax_bnmask.vocabulary import Role, Scale

_MATRICES: Final = frozenset({Role.WEIGHT, Role.EMBEDDING, Role.UNKNOWN})
"""Roles whose leaves should decay alike within a group; gains and biases may be exempt."""

_HARDLY_ANY: Final = 0.02
"""A smaller share of the parameters is hardly any; a model's head is often about as much."""


def splits(analysis: Analysis, cases: Cases) -> Iterator[Finding]:
    """Leaves that belong together, of which some decay and some do not.

    Args:
      analysis: What is known of the model.
      cases: The leaves to look at.

    Yields:
      A finding for the jointly invariant leaves, and one for those that are invariant alone.
    """
    known = by_path(cases)
    forgotten: list[Case] = []
    for group in analysis.groups:
        members = [case for path, case in known.items() if path in group and _counts(case)]
        if any(map(_is_held, members)):
            forgotten += [case for case in members if not _is_held(case)]
    yield from finding(messages.GROUP_SPLIT, list(by_path(forgotten).values()))
    alone = [c for c in cases if c.leaf.scale is Scale.INVARIANT and _counts(c)]
    exempt = [case for case in alone if not _is_held(case)]
    held = without(alone, exempt)
    if exempt and held:
        odd = exempt if len(exempt) <= len(held) else held
        others = len(alone) - len(odd)
        if odd is exempt:
            do = f"neither decay nor keep their norm though the other {others} of them do"
        else:
            do = f"decay or keep their norm though the other {others} do neither"
        yield from finding(messages.INVARIANT_SPLIT, odd, do=do)


def _counts(case: Case) -> bool:
    """Whether a leaf should decay with the others."""
    return case.leaf.role in _MATRICES and case.wanted


def _is_held(case: Case) -> bool:
    """Whether its norm is kept from growing, by decay or by something like `keep_norm`."""
    return case.decays or case.behaviour.norm_kept


def hardly_any(cases: Cases) -> Iterator[Finding]:
    """A finding if most parameters are exempt and nothing is done about their norms."""
    total = sum(case.leaf.size for case in cases)
    decayed = sum(case.leaf.size for case in cases if case.decays)
    left = [case for case in cases if case.wanted and not _is_held(case)]
    if decayed < _HARDLY_ANY * total < 2 * _HARDLY_ANY * sum(case.leaf.size for case in left):
        percent = 100 * decayed / total
        yield from finding(messages.HARDLY_ANYTHING_DECAYED, left, percent=percent)


def unknown(decayed: Cases) -> Iterator[Finding]:
    """A finding on leaves that decay though their role is unknown."""
    cases = [case for case in decayed if case.leaf.role is Role.UNKNOWN]
    size = sum(case.leaf.size for case in cases)
    most = 2 * len(cases) >= len(decayed) or 2 * size >= sum(case.leaf.size for case in decayed)
    message = messages.UNKNOWN_DECAYED
    yield from finding(message if most else message._replace(severity="note"), cases)
