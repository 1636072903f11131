"""Findings on the decaying leaves as a whole: groups that are split, and how much decays."""

from collections.abc import Iterator
from typing import Final

from optax_bnmask.analysis import Analysis
from optax_bnmask.audit.evidence import Case, Cases, by_path, finding, without
from optax_bnmask.audit.outcome import Finding
from optax_bnmask.vocabulary import Role, Scale

_MATRICES: Final = frozenset({Role.WEIGHT, Role.EMBEDDING, Role.UNKNOWN})
"""Roles that should decay alike within a group; its gains and biases may be exempt as such."""

_HARDLY_ANY: Final = 0.02
"""A smaller share of the parameters is hardly any: a model's head is often about as much."""


def splits(analysis: Analysis, cases: Cases) -> Iterator[Finding]:
    """Leaves whose scale hangs together, of which some decay and some do not.

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
    yield from finding(
        "warning",
        "group_split",
        list(by_path(forgotten).values()),
        "A part of the leaves that share one scale is exempt while the others of the group decay, "
        "{}. The share of these grows against that of the others. Let all of a group decay, or "
        "none; `Analysis.groups` lists them.",
    )
    alone = [c for c in cases if c.leaf.scale is Scale.INVARIANT and _counts(c)]
    exempt = [case for case in alone if not _is_held(case)]
    held = without(alone, exempt)
    if exempt and held:
        odd = exempt if len(exempt) <= len(held) else held
        others = len(alone) - len(odd)
        does = (
            f"decay or keep their norm though the other {others} do neither",
            f"neither decay nor keep their norm though the other {others} of them do",
        )
        yield from finding(
            "warning",
            "invariant_split",
            odd,
            f"Some weights whose scale a normaliser hides {does[odd is exempt]}, {{}}. Treat them "
            f"alike, or their effective learning rates will part.",
        )


def _counts(case: Case) -> bool:
    """Whether a leaf should decay with the others."""
    return case.leaf.role in _MATRICES and case.wanted


def _is_held(case: Case) -> bool:
    """Whether its norm is kept from growing, by decay or by something like `keep_norm`."""
    return case.decays or case.does.kept


def hardly_any(cases: Cases) -> Iterator[Finding]:
    """A finding if most parameters are exempt and nothing is done about their norms."""
    total = sum(case.leaf.size for case in cases)
    decayed = sum(case.leaf.size for case in cases if case.decays)
    left = [case for case in cases if case.wanted and not _is_held(case)]
    if decayed < _HARDLY_ANY * total < 2 * _HARDLY_ANY * sum(case.leaf.size for case in left):
        yield from finding(
            "warning",
            "hardly_anything_decayed",
            left,
            f"Only {100 * decayed / total:.2g} % of the parameters decay; nothing holds the norms "
            f"of the exempt ones, {{}}. Their effective learning rate will fall as they grow "
            f"(arXiv:1910.07454). Let them decay, or put `bnmask.keep_norm` or "
            f"`bnmask.corrected_weight_decay` in the chain.",
        )


def unknown(decayed: Cases) -> Iterator[Finding]:
    """A finding on leaves that decay though their role is unknown."""
    cases = [case for case in decayed if case.leaf.role is Role.UNKNOWN]
    size = sum(case.leaf.size for case in cases)
    most = 2 * len(cases) >= len(decayed) or 2 * size >= sum(case.leaf.size for case in decayed)
    yield from finding(
        "warning" if most else "note",
        "unknown_decayed",
        cases,
        "Leaves decay whose role is unknown, so that some may belong to normalisers, {}. "
        "`bnmask.analyze` reads roles off the program; `never` exempts leaves by name.",
    )
