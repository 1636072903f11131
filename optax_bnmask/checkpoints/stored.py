"""What every reader of checkpoints makes: shapes by their keys, each checked before it is believed.

Files are not trusted: nothing in them is run, no size that they claim is allocated, and what cannot
be true is an error that says so.
"""

import collections
import dataclasses
import enum
import json
import math
from collections.abc import Iterable, Sequence
from typing import Any, Final, NoReturn

import jax
import jax.numpy as jnp

Keys = tuple[str, ...]
"""The keys on the way to a place in a checkpoint, from the outermost."""
Leaves = dict[Keys, Any]
"""By place, a `jax.ShapeDtypeStruct`, a `str` that says what else is there, `None` for nothing, or
``{}`` for a branch that holds nothing."""

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
    """How a checkpoint is stored; `read` says what writes each."""

    ORBAX = "Orbax"
    MSGPACK = "Flax msgpack"
    SAFETENSORS = "safetensors"
    NPZ = "npz"


@dataclasses.dataclass(frozen=True, slots=True)
class Stored:
    """What a checkpoint holds, by its metadata.

    Attributes:
      params: The params, dicts of `jax.ShapeDtypeStruct`s.
      batch_stats: The running statistics beside them, or `None`.
      kind: How the checkpoint is stored.
      notes: In sentences, where in the checkpoint these were found, and what was left out.
    """

    params: dict[str, Any]
    batch_stats: dict[str, Any] | None
    kind: Kind
    notes: tuple[str, ...] = ()


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
    dtype = dtype if isinstance(dtype, str) else repr(dtype)
    if dtype not in _DTYPES:
        refuse(f"{shown(name)} has the dtype {shown(dtype)}, which no array of JAX has", "")
    sizes: Sequence[Any] = shape if isinstance(shape, Sequence) else [None]
    # by `type`, since True and False are of `int` too
    if len(sizes) > DEEPEST or not all(type(size) is int and size >= 0 for size in sizes):
        refuse(f"{shown(name)} has the shape {shown(shape)}, which no array has")
    if math.prod(size or 1 for size in sizes) > 2**56:
        refuse(f"{shown(name)} claims the shape {shown(shape)}, more than can be stored")
    leaf = jax.ShapeDtypeStruct(tuple(sizes), jnp.dtype(dtype))
    if held not in (None, needed := bytes_of(leaf)):
        of = f"its shape {shown(leaf.shape)} of {leaf.dtype} needs {needed:,}"
        refuse(f"{shown(name)} has {held:,} bytes, and {of}")
    return leaf


def bytes_of(leaf: jax.ShapeDtypeStruct) -> int:
    """The bytes that an array takes."""
    return math.prod(leaf.shape) * leaf.dtype.itemsize


def placed(leaves: Iterable[tuple[Keys, Any]]) -> Leaves:
    """Leaves that are listed with their keys, once it is checked that they make one tree."""
    made: Leaves = {}
    branches: set[Keys] = {()}
    for keys, leaf in leaves:
        name = shown("/".join(keys))
        if len(keys) > DEEPEST:
            refuse(f"{name} is nested {len(keys)} deep", "")
        above = [keys[:depth] for depth in range(1, len(keys))]
        if any(way in made for way in above):
            refuse(f"{name} is below an array", "Rename one of the two.")
        if keys in made or keys in branches:
            refuse(f"There are two of one name, {name}", "Rename one.")
        try:
            "".join(keys).encode()
        except UnicodeEncodeError:  # JSON may hold halves of characters
            refuse(f"The name {name} is no text")
        branches.update(above)
        made[keys] = leaf
    return made


def named(leaves: Sequence[tuple[str, Any]]) -> Leaves:
    """Leaves of flat names, whose keys were joined with ``/``, or else with ``.``."""
    separator = "/" if any("/" in name for name, _ in leaves) else "."
    return placed((tuple(name.split(separator)), leaf) for name, leaf in leaves)


def json_object(text: bytes, what: str) -> dict[str, Any]:
    """The JSON object that some bytes are; `what` these are is for the error.

    Fails on anything else, on JSON that is nested beyond what Python reads, on numbers that it does
    not, and on one key twice, of which `json` alone would keep the last.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) != len(pairs):
            (key, _), *_ = collections.Counter(key for key, _ in pairs).most_common(1)
            refuse(f"{what} has the key {shown(key)} twice", "")
        return made

    try:
        found = json.loads(text, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        said = "it is nested too deep" if isinstance(error, RecursionError) else str(error)
        refuse(f"{what} must be JSON: {said[:120]}")
    if not isinstance(found, dict):
        refuse(f"{what} must be a JSON object, and is {shown(found)}")
    return found
