"""Orbax directories: the keys from ``_METADATA``, the shapes from each array's zarr description.

Orbax's own `metadata` (0.12) follows links out of the directory, waits for ever on a pipe that
stands for a file, believes the last of two shapes that one description gives, and reads
descriptions of any size. TensorStore, with which it opens the arrays, does the same. So the JSON is
read here, and TensorStore is asked only for the bytes of descriptions in a store that arrays share
(OCDBT), once nothing in its directory is a link out of the checkpoint or no plain file.
"""

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

from optax_bnmask.checkpoints.trees import (
    LARGEST_JSON,
    Keys,
    Tree,
    array,
    json_object,
    nested,
    refuse,
    shown,
)
from optax_bnmask.errors import StructureError, first_line

_TREE: Final = "_METADATA"
_UNFINISHED: Final = ".orbax-checkpoint-tmp"
_STEP: Final = re.compile("(?:.*_)?([0-9]{1,19})", re.DOTALL)
"""The name of a step: its number, with or without a prefix."""
_HOLES: Final = ("None", "Dict", "List", "NamedTuple", "Tuple", "Empty")
"""What Orbax notes of nodes without arrays below them."""
_LARGEST: Final = 1 << 20
"""Bytes of one array's description; they have a few hundred."""
_AT_ONCE: Final = 1024
"""Descriptions that a store is asked for at once: one by one takes fifty times as long."""


def orbax_tree(root: Path) -> tuple[Tree, tuple[str, ...]]:
    """What an Orbax checkpoint holds, and in which parts of it that was found.

    The directory is that of one checkpoint, of one step of a `CheckpointManager`, or of all of its
    steps, of which the last is read. Several items of one step are the branches of one tree.
    """
    root = root.resolve()
    notes: tuple[str, ...] = ()
    items = _written(root, "") or _written(root, "*/")
    if not items:
        inner = _written(root, "*[0-9]/*/")
        numbers = {item.parent: _STEP.fullmatch(item.parent.name) for item in inner}
        steps = {place: int(number[1]) for place, number in numbers.items() if number}
        if not steps:
            _refuse_strange(root)
        last = max(steps, key=lambda place: (steps[place], place))
        items = [item for item in inner if item.parent == last]
        notes = (f"step {last.name}, the last",)
    trees = {item.name: _item(item, root) for item in items}
    if items == [root]:
        return trees[root.name], notes
    if len(items) == 1:
        return trees[items[0].name], (*notes, f"item {items[0].name!r}")
    return trees, (*notes, f"the items {', '.join(map(repr, trees))}")


def _written(root: Path, pattern: str) -> list[Path]:
    """The directories of a pattern that hold a tree and were written to the end."""
    found = sorted(path.parent for path in root.glob(pattern + _TREE))
    return [place for place in found if _UNFINISHED not in str(place.relative_to(root))]


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


def _item(place: Path, root: Path) -> Tree:
    """What one item holds."""
    metadata = json_object(_small_file(place / _TREE, root, LARGEST_JSON), "'_METADATA'")
    listed = metadata.get("tree_metadata")
    if not isinstance(listed, dict):
        refuse(f"Its 'tree_metadata' is {shown(listed)}, no list of leaves")
    leaves = [_leaf(name, entry) for name, entry in listed.items()]
    file = "zarr.json" if metadata.get("use_zarr3") is True else ".zarray"
    names = [f"{_place(keys)}/{file}" for keys, what in leaves if what == "array"]
    if (place / "manifest.ocdbt").exists():
        texts = _in_store(place, root, names)
    elif any((place / name).exists() for name in ("ocdbt.process_0", "d")):
        refuse("It has no 'manifest.ocdbt', by which its arrays are found")
    else:  # each array has a directory of its own
        texts = (_small_file(place / name, root, _LARGEST) for name in names)
    arrays = map(_array, names, texts)
    return nested(
        (keys, next(arrays) if what == "array" else what) for keys, what in leaves if what != "hole"
    )


def _leaf(name: str, entry: Any) -> tuple[Keys, str]:  # noqa: ANN401 - whatever is there
    """The keys on the way to a leaf, and whether it is an array or what else."""
    try:
        keys = tuple(str(key["key"]) for key in entry["key_metadata"])
        value = entry["value_metadata"]
        kind = value["value_type"]
    except (KeyError, TypeError):
        refuse(f"'_METADATA' describes {shown(name)} by {shown(entry)}")
    if not keys or not all(keys):
        refuse(f"'_METADATA' gives {shown(name)} no keys")
    if value.get("skip_deserialize") is True or kind in _HOLES:
        return keys, "hole"
    return keys, "a string" if kind == "string" else "array"


def _place(keys: Keys) -> str:
    """Where Orbax keeps an array, within the checkpoint."""
    place = ".".join(keys)
    if ".." in place.split("/") or place.startswith("/") or "\0" in place:
        refuse(f"'_METADATA' puts {shown(place)} outside of it", "Nothing was read there.")
    return place


def _array(name: str, text: bytes) -> Any:  # noqa: ANN401 - a leaf
    """An array by its description, of zarr's version 2 or 3."""
    found = json_object(text, shown(name))
    return array(name, found.get("shape"), found.get("dtype", found.get("data_type")))


def _in_store(place: Path, root: Path, names: Sequence[str]) -> Iterable[bytes]:
    """The descriptions of arrays that share a key-value store."""
    try:
        import tensorstore  # noqa: PLC0415 - nothing else needs it
    except ModuleNotFoundError:
        raise StructureError(
            "The arrays of this Orbax checkpoint share one store, which only TensorStore reads. "
            "It is not installed. Install `orbax-checkpoint`, which brings it."
        ) from None
    for path in place.rglob("*"):
        # a store may name files anywhere below it, so a directory must be one and no link to one
        if not _is_inside(path, root) and (path.is_symlink() or not path.is_dir()):
            name = shown(str(path.relative_to(root)))
            refuse(f"{name} is a link to a place outside of it, or no plain file")
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


def _is_inside(path: Path, root: Path) -> bool:
    """Whether a path is a plain file within the root, once links are followed."""
    real = Path(os.path.realpath(path))
    return real.is_relative_to(root) and real.is_file()


def _small_file(path: Path, root: Path, most: int) -> bytes:
    """The bytes of a file of metadata: a plain one, and within the root."""
    name = shown(str(path.relative_to(root)))
    try:
        if path.exists() and not _is_inside(path, root):  # a pipe would keep us waiting for ever
            refuse(f"{name} is a link to a place outside of it or is no plain file")
        with path.open("rb") as file:
            text = file.read(most + 1)
    except OSError as error:
        refuse(f"{name} cannot be read: {error.strerror}")
    if len(text) > most:
        refuse(f"{name} has more than {most:,} bytes, too many for metadata")
    return text
