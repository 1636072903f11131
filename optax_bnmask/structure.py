"""Evidence from structure: the params tree against the tree of statistics, no model, no tracing.

Statistics decide: a scope that keeps a running `mean` and `var` is a BatchNorm whatever it is
called. Where no statistics are kept, the frameworks' conventions serve, and the reason says so.
What neither tells stays `UNKNOWN`.
"""

from typing import Any, Final, NamedTuple

import jax.numpy as jnp
import numpy as np

from optax_bnmask import compat
from optax_bnmask.arguments import described, is_array
from optax_bnmask.conventions import GAINS, OFFSETS, UNKNOWN, Shape, Verdict, by_convention
from optax_bnmask.errors import StructureError
from optax_bnmask.paths import TreeIndex, tree_index
from optax_bnmask.running_statistics import (
    Statistics,
    beside,
    extent,
    is_own,
    may_hold_statistics,
    parted,
    refuse_averages,
    refuse_shapes,
    refuse_state,
    refuse_variables,
    statistics,
)
from optax_bnmask.vocabulary import Role

Arrays = tuple[Any, ...]
"""The name, shape and dtype of each array of a scope in turn: what its verdicts depend on."""

CONFIRMED: Final = "a running mean and var of its shape are kept in its scope"
"""The reason of a leaf that statistics of its own show to be a BatchNorm's."""
_UNTRAINABLE: Final = Verdict(
    Role.UNKNOWN, "not of floating dtype: no optimizer moves it", trainable=False
)


class Reading(NamedTuple):
    """The verdicts read off the params and the tree of statistics.

    Attributes:
      params: The params as read.
      rulings: For each scope of `params`, in order, the verdicts on its leaves, in order; scopes of
        one kind share one tuple.
      oddities: Notes on statistics that are not BatchNorm's, or have no parameters beside them.
    """

    params: TreeIndex
    rulings: list[tuple[Verdict, ...]]
    oddities: list[str]

    def verdicts(self) -> dict[str, Verdict]:
        """The verdict on each leaf, by path."""
        found = dict.fromkeys(self.params.leaves, _UNTRAINABLE)
        for scope, row in zip(self.params.scopes.values(), self.rulings, strict=True):
            found.update(zip(scope.values(), row, strict=True))
        return found


def reading(params: Any, batch_stats: Any = None) -> Reading:  # noqa: ANN401 - any pytree
    """The verdicts on each scope: what `analyze_structure` and `decay_mask` share.

    A model has many scopes and few kinds of scope, so each kind is ruled on once.
    """
    with compat.without_collection():
        return _read(params, batch_stats)


def _read(params: Any, batch_stats: Any) -> Reading:  # noqa: ANN401 - any pytree
    """The verdicts on each scope."""
    refuse_state(params, "params")
    refuse_state(batch_stats, "batch_stats")
    params, batch_stats = parted(params, batch_stats)
    batch_stats = beside(params, batch_stats)
    refuse_variables(params, batch_stats)
    tree, kept = tree_index(params, "params"), tree_index(batch_stats, "batch_stats")
    if not tree.leaves:
        raise StructureError(
            f"`params` must hold an array. Found a {type(params).__name__} without any. Pass the "
            f"tree that the optimizer updates."
        )
    if "" in kept.leaves:
        raise StructureError(
            f"`batch_stats` must be the tree of statistics beside `params`. Found "
            f"{described(kept.leaves[''])}. Pass `variables['batch_stats']`, or leave it out."
        )
    found = statistics(kept)
    refuse_shapes(tree)
    refuse_averages(tree)
    _refuse_within(tree)
    _refuse_swapped(tree, kept, found)
    _refuse_twice(tree, kept, found)
    _refuse_flat(tree, kept, found)
    _refuse_strangers(tree, found)
    known: dict[object, tuple[Verdict, ...]] = {}
    rulings: list[tuple[Verdict, ...]] = []
    leaves, nested, shapes, refused = tree.leaves, tree.nested, found.shapes, found.refused
    for path, scope in tree.scopes.items():
        kind = (_arrays(scope, leaves), shapes.get(path), refused.get(path), path in nested)
        row = known.get(kind)
        if row is None:
            row = known[kind] = _ruled(path, *kind)
        rulings.append(row)
    return Reading(tree, rulings, _oddities(tree, found))


def _arrays(scope: dict[str, str], leaves: dict[str, Any]) -> Arrays:
    """The names, shapes and dtypes of a scope's arrays."""
    out: list[Any] = []  # flat: of many scopes, a tuple for each array would cost as much again
    for name, path in scope.items():
        leaf = leaves[path]
        try:
            out += name, leaf.shape, leaf.dtype
        except AttributeError:  # a Python number, or no array at all
            out += name, *_described(path, leaf)
    return tuple(out)


def _described(path: str, leaf: Any) -> tuple[Shape, Any]:  # noqa: ANN401 - any leaf at all
    """The shape and the dtype of an array or a number."""
    if not isinstance(leaf, int | float | complex) and not is_array(leaf):
        found = f"{path!r} is a {type(leaf).__name__}. Leave it out of the tree first"
        if not path:
            found = (
                f"What was passed is a {type(leaf).__name__}. Pass the tree that the optimizer "
                f"updates, `variables['params']` for Linen"
            )
        raise StructureError(
            f"Every leaf of `params` must be an array or have a shape and a dtype. {found}; for "
            f"Equinox, `eqx.filter(model, eqx.is_inexact_array)`."
        )
    return np.shape(leaf), dtype_of(leaf)


def dtype_of(array: Any) -> Any:  # noqa: ANN401 - a dtype, extended ones included
    """The dtype of an array or a number."""
    return array.dtype if hasattr(array, "dtype") else jnp.result_type(array)


def _ruled(  # its arguments after the path are what makes a kind of scope
    path: str,
    arrays: Arrays,
    shape: Shape | None,
    refused: str | None,
    nested: bool,  # noqa: FBT001 - see above
) -> tuple[Verdict, ...]:
    """The verdicts on the arrays of a scope, for which statistics of `shape` may be kept."""
    has_statistics = shape is not None or refused is not None
    shapes = dict(zip(arrays[::3], arrays[1::3], strict=True))
    verdicts = by_convention(shapes, nested=nested)
    named = [name for name in shapes if name in GAINS | OFFSETS] if has_statistics else []
    if len(OFFSETS.intersection(named)) > 1 and verdicts.get("bias", UNKNOWN).role is Role.BIAS:
        named.remove("bias")  # that of the weight beside it; the other offset is the normaliser's
    for name in named:
        if shape is None:
            why = f"not a BatchNorm's: statistics are kept in its scope, but {refused}"
            verdicts[name] = verdicts[name].refusing(why)
        elif is_own(shapes[name], shape):
            role = Role.NORM_SCALE if name in GAINS else Role.NORM_BIAS
            is_same = extent(shapes[name]) == extent(shape)
            why = CONFIRMED if is_same else f"a running mean and var of {shape} are in its scope"
            verdicts[name] = Verdict(role, why, confirmed=True)
        else:
            _refuse_misfit(path, name, shapes, shape)
            why = (
                f"not a BatchNorm's: its shape is {shapes[name]}, and that of the mean and var "
                f"kept in its scope is {shape}"
            )
            verdicts[name] = verdicts[name].refusing(why)
    dtypes = zip(arrays[::3], arrays[2::3], strict=True)
    return tuple(verdicts[name] if compat.is_inexact(x) else _UNTRAINABLE for name, x in dtypes)


def _refuse_misfit(path: str, name: str, shapes: dict[str, Shape], shape: Shape) -> None:
    """Fails where a scope is a normaliser's and nothing else, yet its statistics do not fit."""
    if shapes.keys() <= GAINS | OFFSETS and len(shapes[name]) == len(shape):
        leaf = f"{path}/{name}" if path else name
        raise StructureError(
            f"`params` and `batch_stats` must be of one model. {leaf!r} has shape "
            f"{shapes[name]}, but 'mean' and 'var' at {path!r} have shape {shape}. Were both taken "
            f"from the same `variables`?"
        )


def _refuse_flat(tree: TreeIndex, kept: TreeIndex, found: Statistics) -> None:
    """Fails where all statistics are at the top, and none of them can be of a leaf."""
    if list(kept.scopes) != [""] or "" not in found.refused:
        return
    names = kept.scopes[""]
    if "" not in tree.scopes or all("." in name for name in names):
        raise StructureError(
            f"`batch_stats` must be the tree of statistics beside `params`. Found "
            f"{', '.join(map(repr, names))} at its top, and not both a 'mean' and a 'var'. Pass it "
            f"nested as the model returns it; in flat dicts join keys by '/'."
        )


def _refuse_within(tree: TreeIndex) -> None:
    """Fails where the params hold running statistics beside the gain that they belong to."""
    for path in statistics(tree).shapes if may_hold_statistics(tree) else ():
        scope = tree.scopes.get(path, {})
        if not GAINS.isdisjoint(scope):
            raise StructureError(
                f"`params` must be the tree that the optimizer updates. Found running statistics "
                f"in it, {', '.join(map(repr, scope))} at {path!r}. Take them out and pass them as "
                f"`batch_stats`; of an NNX model pass the model itself, or `nnx.state(model)`."
            )


def _refuse_swapped(tree: TreeIndex, kept: TreeIndex, found: Statistics) -> None:
    """Fails where the params keep a mean and a variance, and the statistics a gain beside them."""
    if found.shapes or kept.scopes.keys().isdisjoint(tree.scopes):
        return
    for path in statistics(tree).shapes:
        if not GAINS.isdisjoint(kept.scopes.get(path, ())):
            raise StructureError(
                f"`params` must come first and `batch_stats` second. Found running statistics in "
                f"`params` at {path!r}, where `batch_stats` has parameters. Swap the two."
            )


def _refuse_twice(tree: TreeIndex, kept: TreeIndex, found: Statistics) -> None:
    """Fails where the statistics are the params, or no arrays."""
    names = next((path for path, x in kept.leaves.items() if isinstance(x, str)), None)
    if names is not None:
        raise StructureError(
            f"`batch_stats` must be a tree of arrays. Found {kept.leaves[names]!r} in it. The "
            f"categories that do not decay are `exempt=...`, by name."
        )
    if not found.shapes and kept.leaves.keys() == tree.leaves.keys():
        raise StructureError(
            "`batch_stats` must be the tree of statistics beside `params`. Found leaves of the "
            "same names as those of `params`. Pass `variables['batch_stats']`, or leave it out."
        )


def _refuse_strangers(tree: TreeIndex, found: Statistics) -> None:
    """Fails where no statistics have a place in the params, though some could be a gain's."""
    if any(path in tree.scopes for path in found.shapes):
        return
    by_shape = {shape: path for path, shape in found.shapes.items()}
    gains = (  # in a flat dict whose keys are joined by dots, too
        path
        for scope in tree.scopes.values()
        for name, path in scope.items()
        if str(name).rpartition(".")[2] in GAINS
    )
    for path in gains if by_shape else ():
        where = by_shape.get(np.shape(tree.leaves[path]))
        if where is not None:
            raise StructureError(
                f"`params` and `batch_stats` must be of one model. None of the {len(found.shapes)} "
                f"scopes with a 'mean' and a 'var' is a scope of `params`; {where!r} has the shape "
                f"of {path!r}. Take both from the same `variables`, in flat dicts with keys joined "
                f"by '/'; if those normalisers have no parameters in `params`, leave their "
                f"statistics out."
            )


def _oddities(tree: TreeIndex, found: Statistics) -> list[str]:
    """Notes on statistics that are not BatchNorm's, and on those without parameters."""
    notes = [
        f"the statistics at {path!r} are not BatchNorm's: {why}"
        for path, why in found.refused.items()
    ]
    if not found.shapes.keys() <= tree.scopes.keys():
        notes += [
            f"the statistics at {path!r} have no parameters beside them: a normaliser without "
            f"scale and bias, or one whose parameters were taken out"
            for path in found.shapes
            if path not in tree.scopes
        ]
    return notes
