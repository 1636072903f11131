"""Orbax directories: the keys from ``_METADATA``, the shapes from each array's zarr description.

Orbax's own `metadata` (0.12) follows links out of the directory, waits for ever on a pipe that
stands for a file, believes the last of two shapes that one description gives, and reads
descriptions of any size. TensorStore, with which it opens the arrays, does the same. So the JSON is
read here, and TensorStore is asked only for the bytes of descriptions in a store that arrays share
(OCDBT), once nothing in its directory is a link out of the checkpoint or no plain file.
"""

import os
import re
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

from optax_bnmask.checkpoints.stored import (
    DEEPEST,
    LARGEST_JSON,
    MOST_ENTRIES,
    Keys,
    Leaves,
    array,
    json_object,
    placed,
    refuse,
    shown,
)
from optax_bnmask.errors import StructureError, first_line

_TREE: Final = "_METADATA"
_UNFINISHED: Final = ".orbax-checkpoint-tmp"
_HOLES: Final = ("None", "Dict", "List", "NamedTuple", "Tuple", "Empty")
"""What Orbax notes of nodes without arrays below them."""
_LARGEST: Final = 1 << 20
"""Bytes of one array's description; they have a few hundred."""
_AT_ONCE: Final = 1024
"""Descriptions that a store is asked for at once: one by one takes fifty times as long."""
_CODE: Final = re.compile(r"[<>|=]?([biufc])([0-9]{1,2})")
_KINDS: Final = {"i": "int", "u": "uint", "f": "float", "c": "complex"}


def orbax_leaves(root: Path) -> tuple[Leaves, tuple[str, ...]]:
    """What an Orbax checkpoint holds, and in which parts of it that was found.

    The directory is that of one checkpoint, of one step of a `CheckpointManager`, or of all of its
    steps, of which the last is read. Several items of one step are the branches of one tree.
    """
    root = root.resolve()
    place, items, notes = root, _items(root), ()
    if not items and (steps := _steps(root)):
        place, items = steps[max(steps)]
        notes = (f"step {place.name}, the last",)
    trees = {name: _item(place / name, root) for name in items}
    match items:
        case []:
            _refuse_strange(root)
        case [name]:
            return trees[name], (*notes, f"item {name!r}") if name else notes
    leaves: Leaves = {
        (name, *keys): leaf for name, tree in trees.items() for keys, leaf in tree.items()
    }
    return leaves, (*notes, f"the items {', '.join(map(repr, items))}")


def _names(place: Path) -> list[str]:
    """The names of the directories within one, without those still being written."""
    found = [entry.name for entry in place.iterdir() if entry.is_dir()]
    return sorted(name for name in found if _UNFINISHED not in name)


def _items(place: Path) -> list[str]:
    """The items of a step: itself, or the directories in it that hold a tree."""
    if (place / _TREE).exists():
        return [""]
    return [name for name in _names(place) if (place / name / _TREE).exists()]


def _steps(root: Path) -> dict[int, tuple[Path, list[str]]]:
    """The steps by number, each with its items."""
    return {
        int(number): (root / name, items)
        for name in _names(root)
        if (number := name.rpartition("_")[2]).isdecimal() and len(number) < 20
        if (items := _items(root / name))
    }


def _refuse_strange(root: Path) -> NoReturn:
    """Fails with what a directory without a tree seems to be."""
    found = sorted(entry.name for entry in root.iterdir())
    if any(_UNFINISHED in name for name in (root.name, *found)):
        refuse(f"{shown(root.name)} was never finished", "Take the step before it.")
    if "checkpoint" in found:
        way_out = "Restore it once and save it again with an Orbax of today."
        refuse("It has no '_METADATA', as those of Orbax before 2024", way_out)
    some = ", ".join(map(shown, found[:3])) or "nothing"
    way_out = "Name the directory of one step, with an item of arrays, or the file itself."
    refuse(f"{shown(root.name)} holds {some}, and no '_METADATA' of Orbax", way_out)


def _item(place: Path, root: Path) -> Leaves:
    """What one item holds."""
    metadata = json_object(_small_file(place / _TREE, root, LARGEST_JSON), "'_METADATA'")
    listed = metadata.get("tree_metadata")
    if not isinstance(listed, dict) or len(listed) > MOST_ENTRIES:
        refuse(f"Its 'tree_metadata' is {shown(listed)}, no list of leaves")
    found = [_leaf(name, entry) for name, entry in listed.items()]
    one_store = (place / "manifest.ocdbt").exists()
    if not one_store and any((place / name).exists() for name in ("ocdbt.process_0", "d")):
        refuse("It has no 'manifest.ocdbt', by which its arrays are found")
    file = "zarr.json" if metadata.get("use_zarr3") is True else ".zarray"
    files = {keys: f"{_place(keys)}/{file}" for keys, what in found if what == "array"}
    if one_store:
        texts = _in_store(place, root, list(files.values()))
    else:  # each array has a directory of its own
        texts = (_small_file(place / name, root, _LARGEST) for name in files.values())
    arrays = {keys: _array(keys, text) for keys, text in zip(files, texts, strict=True)}
    return placed((keys, arrays.get(keys, what)) for keys, what in found if what != "hole")


def _leaf(name: str, entry: object) -> tuple[Keys, str]:
    """The keys on the way to a leaf, and whether it is an array or what else."""
    described = entry if isinstance(entry, dict) else {}
    way, value = described.get("key_metadata"), described.get("value_metadata")
    if not isinstance(way, list) or not isinstance(value, dict) or len(way) > DEEPEST:
        refuse(f"'_METADATA' describes {shown(name)} by {shown(entry)}")
    keys = tuple(str(key.get("key")) if isinstance(key, dict) else "" for key in way)
    if not keys or not all(keys):
        refuse(f"'_METADATA' gives {shown(name)} no keys")
    kind = str(value.get("value_type"))
    if value.get("skip_deserialize") is True or kind in _HOLES:
        return keys, "hole"
    return keys, "a string" if kind == "string" else "array"


def _place(keys: Keys) -> str:
    """Where Orbax keeps an array, within the checkpoint."""
    place = ".".join(keys)
    if ".." in place.split("/") or place.startswith("/") or "\0" in place:
        refuse(f"'_METADATA' puts {shown(place)} outside of it", "Nothing was read there.")
    return place


def _array(keys: Keys, text: bytes) -> Any:  # noqa: ANN401 - a leaf
    """An array by its description, of zarr's version 2 or 3."""
    found = json_object(text, f"The description of {shown('.'.join(keys))}")
    dtype = found.get("dtype", found.get("data_type"))
    if isinstance(dtype, str) and (code := _CODE.fullmatch(dtype)):  # zarr 2 writes "<f4"
        kind, size = code.groups()
        dtype = "bool" if kind == "b" else f"{_KINDS[kind]}{8 * int(size)}"
    return array("/".join(keys), found.get("shape"), dtype)


def _in_store(place: Path, root: Path, names: Sequence[str]) -> Iterable[bytes]:
    """The descriptions of arrays that share a key-value store."""
    try:
        import tensorstore  # noqa: PLC0415 - nothing else needs it
    except ModuleNotFoundError:
        raise StructureError(
            "The arrays of this Orbax checkpoint share one store, which only TensorStore reads. "
            "It is not installed. Install `orbax-checkpoint`, which brings it."
        ) from None
    _refuse_links(place, root)
    base = place.as_uri() + "/"  # escapes what a path may hold and a URL may not
    try:
        store = tensorstore.KvStore.open({"driver": "ocdbt", "base": base}).result()
        for start in range(0, len(names), _AT_ONCE):
            yield from _values(store, names[start : start + _AT_ONCE])
    except (ValueError, OSError, RuntimeError) as error:  # whatever TensorStore makes of damage
        refuse(f"Its store of arrays cannot be read: {shown(first_line(error)[:60])}")


def _values(store: Any, names: Sequence[str]) -> Iterable[bytes]:  # noqa: ANN401 - of TensorStore
    """What a store has for some names, all asked for at once; none is read that is too long."""
    # a store refuses to read past the end of a value: so it tells how long it is
    beyond = [store.read(name, byte_range=slice(_LARGEST, _LARGEST + 1)) for name in names]
    for name, read in zip(names, beyond, strict=True):
        if read.exception() is None and read.result().state == "value":
            refuse(f"{shown(name)} is longer than any description of an array")
    for name, read in [(name, store.read(name)) for name in names]:
        if read.result().state != "value":
            refuse(f"It has no {shown(name)}, which '_METADATA' lists")
        yield read.result().value


def _refuse_links(place: Path, root: Path) -> None:
    """Fails on a link out of the checkpoint, and on what would keep a reader waiting.

    A store may name files anywhere below it, so a directory must be one and no link to one.
    """
    for path in place.rglob("*"):
        real = Path(os.path.realpath(path))
        is_within = real.is_relative_to(root) and real.is_file()
        if not is_within and (path.is_symlink() or not path.is_dir()):
            name = shown(str(path.relative_to(root)))
            refuse(f"{name} is a link to a place outside of it, or no plain file")


def _small_file(path: Path, root: Path, most: int) -> bytes:
    """The bytes of a file of metadata: a plain one, and within the root once links are followed."""
    name = shown(str(path.relative_to(root)))
    try:
        real = path.resolve(strict=True)
        if not real.is_relative_to(root):
            refuse(f"{name} is a link to a place outside of it", "Copy what it links to.")
        status = real.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe would keep us waiting for ever
            refuse(f"{name} is no plain file")
        if status.st_size > most:
            refuse(f"{name} has {status.st_size:,} bytes, too many for metadata")
        with real.open("rb") as file:
            return file.read(most)
    except (OSError, RuntimeError) as error:  # Python 3.11 and 3.12 raise the latter for a loop
        reason = getattr(error, "strerror", None) or str(error)
        refuse(f"{name} cannot be read: {reason}")
