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
from typing import Any, Literal, NamedTuple

import jax
import optax
from flax.core import meta

from optax_bnmask.errors import PathError, StructureError


class Layout(NamedTuple):
    """A tree read once: its leaves by name, and the scopes they live in.

    Attributes:
      leaves: Every array by its canonical path, in the order of `jax.tree.leaves`.
      scopes: The containers that directly hold arrays, by their canonical path (``""`` is the
        root): the paths of those arrays by their own key.
      nested: The paths of those scopes below which there are others.
    """

    leaves: dict[str, Any]
    scopes: dict[str, dict[str, str]]
    nested: frozenset[str]


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
    kind, tree = walk.opened(tree)
    if kind == "leaf":
        return Layout({"": tree}, {"": {"": ""}}, frozenset())
    if kind == "level":
        walk.level(tree, "")
    if not walk.count == len(walk.leaves) == sum(map(len, walk.scopes.values())):
        listed = collections.Counter(p for s in walk.scopes.values() for p in s.values())
        twice = next((path for path in walk.leaves if listed[path] != 1), "")
        raise StructureError(
            f"Every leaf and every container of `{argument}` must have a name of its own. There "
            f"are two of one name at {twice!r} once their keys are joined by '/'. Rename one of "
            f"the keys."
        )
    return Layout(walk.leaves, walk.scopes, frozenset(walk.nested))


_Kind = Literal["leaf", "level", "hole"]
"""What a node is to a walk; only a level's keys are part of its leaves' names."""


class _Walk:
    """One pass over a tree, in the order in which `jax.tree.leaves` lists its leaves."""

    def __init__(self) -> None:
        self.leaves: dict[str, Any] = {}
        self.scopes: dict[str, dict[str, str]] = {}
        self.nested: set[str] = set()
        self.count = 0
        self._kinds: dict[type, _Kind] = {
            dict: "level",
            type(None): "hole",
            optax.MaskedNode: "hole",
        }

    def level(self, node: Any, prefix: str) -> None:  # noqa: ANN401 - any pytree
        """Visits the children of a container."""
        if type(node) is dict:  # JAX's own order; the general way is ten times slower
            keys = sorted(node)
        else:
            node = dict(_children(node))
            keys = list(node)
        kinds, leaves, scopes_before = self._kinds, self.leaves, len(self.scopes)
        here: dict[str, str] = {}
        for key in keys:
            child = node[key]
            kind = kinds.get(type(child))
            if kind is None:
                kind, child = self.opened(child)
            if kind == "level":
                self.level(child, f"{prefix}{key}/")
            elif kind == "leaf":
                here[key] = path = f"{prefix}{key}"
                leaves[path] = child
        if here:
            self.count += len(here)
            if len(self.scopes) > scopes_before:
                self.nested.add(prefix[:-1])
            self.scopes[prefix[:-1]] = here

    def opened(self, node: Any) -> tuple[_Kind, Any]:  # noqa: ANN401 - any pytree
        """A node without the boxes around it, and what it is then; the type alone decides."""
        while is_box(node):
            inner = _children(node)
            if len(inner) != 1:
                return "level", node
            node = inner[0][1]
        kind = self._kinds.get(type(node))
        if kind is None:
            kind = "leaf" if jax.tree_util.all_leaves([node]) else "level"
            self._kinds[type(node)] = kind
        return kind, node


def _children(node: Any) -> list[tuple[str, Any]]:  # noqa: ANN401 - any pytree
    """The children of any container, in JAX's order, with their keys as strings."""

    def is_below(other: object) -> bool:
        return other is not node

    children, _ = jax.tree_util.tree_flatten_with_path(node, is_leaf=is_below)
    return [(jax.tree_util.keystr(keys, simple=True), child) for keys, child in children]


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
