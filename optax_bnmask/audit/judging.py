"""From what an optimizer decays to what is wrong with that, in words."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from optax_bnmask.analysis import Analysis, Leaf, Role, Scale
from optax_bnmask.audit.outcome import Finding

_NORMS: Final = frozenset({Role.NORM_SCALE, Role.NORM_BIAS})
_MAY_BE_EXEMPT: Final = _NORMS | {Role.BIAS, Role.GAIN}
_HIDDEN: Final = frozenset({Scale.INVARIANT, Scale.JOINT, Scale.UNUSED})

_SAME: Final = 1.05
"""Rates that differ by less are one rate."""

_NAMED: Final = 5
"""So many leaves are named in a message."""


def findings(
    analysis: Analysis, rates: Mapping[str, float], frozen: frozenset[str]
) -> tuple[Finding, ...]:
    """What is wrong with a set of rates, the gravest first.

    One cause gives one finding: where everything decays, the normalisers do too, and that is said
    once.

    Args:
      analysis: What is known of each leaf.
      rates: The measured rate of each.
      frozen: The leaves that no gradient moves; nothing is expected of them.

    Returns:
      The findings.
    """
    leaves = [leaf for leaf in analysis.leaves if leaf.path not in frozen]
    decayed = [leaf for leaf in leaves if rates[leaf.path] > 0]
    if not leaves:
        return (
            undetermined(_paths(analysis.leaves), "No gradient moves any leaf in any step tried."),
        )
    if not decayed:
        return () if all(leaf.role in _MAY_BE_EXEMPT for leaf in leaves) else (_nothing(leaves),)
    norms = [leaf for leaf in decayed if leaf.role in _NORMS]
    if norms and len(decayed) == len(leaves) and _weights(leaves):
        return (_everything(norms), *_unequal(decayed, rates))
    if norms and not _weights(decayed) and _weights(leaves):
        return (_inverted(norms, _weights(leaves)),)
    return (
        *_norms_decayed(norms),
        *_exempt([leaf for leaf in _weights(leaves) if not rates[leaf.path]]),
        *_unequal(decayed, rates),
    )


def undetermined(paths: Sequence[str], why: str) -> Finding:
    """The finding that says that there is none."""
    return Finding("warning", "undetermined", tuple(paths), f"What decays cannot be told. {why}")


def _weights(leaves: Sequence[Leaf]) -> list[Leaf]:
    return [leaf for leaf in leaves if leaf.role is Role.WEIGHT]


def _nothing(leaves: Sequence[Leaf]) -> Finding:
    return Finding(
        "error",
        "nothing_decayed",
        tuple(leaf.path for leaf in leaves),
        "Nothing decays: the decay is 0, the mask is False everywhere, or the optimizer has none.",
    )


def _everything(norms: Sequence[Leaf]) -> Finding:
    return Finding(
        "error",
        "everything_decayed",
        _paths(norms),
        f"Everything decays, the {_count(norms)} of normalisers too ({_some(norms)}): no mask was "
        f"passed, or it exempts nothing. Pass `mask=analysis.decay_mask()`.",
    )


def _inverted(norms: Sequence[Leaf], weights: Sequence[Leaf]) -> Finding:
    return Finding(
        "error",
        "inverted",
        _paths([*norms, *weights]),
        f"The mask is inverted: what normalisers own decays ({_some(norms)}), and no weight does "
        f"({_some(weights)}). In Optax, True means that a leaf decays.",
    )


def _norms_decayed(norms: Sequence[Leaf]) -> Iterator[Finding]:
    if norms:
        yield Finding(
            "error",
            "norm_decayed",
            _paths(norms),
            f"What normalisers own decays, {_count(norms)}: {_some(norms)}. That regularises "
            f"nothing and pulls gains to 0. `mask=analysis.decay_mask()` exempts it.",
        )


def _exempt(weights: Sequence[Leaf]) -> Iterator[Finding]:
    """Weights whose scale a normaliser hides may well be exempt; others have no reason to be."""
    bare = [leaf for leaf in weights if leaf.scale not in _HIDDEN]
    if bare:
        yield Finding(
            "error",
            "weight_exempt",
            _paths(bare),
            f"Weights are exempt though others decay and no normaliser is known to hide their "
            f"scale, {_count(bare)}: {_some(bare)}. If that is meant, name them in `never`.",
        )


def _unequal(decayed: Sequence[Leaf], rates: Mapping[str, float]) -> Iterator[Finding]:
    values = [rates[leaf.path] for leaf in decayed]
    low, high = min(values), max(values)
    if high > _SAME * low:
        slow = [leaf for leaf in decayed if rates[leaf.path] * _SAME < high]
        yield Finding(
            "warning",
            "unequal_rates",
            _paths(slow),
            f"Leaves decay at different rates, from {low:.3g} to {high:.3g} of themselves in a "
            f"step; below the highest: {_some(slow)}.",
        )


def _paths(leaves: Sequence[Leaf]) -> tuple[str, ...]:
    return tuple(leaf.path for leaf in leaves)


def _some(leaves: Sequence[Leaf]) -> str:
    more = len(leaves) - _NAMED
    named = ", ".join(repr(leaf.path) for leaf in leaves[:_NAMED])
    return f"{named} and {more} more" if more > 0 else named


def _count(leaves: Sequence[Leaf]) -> str:
    return "1 leaf" if len(leaves) == 1 else f"{len(leaves)} leaves"
