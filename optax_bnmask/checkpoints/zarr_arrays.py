"""The descriptions of zarr's arrays, versions 2 and 3: JSON beside the chunks, or in one store."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from optax_bnmask.checkpoints.parser import json_object, small_file
from optax_bnmask.checkpoints.stored import Kind, refuse, shown
from optax_bnmask.errors import StructureError

Descriptions = Mapping[str, tuple[Any, str]]
"""By place, the shape as it is written and the dtype's name."""

_KIND: Final = Kind.ORBAX
_LIMIT: Final = 1 << 20
"""Bytes of one array's description; they have a few hundred."""
_AT_ONCE: Final = 1024
_CODE: Final = re.compile(r"[<>|=]?([biufc])([0-9]{1,2})")
_KINDS: Final = {"i": "int", "u": "uint", "f": "float", "c": "complex"}


def in_directories(
    place: Path, root: Path, names: Sequence[str], *, zarr3: bool
) -> dict[str, tuple[Any, str]]:
    """The descriptions of arrays that have a directory each.

    Args:
      place: The directory of the checkpoint.
      root: The directory that no link may lead out of.
      names: The names of the arrays.
      zarr3: Whether they are of zarr's version 3.

    Returns:
      For each its description.

    Raises:
      StructureError: One is missing, or not what it should be.
    """
    file = "zarr.json" if zarr3 else ".zarray"
    return {
        name: _description(name, small_file(_KIND, place / name / file, root, _LIMIT))
        for name in names
    }


def in_one_store(
    place: Path, root: Path, names: Sequence[str], *, zarr3: bool
) -> dict[str, tuple[Any, str]]:
    """The descriptions of arrays that share a key-value store; see `in_directories`."""
    try:
        import tensorstore  # noqa: PLC0415 - comes with Orbax, which not everyone has
    except ModuleNotFoundError:
        raise StructureError(
            "The arrays of this Orbax checkpoint share one store, which only TensorStore reads. "
            "It is not installed. Install `orbax-checkpoint`, which brings it."
        ) from None
    _refuse_links(place, root)
    base = place.as_uri() + "/"  # escapes what a path may hold and a URL may not
    try:
        store = tensorstore.KvStore.open({"driver": "ocdbt", "base": base}).result()
        texts = _read(store, [f"{name}/{'zarr.json' if zarr3 else '.zarray'}" for name in names])
    except StructureError:
        raise
    except (ValueError, OSError, RuntimeError) as error:  # whatever TensorStore makes of damage
        refuse(_KIND, f"Its store of arrays cannot be read: {shown(str(error)[:60])}")
    return {name: _description(name, text) for name, text in zip(names, texts, strict=True)}


def _read(store: Any, keys: Sequence[str]) -> list[bytes]:  # noqa: ANN401 - of TensorStore
    """The values of some keys, many of them at once; none is read that is too long."""
    values: list[bytes] = []
    for start in range(0, len(keys), _AT_ONCE):
        some = keys[start : start + _AT_ONCE]
        for key, beyond in [
            (key, store.read(key, byte_range=slice(_LIMIT, _LIMIT + 1))) for key in some
        ]:
            # a store refuses to read past the end of a value: so it tells how long it is
            if beyond.exception() is None and beyond.result().state == "value":
                refuse(_KIND, f"{shown(key)} is longer than any description of an array")
        for key, read in [(key, store.read(key)) for key in some]:
            if read.result().state != "value":
                refuse(_KIND, f"It has no {shown(key)}, which '_METADATA' lists")
            values.append(read.result().value)
    return values


def _refuse_links(place: Path, root: Path) -> None:
    """Fails on a link out of the checkpoint, and on what would keep a reader waiting."""
    for path in (place / "manifest.ocdbt", *place.glob("d/*"), *place.glob("ocdbt.process_*/d/*")):
        real = path.resolve()
        if not real.is_relative_to(root) or not real.is_file():
            name = shown(str(path.relative_to(root)))
            refuse(_KIND, f"{name} is a link to a place outside of it, or no plain file")


def _description(name: str, text: bytes) -> tuple[Any, str]:
    """The shape and the dtype's name, as an array's JSON has them."""
    found = json_object(_KIND, text, f"The description of {shown(name)}")
    dtype = found.get("dtype", found.get("data_type"))
    if not isinstance(dtype, str):
        refuse(_KIND, f"{shown(name)} has the dtype {shown(dtype)}, which no array of JAX has", "")
    return found.get("shape"), _name_of(dtype)


def _name_of(dtype: str) -> str:
    """The name of a dtype that zarr 2 writes as a code, ``"<f4"``; others are names already."""
    code = _CODE.fullmatch(dtype)
    if code is None:
        return dtype
    kind, size = code.groups()
    return "bool" if kind == "b" else f"{_KINDS[kind]}{8 * int(size)}"
