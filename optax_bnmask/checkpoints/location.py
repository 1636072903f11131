"""Where in a checkpoint the params and the running statistics are.

They are looked for by what people call them, or are told by the caller.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, NamedTuple

import jax.numpy as jnp

from optax_bnmask.arguments import wrong_kind
from optax_bnmask.checkpoints.trees import Keys, Tree, nested, shown
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

_Branches = dict[Keys, Tree]
"""What is at each place of a checkpoint that is no leaf, from the outermost."""


class Stored(NamedTuple):
    """What a checkpoint holds, by its metadata.

    Attributes:
      params: The params, dicts of `jax.ShapeDtypeStruct`s.
      batch_stats: The running statistics beside them, or `None`.
      notes: In sentences, where in the checkpoint these were found, and what was left out.
    """

    params: Tree
    batch_stats: Tree | None
    notes: tuple[str, ...]


def located(tree: Tree, source: str, *, params: str | None, stats: str | None) -> Stored:
    """The params and statistics in a checkpoint; `source` says what was read, for the notes.

    `params` and `stats` say where these are; where they are `None`, they are looked for, and not to
    find the params, or to find two sets, is an error.
    """
    branches = dict(_branches(tree))
    place = _params_place(branches) if params is None else _told(branches, params, "params")
    beside = _stats_place(branches, place) if stats is None else _told(branches, stats, "stats")
    notes = [f"read from a checkpoint ({source}), params at {_name(place)}"]
    is_state, chosen = _is_state(branches[place]), _unboxed(branches[place])
    if beside is not None:
        statistics = _unboxed(branches[beside])
        notes[0] += f"; running statistics at {_name(beside)}"
    else:
        statistics, chosen = _parted(chosen, _is_statistic)
        if statistics:
            notes.append("a 'mean' and a 'var' among the params were taken for running statistics")
    if is_state:
        _, chosen = _parted(chosen, _is_of_stream)
    if not chosen:
        raise StructureError(
            f"`path` must hold params. At {_name(place)} there is no array. It holds "
            f"{_listed(tree)}; say where with --params (`params=`)."
        )
    _refuse_text(chosen)
    _refuse_text(statistics)
    return Stored(chosen, statistics or None, tuple(notes))


def _branches(tree: Tree, place: Keys = ()) -> Iterator[tuple[Keys, Tree]]:
    """The places that are no leaf, from the outermost, with what is there."""
    yield place, tree
    for key, child in tree.items():
        if isinstance(child, dict):
            yield from _branches(child, (*place, key))


def _leaves(tree: Tree) -> Iterator[tuple[Keys, Any]]:
    """The leaves with their keys, without those that hold nothing."""
    for place, node in _branches(tree):
        for key, child in node.items():
            if child is not None and not isinstance(child, dict):
                yield (*place, key), child


def _params_place(branches: _Branches) -> Keys:
    """The place of the params: the shallowest ``params`` outside of optimizers, or the top."""
    hits = [keys for keys in branches if keys[-1:] == (_PARAMS,) and not _OPTIMIZERS & {*keys}]
    hits = [keys for keys in hits if len(keys) == min(map(len, hits))]
    if len(hits) > 1:
        raise StructureError(
            f"`path` must hold one set of params. There are {', '.join(map(_name, hits[:4]))}. Say "
            f"which with --params (`params=`)."
        )
    for place in hits:
        # whole variables may have been stored under that name
        while (*place, _PARAMS) in branches and branches[place].keys() <= {_PARAMS, *_STATISTICS}:
            place = (*place, _PARAMS)  # noqa: PLW2901 - the same place, deeper
        return place
    top = branches[()]
    for name in _WHOLES:
        if (name,) in branches and top.keys() - {name} <= _OPTIMIZERS:
            return (name,)
    if any(name in _OPTIMIZERS and (name != "step" or (name,) not in branches) for name in top):
        raise StructureError(
            f"`path` must hold params. Found {_listed(top)}, and nothing called 'params'. Say "
            f"where they are with --params (`params=`)."
        )
    return ()


def _stats_place(branches: _Branches, params: Keys) -> Keys | None:
    """The place of the statistics nearest to the params, in the branches that these are in."""
    for depth in range(len(params) - 1, -1, -1):
        for name in _STATISTICS:
            place = (*params[:depth], name)
            if branches.get(place) and name != params[depth]:
                inner = (*place, "batch_stats")
                return inner if inner in branches and name != "batch_stats" else place
    return None


def _told(branches: _Branches, path: str, argument: str) -> Keys:
    """The place that a path names; a key may hold a ``/`` itself."""
    if not isinstance(path, str):
        raise wrong_kind(
            argument, "a string", path, "The place is written with '/', as in 'state/params'."
        )
    places = {"/".join(keys): keys for keys in branches} | {".": ()}
    if path in places:
        return places[path]
    above = max((name for name in places if path.startswith(f"{name}/")), key=len, default="")
    rest = path.removeprefix(above).removeprefix("/")
    names = [key for key, child in branches[places[above]].items() if isinstance(child, dict)]
    raise StructureError(
        f"`{argument}` must name a branch of the checkpoint. No branch is called {rest!r}"
        f"{nearest(rest, names)}. A place is written with '/', as in 'state/params'."
    )


def _is_state(tree: Tree) -> bool:
    """Whether this is a state of NNX, where every array is in a Variable: under ``value``."""
    ends = {keys[-1] if len(keys) > 1 else "" for keys, _ in _leaves(tree)}
    return ends == {"value"}


def _unboxed(tree: Tree) -> Tree:
    """The tree without the level ``value`` of Variables, or of Linen's boxes for its params.

    Elsewhere that may be a name like any other.
    """
    is_state, tree = _is_state(tree), nested(_leaves(tree))  # without branches that hold nothing
    boxes = {
        place
        for place, node in _branches(tree)
        if node.keys() == {"value"} and (is_state or _BOXED & {*place[-1:]})
    }
    return nested((keys[:-1] if keys[:-1] in boxes else keys, leaf) for keys, leaf in _leaves(tree))


def _parted(tree: Tree, is_apart: Callable[[Tree, str], bool]) -> tuple[Tree, Tree]:
    """The leaves that stand apart, by the branch that they are in and their key, and the others."""
    branches = dict(_branches(tree))
    apart = {keys: leaf for keys, leaf in _leaves(tree) if is_apart(branches[keys[:-1]], keys[-1])}
    others = {keys: leaf for keys, leaf in _leaves(tree) if keys not in apart}
    return nested(apart.items()), nested(others.items())


def _is_statistic(node: Tree, key: str) -> bool:
    """Whether NNX keeps a running statistic here: beside a mean and a var of one shape."""
    shapes = [getattr(node.get(name), "shape", None) for name in ("mean", "var")]
    is_norm = node.keys() <= {"mean", "var", "scale", "bias"}
    return key in ("mean", "var") and is_norm and None not in shapes and shapes[0] == shapes[1]


def _is_of_stream(node: Tree, _: str) -> bool:
    """Whether NNX keeps a stream of random numbers here."""
    dtype = getattr(node.get("count"), "dtype", float)
    is_named = {"count", "key"} <= node.keys() <= {"count", "key", "tag"}
    return is_named and jnp.issubdtype(dtype, jnp.integer)


def _refuse_text(tree: Tree) -> None:
    """Fails on a leaf that is no array."""
    for keys, leaf in _leaves(tree):
        if isinstance(leaf, str):
            raise StructureError(
                f"Every leaf of `params` must be an array. {_name(keys)} is {leaf}. Say where the "
                f"params are with --params (`params=`)."
            )


def _name(keys: Keys) -> str:
    """A place as a name for a message."""
    return shown("/".join(keys)) if keys else "the top"


def _listed(names: Iterable[str]) -> str:
    """Names for a message, or the first of them."""
    first = [shown(name) for name in names]
    return ", ".join([*first[:5], *(["..."] if len(first) > 5 else [])]) or "nothing"
