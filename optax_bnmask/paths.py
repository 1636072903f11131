"""Canonical names of leaves: one spelling for every container a training loop may hold.

A leaf is named by the keys on its way, joined by ``/``: ``"block1/conv/kernel"``. Containers that
only wrap one array (`flax.core.meta` boxes, NNX Variables, arrays with named axes of any library)
add no key, so a boxed parameter, the same parameter as an `nnx.Variable`, and the bare array have
one name. A key that holds ``/`` or is a tuple, as in a flat dict, stands for several levels.
"""

import collections
import difflib
import fnmatch
import re
from collections.abc import Collection, Iterable
from typing import Any, Final, Literal, NamedTuple

import jax
import optax

from optax_bnmask.arguments import is_of, strings
from optax_bnmask.errors import PathError, StructureError

_CONTENTS: Final = frozenset({"array", "data", "data_array", "raw_value", "value"})
"""Attribute names under which wrappers keep what they wrap; they add no key to a path."""

_KEPT_FOR_AN_ARRAY: Final = re.compile(r"(^|.*/)(kernel|bias|embedding|w|b|weight)/(scale|sigma|u)")
"""Linen's WeightNorm and SpectralNorm keep ``"Dense_0/kernel/scale"`` under one key in a scope of
their own. What comes before its last ``/`` is an array of another module, not a module."""


class TreeIndex(NamedTuple):
    """A tree read once: its leaves by name, and the scopes they live in.

    Attributes:
      leaves: Every array by its canonical path, in the order of `jax.tree.leaves`.
      scopes: By the canonical path of each container that directly holds arrays (``""`` is the
        root), the paths of these arrays by their key in it.
      nested: The paths of those scopes below which there are others.
    """

    leaves: dict[str, Any]
    scopes: dict[str, dict[str, str]]
    nested: frozenset[str]


def tree_index(tree: Any, argument: str = "params") -> TreeIndex:  # noqa: ANN401 - any pytree
    """Reads a pytree's leaves, their canonical names, and their scopes, in one pass.

    Args:
      tree: Any pytree: dicts, FrozenDicts, `nnx.State`, dataclasses, NamedTuples, with or without
        boxes, `None`s and `optax.MaskedNode`s. Leaves are not looked at.
      argument: What the caller calls the tree, for the error.

    Returns:
      The `TreeIndex`. `None` and `MaskedNode` are structure, not leaves.

    Raises:
      StructureError: Two leaves have one name, as ``{"a/b": x, "a": {"b": y}}`` would give.
    """
    walk = _Walk()
    kind, tree = walk.opened(tree)
    if kind == "leaf":
        return TreeIndex({"": tree}, {"": {"": ""}}, frozenset())
    if kind == "level":
        walk.level(tree, "")
    listed = sum(map(len, walk.scopes.values()))
    if walk.clash is not None or not walk.count == len(walk.leaves) == listed:
        times = collections.Counter(p for s in walk.scopes.values() for p in s.values())
        twice = walk.clash or next((path for path in walk.leaves if times[path] != 1), "")
        raise StructureError(
            f"Every leaf and every container of `{argument}` must have a name of its own. There "
            f"are two of one name at {twice!r} once their keys are joined by '/'. Rename one of "
            f"the keys."
        )
    keys = set[str]().union(*walk.scopes.values())  # models of many scopes have few distinct names
    if any(map(_is_joined, keys)):
        return _unfolded(walk)
    return TreeIndex(walk.leaves, walk.scopes, frozenset(walk.nested))


def _is_joined(key: object) -> bool:
    """Whether a leaf's key joins several levels, as ``"up/bias"`` in a flat dict does."""
    return "/" in str(key) and not _KEPT_FOR_AN_ARRAY.fullmatch(str(key))


def _unfolded(walk: "_Walk") -> TreeIndex:
    """The index in which each leaf of a flat dict is in the scope that its key names.

    ``{"up/bias": x, "up/kernel": y}`` has the scope ``up``, as ``{"up": {"bias": x, "kernel": y}}``
    has. Names of leaves do not depend on it.
    """
    scopes: dict[str, dict[str, str]] = {}
    for scope, names in walk.scopes.items():
        for key, path in names.items():
            if _is_joined(key):
                above, _, name = path.rpartition("/")
            else:
                above, name = scope, key
            scopes.setdefault(above, {})[name] = path
    nested: set[str] = set()
    for scope in scopes:
        parts = scope.split("/") if scope else []
        nested.update("/".join(parts[:depth]) for depth in range(len(parts)))
    return TreeIndex(walk.leaves, scopes, frozenset(nested & scopes.keys()))


_Kind = Literal["leaf", "level", "hole"]
"""What `_Walk` takes a node for; a level's keys are part of the names of the leaves below it."""


class _Walk:
    """One pass over a tree, in the order in which `jax.tree.leaves` lists its leaves."""

    def __init__(self) -> None:
        self.leaves: dict[str, Any] = {}
        self.scopes: dict[str, dict[str, str]] = {}
        self.nested: set[str] = set()
        self.count = 0
        self.clash: str | None = None
        self._kinds: dict[type, _Kind] = {
            dict: "level",
            type(None): "hole",
            optax.MaskedNode: "hole",
        }

    def level(self, node: Any, prefix: str) -> bool:  # noqa: ANN401 - any pytree
        """Visits the children of a container; whether there are arrays in it at any depth."""
        keys: Any = sorted(node) if type(node) is dict else ()
        if not keys or type(keys[0]) is not str:  # keys can be sorted: all are strings, or none
            node = keys = self._named(node, prefix)  # ten times slower
        kinds, leaves, below = self._kinds, self.leaves, False
        here: dict[str, str] = {}
        for key in keys:
            child = node[key]
            kind = kinds.get(type(child))
            if kind is None:
                kind, child = self.opened(child)
            if kind == "leaf":
                here[key] = path = f"{prefix}{key}"
                leaves[path] = child
            elif kind == "level":
                below = self.level(child, f"{prefix}{key}/") or below
        if not here:
            return below
        scope = prefix[:-1]
        self.count += len(here)
        self.scopes[scope] = here
        if below:
            self.nested.add(scope)
        return True

    def _named(self, node: Any, prefix: str) -> dict[str, Any]:  # noqa: ANN401 - any pytree
        """The children of any container by their keys as strings, in JAX's order."""
        children = _children(node)
        named = dict(children)
        if len(named) < len(children):
            (twice, _), *_ = collections.Counter(key for key, _ in children).most_common(1)
            self.clash = f"{prefix}{twice}"
        return named

    def opened(self, node: Any) -> tuple[_Kind, Any]:  # noqa: ANN401 - any pytree
        """The kind of a node once the boxes around it are removed, and the node without them."""
        kind = self._kinds.get(type(node))
        if kind is not None:
            return kind, node
        if jax.tree_util.all_leaves([node]):
            self._kinds[type(node)] = "leaf"
            return "leaf", node
        children = _keyed_children(node)
        if len(children) == 1:
            keys, inner = children[0]
            if is_box(node):
                return self.opened(inner)
            if _names_no_part(keys) and (inside := self.opened(inner))[0] != "level":
                return inside
        # A type whose children have names is a level always. Without names the type's next node may
        # have a single child, and be a wrapper.
        if not is_box(node) and not any(_names_no_part(keys) for keys, _ in children):
            self._kinds[type(node)] = "level"
        return "level", node


def _keyed_children(node: Any) -> list[tuple[Any, Any]]:  # noqa: ANN401 - any pytree
    """The children of any container, in JAX's order, with JAX's keys."""

    def is_below(other: object) -> bool:
        return other is not node

    return jax.tree_util.tree_flatten_with_path(node, is_leaf=is_below)[0]


def _children(node: Any) -> list[tuple[str, Any]]:  # noqa: ANN401 - any pytree
    """The children of any container, in JAX's order, with their keys as strings."""
    return [(_spelt(keys), child) for keys, child in _keyed_children(node)]


def _spelt(keys: Any) -> str:  # noqa: ANN401 - a tuple of any of JAX's keys
    """A child's key as a string; a tuple is joined by ``/``."""
    match keys:
        case (jax.tree_util.DictKey(key=tuple() as parts),):
            return "/".join(map(str, parts))
    return jax.tree_util.keystr(keys, simple=True)


def _names_no_part(keys: Any) -> bool:  # noqa: ANN401 - a tuple of any of JAX's keys
    """Whether a child's key is a bare index, or an attribute name that wrappers use."""
    match keys:
        case (jax.tree_util.FlattenedIndexKey(),):
            return True
        case (jax.tree_util.GetAttrKey(name=name),):
            return name in _CONTENTS
    return False


def printable(text: str) -> str:
    r"""The text on one line, whatever names in it hold.

    Control characters, line breaks, marks that turn the direction of writing and lone surrogates
    are spelt out, ``\x1b``: they would break a terminal's line or a page's encoding.
    """
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )


def is_box(node: object) -> bool:
    """Whether `node` is a box of Flax's: it adds no key, even around a container."""
    # Only what the user has imported can be in the tree: Flax takes 0.2 s to import, and is of no
    # use to a tree of Haiku's or Equinox's.
    return is_of(node, "flax.core.meta", "AxisMetadata") or is_of(node, "flax.nnx", "Variable")


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
      TypeError: They are no strings.
    """
    found: set[str] = set()
    for glob in strings(globs, argument):
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
    close = difflib.get_close_matches(str(path), paths, n=3, cutoff=0.5)
    if close:
        return "; the nearest are " + ", ".join(repr(p) for p in close)
    some = ", ".join(repr(p) for p in list(paths)[:3])
    return f"; there are {some}{', ...' if len(paths) > 3 else ''}" if some else ""
