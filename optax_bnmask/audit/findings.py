"""What is wrong with what an optimizer was measured to do.

One cause gives one finding. A leaf that grows, is erased or climbs its gradient is not also asked
whether it should decay. Where everything decays, no second finding says that the normalisers do.
"""

from collections.abc import Iterator, Sequence
from typing import Final

from optax_bnmask.analysis import Analysis
from optax_bnmask.audit import messages
from optax_bnmask.audit.behaviour import alike
from optax_bnmask.audit.cases import SAME, Case, Cases, count, finding, named, some, without
from optax_bnmask.audit.model_findings import hardly_any, splits, unknown
from optax_bnmask.audit.outcome import MAY_BE_EXEMPT, Finding
from optax_bnmask.vocabulary import NORMS, Role, Scale

_HIDDEN: Final = frozenset({Scale.INVARIANT, Scale.JOINT, Scale.UNUSED})
"""The scales that do not matter to the output, so that no finding asks for a decay."""

_SAME_BEHIND_TRUST_RATIO: Final = 4.0
"""Rates behind a trust ratio that differ by a smaller factor are one rate: they depend on how long
the leaf's gradient is, too."""


def findings(analysis: Analysis, cases: Cases) -> tuple[Finding, ...]:
    """What is wrong with what an optimizer does, the gravest first.

    Args:
      analysis: What is known of the model.
      cases: The leaves that the optimizer updates.

    Returns:
      The findings.
    """
    broken = [case for case in cases if case.behaviour.not_finite]
    random = [case for case in without(cases, broken) if case.behaviour.random]
    live = [case for case in without(cases, broken, random) if not case.frozen]
    found = list(_judged(analysis, live)) if live else []
    if random:
        why = "Chance decides which entries lose something, as in rounding at random, of "
        found.insert(0, undetermined([case.path for case in random], f"{why}{named(random)}."))
    if broken:
        why = f"The updates of {count(broken)} are not finite, whatever the gradient: "
        found.insert(0, undetermined([case.path for case in broken], f"{why}{some(broken)}."))
    elif not (live or random):
        why = "No gradient moves any leaf in any step tried: the learning rate is 0, or starts to "
        found = [undetermined([case.path for case in cases], f"{why}rise after 512 steps.")]
    order = {"error": 0, "warning": 1, "note": 2}
    return tuple(sorted(found, key=lambda each: order[each.severity]))


def undetermined(paths: Sequence[str], why: str) -> Finding:
    """The finding that it could not be told what becomes of some leaves, and why."""
    return Finding("error", "undetermined", tuple(paths), f"What decays cannot be told. {why}")


def _judged(analysis: Analysis, live: Cases) -> Iterator[Finding]:
    """The findings, cause by cause, each on the leaves that no cause before it explains."""
    growing = [case for case in live if case.behaviour.rate < 0]
    erased = [
        case
        for case in live
        if case.decays and not (case.behaviour.moved_by_gradient and case.reached)
    ]
    partly = [case for case in without(live, erased) if case.decays and case.behaviour.erased_part]
    climbing = without(_climbing(live), growing, erased)
    elsewhere = [case for case in live if case.behaviour.rate and case.behaviour.pulled_to]
    recalled = [case for case in live if case.behaviour.pulled_to_start]
    unheld = [case for case in live if case.behaviour.norm_held and not case.behaviour.norm_kept]
    yield from finding(messages.NORM_NOT_KEPT, unheld)
    yield from finding(messages.GROWTH, growing)
    yield from finding(messages.ERASED, erased)
    yield from _erased_in_part(partly)
    yield from _climbs(climbing)
    yield from _all_climb(live)
    yield from _elsewhere(without(elsewhere, growing, erased))
    yield from finding(messages.PULLED_TO_START, recalled)
    explained = (growing, erased, climbing, elsewhere, recalled)
    rest = without(live, *explained)
    yield from _mask(analysis, rest, is_all=not any(explained))
    decayed = [case for case in rest if case.decays]
    coupled = [
        case
        for case in decayed
        if case.behaviour.divided_by_gradient or not case.behaviour.proportional
    ]
    yield from _coupled(coupled)
    yield from finding(messages.LOST, [case for case in decayed if case.rounded_away])
    yield from _uneven(without(decayed, coupled))
    yield from _unequal([case for case in without(decayed, coupled) if not case.uneven])


def _mask(analysis: Analysis, rest: Cases, *, is_all: bool) -> Iterator[Finding]:
    """What is wrong with the choice of leaves that decay.

    Args:
      analysis: What is known of the model.
      rest: The leaves to look at.
      is_all: Whether these are all leaves; a cause found for others may be why nothing decays.
    """
    decayed = [case for case in rest if case.decays]
    weights = [case for case in rest if case.leaf.role is Role.WEIGHT]
    norms = [case for case in decayed if case.leaf.role in NORMS and not case.wanted]
    if not decayed:
        if is_all and any(case.leaf.role not in MAY_BE_EXEMPT and case.wanted for case in rest):
            yield from finding(messages.NOTHING_DECAYED, rest)
        return
    whole = all(not case.uneven for case in norms)
    if norms and whole and len(decayed) == len(rest) and weights:
        yield from finding(messages.EVERYTHING_DECAYED, norms)
        return
    if norms and weights and not any(case.decays for case in weights):
        yield from _inverted(norms, weights)
        return
    bare = [
        case
        for case in weights
        if case.wanted
        and not (case.decays or case.behaviour.norm_kept or case.leaf.scale in _HIDDEN)
    ]
    yield from finding(messages.NORM_DECAYED, norms)
    yield from finding(messages.WEIGHT_EXEMPT, bare)
    unwanted = [case for case in without(decayed, norms) if not case.wanted]
    yield from finding(messages.EXEMPT_DECAYED, unwanted)
    yield from splits(analysis, rest)
    if not bare:
        yield from hardly_any(rest)
    yield from unknown(decayed)


def _climbing(live: Cases) -> list[Case]:
    """The leaves that climb their gradient where others descend theirs."""
    if not any(case.behaviour.along_gradient < 0 for case in live):
        return []  # `_all_climb` reports these
    return [
        case
        for case in live
        if case.behaviour.moved_by_gradient and case.behaviour.along_gradient > 0
    ]


def _erased_in_part(cases: Cases) -> Iterator[Finding]:
    rows = [case for case in cases if case.behaviour.erased_part == "rows"]
    yield from finding(messages.ROWS_ERASED, rows)
    yield from finding(messages.ENTRIES_ERASED, without(cases, rows))


def _climbs(cases: Cases) -> Iterator[Finding]:
    raw = [case for case in cases if case.behaviour.adds_raw_gradient]
    yield from finding(messages.ADDS_RAW_GRADIENT, raw)
    yield from finding(messages.CLIMBS, without(cases, raw))


def _all_climb(live: Cases) -> Iterator[Finding]:
    climbing = [case for case in live if case.behaviour.along_gradient > 0]
    if any(case.behaviour.along_gradient < 0 for case in live) or all(
        case.behaviour.no_learning_rate for case in climbing
    ):
        return iter(())  # some descend, or the learning rate and its sign come later in the chain
    return finding(messages.ALL_CLIMB, climbing)


def _elsewhere(cases: Cases) -> Iterator[Finding]:
    centres = {f"{case.behaviour.pulled_to:.6g}" for case in cases}
    common = len(centres) == 1 and "nan" not in centres
    where = centres.pop() if common else "values of its own"
    return finding(messages.PULLED_ELSEWHERE, cases, where=where)


def _inverted(norms: Cases, weights: Cases) -> Iterator[Finding]:
    message = (
        f"The mask is inverted: what normalisers own decays ({some(norms)}), and no weight does "
        f"({some(weights)}). In Optax, True means that a leaf decays."
    )
    yield Finding("error", "inverted", tuple(case.path for case in [*norms, *weights]), message)


def _coupled(cases: Cases) -> Iterator[Finding]:
    rising = [case for case in cases if case.behaviour.rate_grows_with_size]
    constant = [
        case
        for case in without(cases, rising)
        if alike(case.behaviour.rate, case.behaviour.rate_under_gradient)
    ]
    yield from finding(messages.RATE_GROWS_WITH_SIZE, rising)
    yield from finding(messages.CONSTANT_PENALTY, constant)
    yield from finding(messages.NORMALISED_DECAY, without(cases, rising, constant))


def _uneven(decayed: Cases) -> Iterator[Finding]:
    cases = [case for case in decayed if case.uneven]
    low = min((case.behaviour.lowest_rate for case in cases), default=0)
    high = max((case.behaviour.rate for case in cases), default=0)
    return finding(messages.UNEVEN_RATES, cases, low=low, high=high)


def _unequal(decayed: Cases) -> Iterator[Finding]:
    """Leaves with lower rates than others, among those whose scale a normaliser hides or the rest.

    Between the two a different rate is a treatment, such as `corrected_weight_decay`.
    """
    hidden = [case for case in decayed if case.leaf.scale is Scale.INVARIANT]
    for cases in (hidden, without(decayed, hidden)):
        values = [case.behaviour.rate for case in cases]
        low, high = min(values, default=0), max(values, default=0)
        slow = [case for case in cases if case.behaviour.rate * _same(case) < high]
        yield from finding(messages.UNEQUAL_RATES, slow, low=low, high=high)


def _same(case: Case) -> float:
    """The factor by which a rate must exceed this leaf's to count as another."""
    return _SAME_BEHIND_TRUST_RATIO if case.behaviour.has_trust_ratio else SAME
