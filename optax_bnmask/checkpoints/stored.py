"""What every reader of checkpoints makes: a tree of shapes, each checked before it is believed.

Files are not trusted: nothing in them is run, no size that they claim is allocated, and what cannot
be true is an error that says so.
"""

import dataclasses
import enum
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NoReturn

import jax
import jax.numpy as jnp

from optax_bnmask.errors import StructureError

Tree = dict[str, Any]
"""Dicts of dicts; a leaf is a `jax.ShapeDtypeStruct`, `None`, or a `str` that says what it is."""

DEEPEST: Final = 64
"""No model nests its modules deeper; a file that does is built to exhaust whoever reads it."""
MOST_ENTRIES: Final = 1_000_000
"""No checkpoint holds more arrays."""
LARGEST_JSON: Final = 100_000_000
"""Bytes of metadata; the library of safetensors has the same limit for its header."""

_DTYPES: Final = frozenset(
    [
        "bool",
        *(f"{sign}int{bits}" for sign in ("", "u") for bits in (2, 4, 8, 16, 32, 64)),
        *("float16", "float32", "float64", "bfloat16", "complex64", "complex128"),
        *("float8_e3m4", "float8_e4m3", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2"),
        *("float8_e4m3b11fnuz", "float8_e5m2fnuz", "float8_e8m0fnu", "float4_e2m1fn"),
    ]
)


class Kind(enum.StrEnum):
    """How a checkpoint is stored."""

    ORBAX = "Orbax"
    """A directory that Orbax wrote."""
    MSGPACK = "Flax msgpack"
    """A file of `flax.serialization.to_bytes`."""
    SAFETENSORS = "safetensors"
    """A file of the safetensors library."""
    NPZ = "npz"
    """A file of `numpy.savez`."""


@dataclasses.dataclass(frozen=True, slots=True)
class Stored:
    """What a checkpoint holds, by its metadata.

    Attributes:
      params: The params, dicts of `jax.ShapeDtypeStruct`s.
      batch_stats: The running statistics beside them, or `None`.
      kind: How the checkpoint is stored.
      notes: In sentences, where in the checkpoint these were found, and what was left out.
    """

    params: Tree
    batch_stats: Tree | None
    kind: Kind
    notes: tuple[str, ...] = ()


def refuse(kind: Kind, found: str, way_out: str = "Was it copied in full?") -> NoReturn:
    """Fails with what is wrong in a checkpoint of some kind."""
    raise StructureError(f"`path` must be a whole {kind} checkpoint. {found}. {way_out}")


def shown(name: object) -> str:
    """A name out of a file, fit for a message whatever it holds."""
    text = ascii(name)
    return text if len(text) <= 80 else f"{text[:60]}...{text[-15:]}"


def array(kind: Kind, name: object, shape: object, dtype: str) -> jax.ShapeDtypeStruct:
    """An array that a file claims to hold; fails unless its shape and its dtype can be true."""
    if dtype not in _DTYPES:
        refuse(kind, f"{shown(name)} has the dtype {shown(dtype)}, which no array of JAX has", "")
    sizes = [_size(size) for size in shape] if isinstance(shape, Sequence) else [-1]
    if isinstance(shape, str) or min(sizes, default=0) < 0 or len(sizes) > DEEPEST:
        refuse(kind, f"{shown(name)} has the shape {shown(shape)}, which no array has")
    if math.prod(size or 1 for size in sizes) > 2**56:
        refuse(kind, f"{shown(name)} claims the shape {shown(shape)}, more than can be stored")
    return jax.ShapeDtypeStruct(tuple(sizes), jnp.dtype(dtype))


def _size(size: object) -> int:
    """The length of an axis, or -1 for what is none."""
    return size if isinstance(size, int) and not isinstance(size, bool) else -1


def bytes_of(array: jax.ShapeDtypeStruct) -> int:
    """The bytes that an array takes."""
    return math.prod(array.shape) * array.dtype.itemsize


def tree_of(kind: Kind, leaves: Iterable[tuple[Sequence[str], Any]]) -> Tree:
    """The tree of leaves that are listed with the keys on their way."""
    tree: Tree = {}
    for keys, leaf in leaves:
        if len(keys) > DEEPEST:
            refuse(kind, f"{shown('/'.join(keys))} is nested {len(keys)} deep", "")
        node = tree
        for key in keys[:-1]:
            node = node.setdefault(checked(kind, key), {})
            if not isinstance(node, dict):
                refuse(kind, f"{shown('/'.join(keys))} is below an array", "Rename one of the two.")
        if not keys or checked(kind, keys[-1]) in node:
            refuse(kind, f"There are two of one name, {shown('/'.join(keys))}", "Rename one.")
        node[keys[-1]] = leaf
    return tree


def checked(kind: Kind, key: str) -> str:
    """A key that can be written down: JSON may hold halves of characters."""
    try:
        key.encode()
    except UnicodeEncodeError:
        refuse(kind, f"The name {shown(key)} is no text")
    return key


def split(names: Iterable[str]) -> Mapping[str, tuple[str, ...]]:
    """The keys of flat names, which were joined with ``/``, or else with ``.``."""
    names = tuple(names)
    separator = "/" if any("/" in name for name in names) else "."
    return {name: tuple(name.split(separator)) for name in names}
