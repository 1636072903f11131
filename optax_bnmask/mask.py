"""The decision: from what is known of each leaf to a mask, or labels, that Optax takes."""

import operator
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from itertools import compress
from typing import Any

import numpy as np

from optax_bnmask import compat
from optax_bnmask.arguments import wrong_kind
from optax_bnmask.categories import BY_ROLE, CATEGORIES, checked, is_in
from optax_bnmask.errors import CategoryError, PathError
from optax_bnmask.labels import SHOWN, Labels, Part, parts_of
from optax_bnmask.paths import matches, printable
from optax_bnmask.record import Record
from optax_bnmask.structure import reading
from optax_bnmask.vocabulary import Evidence, Leaf, Role, Scale
from optax_bnmask.wording import percent


class Mask(Labels):
    """Which leaves decay: a callable for the `mask` argument of Optax's aliases, and a value.

    `True` means that the leaf decays. See `Labels` for what calling it does.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> import optax_bnmask as bnmask
      >>> params = {"dense": {"kernel": jnp.ones((2, 3))}, "norm": {"scale": jnp.ones(3)}}
      >>> mask = bnmask.decay_mask(params)
      >>> mask(params)
      {'dense': {'kernel': True}, 'norm': {'scale': False}}
      >>> tx = optax.adamw(1e-3, weight_decay=1e-4, mask=mask)
    """

    __slots__ = ()

    @property
    def decayed(self) -> tuple[str, ...]:
        """The paths of the leaves that decay."""
        return tuple(path for path, decays in self._by_path.items() if decays)

    @property
    def exempted(self) -> tuple[str, ...]:
        """The paths of the leaves that do not decay."""
        return tuple(path for path, decays in self._by_path.items() if not decays)

    @staticmethod
    def _guarded(by_path: Mapping[str, Any]) -> dict[str, Any]:
        kinds = set(map(type, by_path.values()))
        if kinds == {bool}:
            return dict(by_path)
        for kind in kinds - {bool, np.bool_}:
            path = next(path for path, value in by_path.items() if type(value) is kind)
            raise wrong_kind(
                f"by_path[{path!r}]",
                "a bool",
                by_path[path],
                "A `Mask` holds True for each leaf that decays, by its path.",
            )
        return {path: bool(decays) for path, decays in by_path.items()}

    @staticmethod
    def _name(label: Any) -> str:  # noqa: ANN401 - a bool
        return "decays" if label else "exempt"

    def __invert__(self) -> "Mask":
        """The mask of the other leaves."""
        return Mask({path: not decays for path, decays in self._by_path.items()})

    def __and__(self, other: "Mask") -> "Mask":
        """The mask of the leaves that decay in both."""
        return self._joined(other, operator.and_)

    def __or__(self, other: "Mask") -> "Mask":
        """The mask of the leaves that decay in either."""
        return self._joined(other, operator.or_)

    def _joined(self, other: "Mask", join: Callable[[bool, bool], bool]) -> "Mask":
        if not isinstance(other, Mask):
            raise wrong_kind("other", "a `Mask`", other, "`analysis.select(...)` makes one.")
        if strange := sorted(self._by_path.keys() ^ other._by_path.keys()):
            raise PathError(
                f"Two masks must be of the same leaves to be joined. Only one of them has "
                f"{strange[0]!r}. Make both from the same params."
            )
        return Mask({path: join(decays, other[path]) for path, decays in self._by_path.items()})

    def __repr__(self) -> str:
        exempted, chosen = self.exempted, self.decayed
        head = f"Mask({len(chosen)} of {len(self)} leaves decay"
        if not exempted:
            return f"{head})"
        # The shorter list: of a selection of few leaves, these are what somebody wants to see.
        few = 0 < 2 * len(chosen) < len(exempted)
        name, some = ("", chosen) if few else ("; exempt", exempted)
        more = f" and {len(some) - SHOWN} more" if len(some) > SHOWN else ""
        return f"{head}{name}: {', '.join(map(printable, some[:SHOWN]))}{more})"


def decay_mask(
    params: Any,  # noqa: ANN401 - any pytree
    batch_stats: Any = None,  # noqa: ANN401 - any pytree
    *,
    exempt: Collection[str] = ("norm",),
    always: Iterable[str] = (),
    never: Iterable[str] = (),
) -> Mask:
    """The weight-decay mask from structure alone: no model, no tracing.

    A BatchNorm is known by its statistics: a scope of `params` whose counterpart in `batch_stats`
    holds `mean` *and* `var` of the shape of its `scale` and `bias`. Normalisers that keep no
    statistics are known by the frameworks' conventions. See `analyze_structure` for the reasons.

    Args:
      params: Any pytree of arrays (any shapes), `jax.ShapeDtypeStruct`s or tracers; an
        `nnx.Module` or `nnx.State` brings its own statistics.
      batch_stats: The tree of statistics beside it: Linen's `batch_stats`, Haiku's `state`.
      exempt: The categories that do not decay: any of ``"norm"``, ``"bias"``, ``"embedding"``.
      always: Globs of paths that decay whatever `exempt` says.
      never: Globs of paths that do not decay whatever `exempt` says.

    Returns:
      A `Mask`: pass it as `mask` (or `weight_decay_mask`) to any Optax alias.

    Raises:
      StructureError: The two trees are not of one model.
      CategoryError: An unknown category, or one that structure cannot show.
      PathError: A glob matches nothing, or one leaf is in both `always` and `never`.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax_bnmask as bnmask
      >>> params = {"conv": {"kernel": jnp.ones((3, 3, 1, 8))}, "post": {"scale": jnp.ones(8)}}
      >>> stats = {"post": {"mean": jnp.zeros(8), "var": jnp.ones(8)}}
      >>> bnmask.decay_mask(params, stats)
      Mask(1 of 2 leaves decay; exempt: post/scale)

    References:
      Ioffe and Szegedy, Batch Normalization, 2015, arXiv:1502.03167.
    """
    names = checked(exempt, frozenset({Evidence.STRUCTURE}))
    roles = frozenset[Role]().union(*(BY_ROLE[name] for name in names))
    read = reading(params, batch_stats)
    decays = dict.fromkeys(read.params.leaves, True)
    left_out: dict[int, list[bool]] = {}
    for scope, row in zip(read.params.scopes.values(), read.rulings, strict=True):
        flags = left_out.get(id(row))  # the rows of all scopes of one kind are one object
        if flags is None:
            flags = [not v.trainable or v.role in roles for v in row]
            left_out[id(row)] = flags = flags if any(flags) else []
        if flags:
            for path in compress(scope.values(), flags):
                decays[path] = False
    return Mask(_overridden(decays, always, never))


def decay_mask_of(
    analysis: Record, *, exempt: Collection[str], always: Iterable[str], never: Iterable[str]
) -> Mask:
    """Implements `Analysis.decay_mask`."""
    names = checked(exempt, analysis.evidence)
    decays = {
        leaf.path: _is_trainable(leaf) and not any(is_in(leaf, name) for name in names)
        for leaf in analysis.leaves
    }
    decays = _overridden(decays, always, never)
    if "scale_invariant" in names:
        _warn_of_strictness(analysis, decays)
    return Mask(decays)


def selection(analysis: Record, categories: Collection[str], *, by_blocks: bool) -> Mask:
    """Implements `Analysis.select`."""
    for each in categories:
        if not isinstance(each, str):
            raise wrong_kind(
                "categories",
                "names, each an argument of its own, as in `select('norm', 'bias')`",
                each,
                "A collection is `select(*names)`.",
            )
    names = checked(categories, analysis.evidence, "categories")
    if not names:
        raise CategoryError(
            f"`select` must be given at least one category. Found none. Name some of "
            f"{', '.join(map(repr, CATEGORIES))}."
        )
    chosen = {leaf.path: any(is_in(leaf, name) for name in names) for leaf in analysis.leaves}
    if not by_blocks:
        return Mask(chosen)
    hides = "scale_invariant" in names
    out: dict[str, bool] = {}
    for leaf in analysis.leaves:
        is_in_all = chosen[leaf.path]
        parts = parts_of(leaf).items()
        out |= {f"{leaf.path}/{p}": is_in_all or (hides and _is_hidden(leaf, w)) for p, w in parts}
        out |= {} if parts else {leaf.path: is_in_all}
    return Mask(out)


def _is_hidden(leaf: Leaf, part: Part) -> bool:
    """Whether all indices of a part along some axis lie in the leaf's scale-invariant blocks."""
    return any(
        all(any(b.start <= run.start and run.stop <= b.stop for b in blocks) for run in part[axis])
        for axis, blocks in leaf.invariant_blocks.items()
        if axis in part
    )


def labels_of(
    analysis: Record, *, categories: Collection[str] | Mapping[str, str], default: str
) -> Labels:
    """Implements `Analysis.labels`."""
    is_mapping = isinstance(categories, Mapping)
    names = checked(
        tuple(categories) if is_mapping else categories, analysis.evidence, "categories"
    )
    label = categories if isinstance(categories, Mapping) else {name: name for name in names}
    for each in (default, *label.values()):
        if not isinstance(each, str):  # None would be a hole in the tree, True a mask
            raise wrong_kind(
                "default" if each is default else "categories",
                "a string, as is each label",
                each,
                "It is a key of the optimizers that `optax.partition` gets.",
            )
    if not names or default in label.values():
        found = f"{default!r} for both" if names else "none"
        raise CategoryError(
            f"`labels` must tell at least one category from the default. Found {found}. Name some "
            f"of {', '.join(map(repr, CATEGORIES))}, and a default of another name."
        )
    return Labels(
        {
            leaf.path: next((label[name] for name in names if is_in(leaf, name)), default)
            for leaf in analysis.leaves
        }
    )


def _overridden(
    decays: dict[str, bool], always: Iterable[str], never: Iterable[str]
) -> dict[str, bool]:
    """The decisions, overridden by the user's globs `always` and `never`."""
    chosen, refused = matches(always, decays, "always"), matches(never, decays, "never")
    if both := sorted(chosen & refused):
        raise PathError(
            f"A leaf can be in `always` or in `never`. {both[0]!r} is matched by both"
            f"{f', and so are {len(both) - 1} more' if len(both) > 1 else ''}. Narrow one glob."
        )
    if chosen or refused:
        return {p: p in chosen or (d and p not in refused) for p, d in decays.items()}
    return decays


def _is_trainable(leaf: Leaf) -> bool:
    """Whether an optimizer moves the leaf otherwise than by decay."""
    return leaf.reached and compat.is_inexact(leaf.dtype)


def _warn_of_strictness(analysis: Record, decays: Mapping[str, bool]) -> None:
    """Says how much of the model is left without decay because normalisers hide its scale."""
    total = sum(leaf.size for leaf in analysis.leaves)
    freed = sum(
        leaf.size
        for leaf in analysis.leaves
        if leaf.scale is Scale.INVARIANT and not decays[leaf.path]
    )
    if freed:
        warnings.warn(
            f"`exempt` includes 'scale_invariant': {percent(freed, total)} of the parameters "
            f"are left without decay because a normaliser hides their scale. Their norms will "
            f"grow and their effective learning rate, lr / norm**2, will fall, which is known to "
            f"hurt unless it is compensated (arXiv:1810.12281, arXiv:1910.07454).",
            UserWarning,
            stacklevel=4,
        )
