"""The roles of a scope's arrays by the frameworks' naming conventions, where no statistics decide.

Flax, Haiku, Equinox and Keras name what their layers own; a scope is read as a whole, by its own
names and shapes, and never by where it is in the model.
"""

import itertools
import math
import re
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from optax_bnmask.vocabulary import Role

Shape = tuple[int, ...]


class Verdict(NamedTuple):
    """The role of one leaf and what it rests on.

    Attributes:
      role: The role.
      reason: What it rests on, in a few words without the leaf's path.
      refused: Why the leaf is not what its name suggests, or nothing.
      trainable: Whether an optimizer can move the leaf at all.
      confirmed: Whether statistics of its own show it to be a BatchNorm's.
    """

    role: Role
    reason: str
    refused: str = ""
    trainable: bool = True
    confirmed: bool = False

    def refusing(self, why: str) -> "Verdict":
        """This verdict, with `why` another role was refused as `refused` and in its reason."""
        reason = why if self.role is Role.UNKNOWN else f"{self.reason}; {why}"
        return self._replace(reason=reason, refused=why)


class _Norm(NamedTuple):
    """How a framework names a normaliser's arrays."""

    offsets: tuple[str, ...]
    whose: str


_NORMS: Final = {
    "scale": _Norm(("bias", "offset"), "Flax's and Haiku's"),
    "weight": _Norm(("bias",), "Equinox's and PyTorch's"),
    "gamma": _Norm(("beta",), "Keras's and TensorFlow's"),
}
GAINS: Final = frozenset(_NORMS)
"""What a normaliser's gain is called."""
OFFSETS: Final = frozenset(name for norm in _NORMS.values() for name in norm.offsets)
"""What a normaliser's bias is called."""

_WEIGHTS: Final = {"kernel": "bias", "w": "b", "weight": "bias"}
_BIAS_WORD: Final = re.compile(r"(?:^|_)(?:b|bias|biases)(?=$|_)")
"""The word in a name that marks a bias: ``bias``, ``b``, ``gating_b``, ``bias_ih``."""
_WEIGHT_WORD: Final = re.compile(r"(?:^|_)(?:w|weight|weights|kernel)(?=$|_)")
_TABLES: Final = ("embedding", "embeddings")

UNKNOWN: Final = Verdict(Role.UNKNOWN, "neither statistics nor a convention tells how it is used")
_WEIGHT: Final = Verdict(Role.WEIGHT, "by convention: a matrix or filter of that name")
_WEIGHT_BY_BIAS: Final = Verdict(
    Role.WEIGHT, "by convention: a matrix or filter beside a bias of its output's shape"
)
_BIAS: Final = Verdict(Role.BIAS, "by convention: beside a weight, of its output's shape")
_EMBEDDING: Final = Verdict(Role.EMBEDDING, "by convention: alone in its scope under that name")


def by_convention(shapes: Mapping[str, Shape], *, nested: bool) -> dict[str, Verdict]:
    """A verdict for each array of a scope, from the names and shapes in it.

    Args:
      shapes: The shapes of the arrays directly in the scope, by name.
      nested: Whether the scope holds further scopes.

    Returns:
      The verdicts, in the order of `shapes`.
    """
    verdicts = (
        dict.fromkeys(shapes, UNKNOWN)
        | _paired(shapes)
        | _weights(shapes)
        | _table(shapes)
        | _stemmed_norms(shapes)
    )
    gain = next((name for name in _NORMS if name in shapes), None)
    if gain is None or verdicts[gain] is not UNKNOWN:
        return verdicts
    if why := _no_norm(gain, shapes, nested=nested):
        verdicts[gain] = UNKNOWN.refusing(f"not taken for a normaliser's: {why}")
        return verdicts
    return _norm(gain, shapes)


def _weights(shapes: Mapping[str, Shape]) -> dict[str, Verdict]:
    """The weights of linear layers and convolutions, and the biases beside them."""
    verdicts: dict[str, Verdict] = {}
    for weight, bias in _WEIGHTS.items():
        if len(shapes.get(weight, ())) < 2 or shapes.get(bias) == shapes[weight]:
            continue
        if tuple(shapes) == ("weight",):
            continue  # Equinox's Linear without bias and its Embedding look alike
        verdicts[weight] = _WEIGHT
        if bias in shapes and _fits(shapes[weight], shapes[bias]):
            verdicts[bias] = _BIAS
    return verdicts


def _paired(shapes: Mapping[str, Shape]) -> dict[str, Verdict]:
    """Biases of any spelling, and the weights beside them, told by their shapes.

    The name must be a bias's, for a gain is of the output's shape too. Its weight is the array of
    the same name but for that word (``gating_w`` beside ``gating_b``), or any that the bias fits.
    """
    verdicts: dict[str, Verdict] = {}
    weights = _Weights(shapes)
    for bias in shapes:
        partners: list[str] = []
        if _BIAS_WORD.search(bias) and not _is_second_of_two(bias, shapes):
            partners = weights.beside(_BIAS_WORD.sub("", bias), shapes[bias])
        elif bias[:1] in _LETTERS:  # `b1` beside `w1`, `bi` beside `wi`
            partners = weights.fitting([_LETTERS[bias[:1]] + bias[1:]], shapes[bias])
        if partners:
            verdicts[bias] = _BIAS
        if len(partners) == 1:
            verdicts[partners[0]] = _WEIGHT_BY_BIAS
    return verdicts


_LETTERS: Final = {"b": "w", "B": "W"}
"""How the names of a bias and its weight begin in code by hand."""


def _is_second_of_two(bias: str, shapes: Mapping[str, Shape]) -> bool:
    """Whether a matrix `b` stands beside an `a`: the second of two factors, and no bias."""
    return len(shapes[bias]) > 1 and any(
        m[0].endswith("b") and f"{bias[: m.end() - 1]}a{bias[m.end() :]}" in shapes
        for m in _BIAS_WORD.finditer(bias)
    )


class _Weights:
    """The arrays of a scope that may be matrices or filters, by their names and axes.

    A flat scope may have thousands, so that no bias is compared with all of them.
    """

    def __init__(self, shapes: Mapping[str, Shape]) -> None:
        self._shapes = {name: shapes[name] for name in shapes if _may_be_weight(name, shapes[name])}
        self._by_stem: dict[str, list[str]] = {}
        self._by_length: dict[int, list[str]] = {}
        for name, shape in self._shapes.items():
            self._by_stem.setdefault(_WEIGHT_WORD.sub("", name), []).append(name)
            for n in set(shape):
                self._by_length.setdefault(n, []).append(name)

    def beside(self, stem: str, bias: Shape) -> list[str]:
        """The arrays of a stem that a bias of that shape fits; without any, up to two others."""
        lists = [self._by_length.get(n, ()) for n in bias if n > 1]
        all_others = min(lists, key=len, default=self._shapes)
        own = self.fitting(self._by_stem.get(stem, ()), bias)
        return own or self.fitting(all_others, bias, most=2)

    def fitting(self, names: Iterable[str], bias: Shape, most: int | None = None) -> list[str]:
        """Those of some names that a bias of that shape fits (`_fits`), at most so many."""
        fits = (
            name
            for name in names
            if name in self._shapes and self._shapes[name] != bias
            if _fits(self._shapes[name], bias)
        )
        return list(itertools.islice(fits, most))


def _may_be_weight(name: str, shape: Shape) -> bool:
    """Whether an array may be a matrix or a filter: not a stacked gain, a bias or a table."""
    named_otherwise = name in ("scale", "gamma", *_TABLES) or _BIAS_WORD.search(name)
    return len(shape) >= 2 and not named_otherwise


def _fits(weight: Shape, bias: Shape) -> bool:
    """Whether the bias's axes are axes of the weight, in that order.

    So ``(O,)`` fits ``(I, O)``, Equinox's ``(O, 1, 1)`` fits ``(O, I, H, W)``, attention's
    ``(H, D)`` fits ``(I, H, D)``, and so does any of them stacked along one more axis.
    """
    axes = iter(weight)
    return bool(bias) and all(n == 1 or n in axes for n in bias)


def _table(shapes: Mapping[str, Shape]) -> dict[str, Verdict]:
    """The table of an embedding, which is alone in its scope."""
    return {
        name: _EMBEDDING for name in _TABLES if tuple(shapes) == (name,) and len(shapes[name]) >= 2
    }


def _no_norm(gain: str, shapes: Mapping[str, Shape], *, nested: bool) -> str:
    """Why a scope with a gain is not a normaliser's by convention; empty if it is one's."""
    others = sorted(set(shapes) - {gain, *_NORMS[gain].offsets})
    if others or nested:
        found = ", ".join(map(repr, others)) or "further scopes"
        return f"by convention it would have no {found} beside it"
    if len(set(shapes.values())) > 1:
        sizes = ", ".join(f"{name!r} {shape}" for name, shape in shapes.items())
        return f"by convention its gain and bias are of one shape, and here are {sizes}"
    if shapes[gain] == () or (len(shapes) == 1 and math.prod(shapes[gain]) == 1):
        return "it is a single number"
    if len(shapes) == 1 and (gain == "gamma" or (gain == "weight" and len(shapes[gain]) > 1)):
        return f"a lone {gain!r} may be anything"
    return ""


def _stemmed_norms(shapes: Mapping[str, Shape]) -> dict[str, Verdict]:
    """Normalisers in a flat scope: ``ln1_scale`` and ``ln1_bias``, vectors of one shape."""
    verdicts: dict[str, Verdict] = {}
    for gain, norm in _NORMS.items():
        for name in (name for name in shapes if name.endswith(f"_{gain}")):
            stem = name.removesuffix(gain)
            for offset in (f"{stem}{word}" for word in norm.offsets):
                if len(shapes[name]) == 1 and shapes.get(offset) == shapes[name]:
                    reason = f"by convention: {name!r} and {offset!r} are of one shape"
                    verdicts[name] = Verdict(Role.NORM_SCALE, reason)
                    verdicts[offset] = Verdict(Role.NORM_BIAS, reason)
    return verdicts


def _norm(gain: str, shapes: Mapping[str, Shape]) -> dict[str, Verdict]:
    """The arrays of a scope that is a normaliser's by convention."""
    names = " and ".join(map(repr, shapes))
    reason = (
        f"by {_NORMS[gain].whose} convention, unconfirmed by statistics: a scope with only {names}"
        f"{' of one shape' if len(shapes) > 1 else ''}"
    )
    scale, bias = Verdict(Role.NORM_SCALE, reason), Verdict(Role.NORM_BIAS, reason)
    return {name: scale if name == gain else bias for name in shapes}
