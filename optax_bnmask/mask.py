"""The decision: from what is known of each leaf to a mask, or labels, that Optax takes."""

import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import compress, islice
from typing import Any, Final

import jax
import numpy as np

from optax_bnmask import arguments, compat
from optax_bnmask.analysis import NORMS, Analysis, Evidence, Leaf, Position, Role, Scale
from optax_bnmask.arguments import strings, wrong_kind
from optax_bnmask.compat import without_collection
from optax_bnmask.errors import CategoryError, PathError
from optax_bnmask.paths import layout, matches, nearest
from optax_bnmask.structure import reading
from optax_bnmask.wording import counted, percent

STANDARD: Final = ("norm", "bias")
"""What most recipes mean by "no decay": the normalisers' gains and biases, and all other biases."""

STRICT: Final = ("norm", "scale_invariant")
"""Decays only parameters whose scale reaches the outputs: decay on others sets a step size."""

WIDE: Final = ("norm", "bias", "gain", "learned", "scalar")
"""What longer lists of recipes exempt: gains such as a state-space layer's ``A_log``, single
numbers, and learned tokens, queries and tables of positions. Kernels all decay, those of depthwise
convolutions too, and so do tables that data are looked up in."""

_BY_ROLE: Final = {
    "norm": NORMS,
    "bias": frozenset({Role.BIAS}),
    "gain": frozenset({Role.GAIN}),
    "embedding": frozenset({Role.EMBEDDING}),
}
_BY_SCALE: Final = {"scale_invariant": Scale.INVARIANT, "jointly_invariant": Scale.JOINT}
_BY_POSITION: Final = {str(position): position for position in Position}
CATEGORIES: Final = (*_BY_ROLE, *_BY_SCALE, *_BY_POSITION, "scalar", "unreached", "dead")
"""Every category of leaf that `exempt`, `select` and `labels` understand."""

PART: Final = "part along axis "
"""How the names of parts of a leaf begin, where `by_blocks` shows them as leaves."""


_SHOWN: Final = 12
"""How many leaves a `repr` names, so that it fits a screen."""

_STRUCTURE_SHOWS: Final = ("norm", "bias", "embedding")


def whole(path: str) -> str:
    """The path of the leaf that a path names, or names a part of."""
    return path.partition(f"/{PART}")[0]


def is_in(leaf: Leaf, category: str) -> bool:
    """Whether a leaf is in one of `CATEGORIES`."""
    if category in _BY_ROLE:
        return leaf.role in _BY_ROLE[category]
    if category in _BY_SCALE:
        return leaf.scale is _BY_SCALE[category]
    if category in _BY_POSITION:
        return leaf.position is _BY_POSITION[category]
    if category == "dead":
        return leaf.dead is not None
    return leaf.size == 1 if category == "scalar" else not leaf.reached


class _Label(str):
    """A label in a tree: `optax.masked` would take any string for True, and decay everything."""

    __slots__ = ()

    def __bool__(self) -> bool:
        raise TypeError(
            f"A label is no yes or no. Where {str(self)!r} was met, `mask` must hold a bool for "
            f"each leaf: pass `analysis.decay_mask()` or `analysis.select(...)` as the mask, and "
            f"`Labels` to `optax.partition`."
        )


class Labels:
    """A label for each leaf: a callable for `optax.partition`, and a value.

    Calling it with a pytree gives the tree of labels in the tree's own containers, leaf by leaf by
    canonical path. It never looks at the leaves, so it serves under `jit`, on updates as on params,
    and on trees with `optax.MaskedNode` holes. Equal by content, hashable, picklable.
    """

    __slots__ = ("_by_path", "_last")
    _by_path: dict[str, Any]
    _last: tuple[Any, list[Any]] | None
    """The structure that this was called with last, and the labels of its leaves: an optimizer
    calls once to begin with and again wherever a step is traced, with trees of one structure, and
    that tells the names of all leaves."""

    def __init__(self, by_path: Mapping[str, Any]) -> None:
        object.__setattr__(self, "_by_path", self._guarded(arguments.by_path(by_path, "by_path")))
        object.__setattr__(self, "_last", None)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"`{type(self).__name__}` is frozen; make a new one instead.")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"`{type(self).__name__}` is frozen; make a new one instead.")

    def __reduce__(self) -> tuple[type, tuple[dict[str, Any]]]:
        return type(self), (self._by_path,)

    def __call__(self, tree: Any) -> Any:  # noqa: ANN401 - any pytree in, the same out
        """The tree with each leaf replaced by its label.

        Args:
          tree: Any pytree whose leaves this knows by path, or a part of it.

        Returns:
          A pytree of the same structure.

        Raises:
          PathError: The tree has a leaf that this does not know.
        """
        structure, last = jax.tree.structure(tree), self._last
        if last is None or last[0] != structure:
            last = structure, self._values(tree)
            object.__setattr__(self, "_last", last)
        with without_collection():
            return jax.tree.unflatten(structure, last[1])

    @staticmethod
    def _guarded(by_path: Mapping[str, Any]) -> dict[str, Any]:
        """The labels, so that none is taken for a bool."""
        return {p: _Label(v) if isinstance(v, str) else v for p, v in by_path.items()}

    def _values(self, tree: Any) -> list[Any]:  # noqa: ANN401 - any pytree
        """The labels of the leaves of a tree, in JAX's order."""
        paths = layout(tree, "tree").leaves
        known = self._by_path
        try:
            return [known[path] for path in paths]
        except KeyError:
            return [self._of_part(path, tree) for path in paths]

    def _of_part(self, path: str, tree: Any) -> Any:  # noqa: ANN401 - a label
        """The label of a leaf, or of the leaf that it is a part of; an error if there is none."""
        known = self._by_path
        try:
            return known[whole(path)]
        except KeyError:
            if not path:
                raise PathError(
                    f"A `{type(self).__name__}` must be called with the tree of its leaves. It got "
                    f"a single {type(tree).__name__}. `optax.inject_hyperparams` calls with the "
                    f'step count what is not declared static: pass `static_args=("mask",)` there, '
                    f"or whatever the argument is called."
                ) from None
            raise PathError(
                f"A `{type(self).__name__}` can only be applied to leaves that it was made for. It "
                f"met {path!r}, which is none of its {len(self._by_path)} leaves"
                f"{nearest(path, self._by_path)}. Make it anew from the params that the optimizer "
                f"sees."
            ) from None

    def summary(self, params: Any = None) -> str:  # noqa: ANN401 - any pytree
        """One line for a training log: how many leaves each label has, and how many parameters.

        Args:
          params: The tree that this was made for, of arrays or `jax.ShapeDtypeStruct`s; without it
            leaves are counted, and parameters are not.

        Returns:
          The line.

        Example:
          >>> import jax.numpy as jnp
          >>> import optax_bnmask as bnmask
          >>> params = {"dense": {"kernel": jnp.ones((2, 3))}, "norm": {"scale": jnp.ones(3)}}
          >>> bnmask.decay_mask(params).summary(params)
          'decays: 1 leaf, 6 parameters; exempt: 1 leaf, 3 parameters'
        """
        paths = self if params is None else layout(params).leaves
        groups: dict[Any, list[str]] = {}
        for path in paths:
            groups.setdefault(self[path], []).append(path)
        said = []
        for label, members in groups.items():
            size = counted(len(members), "leaf", "leaves")
            if params is not None:
                size += f", {sum(np.size(paths[path]) for path in members):,} parameters"
            said.append(f"{self._name(label)}: {size}")
        return "; ".join(said)

    @staticmethod
    def _name(label: Any) -> str:  # noqa: ANN401 - a label
        return str(label)

    def __getitem__(self, path: str) -> Any:  # noqa: ANN401 - a bool or a label
        """The label of the leaf of that canonical path."""
        try:
            return self._by_path[path]
        except KeyError:
            raise PathError(
                f"`path` must name a leaf. There is no leaf {path!r}{nearest(path, self._by_path)}."
            ) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_path)

    def __len__(self) -> int:
        return len(self._by_path)

    def __contains__(self, path: object) -> bool:
        return path in self._by_path

    def __bool__(self) -> bool:
        raise TypeError(
            f"A `{type(self).__name__}` is not one yes or no but a value for each leaf, and cannot "
            f"stand where a bool is wanted. Where a tree is wanted, call it: `mask(params)`."
        )

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self._by_path == other._by_path

    def __hash__(self) -> int:
        return hash((type(self), frozenset(self._by_path.items())))

    def __repr__(self) -> str:
        shown = islice(self._by_path.items(), _SHOWN)
        lines = "".join(f"\n  {path}: {label!r}" for path, label in shown)
        more = f"\n  and {len(self) - _SHOWN} more" if len(self) > _SHOWN else ""
        return f"{type(self).__name__}({lines}{more}\n)"


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
        for kind in set(map(type, by_path.values())) - {bool, np.bool_}:
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

    def __repr__(self) -> str:
        exempted = self.exempted
        head = f"Mask({len(self) - len(exempted)} of {len(self)} leaves decay"
        more = f" and {len(exempted) - _SHOWN} more" if len(exempted) > _SHOWN else ""
        return f"{head}; exempt: {', '.join(exempted[:_SHOWN])}{more})" if exempted else f"{head})"


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
    names = _checked(exempt, frozenset({Evidence.STRUCTURE}))
    roles = frozenset[Role]().union(*(_BY_ROLE[name] for name in names))
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
    analysis: Analysis, *, exempt: Collection[str], always: Iterable[str], never: Iterable[str]
) -> Mask:
    """`Analysis.decay_mask`."""
    names = _checked(exempt, analysis.evidence)
    decays = {
        leaf.path: _is_trainable(leaf) and not any(is_in(leaf, name) for name in names)
        for leaf in analysis.leaves
    }
    decays = _overridden(decays, always, never)
    if "scale_invariant" in names:
        _warn_of_strictness(analysis, decays)
    return Mask(decays)


def selection(analysis: Analysis, categories: Collection[str]) -> Mask:
    """`Analysis.select`."""
    names = _checked(categories, analysis.evidence, "categories")
    if not names:
        raise CategoryError(
            f"`select` must be given at least one category. Found none. Name some of "
            f"{', '.join(map(repr, CATEGORIES))}."
        )
    return Mask({leaf.path: any(is_in(leaf, name) for name in names) for leaf in analysis.leaves})


def labels_of(
    analysis: Analysis, *, categories: Collection[str] | Mapping[str, str], default: str
) -> Labels:
    """`Analysis.labels`."""
    names = _checked(categories, analysis.evidence, "categories")
    label = categories if isinstance(categories, Mapping) else {name: name for name in names}
    return Labels(
        {
            leaf.path: next((label[name] for name in names if is_in(leaf, name)), default)
            for leaf in analysis.leaves
        }
    )


def _checked(
    categories: Collection[str], evidence: frozenset[Evidence], argument: str = "exempt"
) -> tuple[str, ...]:
    """The categories, once it is known that the evidence can show them."""
    names = strings(categories, argument)
    shown = CATEGORIES if Evidence.PROGRAM in evidence else _STRUCTURE_SHOWS
    for name in names:
        if name not in CATEGORIES:
            raise CategoryError(
                f"A category must be one of {', '.join(map(repr, CATEGORIES))}. Found {name!r}."
                f"{' To name leaves, use `always` and `never`.' if '/' in str(name) else ''}"
            )
        if name not in shown:
            raise CategoryError(
                f"The category {name!r} cannot be told from structure alone, which shows "
                f"{', '.join(map(repr, shown))}. It is a property of the program: use "
                f"`bnmask.analyze(fn, params, ...)`, `analyze_linen` or `analyze_nnx`, and then "
                f"`.decay_mask(exempt=...)`."
            )
    return names


def _overridden(
    decays: dict[str, bool], always: Iterable[str], never: Iterable[str]
) -> dict[str, bool]:
    """The decision with the user's own word on top."""
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


def _warn_of_strictness(analysis: Analysis, decays: Mapping[str, bool]) -> None:
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
