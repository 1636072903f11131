"""Orbax directories: the tree from ``_METADATA``, the shapes from each array's zarr description.

Orbax itself could be asked, but it would choose how to read by what the files say, and take a
second to import. What is needed is JSON. Only where all arrays share one key-value store (OCDBT) is
TensorStore asked for it, and then for nothing else.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from optax_bnmask.checkpoints.parser import json_object, small_file
from optax_bnmask.checkpoints.stored import (
    DEEPEST,
    MOST_ENTRIES,
    Kind,
    Tree,
    array,
    refuse,
    shown,
    tree_of,
)
from optax_bnmask.checkpoints.zarr_arrays import Descriptions, in_directories, in_one_store
from optax_bnmask.errors import StructureError

_KIND: Final = Kind.ORBAX
_TREE: Final = "_METADATA"
_UNFINISHED: Final = ".orbax-checkpoint-tmp"
_MARKS: Final = ("_CHECKPOINT_METADATA", "commit_success.txt", "orbax.checkpoint", "checkpoint")
_HOLES: Final = ("None", "Dict", "List", "NamedTuple", "Tuple", "Empty")
"""What Orbax notes of nodes without arrays below them."""


def orbax_tree(root: Path) -> tuple[Tree, tuple[str, ...]]:
    """The tree of an Orbax checkpoint.

    Args:
      root: The directory of one checkpoint, of one step of a `CheckpointManager`, or of all of its
        steps, of which the last is read.

    Returns:
      The tree, and what to say of where it was found. Several items of one step are the branches of
      one tree.

    Raises:
      StructureError: It is no finished Orbax checkpoint, or its metadata cannot be true.
    """
    root = root.resolve()
    step = _last_step(root)
    place, notes = (root, ()) if step is None else (root / step, (f"step {step}, the last",))
    items = _items(place)
    if not items:
        _refuse_strange(root)
    trees = {name: _item(place / name, root) for name in items}
    if len(trees) == 1:
        (name, tree), *_ = trees.items()
        return tree, (*notes, *([f"item {name!r}"] if name else []))
    return trees, (*notes, f"the items {', '.join(map(repr, trees))}")


def _names(place: Path) -> list[str]:
    """The names of the directories within one, without those still being written."""
    try:
        return sorted(
            entry.name
            for entry in place.iterdir()
            if entry.is_dir() and _UNFINISHED not in entry.name
        )
    except OSError as error:
        refuse(_KIND, f"{shown(place.name)} cannot be listed: {error.strerror}")


def _items(place: Path) -> list[str]:
    """The items of a step: itself, or the directories in it that hold a tree."""
    if (place / _TREE).exists():
        return [""]
    return [name for name in _names(place) if (place / name / _TREE).exists()]


def _last_step(root: Path) -> str | None:
    """The directory of the last step, where there are steps."""
    if _items(root):
        return None
    steps = {
        int(number): name
        for name in _names(root)
        if (number := name.rpartition("_")[2]).isdecimal() and len(number) < 20
        if _items(root / name)
    }
    return steps[max(steps)] if steps else None


def _refuse_strange(root: Path) -> None:
    """Fails with what a directory without a tree seems to be."""
    found = {entry.name for entry in root.iterdir()}
    if any(_UNFINISHED in name for name in {root.name, *found}):
        refuse(_KIND, f"{shown(root.name)} was never finished", "Take the step before it.")
    if "checkpoint" in found:
        way_out = "Restore it once and save it again with an Orbax of today."
        refuse(_KIND, "It has no '_METADATA', as those of Orbax before 2024", way_out)
    if found & set(_MARKS):
        refuse(_KIND, "It has no '_METADATA'", "It may hold an item that is no tree of arrays.")
    some = ", ".join(map(shown, sorted(found)[:3])) or "nothing"
    raise StructureError(
        f"`path` must be a checkpoint of Orbax, Flax msgpack, safetensors or npz. The directory "
        f"{shown(root.name)} holds {some}, and no '_METADATA' of Orbax. Name the directory of one "
        f"step, or the file itself."
    )


def _item(place: Path, root: Path) -> Tree:
    """The tree of one item."""
    metadata = json_object(_KIND, small_file(_KIND, place / _TREE, root), "'_METADATA'")
    listed = metadata.get("tree_metadata")
    if not isinstance(listed, dict) or len(listed) > MOST_ENTRIES:
        refuse(_KIND, f"Its 'tree_metadata' is {shown(listed)}, no list of leaves")
    leaves = [_leaf(name, entry) for name, entry in listed.items()]
    stored = [keys for keys, kind in leaves if kind == "array"]
    wanted = {keys: _place(keys) for keys in stored}
    zarr3 = metadata.get("use_zarr3") is True
    one_store = (place / "manifest.ocdbt").exists()
    if not one_store and any((place / name).exists() for name in ("ocdbt.process_0", "d")):
        refuse(_KIND, "It has no 'manifest.ocdbt', by which its arrays are found")
    described = in_one_store if one_store else in_directories
    arrays = described(place, root, tuple(wanted.values()), zarr3=zarr3)
    return tree_of(_KIND, _filled(leaves, wanted, arrays))


def _leaf(name: str, entry: object) -> tuple[tuple[str, ...], str]:
    """The keys on the way to a leaf, and whether it is an array or what else."""
    described = entry if isinstance(entry, dict) else {}
    way, value = described.get("key_metadata"), described.get("value_metadata")
    if not isinstance(way, list) or not isinstance(value, dict) or len(way) > DEEPEST:
        refuse(_KIND, f"'_METADATA' describes {shown(name)} by {shown(entry)}")
    keys = tuple(str(key.get("key")) if isinstance(key, dict) else "" for key in way)
    if not keys or not all(keys):
        refuse(_KIND, f"'_METADATA' gives {shown(name)} no keys")
    kind = str(value.get("value_type"))
    if value.get("skip_deserialize") is True or kind in _HOLES:
        return keys, "hole"
    return keys, "string" if kind == "string" else "array"


def _place(keys: Sequence[str]) -> str:
    """Where Orbax keeps an array, within the checkpoint."""
    place = ".".join(keys)
    if ".." in place.split("/") or place.startswith("/") or "\0" in place:
        refuse(_KIND, f"'_METADATA' puts {shown(place)} outside of it", "Nothing was read there.")
    return place


def _filled(
    leaves: Iterable[tuple[tuple[str, ...], str]],
    places: Mapping[tuple[str, ...], str],
    arrays: Descriptions,
) -> Iterable[tuple[tuple[str, ...], Any]]:
    """The leaves, with the arrays in their places."""
    for keys, kind in leaves:
        if kind == "array":
            shape, dtype = arrays[places[keys]]
            yield keys, array(_KIND, "/".join(keys), shape, dtype)
        elif kind == "string":
            yield keys, "a string"
