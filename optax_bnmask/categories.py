"""The categories of leaf that a decision may name, and the presets made of them."""

from collections.abc import Collection
from difflib import get_close_matches
from typing import Final

from optax_bnmask.arguments import strings
from optax_bnmask.errors import CategoryError
from optax_bnmask.vocabulary import NORMS, Evidence, Leaf, Position, Role, Scale

STANDARD: Final = ("norm", "bias")
"""What most recipes mean by "no decay": the normalisers' gains and biases, and all other biases."""

STRICT: Final = ("norm", "scale_invariant")
"""Decays only parameters whose scale the outputs depend on: on others, decay sets a step size."""

WIDE: Final = ("norm", "bias", "gain", "learned", "scalar")
"""What longer lists of recipes exempt: gains such as a state-space layer's ``A_log``, single
numbers, and learned tokens, queries and tables of positions. Kernels all decay, those of depthwise
convolutions too, and so do tables that data are looked up in."""

BY_ROLE: Final = {
    "norm": NORMS,
    "bias": frozenset({Role.BIAS}),
    "gain": frozenset({Role.GAIN}),
    "embedding": frozenset({Role.EMBEDDING}),
}
_BY_SCALE: Final = {"scale_invariant": Scale.INVARIANT, "jointly_invariant": Scale.JOINT}
_BY_POSITION: Final = {str(position): position for position in Position}
CATEGORIES: Final = (*BY_ROLE, *_BY_SCALE, *_BY_POSITION, "scalar", "unreached", "dead")
"""Every category of leaf that `exempt`, `select` and `labels` understand."""

_STRUCTURE_SHOWS: Final = ("norm", "bias", "embedding")


def is_in(leaf: Leaf, category: str) -> bool:
    """Whether a leaf is in one of `CATEGORIES`."""
    if category in BY_ROLE:
        return leaf.role in BY_ROLE[category]
    if category in _BY_SCALE:
        return leaf.scale is _BY_SCALE[category]
    if category in _BY_POSITION:
        return leaf.position is _BY_POSITION[category]
    if category == "dead":
        return leaf.dead is not None
    return leaf.size == 1 if category == "scalar" else not leaf.reached


def checked(
    categories: Collection[str], evidence: frozenset[Evidence], argument: str = "exempt"
) -> tuple[str, ...]:
    """The categories as a tuple; fails if one does not exist or the evidence cannot decide it."""
    names = strings(categories, argument)
    shown = CATEGORIES if Evidence.PROGRAM in evidence else _STRUCTURE_SHOWS
    for name in names:
        if name not in CATEGORIES:
            raise CategoryError(
                f"A category must be one of {', '.join(map(repr, CATEGORIES))}. Found {name!r}."
                f"{_hint(str(name))}"
            )
        if name not in shown:
            raise CategoryError(
                f"The category {name!r} cannot be told from structure alone, which shows "
                f"{', '.join(map(repr, shown))}. It is a property of the program: use "
                f"`bnmask.analyze(fn, params, ...)`, `analyze_linen` or its kin, and then "
                f"`.decay_mask(exempt=...)`."
            )
    return names


def _hint(name: str) -> str:
    """What may have been meant by a name that is no category."""
    if "/" in name:
        return " To name leaves, use `always` and `never`."
    roles = [category for category, own in BY_ROLE.items() if name in {r.value for r in own}]
    close = roles or get_close_matches(name.replace("-", "_"), CATEGORIES, 1)
    return f" Did you mean {close[0]!r}?" if close else ""
