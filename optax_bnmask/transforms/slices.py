"""The chosen leaves of a tree, and the slices of each that have a norm of their own."""

from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from typing import Any

import jax

from optax_bnmask.arguments import wrong_kind
from optax_bnmask.errors import PathError, StructureError
from optax_bnmask.labels import whole
from optax_bnmask.mask import Mask
from optax_bnmask.paths import nearest
from optax_bnmask.transforms.choice import chosen


def check_paths(paths: Iterable[str], mask: Any, argument: str) -> None:  # noqa: ANN401 - any mask
    """Refuses paths that `mask`, where it is a `Mask`, does not know.

    Raises:
      PathError: One of them.
    """
    if not isinstance(mask, Mask):
        return
    for path in paths:
        if path not in mask:
            raise PathError(
                f"`{argument}` must name leaves that `mask` knows. It has no leaf {path!r}"
                f"{nearest(path, tuple(mask))}."
            )


def by_path(axes: Any) -> dict[str, tuple[int, ...]]:  # noqa: ANN401 - what a user passed
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
        if not isinstance(own, Sequence) or not all(isinstance(a, Integral) for a in own):
            raise wrong_kind(
                f"axes[{path!r}]", "a tuple of axes", own, "A single axis is `(3,)`, with a comma."
            )
    return dict(axes or {})


def paths_of(mask: Any, tree: Any, paths: Iterable[str]) -> list[str]:  # noqa: ANN401 - any pytrees
    """The paths, of all that the tree has, of the leaves that the mask chooses."""
    flags = jax.tree.leaves(chosen(mask, tree))
    return [path for path, flag in zip(paths, flags, strict=True) if flag]


def summed(path: str, leaf: jax.Array, axes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    """The axes of a leaf that its norm is a sum over: all but those in `axes`.

    What `axes` says of a leaf holds for the parts of it that `by_blocks` shows.

    Raises:
      StructureError: An axis that the leaf does not have.
    """
    own = axes.get(whole(path), ())
    if any(not -leaf.ndim <= axis < leaf.ndim for axis in own):
        raise StructureError(
            f"`axes` must name axes that the leaf has. It has {own} for {path!r}, whose shape is "
            f"{leaf.shape}."
        )
    own = {axis % leaf.ndim for axis in own}
    return tuple(axis for axis in range(leaf.ndim) if axis not in own)
