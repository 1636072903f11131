"""What every reader of checkpoints makes: a tree of shapes, each checked before it is believed.

Files are not trusted: nothing in them is run, no size that they claim is allocated, and what cannot
be true is an error that says so.
"""

import contextlib
import json
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any, Final, NoReturn

import jax
import jax.numpy as jnp

Keys = tuple[str, ...]
"""The keys on the way to a place in a checkpoint, from the outermost."""
Tree = dict[str, Any]
"""Dicts of dicts; a leaf is a `jax.ShapeDtypeStruct`, a `str` that says what else is there, or
`None`."""

DEEPEST: Final = 64
"""No model nests its modules deeper; a file that does is built to exhaust whoever reads it."""
MOST_ENTRIES: Final = 1_000_000
"""No checkpoint holds more arrays."""
LARGEST_JSON: Final = 100_000_000
"""Bytes of metadata; the library of safetensors has the same limit for its header."""


class DamageError(Exception):
    """What is wrong in a checkpoint; `read` raises it as a `StructureError` that names the kind."""


def refuse(found: str, way_out: str = "Was it copied in full?") -> NoReturn:
    """Fails with what is wrong in a checkpoint, and the way out."""
    raise DamageError(f"{found}. {way_out}".rstrip())


def shown(name: object) -> str:
    """A name out of a file, fit for a message whatever it holds."""
    text = ascii(name)
    return text if len(text) <= 80 else f"{text[:60]}...{text[-15:]}"


def array(
    name: object, shape: object, dtype: object, held: int | None = None
) -> jax.ShapeDtypeStruct:
    """An array that a file claims to hold; fails unless its shape and its dtype can be true.

    Where the file says how many bytes it has (`held`), they must be as many as these take.
    """
    known = _dtype(dtype)
    if known is None:
        refuse(f"{shown(name)} has the dtype {shown(dtype)}, which no array of JAX has", "")
    sizes: Sequence[Any] = shape if isinstance(shape, Sequence) else [None]
    # by `type`, since True and False are of `int` too
    if len(sizes) > DEEPEST or not all(type(size) is int and size >= 0 for size in sizes):
        refuse(f"{shown(name)} has the shape {shown(shape)}, which no array has")
    if math.prod(size or 1 for size in sizes) > 2**56:
        refuse(f"{shown(name)} claims the shape {shown(shape)}, more than can be stored")
    leaf = jax.ShapeDtypeStruct(tuple(sizes), known)
    if held not in (None, needed := bytes_of(leaf)):
        of = f"its shape {shown(leaf.shape)} of {leaf.dtype} needs {needed:,}"
        refuse(f"{shown(name)} has {held:,} bytes, and {of}")
    return leaf


def _dtype(name: object) -> Any:  # noqa: ANN401 - a dtype, or None
    """JAX's dtype of a name, or of a code such as ``"<f4"``; `None` if it has none.

    Of any other string NumPy would read records, Python objects or a void of gigabytes.
    """
    if isinstance(name, str) and re.fullmatch("[<>|=]?[bcfiu][a-z0-9_]{0,20}", name):
        with contextlib.suppress(TypeError):
            dtype = jnp.dtype(name).newbyteorder("=")
            return dtype if jnp.isdtype(dtype, ("bool", "numeric")) else None
    return None


def bytes_of(leaf: jax.ShapeDtypeStruct) -> int:
    """The bytes that an array takes."""
    return math.prod(leaf.shape) * leaf.dtype.itemsize


def nested(leaves: Iterable[tuple[Keys, Any]]) -> Tree:
    """The tree of leaves that are listed with their keys; fails unless they make one."""
    tree: Tree = {}
    for count, (keys, leaf) in enumerate(leaves):
        name = "/".join(keys)
        if len(keys) > DEEPEST or count >= MOST_ENTRIES:
            refuse(f"At {shown(name)} it is nested too deep or has too many arrays", "")
        if re.search("[\ud800-\udfff]", name):
            refuse(f"The name {shown(name)} is no text")  # JSON may hold halves of characters
        node = tree
        for key in keys[:-1]:
            node = node.setdefault(key, {})
            if not isinstance(node, dict):
                refuse(f"{shown(name)} is below an array", "Rename one of the two.")
        if keys[-1] in node:
            refuse(f"There are two of one name, {shown(name)}", "Rename one.")
        node[keys[-1]] = leaf
    return tree


def named(names: Sequence[str], leaves: Iterable[Any]) -> Tree:
    """The tree of leaves with flat names, whose keys were joined with ``/``, or else with ``.``."""
    separator = "/" if any("/" in name for name in names) else "."
    return nested(zip([tuple(name.split(separator)) for name in names], leaves, strict=True))


def distinct(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """The dict of pairs whose keys must differ, where `dict` would keep the last of two."""
    made: dict[str, Any] = {}
    for key, value in pairs:
        if key in made:
            refuse(f"The key {shown(key)} stands twice in one dict", "")
        made[key] = value
    return made


def json_object(text: bytes, what: str) -> dict[str, Any]:
    """The JSON object that some bytes are; `what` these are is for the error."""
    try:
        found = json.loads(text, object_pairs_hook=distinct)
    except (ValueError, RecursionError) as error:
        said = "it is nested too deep" if isinstance(error, RecursionError) else str(error)
        refuse(f"{what} must be JSON: {said[:120]}")
    if not isinstance(found, dict):
        refuse(f"{what} must be a JSON object, and is {shown(found)}")
    return found
