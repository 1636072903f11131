"""Canonical names of leaves: one spelling for every container a training loop may hold.

A leaf is named by the keys on its way, joined by ``/``: ``"block1/conv/kernel"``. Containers that
only wrap one array (`flax.core.meta` boxes, NNX Variables) add no key, so a boxed parameter, the
same parameter as an `nnx.Variable`, and the bare array have one name.
"""

import collections
import difflib
import fnmatch
import re
import sys
from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

import jax
from flax.core import meta

from optax_bnmask.errors import PathError, StructureError


class Scope(NamedTuple):
    """One container of a tree and the arrays directly in it.

    Attributes:
      keys: The keys that lead to the container.
      leaves: The arrays directly in it, by their own key.
    """

    keys: tuple[str, ...]
    leaves: dict[str, Any]

    @property
    def path(self) -> str:
        """The container's canonical name; ``""`` for the root."""
        return "/".join(self.keys)

    def leaf_path(self, name: str) -> str:
        """The canonical name of the leaf `name` of this scope."""
        return "/".join((*self.keys, name))


class Layout(NamedTuple):
    """A tree read once: its leaves by name, and the containers they live in.

    Attributes:
      leaves: Every array by its canonical path, in the order of `jax.tree.leaves`.
      scopes: The containers that directly hold arrays, by their keys.
    """

    leaves: dict[str, Any]
    scopes: dict[tuple[str, ...], Scope]


def layout(tree: Any, argument: str = "params") -> Layout:  # noqa: ANN401 - any pytree
    """Reads a pytree's leaves, their canonical names, and their scopes, in one pass.

    Args:
      tree: Any pytree: dicts, FrozenDicts, `nnx.State`, dataclasses, NamedTuples, with or without
        boxes, `None`s and `optax.MaskedNode`s. Leaves are not looked at.
      argument: What the caller calls the tree, for the error.

    Returns:
      The `Layout`. `None` and `MaskedNode` are structure, not leaves.

    Raises:
      StructureError: Two leaves have one name, as ``{"a/b": x, "a": {"b": y}}`` would give.
    """
    walk = _Walk()
    if walk.is_leaf(tree):
        return Layout({"": tree}, {(): Scope((), {"": tree})})
    walk.container(tree, ())
    leaves = dict(zip(walk.paths, walk.leaves, strict=True))
    if len(leaves) != len(walk.paths):
        twice = next(p for p, n in collections.Counter(walk.paths).items() if n > 1)
        raise StructureError(
            f"Every leaf of `{argument}` must have a name of its own. Two leaves are called "
            f"{twice!r} once their keys are joined by '/'. Rename one of the keys."
        )
    return Layout(leaves, walk.scopes)


class _Walk:
    """One pass over a tree, in the order in which `jax.tree.leaves` lists its leaves."""

    def __init__(self) -> None:
        self.scopes: dict[tuple[str, ...], Scope] = {}
        self.paths: list[str] = []
        self.leaves: list[Any] = []
        self._leaf_types: dict[type, bool] = {}

    def is_leaf(self, node: object) -> bool:
        """Whether JAX takes `node` for a leaf, which depends on its type alone."""
        kind = type(node)
        known = self._leaf_types.get(kind)
        if known is None:
            known = self._leaf_types[kind] = jax.tree_util.all_leaves([node])
        return known

    def container(self, node: Any, keys: tuple[str, ...]) -> None:  # noqa: ANN401 - any pytree
        """Visits the children of a container that is a level of its own."""
        prefix = "/".join((*keys, ""))
        here: dict[str, Any] = {}
        leaf_types = self._leaf_types
        for key, child in _children(node):
            if not (leaf_types.get(type(child)) or self.is_leaf(child)):
                child = _unboxed(child)  # noqa: PLW2901 - the box is of no further interest
            if self.is_leaf(child):
                here[key] = child
                self.paths.append(prefix + key)
                self.leaves.append(child)
            else:
                self.container(child, (*keys, key))
        if here:
            self.scopes[keys] = Scope(keys, here)


def _children(node: Any) -> list[tuple[str, Any]]:  # noqa: ANN401 - any pytree
    """The children of a container, in JAX's order, with their keys as strings."""
    if type(node) is dict:  # JAX's own order; the general way below is ten times slower
        return [(key if type(key) is str else str(key), node[key]) for key in sorted(node)]
    children, _ = jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda x: x is not node)
    return [(jax.tree_util.keystr(keys, simple=True), child) for keys, child in children]


def _unboxed(node: Any) -> Any:  # noqa: ANN401 - any pytree
    """What a box, or a box in a box, holds; anything else as it is."""
    while is_box(node):
        inner = _children(node)
        if len(inner) != 1:
            break
        node = inner[0][1]
    return node


def is_box(node: object) -> bool:
    """Whether `node` wraps an array without being a level of the model of its own."""
    if isinstance(node, meta.AxisMetadata):
        return True
    nnx = sys.modules.get("flax.nnx")  # not imported by `import flax`, nor by us
    return nnx is not None and isinstance(node, nnx.Variable)


def matches(globs: Iterable[str], paths: Collection[str], argument: str) -> frozenset[str]:
    """The paths that at least one glob matches.

    Args:
      globs: Shell patterns on whole paths; ``*`` crosses ``/``, so ``"head/*"`` is everything
        below ``head``.
      paths: The canonical paths to choose from.
      argument: What the caller calls the globs, for the error.

    Returns:
      The matched paths.

    Raises:
      PathError: A glob matches nothing.
    """
    if isinstance(globs, str):
        globs = (globs,)
    found: set[str] = set()
    for glob in globs:
        pattern = re.compile(fnmatch.translate(glob))
        hits = [path for path in paths if pattern.match(path)]
        if not hits:
            raise PathError(
                f"Every glob in `{argument}` must match a leaf. {glob!r} matches none of the "
                f"{len(paths)} leaves{nearest(glob, paths)}. Globs are matched against whole "
                f"paths, so a name anywhere in a path is '*/name/*'."
            )
        found.update(hits)
    return frozenset(found)


def nearest(path: str, paths: Collection[str]) -> str:
    """The part of an error that names the paths most like `path`, or a few if none is."""
    close = difflib.get_close_matches(path, paths, n=3, cutoff=0.5)
    if close:
        return "; the nearest are " + ", ".join(repr(p) for p in close)
    some = ", ".join(repr(p) for p in list(paths)[:3])
    return f"; there are {some}{', ...' if len(paths) > 3 else ''}" if some else ""
