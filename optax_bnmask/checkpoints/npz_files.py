"""npz: a zip of npy files, of each of which only the header is unpacked."""

import io
import stat
import struct
import warnings
import zipfile
import zlib
from pathlib import PurePosixPath
from typing import Any, BinaryIO, Final

import numpy as np

from optax_bnmask.checkpoints.stored import (
    MOST_ENTRIES,
    Kind,
    Tree,
    array,
    bytes_of,
    refuse,
    shown,
    split,
    tree_of,
)
from optax_bnmask.errors import first_line

_KIND: Final = Kind.NPZ
_HEADER: Final = 64 * 1024
"""Bytes of an npy file that are unpacked at most; numpy's own headers have a few hundred."""
_DENSEST: Final = 1032
"""How many bytes one byte of deflate can hold."""


def npz_tree(file: BinaryIO, size: int) -> Tree:
    """The tree of an npz file, from the headers of its members.

    Args:
      file: The file, which must be seekable.
      size: How many bytes it has.

    Returns:
      The tree; names are taken apart at ``/``, or at ``.`` where no name has a ``/``.

    Raises:
      StructureError: It is no zip of npy files, holds Python objects, or claims what it cannot
        hold.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            if len(members) > MOST_ENTRIES:
                refuse(_KIND, f"It claims {len(members):,} arrays", "")
            arrays = [(_name(member), _array(archive, member, size)) for member in members]
    except (zipfile.BadZipFile, NotImplementedError, struct.error, zlib.error, EOFError) as error:
        refuse(_KIND, f"It must be a zip: {shown(str(error) or 'a member ends too early')}")
    keys = split(name for name, _ in arrays)
    return tree_of(_KIND, ((keys[name], leaf) for name, leaf in arrays))


def _name(member: zipfile.ZipInfo) -> str:
    """The name of a member that is a plain npy file within the archive."""
    name = member.filename
    place = PurePosixPath(name.replace("\\", "/"))
    if place.is_absolute() or ".." in place.parts or ":" in name or "\\" in name:
        refuse(_KIND, f"Its member {shown(name)} points out of it", "Nothing was unpacked.")
    mode = member.external_attr >> 16
    if stat.S_ISLNK(mode):
        refuse(_KIND, f"Its member {shown(name)} is a link", "Nothing was unpacked.")
    if not name.endswith(".npy"):
        refuse(
            _KIND, f"Its member {shown(name)} is no npy file", "Another format may be a zip too."
        )
    return name.removesuffix(".npy")


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo, size: int) -> Any:  # noqa: ANN401 - a leaf
    """One array, by its header."""
    name, held, claimed = shown(member.filename), member.compress_size, member.file_size
    if member.flag_bits & 0x1:
        refuse(_KIND, f"{name} is encrypted", "Decrypt it first.")
    if held > size or claimed > held * (_DENSEST if member.compress_type else 1):
        refuse(_KIND, f"{name} claims {claimed:,} bytes in {held:,} of a file of {size:,}")
    with archive.open(member) as packed:
        start = io.BytesIO(packed.read(_HEADER))
    shape, dtype = _header(name, start)
    if dtype.hasobject:
        refuse(
            _KIND,
            f"{name} holds Python objects, which only running a pickle could read",
            "Save arrays alone.",
        )
    # numpy has no bfloat16 of its own and writes it as two bytes without a meaning
    leaf = array(_KIND, member.filename, shape, "bfloat16" if dtype.str[1:] == "V2" else dtype.name)
    if claimed - start.tell() != bytes_of(leaf):
        refuse(
            _KIND,
            f"{name} has {claimed - start.tell():,} bytes, and its shape {shown(leaf.shape)} of "
            f"{leaf.dtype} needs {bytes_of(leaf):,}",
        )
    return leaf


def _header(name: str, start: BinaryIO) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """The shape and the dtype at the beginning of an npy file."""
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of headers that Python 2 wrote
            version = np.lib.format.read_magic(start)
            reader = readers.get(version)
            shape, _, dtype = reader(start) if reader else (None, None, None)
    except Exception as error:  # its tokenizer and its parser raise errors of their own
        said = first_line(error)
        refuse(_KIND, f"{name} has no npy header: {shown(said)}")
    if shape is None or dtype is None:
        refuse(_KIND, f"{name} is of npy's version {version}, which plain arrays never need", "")
    return shape, dtype
