"""Where in a stored tree the params and the running statistics are."""

from collections.abc import Iterable, Sequence
from typing import Any, Final

import jax
import jax.numpy as jnp

from optax_bnmask.checkpoints.stored import Kind, Stored, Tree, shown
from optax_bnmask.errors import StructureError
from optax_bnmask.paths import nearest

_PARAMS: Final = "params"
_WHOLES: Final = ("model", "target", "model_state")
"""What people call the model where nothing is called ``params``."""
_STATISTICS: Final = ("batch_stats", "state", "model_state", "extra_variables", "mutable")
"""What people call the statistics that stand beside the params."""
_OPTIMIZERS: Final = frozenset(
    {"opt_state", "optimizer", "optimizer_state", "opt", "optim", "step"}
)
"""What stands beside the model in a checkpoint and is none of it, though it may look like it."""
_BOXED: Final = frozenset({"kernel", "bias", "scale", "embedding"})
"""The params that Linen's partitioning puts into boxes."""
_RANDOM: Final = frozenset({"count", "key", "tag"})
"""What a stream of random numbers of NNX keeps."""

_Way = tuple[str, ...]


def located(
    tree: Tree, kind: Kind, found: Sequence[str], *, params: str | None, stats: str | None
) -> Stored:
    """The params and statistics of a stored tree.

    Args:
      tree: All that is stored.
      kind: How it is stored.
      found: Which part of the checkpoint the tree is.
      params: Where the params are, or `None` to look for them.
      stats: Where the statistics are, or `None` to look for them.

    Returns:
      A `Stored`.

    Raises:
      StructureError: They are not there, or there is more than one that they could be.
    """
    way = _params_way(tree) if params is None else _followed(tree, params, "params")
    kept = _stats_way(tree, way) if stats is None else _followed(tree, stats, "stats")
    chosen, notes = _at(tree, way), [_found(kind, found, way, kept)]
    statistics = None if kept is None else _at(tree, kept)
    if not isinstance(chosen, dict) or not (statistics is None or isinstance(statistics, dict)):
        raise StructureError(
            "`params` and `stats` must each name a branch of the checkpoint. One of them is a "
            "single array. Name what it is in."
        )
    chosen, is_state = _unboxed(chosen)
    statistics = None if statistics is None else _unboxed(statistics)[0]
    if statistics is None:
        chosen, statistics = _parted(chosen)
        if statistics:
            notes.append("a 'mean' and a 'var' among the params were taken for running statistics")
    if is_state:
        chosen = _without_streams(chosen)
    chosen = _arrays_only(chosen, ())
    if not chosen:
        raise StructureError(
            f"`path` must hold params. At {_name(way)} there is no array. It holds "
            f"{_listed(tree)}; say where with --params (`params=`)."
        )
    return Stored(chosen, _arrays_only(statistics, ()) if statistics else None, kind, tuple(notes))


def _found(kind: Kind, found: Sequence[str], way: _Way, kept: _Way | None) -> str:
    """The sentence that says what was read."""
    where = "".join(f", {part}" for part in found)
    beside = f"; running statistics at {_name(kept)}" if kept is not None else ""
    return f"read from a checkpoint ({kind}{where}), params at {_name(way)}{beside}"


def _params_way(tree: Tree) -> _Way:
    """The keys on the way to the params: the shallowest ``params``, or the whole tree."""
    ways = list(_shallowest(tree))
    if len(ways) > 1:
        raise StructureError(
            f"`path` must hold one set of params. There are "
            f"{', '.join(_name(way) for way in ways[:4])}. Say which with --params (`params=`)."
        )
    if ways:
        return _inner(tree, ways[0])
    for name in _WHOLES:
        if isinstance(tree.get(name), dict) and tree.keys() - {name} <= _OPTIMIZERS | {"step"}:
            return (name,)
    if _OPTIMIZERS & {name for name in tree if name != "step" or not isinstance(tree[name], dict)}:
        raise StructureError(
            f"`path` must hold params. Found {_listed(tree)}, and nothing called 'params'. Say "
            f"where they are with --params (`params=`)."
        )
    return ()


def _shallowest(tree: Tree) -> Iterable[_Way]:
    """The ways to what is called ``params``, at the first depth that has any."""
    level: list[tuple[_Way, Tree]] = [((), tree)]
    while level:
        hits = [(*way, _PARAMS) for way, node in level if isinstance(node.get(_PARAMS), dict)]
        if hits:
            return hits
        level = [
            ((*way, key), child)
            for way, node in level
            for key, child in node.items()
            if isinstance(child, dict) and key not in _OPTIMIZERS
        ]
    return ()


def _inner(tree: Tree, way: _Way) -> _Way:
    """The way to the inner ``params`` where whole variables were stored under that name."""
    node = _at(tree, way)
    while isinstance(node.get(_PARAMS), dict) and node.keys() <= {_PARAMS, *_STATISTICS}:
        way, node = (*way, _PARAMS), node[_PARAMS]
    return way


def _stats_way(tree: Tree, way: _Way) -> _Way | None:
    """The keys on the way to the statistics nearest to the params."""
    for depth in range(len(way) - 1, -1, -1):
        node = _at(tree, way[:depth])
        for name in _STATISTICS:
            if isinstance(node.get(name), dict) and node[name] and name != way[depth]:
                inner = "batch_stats" in node[name] and name != "batch_stats"
                return (*way[:depth], name, *(("batch_stats",) if inner else ()))
    return None


def _followed(tree: Tree, path: str, argument: str) -> _Way:
    """The keys that a path names; a key may hold a ``/`` itself."""
    if path in {"", "."}:
        return ()
    for key, child in tree.items():
        if path == key:
            return (key,)
        if path.startswith(f"{key}/") and isinstance(child, dict):
            return (key, *_followed(child, path[len(key) + 1 :], argument))
    raise StructureError(
        f"`{argument}` must be where something is in the checkpoint. Nothing is called {path!r}"
        f"{nearest(path, list(tree))}. A place is written with '/', as in 'state/params'."
    )


def _at(tree: Tree, way: _Way) -> Any:  # noqa: ANN401 - a tree or a leaf
    """What is at the end of a way."""
    for key in way:
        tree = tree[key]
    return tree


def _unboxed(tree: Tree) -> tuple[Tree, bool]:
    """The tree without the level ``value`` of boxes, and whether it was a state of NNX.

    In a state of NNX every array is in a Variable, and so under ``value``. Elsewhere that may be a
    name like any other, but for the params that Linen's partitioning boxes.
    """
    is_state = all(way[-1] == "value" and len(way) > 1 for way, _ in _listing(tree)) and bool(tree)

    def opened(node: Tree) -> Tree:
        return {
            key: child["value"]
            if isinstance(child, dict)
            and child.keys() == {"value"}
            and (is_state or key in _BOXED)
            and not isinstance(child["value"], dict)
            else opened(child)
            if isinstance(child, dict)
            else child
            for key, child in node.items()
        }

    return opened(tree), is_state


def _listing(tree: Tree, way: _Way = ()) -> Iterable[tuple[_Way, Any]]:
    """The leaves with their ways."""
    for key, child in tree.items():
        if isinstance(child, dict):
            yield from _listing(child, (*way, key))
        elif child is not None:
            yield (*way, key), child


def _parted(tree: Tree) -> tuple[Tree, Tree]:
    """The tree without the running statistics that NNX keeps among the params, and these."""
    mean, var = tree.get("mean"), tree.get("var")
    is_kept = (
        isinstance(mean, jax.ShapeDtypeStruct)
        and isinstance(var, jax.ShapeDtypeStruct)
        and mean.shape == var.shape
        and tree.keys() <= {"mean", "var", "scale", "bias"}
    )
    rest: Tree = {}
    kept: Tree = {"mean": mean, "var": var} if is_kept else {}
    for key, child in tree.items():
        if is_kept and key in {"mean", "var"}:
            continue
        if isinstance(child, dict):
            child, below = _parted(child)  # noqa: PLW2901 - the same child
            kept |= {key: below} if below else {}
        rest[key] = child
    return rest, kept


def _without_streams(tree: Tree) -> Tree:
    """A state of NNX without its streams of random numbers."""

    def is_stream(node: object) -> bool:
        return (
            isinstance(node, dict)
            and {"count", "key"} <= node.keys() <= _RANDOM
            and jnp.issubdtype(getattr(node["count"], "dtype", float), jnp.integer)
        )

    return {
        key: _without_streams(child) if isinstance(child, dict) else child
        for key, child in tree.items()
        if not is_stream(child)
    }


def _arrays_only(tree: Tree, way: _Way) -> Tree:
    """The tree without what is empty; fails on a leaf that is no array."""
    made: Tree = {}
    for key, child in tree.items():
        if isinstance(child, str):
            raise StructureError(
                f"Every leaf of `params` must be an array. {_name((*way, key))} is {child}. Say "
                f"where the params are with --params (`params=`)."
            )
        if isinstance(child, dict):
            child = _arrays_only(child, (*way, key))  # noqa: PLW2901 - the same child
        if child is not None and child != {}:
            made[key] = child
    return made


def _name(way: _Way) -> str:
    """A way as a name for a message."""
    return shown("/".join(way)) if way else "the top"


def _listed(tree: Tree) -> str:
    """The names at the top of a tree, or the first of them."""
    some = ", ".join(shown(name) for name in list(tree)[:5])
    return (some or "nothing") + (", ..." if len(tree) > 5 else "")
