"""Which kind of checkpoint a path is, what it holds, and what that tells of the params."""

import dataclasses
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Final, NoReturn

from optax_bnmask.analysis import Analysis, analyze_structure
from optax_bnmask.arguments import wrong_kind
from optax_bnmask.checkpoints.location import Stored, located
from optax_bnmask.checkpoints.msgpack_files import MAPS, msgpack_tree
from optax_bnmask.checkpoints.npz_files import npz_tree
from optax_bnmask.checkpoints.orbax_folders import orbax_tree
from optax_bnmask.checkpoints.safetensors_files import safetensors_tree
from optax_bnmask.checkpoints.trees import DamageError, Tree, shown
from optax_bnmask.errors import StructureError

_UNVERIFIED: Final = (
    "unverified by a program: the roles rest on names, shapes and running statistics alone; "
    "`analyze` and `verify` on the model itself prove them"
)
_FOREIGN: Final = {
    b"\x93NUMPY": "is one array of numpy's, which has no name",
    b"\x89HDF": "is HDF5, as Keras writes it",
    b"\x1f\x8b": "is compressed by gzip",
    b"\x28\xb5\x2f\xfd": "is compressed by zstd",
    b"version https://git-lfs": "is a pointer of Git LFS to a file that was not fetched",
    **dict.fromkeys(
        (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"),
        "is a pickle, which could only be read by running it",
    ),
}
"""What else people point at, by the first bytes."""


def analyze_checkpoint(
    path: str | os.PathLike[str], *, params: str | None = None, stats: str | None = None
) -> Analysis:
    """What the metadata of a checkpoint tell of each param's role.

    No array is loaded, and nothing in the checkpoint is run.

    Args:
      path: An Orbax directory (also a `CheckpointManager`'s, of which the last step is read), or a
        file of `flax.serialization.to_bytes`, of safetensors, or of `numpy.savez`.
      params: Where in it the params are, ``"state/params"``; without, they are looked for.
      stats: Where in it the running statistics are; without, they are looked for beside the params.

    Returns:
      An `Analysis` by structure, which says in its `notes` what it was read from and that no
      program verified it.

    Raises:
      StructureError: There is no checkpoint of these kinds, it is damaged or claims what cannot be
        true, the params are not to be found in it, or `analyze_structure` refuses them.

    Example:
      >>> import pathlib, tempfile
      >>> import numpy as np
      >>> path = pathlib.Path(tempfile.mkdtemp(), "model.npz")
      >>> np.savez(path, **{"dense/kernel": np.ones((2, 3)), "dense/bias": np.ones(3)})
      >>> analysis = analyze_checkpoint(path)
      >>> analysis["dense/bias"].role.value
      'bias'
      >>> print(analysis.notes[0])
      read from a checkpoint (npz), params at the top
    """
    stored = read(path, params=params, stats=stats)
    analysis = analyze_structure(stored.params, stored.batch_stats)
    return dataclasses.replace(analysis, notes=(*stored.notes, _UNVERIFIED, *analysis.notes))


def read(
    path: str | os.PathLike[str], *, params: str | None = None, stats: str | None = None
) -> Stored:
    """What a checkpoint holds; `analyze_checkpoint` tells of the arguments and of the errors."""
    if not isinstance(path, (str, os.PathLike)):
        raise wrong_kind(
            "path",
            "where a checkpoint is",
            path,
            "Of params in memory, `bnmask.analyze_structure` tells as much.",
        )
    kind, place, notes = "Orbax", Path(path), ()
    try:
        mode = place.stat().st_mode
        if stat.S_ISDIR(mode):
            tree, notes = orbax_tree(place)
        elif stat.S_ISREG(mode):
            with place.open("rb") as file:
                kind, tree_of = _format(place, file.read(64))
                file.seek(0)
                tree = tree_of(file, os.fstat(file.fileno()).st_size)
        else:  # a pipe or a device would never end
            _refuse(place, "is neither a file nor a directory")
        return located(tree, ", ".join([kind, *notes]), params=params, stats=stats)
    except StructureError:
        raise
    except DamageError as damage:
        raise StructureError(f"`path` must be a whole {kind} checkpoint. {damage}") from damage
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise StructureError(
            f"`path` must be a checkpoint that can be read. {shown(str(path))}: {reason}. Is it "
            f"written as it is on the disk?"
        ) from error


def _format(path: Path, start: bytes) -> tuple[str, Callable[[BinaryIO, int], Tree]]:
    """The name and the reader of a file's format, by its first bytes."""
    for magic, what in _FOREIGN.items():
        if start.startswith(magic):
            _refuse(path, what)
    if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "npz", npz_tree
    if path.suffix == ".safetensors" or start[5:9] == b"\0\0\0{":
        return "safetensors", safetensors_tree
    if start and start[0] in MAPS:
        return "Flax msgpack", msgpack_tree
    if start.lstrip()[:1] in (b"{", b"["):
        _refuse(path, "is JSON: a report is read by `Analysis.from_json` and `optax-bnmask diff`")
    return _refuse(path, f"begins with {start[:8]!r}" if start else "is empty")


def _refuse(path: Path, what: str) -> NoReturn:
    """Fails with what a path is instead."""
    raise StructureError(
        f"`path` must be a checkpoint of Orbax, Flax msgpack, safetensors or npz. "
        f"{shown(path.name)} {what}. Save the params in one of these."
    )
