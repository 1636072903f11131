"""Which kind of checkpoint a path is, what it holds, and what that tells of the params."""

import dataclasses
import os
import stat
from pathlib import Path
from typing import Final, NoReturn

from optax_bnmask.analysis import Analysis, analyze_structure
from optax_bnmask.arguments import wrong_kind
from optax_bnmask.checkpoints.location import located
from optax_bnmask.checkpoints.msgpack_files import msgpack_leaves
from optax_bnmask.checkpoints.npz_files import npz_leaves
from optax_bnmask.checkpoints.orbax_folders import orbax_leaves
from optax_bnmask.checkpoints.safetensors_files import safetensors_leaves
from optax_bnmask.checkpoints.stored import DamageError, Kind, Leaves, Stored, shown
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
}
"""What else people point at, by the first bytes."""
_READERS: Final = {
    Kind.MSGPACK: msgpack_leaves,
    Kind.SAFETENSORS: safetensors_leaves,
    Kind.NPZ: npz_leaves,
}


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
    kind, leaves, notes = _leaves(Path(path))
    return located(leaves, kind, notes, params=params, stats=stats)


def analyze_checkpoint(
    path: str | os.PathLike[str], *, params: str | None = None, stats: str | None = None
) -> Analysis:
    """What the metadata of a checkpoint tell of each param's role.

    Args:
      path: The checkpoint, as for `read`.
      params: Where in it the params are; without, they are looked for.
      stats: Where in it the running statistics are; without, they are looked for.

    Returns:
      An `Analysis` by structure, which says in its `notes` what it was read from and that no
      program verified it.

    Raises:
      StructureError: As `read` and `analyze_structure`.

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


def _leaves(path: Path) -> tuple[Kind, Leaves, tuple[str, ...]]:
    """The kind of a checkpoint, all that it holds, and in which parts of it that was found."""
    kind = Kind.ORBAX
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            return kind, *orbax_leaves(path)
        if not stat.S_ISREG(mode):  # a pipe or a device would never end
            _refuse(path, "is neither a file nor a directory")
        with path.open("rb") as file:
            kind = _kind(path, file.read(64))
            file.seek(0)
            return kind, _READERS[kind](file, os.fstat(file.fileno()).st_size), ()
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


def _kind(path: Path, start: bytes) -> Kind:
    """The kind of a file, by its first bytes."""
    for magic, what in _FOREIGN.items():
        if start.startswith(magic):
            _refuse(path, what)
    if start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        _refuse(path, "is a pickle, which could only be read by running it")
    if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return Kind.NPZ
    if path.suffix == ".safetensors" or start[5:9] == b"\0\0\0{":
        return Kind.SAFETENSORS
    if start and (0x80 <= start[0] <= 0x8F or start[0] in (0xDE, 0xDF)):
        return Kind.MSGPACK
    return _refuse(path, f"begins with {start[:8]!r}" if start else "is empty")


def _refuse(path: Path, what: str) -> NoReturn:
    """Fails with what a path is instead."""
    raise StructureError(
        f"`path` must be a checkpoint of Orbax, Flax msgpack, safetensors or npz. "
        f"{shown(path.name)} {what}. Save the params in one of these."
    )
