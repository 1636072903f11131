"""The statistics that normalisers keep: which scopes hold a running mean *and* variance.

Not everything in `batch_stats` is BatchNorm's: SpectralNorm keeps its `u` and `sigma` there, and a
user's module may keep a `mean` alone. What is refused is kept with the reason why.
"""

import sys
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import jax
import numpy as np

from optax_bnmask.errors import StructureError
from optax_bnmask.paths import TreeIndex, tree_index

Shape = tuple[int, ...]

_COLLECTIONS: Final = {"batch_stats", "cache", "intermediates", "params_axes", "state"}
_MEAN_EMA: Final = "/~/mean_ema"
_VAR_EMA: Final = "/~/var_ema"
_HAIKU: Final = (_MEAN_EMA, _VAR_EMA)


class Statistics(NamedTuple):
    """What the tree of statistics says of each scope.

    Attributes:
      shapes: The shape of the running mean and variance, where a scope keeps both.
      refused: Why the other scopes with statistics are no BatchNorm's, in a clause.
    """

    shapes: dict[str, Shape]
    refused: dict[str, str]


_NAMES: Final = (
    ("mean", "var"),
    ("moving_mean", "moving_variance"),
    ("running_mean", "running_var"),
)
"""What a running mean and variance are called: by Flax and Haiku, by Keras, and by PyTorch."""

_MEANS: Final = frozenset({"average", *(mean for mean, _ in _NAMES)})


def extent(shape: Shape) -> Shape:
    """A shape without axes of length 1: statistics are often kept in the form they broadcast in.

    Where a gain has shape ``(8,)``, statistics of ``(1, 1, 8)`` are its own.
    """
    return tuple(n for n in shape if n != 1)


def is_own(gain: Shape, shape: Shape) -> bool:
    """Whether statistics of some shape may be those of a gain.

    Without axes of length 1, the two shapes are equal up to the order of axes (`scan` and `vmap`
    may stack along different ones), or one of them has one axis more: each device, or each member
    of an ensemble, has statistics of its own and common parameters, or the other way round.
    """
    short, long = sorted((sorted(extent(gain)), sorted(extent(shape))), key=len)
    if len(short) == len(long):
        return short == long
    return bool(short) and any(short == long[:a] + long[a + 1 :] for a in range(len(long)))


def may_hold_statistics(tree: TreeIndex) -> bool:
    """Whether a scope has an array called like a running mean: cheaper than `statistics`."""
    return not all(map(_MEANS.isdisjoint, tree.scopes.values()))


def statistics(kept: TreeIndex) -> Statistics:
    """The scopes that keep a running mean and variance of one shape, and why the others do not."""
    found = Statistics({}, {})
    leaves = kept.leaves
    for path, scope in kept.scopes.items():
        owner, names = path, scope
        if path.endswith(_HAIKU):
            owner, names = _haiku_averages(path, kept)
        for pair in _NAMES:
            if pair[0] in names and pair[1] in names:
                break
        else:
            held = ", ".join(map(repr, names))
            found.refused[owner] = f"they are {held} and not both a 'mean' and a 'var'"
            continue
        shape, other = _shape(leaves[names[pair[0]]]), _shape(leaves[names[pair[1]]])
        if shape == other or extent(shape) == extent(other):
            found.shapes[owner] = shape
        else:
            found.refused[owner] = (
                f"their {pair[0]!r} has shape {shape} and their {pair[1]!r} {other}"
            )
    return found


def _shape(leaf: Any) -> Shape:  # noqa: ANN401 - any leaf at all
    """The shape of a statistic."""
    try:
        return leaf.shape
    except AttributeError:
        return np.shape(leaf)


def _haiku_averages(path: str, kept: TreeIndex) -> tuple[str, dict[str, str]]:
    """The module that owns an average, and the paths of both its averages.

    Haiku keeps ``<module>/~/mean_ema/average`` and ``<module>/~/var_ema/average``.
    """
    owner = path.removesuffix(_MEAN_EMA).removesuffix(_VAR_EMA)
    mean, var = kept.scopes.get(owner + _MEAN_EMA, {}), kept.scopes.get(owner + _VAR_EMA, {})
    if "average" not in mean.keys() & var.keys():
        return path, kept.scopes[path]
    return owner, {"mean": mean["average"], "var": var["average"]}


def parted(params: Any, batch_stats: Any) -> tuple[Any, Any]:  # noqa: ANN401 - any pytree
    """Takes params and statistics out of NNX modules and Equinox states, as two plain trees.

    An NNX module or state holds both; Equinox keeps its statistics in an `equinox.nn.State`. Trees
    of any other kind are returned as they are.
    """
    equinox = sys.modules.get("equinox")
    if equinox is not None and isinstance(batch_stats, equinox.nn.State):
        return params, _of_equinox(params, batch_stats, equinox.nn.StateIndex)
    nnx = sys.modules.get("flax.nnx")  # not imported by `import flax`, nor by us
    if nnx is None or not isinstance(params, (nnx.Module, nnx.State)):
        return params, batch_stats
    is_module = isinstance(params, nnx.Module)
    state = nnx.state(params) if is_module else params
    if batch_stats is None:
        batch_stats = nnx.filter_state(state, nnx.BatchStat)
    trained = nnx.Param if is_module else nnx.Not(nnx.Any(nnx.BatchStat, nnx.RngState))
    return nnx.filter_state(state, trained), batch_stats


def _of_equinox(params: Any, state: Any, index: type) -> dict[str, Any]:  # noqa: ANN401 - any pytree
    """The pairs of arrays of one shape in a state, by the scope whose module indexes them.

    A BatchNorm of Equinox's keeps its running mean and variance so. Other modules keep other pairs;
    these are of no account, since where there is no gain of their shape nothing follows from them.
    """

    def is_index(node: object) -> bool:
        return isinstance(node, index)

    scopes = tree_index(params).scopes
    found: dict[str, Any] = {}
    for keys, node in jax.tree_util.tree_flatten_with_path(params, is_leaf=is_index)[0]:
        scope = jax.tree_util.keystr(keys[:-1], simple=True, separator="/")
        if is_index(node) and scope in scopes:
            kept = state.get(node)
            if isinstance(kept, tuple) and len({np.shape(x) for x in kept}) == 1 < len(kept):
                found |= {f"{scope}/{name}": x for name, x in zip(_NAMES[0], kept, strict=False)}
    return found


def refuse_state(tree: Any, argument: str) -> None:  # noqa: ANN401 - any pytree
    """Fails if `tree` is a train state, an optimizer, or the state of an Optax optimizer."""
    if hasattr(type(tree), "opt_state") or "opt_state" in getattr(tree, "__dict__", ()):
        raise StructureError(
            f"`params` must be the tree that the optimizer updates. Found a "
            f"{type(tree).__name__}, which holds its state too. Pass `state.params`, or for NNX "
            f"the model itself."
        )
    parts = [tree]
    while parts and type(parts[0]) is tuple:  # a chain's state
        parts = list(parts[0]) + parts[1:]
    named = next((type(x) for x in parts if hasattr(type(x), "_fields")), None)
    if named and named.__name__.endswith("State") and named.__module__.startswith("optax."):
        raise StructureError(
            f"`{argument}` must be parameters or statistics of a model. Found a {named.__name__}, "
            f"the state of an optimizer. Pass `variables['params']` and, beside them, "
            f"`variables['batch_stats']`."
        )


def refuse_shapes(tree: TreeIndex) -> None:
    """Fails where all leaves are integers: the shapes of arrays, which JAX takes for trees."""
    leaves = tree.leaves.values()
    if leaves and all(isinstance(x, int) and not isinstance(x, bool) for x in leaves):
        raise StructureError(
            f"`params` must be a tree of arrays. Found {len(leaves)} integers and no array. If "
            f"these are shapes, pass `jax.ShapeDtypeStruct(shape, dtype)` for each, as "
            f"`jax.eval_shape` does."
        )


def refuse_averages(tree: TreeIndex) -> None:
    """Fails where params hold running averages: Haiku's, or in the second part of a pair."""
    kept = next((path for path in tree.scopes if path.endswith(_HAIKU)), None)
    if kept is None and may_hold_statistics(tree):
        kept = _second_of_pair(tree)
    if kept is not None:
        raise StructureError(
            f"`params` must be the tree that the optimizer updates. Found a running average at "
            f"{kept!r}. Of the pair of params and state pass the first, and the second as the "
            f"state or `batch_stats`."
        )


def _second_of_pair(tree: TreeIndex) -> str | None:
    """A scope with statistics where the tree is a pair whose second part has nothing else."""
    shapes = statistics(tree).shapes
    second = [path for path in tree.scopes if path.startswith("1/")]
    is_pair = all(path.startswith(("0/", "1/")) for path in tree.scopes)
    its_own = all(path in shapes and f"0/{path[2:]}" in tree.scopes for path in second)
    return second[0] if second and is_pair and its_own else None


def beside(params: Any, batch_stats: Any) -> Any:  # noqa: ANN401 - any pytree
    """The statistics with a level ``"params"`` around them if the params have one.

    Some optimizers update ``{"params": params}``, and need a mask of that very tree.
    """
    if batch_stats is None or _names(params) != ["params"] or "params" in _names(batch_stats):
        return batch_stats
    inner = batch_stats["batch_stats"] if _names(batch_stats) == ["batch_stats"] else batch_stats
    return {"params": inner}


def refuse_variables(params: Any, batch_stats: Any) -> None:  # noqa: ANN401 - any pytree
    """Fails where a tree is still wrapped in the names of Flax's collections."""
    tops, kept = _names(params), _names(batch_stats)
    if "params" in tops and not _COLLECTIONS.isdisjoint(tops):
        raise StructureError(
            f"`params` must be the tree that the optimizer updates. Found the collections "
            f"{', '.join(map(repr, tops))} at its top. Pass `variables['params']`, and "
            f"`variables['batch_stats']` as `batch_stats`."
        )
    if "batch_stats" in kept and "batch_stats" not in tops:
        raise StructureError(
            f"`batch_stats` must be the tree of statistics beside `params`. Found the collections "
            f"{', '.join(map(repr, kept))} at its top. Pass `variables['batch_stats']`."
        )


def _names(tree: Any) -> list[str]:  # noqa: ANN401 - any pytree
    """The names at the top of a tree, sorted; none if it has no names there."""
    return sorted(map(str, tree)) if isinstance(tree, Mapping) else []
