"""The chosen leaves of a tree, and the slices of each that have a norm of their own."""

import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from numbers import Integral, Number
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_bnmask import compat
from optax_bnmask.arguments import is_array, wrong_kind
from optax_bnmask.errors import PathError, StructureError
from optax_bnmask.labels import whole
from optax_bnmask.mask import Mask
from optax_bnmask.paths import nearest, tree_index
from optax_bnmask.transforms.resolved_arguments import mask_tree


def check_paths(paths: Iterable[str], mask: Any, argument: str) -> None:  # noqa: ANN401 - any mask
    """Fails unless all paths are of leaves, or parts of leaves, that `mask` knows, if a `Mask`.

    Raises:
      PathError: One of them is not.
    """
    if not isinstance(mask, Mask):
        return
    known = {*mask, *map(whole, mask)}
    for path in paths:
        if path not in known and whole(path) not in known:
            raise PathError(
                f"`{argument}` must name leaves that `mask` knows. It has no leaf {path!r}"
                f"{nearest(path, tuple(mask))}."
            )


def check_some_known(paths: Collection[str], params: Any, argument: str) -> None:  # noqa: ANN401 - any pytree
    """Fails if there are paths, and none of them is of a leaf of the params or of a part of one.

    Some may be of other leaves: frozen ones, which the optimizer does not get. Nothing is checked
    where the params have `optax.MaskedNode` holes, as the paths may be those of holes.

    Raises:
      PathError: None of them is.
    """
    leaves = tree_index(params).leaves
    known = {*leaves, *map(whole, leaves)}
    if not paths or not known.isdisjoint([*paths, *map(whole, paths)]):
        return
    if not has_holes(params):
        path = next(iter(paths))
        raise PathError(
            f"`{argument}` must name leaves of the params, and names none. There is no leaf "
            f"{path!r}{nearest(path, tuple(leaves))}."
        )


def require_path(path: object, argument: str) -> None:
    """Fails unless a key of a mapping is a path.

    Raises:
      TypeError: It is something else, such as the number of an axis.
    """
    if not isinstance(path, str):
        raise TypeError(
            f"`{argument}` must name leaves by their paths, such as 'conv/kernel'. Found {path!r}."
        )


def has_holes(params: Any) -> bool:  # noqa: ANN401 - any pytree
    """Whether leaves are left out of the params, as by `optax.masked` and `optax.partition`."""
    return any(map(_is_hole, jax.tree.leaves(params, is_leaf=_is_hole)))


def _is_hole(node: object) -> bool:
    return isinstance(node, optax.MaskedNode)


def _is_gap(node: object) -> bool:
    return node is None or _is_hole(node)


def axes_by_path(axes: Any) -> dict[str, tuple[int, ...]]:  # noqa: ANN401 - what a user passed
    """The argument `axes`, a mapping from paths to axes.

    Raises:
      TypeError: It is something else, such as the axes themselves.
    """
    if axes is not None and not isinstance(axes, Mapping):
        raise TypeError(
            f"`axes` must map paths of leaves to axes, as `analysis.invariant_axes` and "
            f"`analysis.norm_axes()` do. Found {axes!r}."
        )
    for path, own in (axes or {}).items():
        require_path(path, "axes")
        if not isinstance(own, Sequence) or not all(isinstance(a, Integral) for a in own):
            raise wrong_kind(
                f"axes[{path!r}]", "a tuple of axes", own, "A single axis is `(3,)`, with a comma."
            )
    return dict(axes or {})


def chosen_leaves(mask: Any, tree: Any, argument: str = "params") -> dict[str, jax.Array]:  # noqa: ANN401 - any pytrees
    """The leaves, by path, that the mask chooses and that have a norm: of floating dtype."""
    leaves = tree_index(tree, argument).leaves
    flags = jax.tree.leaves(mask_tree(mask, tree))
    pairs = zip(leaves.items(), flags, strict=True)
    arrays = {path: array_at(path, leaf, argument) for (path, leaf), flag in pairs if flag}
    return {path: leaf for path, leaf in arrays.items() if compat.is_inexact(leaf.dtype)}


def array_at(path: str, leaf: Any, argument: str) -> jax.Array:  # noqa: ANN401 - any leaf
    """A leaf whose values are needed, as an array.

    Raises:
      TypeError: It has none, as a `jax.ShapeDtypeStruct` or a function.
    """
    if isinstance(leaf, jax.ShapeDtypeStruct) or not (is_array(leaf) or isinstance(leaf, Number)):
        raise wrong_kind(
            f"{argument}[{path!r}]",
            "an array: its norm is computed",
            leaf,
            "Of shapes alone, `jax.eval_shape(tx.init, params)` tells the state's; leaves that are "
            "no arrays, take out.",
        )
    return jnp.asarray(leaf)


def warn_if_idle(chosen: Collection[str], mask: Any, params: Any, transform: str) -> None:  # noqa: ANN401
    """Warns if a treatment has leaves, and none of them to treat, unless its mask is plain False.

    It is no error, since a model without normalisers has no scale-invariant leaf. Nothing is said
    of params with `optax.MaskedNode` holes: the others may be chosen in another group.
    """
    leaves = tree_index(params).leaves
    if leaves and not chosen and mask is not False and not has_holes(params):
        warnings.warn(
            f"`{transform}` has nothing to do: its mask chooses none of the {len(leaves)} leaves, "
            f"{next(iter(leaves))!r} and so on. A model without normalisers has no scale-invariant "
            f"leaf, nor has one that was traced as in inference (see `Analysis.notes`). "
            f"`mask=False` says that it is meant.",
            stacklevel=3,
        )


def weight_norm_and_axes(
    path: str,
    update: jax.Array,
    params: Mapping[str, Any],
    norms: Mapping[str, jax.Array],
    *,
    axes: Mapping[str, tuple[int, ...]],
    transform: str,
) -> tuple[jax.Array, jax.Array, tuple[int, ...]]:
    """The weight at a path, its norm in the state, and the axes that the norm sums over.

    Raises:
      StructureError: One of them is missing, or has another shape than the others ask for.
    """
    _require_leaf(path, update, params)
    weight, held = jnp.asarray(params[path]), norms.get(path)
    over = summed_axes(path, weight, axes)
    wanted = tuple(1 if a in over else n for a, n in enumerate(weight.shape))
    if held is None or jnp.shape(held) != wanted:
        found = "no norm" if held is None else f"norms of shape {jnp.shape(held)}, not {wanted},"
        raise StructureError(
            f"The state of `{transform}` must be of the leaves and axes that it is asked for. It "
            f"holds {found} of {path!r}. Was it made with another mask, or with other axes? Call "
            f"`tx.init(params)` again."
        )
    return weight, held, over


def require_leaves(updates: Any, params: Any) -> None:  # noqa: ANN401 - any pytrees
    """Fails unless each leaf of the updates is one of the params, of the same shape, and all are.

    Where updates have a None or an `optax.MaskedNode`, the leaves that it stands for are unknown.

    Raises:
      StructureError: It is not.
    """
    known, made = tree_index(params).leaves, tree_index(updates, "updates").leaves
    for path, update in made.items():
        _require_leaf(path, update, known)
    missing = next((path for path in known if path not in made), None)
    if missing is not None and not any(map(_is_gap, jax.tree.leaves(updates, is_leaf=_is_gap))):
        raise StructureError(
            f"`updates` must have the leaves of `params`, or None in their place. It has nothing "
            f"for {missing!r}. Call `tx.update(updates, state, params)` with the gradient of all."
        )


def _require_leaf(path: str, update: Any, params: Mapping[str, Any]) -> None:  # noqa: ANN401 - any array
    if path not in params:
        raise StructureError(
            f"`updates` must have the leaves of `params`. It has {path!r}, and `params` has not. "
            f"Call `tx.update(updates, state, params)`."
        )
    if jnp.shape(update) != jnp.shape(params[path]):
        raise StructureError(
            f"`updates` must have the shapes of `params`. It has {jnp.shape(update)} for {path!r}, "
            f"and `params` has {jnp.shape(params[path])}."
        )


def require_state(state: Any, kind: type, transform: str) -> None:  # noqa: ANN401 - what a user passed
    """Fails unless `update` got the transformation's own state.

    Raises:
      TypeError: It got something else, such as the params.
    """
    if not isinstance(state, kind):
        raise wrong_kind(
            "state",
            f"the `{kind.__name__}` that `init` of `{transform}` returned",
            state,
            "Call `tx.update(updates, state, params)`.",
        )


def summed_axes(path: str, leaf: jax.Array, axes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    """The axes of a leaf that its norm sums over: all but those that `axes` gives for its path.

    Inside of `by_blocks`, a part of a leaf that `axes` does not name has the axes of the leaf.

    Raises:
      StructureError: An axis that the leaf does not have.
    """
    own = axes.get(path, axes.get(whole(path), ()))
    if any(not -leaf.ndim <= axis < leaf.ndim for axis in own):
        raise StructureError(
            f"`axes` must name axes that the leaf has. It has {own} for {path!r}, whose shape is "
            f"{leaf.shape}."
        )
    own = {axis % leaf.ndim for axis in own}
    return tuple(axis for axis in range(leaf.ndim) if axis not in own)
