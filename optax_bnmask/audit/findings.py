"""Findings: what is wrong with what an optimizer was measured to do, in words, cause by cause.

One cause gives one finding. A leaf that grows, is erased or climbs its gradient is wrong for that
reason, and what it should be otherwise is not asked; where everything decays, the normalisers do
too, and that is said once.
"""

from collections.abc import Iterator, Sequence
from typing import Final

from optax_bnmask.analysis import Analysis
from optax_bnmask.audit.balance import hardly_any, splits, unknown
from optax_bnmask.audit.evidence import SAME, Case, Cases, count, finding, named, some, without
from optax_bnmask.audit.observations import alike
from optax_bnmask.audit.outcome import MAY_BE_EXEMPT, Finding
from optax_bnmask.vocabulary import NORMS, Role, Scale

_HIDDEN: Final = frozenset({Scale.INVARIANT, Scale.JOINT, Scale.UNUSED})

_SAME_STRETCHED: Final = 4.0
"""Rates of leaves behind a trust ratio that differ by a smaller factor are one rate. Such a rate
also hangs on how long the leaf's gradient is."""

_UNSEEN: Final = (
    "Two things an audit cannot see: a penalty on the norm that is a part of the loss, and a decay "
    "that starts after more than 64 steps."
)


def findings(analysis: Analysis, cases: Cases) -> tuple[Finding, ...]:
    """What is wrong with what an optimizer does, the gravest first.

    Args:
      analysis: What is known of the model.
      cases: Its leaves, as far as the optimizer has them.

    Returns:
      The findings.
    """
    broken = [case for case in cases if case.does.broken]
    random = [case for case in without(cases, broken) if case.does.random]
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
    """Says that what becomes of some leaves could not be told; nothing is vouched for then."""
    return Finding("error", "undetermined", tuple(paths), f"What decays cannot be told. {why}")


def _judged(analysis: Analysis, live: Cases) -> Iterator[Finding]:
    """Cause by cause; each looks at the leaves that no cause before it explains."""
    growing = [case for case in live if case.does.rate < 0]
    erased = [case for case in live if case.decays and not (case.does.moved and case.reached)]
    partly = [case for case in without(live, erased) if case.decays and case.does.erased]
    climbing = without(_climbing(live), growing, erased)
    elsewhere = [case for case in live if case.does.rate and case.does.centre]
    recalled = [case for case in live if case.does.recalled]
    yield from _growth(growing)
    yield from _erased(erased)
    yield from _erased_in_part(partly)
    yield from _climbs(climbing)
    yield from _all_climb(live)
    yield from _elsewhere(without(elsewhere, growing, erased))
    yield from _recalled(recalled)
    explained = (growing, erased, climbing, elsewhere, recalled)
    rest = without(live, *explained)
    yield from _mask(analysis, rest, alone=not any(explained))
    decayed = [case for case in rest if case.decays]
    coupled = [case for case in decayed if case.does.divided or not case.does.proportional]
    yield from _coupled(coupled)
    yield from _lost([case for case in decayed if case.lost])
    yield from _uneven(without(decayed, coupled))
    yield from _unequal([case for case in without(decayed, coupled) if not case.uneven])


def _mask(analysis: Analysis, rest: Cases, *, alone: bool) -> Iterator[Finding]:
    """What is wrong with the choice of leaves that decay.

    Args:
      analysis: What is known of the model.
      rest: The leaves to look at.
      alone: Whether no cause was found for other leaves; if one was, it may be why nothing decays.
    """
    decayed = [case for case in rest if case.decays]
    weights = [case for case in rest if case.leaf.role is Role.WEIGHT]
    norms = [case for case in decayed if case.leaf.role in NORMS and not case.wanted]
    if not decayed:
        if alone and any(case.leaf.role not in MAY_BE_EXEMPT and case.wanted for case in rest):
            yield from _nothing(rest)
        return
    whole = all(not case.uneven for case in norms)
    if norms and whole and len(decayed) == len(rest) and weights:
        yield from _everything(norms)
        return
    if norms and weights and not any(case.decays for case in weights):
        yield from _inverted(norms, weights)
        return
    bare = [
        case
        for case in weights
        if case.wanted and not (case.decays or case.does.kept or case.leaf.scale in _HIDDEN)
    ]
    yield from _norms(norms)
    yield from _exempt(bare)
    yield from _unwanted([case for case in without(decayed, norms) if not case.wanted])
    yield from splits(analysis, rest)
    if not bare:
        yield from hardly_any(rest)
    yield from unknown(decayed)


def _climbing(live: Cases) -> list[Case]:
    """The leaves that climb their gradient where others descend theirs."""
    if not any(case.does.answer < 0 for case in live):
        return []  # `_all_climb` reports these
    return [case for case in live if case.does.moved and case.does.answer > 0]


def _growth(cases: Cases) -> Iterator[Finding]:
    return finding(
        "error",
        "growth",
        cases,
        "The decay points away from 0, so that leaves or parts of them grow without bound, {}. It "
        "is negative, or added after the learning rate has turned the sign of the updates. Put "
        "`optax.add_decayed_weights` before the learning rate, as `optax.adamw` does.",
    )


def _erased(cases: Cases) -> Iterator[Finding]:
    return finding(
        "error",
        "erased",
        cases,
        "Decay moves leaves that no gradient moves, and so takes them to 0 step by step, {}. To "
        "freeze them, give them to `optax.set_to_zero` in an `optax.partition`, so that no decay "
        "comes after it.",
    )


def _erased_in_part(cases: Cases) -> Iterator[Finding]:
    rows = [case for case in cases if case.does.erased == "rows"]
    yield from finding(
        "error",
        "erased",
        rows,
        "Decay moves parts of leaves that no gradient moves, and so takes them to 0 step by step, "
        "{}. The gradient is masked at some indices before something that decays. Mask the updates "
        "after the decay instead, as the last of the chain.",
    )
    yield from finding(
        "warning",
        "erased",
        without(cases, rows),
        "Decay moves single entries of leaves that no gradient moves, {}. That is right if these "
        "are pruned and 0. Otherwise mask the updates after the decay, as the last of the chain.",
    )


def _climbs(cases: Cases) -> Iterator[Finding]:
    raw = [case for case in cases if case.does.climbs_raw]
    yield from finding(
        "error",
        "climbs",
        raw,
        "The gradient itself is added to leaves, which climb it, {}. `optax.masked` hands on what "
        "it leaves out as it is; it does not freeze. Use `optax.partition` with "
        "`optax.set_to_zero` for these leaves.",
    )
    yield from finding(
        "warning",
        "climbs",
        without(cases, raw),
        "Leaves climb their gradient while others descend theirs, {}. That is right only if they "
        "are to raise the loss.",
    )


def _all_climb(live: Cases) -> Iterator[Finding]:
    climbing = [case for case in live if case.does.answer > 0]
    if any(case.does.answer < 0 for case in live) or all(case.does.bare for case in climbing):
        return iter(())  # some descend; or it is a part of a chain, whose sign comes after it
    return finding(
        "warning",
        "climbs",
        climbing,
        "All leaves climb their gradient, {}: nothing turns the sign of the updates, as a learning "
        "rate does, or it is turned twice. Added to the params as they are, they raise the loss, "
        "and what should decay grows. That is right only of a part of a chain, with the learning "
        "rate after it.",
    )


def _elsewhere(cases: Cases) -> Iterator[Finding]:
    centres = {f"{case.does.centre:.6g}" for case in cases}
    where = (
        f"{centres.pop()}" if len(centres) == 1 and "nan" not in centres else "values of its own"
    )
    return finding(
        "warning",
        "pulled_elsewhere",
        cases,
        f"Leaves are pulled to {where}, not toward zero, {{}}. The rate is the share of the way "
        f"there that a leaf goes in a step. That is right only if it is meant; weight decay pulls "
        f"toward zero.",
    )


def _recalled(cases: Cases) -> Iterator[Finding]:
    return finding(
        "warning",
        "recalled",
        cases,
        "Leaves are pulled to the values that the optimizer was initialised with, {}. That is no "
        "weight decay: it limits how far they get from there, not their size.",
    )


def _nothing(cases: Cases) -> Iterator[Finding]:
    return finding(
        "error",
        "nothing_decayed",
        cases,
        f"Nothing decays: the decay is 0, the mask is False everywhere, or the optimizer has none. "
        f"{_UNSEEN}",
    )


def _everything(norms: Cases) -> Iterator[Finding]:
    return finding(
        "error",
        "everything_decayed",
        norms,
        "Everything decays, what normalisers own too, {}. No mask was passed, or it exempts "
        "nothing. Pass `mask=analysis.decay_mask()`.",
    )


def _inverted(norms: Cases, weights: Cases) -> Iterator[Finding]:
    message = (
        f"The mask is inverted: what normalisers own decays ({some(norms)}), and no weight does "
        f"({some(weights)}). In Optax, True means that a leaf decays."
    )
    yield Finding("error", "inverted", tuple(case.path for case in [*norms, *weights]), message)


def _norms(norms: Cases) -> Iterator[Finding]:
    return finding(
        "error",
        "norm_decayed",
        norms,
        "What normalisers own decays, {}. That pulls gains from where the data hold them, at a "
        "rate meant for weights, or where a gain is written `1 + g` holds it at 1. "
        "`mask=analysis.decay_mask()` exempts it.",
    )


def _exempt(bare: Cases) -> Iterator[Finding]:
    return finding(
        "error",
        "weight_exempt",
        bare,
        "Weights are exempt though others decay and no normaliser is known to hide their scale, "
        "{}. If that is meant, name them in `never`.",
    )


def _unwanted(cases: Cases) -> Iterator[Finding]:
    return finding(
        "error",
        "exempt_decayed",
        cases,
        "Leaves decay that are in a category of `exempt`, {}. Make the mask with the same "
        "`exempt`: `analysis.decay_mask(exempt=...)`.",
    )


def _coupled(cases: Cases) -> Iterator[Finding]:
    rising = [case for case in cases if case.does.rises]
    constant = [case for case in without(cases, rising) if alike(case.does.rate, case.does.pushed)]
    yield from finding(
        "warning",
        "coupled",
        rising,
        "What leaves lose in a step is a larger share of them the larger they are, {}: it is "
        "multiplied with their size, as by `optax.scale_by_param_block_rms`. The rate shown holds "
        "for leaves of size 1 only.",
    )
    yield from finding(
        "warning",
        "coupled",
        constant,
        "What leaves lose in a step is not in proportion to them, {}, and the same whatever their "
        "gradient is: a penalty on absolute values (L1), or a soft threshold. That is no weight "
        "decay. The rate shown holds for leaves of size 1 only.",
    )
    yield from finding(
        "warning",
        "coupled",
        without(cases, rising, constant),
        "What leaves lose in a step is not in proportion to them, {}: the decay is added before "
        "something that divides by the size of what it gets, as Adam does, and its strength means "
        "little. The rate shown holds for leaves of size 1 only. Decay after that: `optax.adamw` "
        "in place of `optax.add_decayed_weights` before `optax.adam`.",
    )


def _lost(cases: Cases) -> Iterator[Finding]:
    return finding(
        "warning",
        "lost",
        cases,
        "Leaves decay by less than half of the distance to the next number of their dtype, so that "
        "a step without a gradient leaves them as they are, {}. Keep the params in float32 and "
        "cast where they are used.",
    )


def _uneven(decayed: Cases) -> Iterator[Finding]:
    cases = [case for case in decayed if case.uneven]
    low = min((case.does.least for case in cases), default=0)
    high = max((case.does.rate for case in cases), default=0)
    return finding(
        "warning",
        "uneven_rates",
        cases,
        f"Parts of one leaf decay at different rates, from {low:.3g} to {high:.3g} of themselves "
        f"in a step, {{}}. The rate shown is the highest. That is right only if it is meant, as "
        f"where stacked layers have learning rates of their own.",
    )


def _unequal(decayed: Cases) -> Iterator[Finding]:
    """Rates are compared among the leaves whose scale a normaliser hides, and among the others.

    Between the two a different rate is a treatment, such as `corrected_weight_decay`.
    """
    hidden = [case for case in decayed if case.leaf.scale is Scale.INVARIANT]
    for cases in (hidden, without(decayed, hidden)):
        values = [case.does.rate for case in cases]
        low, high = min(values, default=0), max(values, default=0)
        slow = [case for case in cases if case.does.rate * _same(case) < high]
        yield from finding(
            "warning",
            "unequal_rates",
            slow,
            f"Leaves decay at different rates, from {low:.3g} to {high:.3g} of themselves in a "
            f"step; below the highest are {{}}.",
        )


def _same(case: Case) -> float:
    """The factor by which a rate must exceed this leaf's to count as another."""
    return _SAME_STRETCHED if case.does.stretched else SAME
