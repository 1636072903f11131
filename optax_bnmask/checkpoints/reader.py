"""`read`: which kind of checkpoint a path is, and what it holds."""

import mmap
import os
import stat
from pathlib import Path
from typing import BinaryIO, Final, NoReturn

from optax_bnmask.arguments import wrong_kind
from optax_bnmask.checkpoints.location import located
from optax_bnmask.checkpoints.msgpack_files import msgpack_tree
from optax_bnmask.checkpoints.npz_files import npz_tree
from optax_bnmask.checkpoints.orbax_folders import orbax_tree
from optax_bnmask.checkpoints.safetensors_files import safetensors_tree
from optax_bnmask.checkpoints.stored import Kind, Stored, Tree, shown
from optax_bnmask.errors import StructureError

_FOREIGN: Final = {
    b"\x93NUMPY": "is one array of numpy's, which has no name",
    b"\x89HDF": "is HDF5, as Keras writes it",
    b"\x1f\x8b": "is compressed by gzip",
    b"\x28\xb5\x2f\xfd": "is compressed by zstd",
    b"version https://git-lfs": "is a pointer of Git LFS to a file that was not fetched",
}
"""What else people point at, by the first bytes."""


def read(
    path: str | os.PathLike[str], *, params: str | None = None, stats: str | None = None
) -> Stored:
    """What a checkpoint holds, by its metadata: no array is loaded and nothing in it is run.

    Args:
      path: An Orbax directory (also a `CheckpointManager`'s, of which the last step is read), or a
        file of `flax.serialization.to_bytes`, of safetensors, or of `numpy.savez`.
      params: Where in it the params are, ``"state/params"``; without, they are looked for.
      stats: Where in it the running statistics are; without, they are looked for beside the params.

    Returns:
      A `Stored`, with `jax.ShapeDtypeStruct`s for arrays.

    Raises:
      StructureError: There is no checkpoint of these kinds, it is damaged or claims what cannot be
        true, or the params are not to be found in it.

    Example:
      >>> import pathlib, tempfile
      >>> import flax.serialization, jax.numpy as jnp
      >>> path = pathlib.Path(tempfile.mkdtemp(), "model.msgpack")
      >>> variables = {"params": {"dense": {"kernel": jnp.ones((2, 3))}}}
      >>> _ = path.write_bytes(flax.serialization.to_bytes(variables))
      >>> stored = read(path)
      >>> stored.kind.value, stored.params["dense"]["kernel"].shape
      ('Flax msgpack', (2, 3))
    """
    if not isinstance(path, (str, os.PathLike)):
        raise wrong_kind(
            "path",
            "where a checkpoint is",
            path,
            "Of params in memory, `bnmask.analyze_structure` tells as much.",
        )
    kind, tree, notes = _tree(Path(path))
    return located(tree, kind, notes, params=params, stats=stats)


def _tree(path: Path) -> tuple[Kind, Tree, tuple[str, ...]]:
    """The kind of a checkpoint, all that it holds, and where that was found."""
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            return Kind.ORBAX, *orbax_tree(path)
        if not stat.S_ISREG(status.st_mode):  # a pipe or a device would never end
            _refuse(path, "is neither a file nor a directory")
        with path.open("rb") as file:
            return *_file_tree(path, file, os.fstat(file.fileno()).st_size), ()
    except (OSError, ValueError) as error:
        if isinstance(error, StructureError):
            raise
        reason = getattr(error, "strerror", None) or str(error)
        raise StructureError(
            f"`path` must be a checkpoint that can be read. {shown(str(path))}: {reason}. Is it "
            f"written as it is on the disk?"
        ) from error


def _file_tree(path: Path, file: BinaryIO, size: int) -> tuple[Kind, Tree]:
    """The kind of a file, and the tree in it."""
    start = file.read(64)
    file.seek(0)
    for magic, what in _FOREIGN.items():
        if start.startswith(magic):
            _refuse(path, what)
    if start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        _refuse(path, "is a pickle, which could only be read by running it")
    if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return Kind.NPZ, npz_tree(file, size)
    if path.suffix == ".safetensors" or start[5:9] == b"\0\0\0{":
        return Kind.SAFETENSORS, safetensors_tree(file, size)
    if start and (0x80 <= start[0] <= 0x8F or start[0] in (0xDE, 0xDF)):
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return Kind.MSGPACK, msgpack_tree(data)
    return _refuse(path, f"begins with {start[:8]!r}" if start else "is empty")


def _refuse(path: Path, what: str) -> NoReturn:
    """Fails with what a path is instead."""
    raise StructureError(
        f"`path` must be a checkpoint of Orbax, Flax msgpack, safetensors or npz. "
        f"{shown(path.name)} {what}. Save the params in one of these."
    )
