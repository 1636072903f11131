"""Where in a checkpoint the params and the running statistics are.

A checkpoint is one flat table here, from keys to leaves; `_names_below` says which names stand at
each place, and that is all of the tree that is ever asked for.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import jax
import jax.numpy as jnp

from optax_bnmask.checkpoints.stored import Keys, Kind, Leaves, Stored, shown
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

_Branches = Mapping[Keys, Mapping[str, None]]
"""The names at each place of a checkpoint that is no leaf, in their order."""


def located(
    leaves: Leaves, kind: Kind, found: Sequence[str], *, params: str | None, stats: str | None
) -> Stored:
    """The params and statistics among all that is stored in some kind of checkpoint.

    `found` says which part of it this is. `params` and `stats` say where these are; where they are
    `None`, they are looked for, and not to find the params, or to find two sets, is an error.
    """
    tree = _names_below(leaves)
    place = _params_place(tree) if params is None else _told(leaves, tree, params, "params")
    beside = _stats_place(tree, place) if stats is None else _told(leaves, tree, stats, "stats")
    chosen = _below(leaves, place)
    statistics = {} if beside is None else _below(leaves, beside)
    if () in chosen or () in statistics:
        raise StructureError(
            "`params` and `stats` must each name a branch of the checkpoint. One of them is a "
            "single array. Name what it is in."
        )
    where = "".join(f", {part}" for part in found)
    notes = [f"read from a checkpoint ({kind}{where}), params at {_name(place)}"]
    is_state = _is_state(chosen)
    chosen, statistics = _unboxed(chosen), _unboxed(statistics)
    if beside is not None:
        notes[0] += f"; running statistics at {_name(beside)}"
    elif statistics := _statistics_among(chosen):
        chosen = {keys: leaf for keys, leaf in chosen.items() if keys not in statistics}
        notes.append("a 'mean' and a 'var' among the params were taken for running statistics")
    if is_state:
        chosen = _without_streams(chosen)
    if not chosen:
        raise StructureError(
            f"`path` must hold params. At {_name(place)} there is no array. It holds "
            f"{_listed(tree[()])}; say where with --params (`params=`)."
        )
    return Stored(_nested(chosen), _nested(statistics) or None, kind, tuple(notes))


def _names_below(leaves: Leaves) -> dict[Keys, dict[str, None]]:
    """The names at each place that is no leaf, also at those where there are none."""
    tree: dict[Keys, dict[str, None]] = {(): {}}
    for keys, leaf in leaves.items():
        for depth, key in enumerate(keys):
            tree.setdefault(keys[:depth], {})[key] = None
        if isinstance(leaf, dict):
            tree.setdefault(keys, {})
    return tree


def _below(leaves: Leaves, place: Keys) -> Leaves:
    """The leaves below a place, with their keys from there."""
    depth = len(place)
    return {
        keys[depth:]: leaf
        for keys, leaf in leaves.items()
        if keys[:depth] == place and leaf not in (None, {})
    }


def _params_place(tree: _Branches) -> Keys:
    """The place of the params: the shallowest ``params`` outside of optimizers, or the top."""
    hits = [keys for keys in tree if keys[-1:] == (_PARAMS,) and not _OPTIMIZERS & {*keys}]
    hits = [keys for keys in hits if len(keys) == min(map(len, hits))]
    if len(hits) > 1:
        raise StructureError(
            f"`path` must hold one set of params. There are {', '.join(map(_name, hits[:4]))}. Say "
            f"which with --params (`params=`)."
        )
    for place in hits:
        # whole variables may have been stored under that name
        while (*place, _PARAMS) in tree and tree[place].keys() <= {_PARAMS, *_STATISTICS}:
            place = (*place, _PARAMS)  # noqa: PLW2901 - the same place, deeper
        return place
    for name in _WHOLES:
        if (name,) in tree and tree[()].keys() - {name} <= _OPTIMIZERS:
            return (name,)
    if any(name in _OPTIMIZERS and (name != "step" or (name,) not in tree) for name in tree[()]):
        raise StructureError(
            f"`path` must hold params. Found {_listed(tree[()])}, and nothing called 'params'. Say "
            f"where they are with --params (`params=`)."
        )
    return ()


def _stats_place(tree: _Branches, params: Keys) -> Keys | None:
    """The place of the statistics nearest to the params, in the branches that these are in."""
    for depth in range(len(params) - 1, -1, -1):
        for name in _STATISTICS:
            place = (*params[:depth], name)
            if tree.get(place) and name != params[depth]:
                inner = "batch_stats" in tree[place] and name != "batch_stats"
                return (*place, "batch_stats") if inner else place
    return None


def _told(leaves: Leaves, tree: _Branches, path: str, argument: str) -> Keys:
    """The place that a path names; a key may hold a ``/`` itself."""
    places = {"/".join(keys): keys for keys in (*leaves, *tree)} | {"": (), ".": ()}
    if path in places:
        return places[path]
    above = [name for name, keys in places.items() if keys in tree and path.startswith(f"{name}/")]
    known = max(above, key=len, default="")
    rest = path[len(known) :].removeprefix("/")
    raise StructureError(
        f"`{argument}` must be where something is in the checkpoint. Nothing is called {rest!r}"
        f"{nearest(rest, list(tree[places[known]]))}. A place is written with '/', as in "
        f"'state/params'."
    )


def _is_state(leaves: Leaves) -> bool:
    """Whether this is a state of NNX, where every array is in a Variable: under ``value``."""
    return bool(leaves) and all(keys[-1] == "value" and len(keys) > 1 for keys in leaves)


def _unboxed(leaves: Leaves) -> Leaves:
    """The leaves without the level ``value`` of Variables, or of Linen's boxes for its params.

    Elsewhere that may be a name like any other.
    """
    tree, is_state = _names_below(leaves), _is_state(leaves)

    def is_box(place: Keys) -> bool:
        return tree[place].keys() == {"value"} and (is_state or bool(_BOXED & {*place[-1:]}))

    return {
        keys[:-1] if keys[-1] == "value" and is_box(keys[:-1]) else keys: leaf
        for keys, leaf in leaves.items()
    }


def _statistics_among(leaves: Leaves) -> Leaves:
    """The running statistics that NNX keeps among the params: a mean and a var of one shape."""
    kept: Leaves = {}
    for place, names in _names_below(leaves).items():
        pair = {(*place, name): leaves.get((*place, name)) for name in ("mean", "var")}
        shapes = {leaf.shape for leaf in pair.values() if isinstance(leaf, jax.ShapeDtypeStruct)}
        if None not in pair.values() and len(shapes) == 1:
            kept |= pair if names.keys() <= {"mean", "var", "scale", "bias"} else {}
    return kept


def _without_streams(leaves: Leaves) -> Leaves:
    """A state of NNX without its streams of random numbers."""

    def is_stream(place: Keys, names: Mapping[str, None]) -> bool:
        dtype = getattr(leaves.get((*place, "count")), "dtype", float)
        is_named = {"count", "key"} <= names.keys() <= {"count", "key", "tag"}
        return is_named and jnp.issubdtype(dtype, jnp.integer)

    tree = _names_below(leaves)
    streams = {place for place, names in tree.items() if place and is_stream(place, names)}
    return {keys: leaf for keys, leaf in leaves.items() if keys[:-1] not in streams}


def _nested(leaves: Leaves) -> dict[str, Any]:
    """The leaves as dicts of dicts; fails on one that is no array."""
    tree: dict[str, Any] = {}
    for keys, leaf in leaves.items():
        if isinstance(leaf, str):
            raise StructureError(
                f"Every leaf of `params` must be an array. {_name(keys)} is {leaf}. Say where the "
                f"params are with --params (`params=`)."
            )
        node = tree
        for key in keys[:-1]:
            node = node.setdefault(key, {})
        node[keys[-1]] = leaf
    return tree


def _name(keys: Keys) -> str:
    """A place as a name for a message."""
    return shown("/".join(keys)) if keys else "the top"


def _listed(names: Iterable[str]) -> str:
    """Names for a message, or the first of them."""
    first = [shown(name) for name in names]
    return ", ".join([*first[:5], *(["..."] if len(first) > 5 else [])]) or "nothing"
