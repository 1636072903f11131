"""npz: a zip of npy files, of each of which only the header is unpacked."""

import io
import stat
import struct
import warnings
import zipfile
import zlib
from typing import Any, BinaryIO, Final

import numpy as np

from optax_bnmask.checkpoints.trees import Tree, array, named, refuse, shown
from optax_bnmask.errors import first_line

_HEADER: Final = 64 * 1024
"""Bytes of an npy file that are unpacked at most; numpy's own headers have a few hundred."""
_DENSEST: Final = 1032
"""How many bytes one byte of deflate can hold."""


def npz_tree(file: BinaryIO, size: int) -> Tree:
    """What an npz file of some size holds, from the headers of its members."""
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            arrays = (_array(archive, member, size) for member in members)
            return named([_name(member) for member in members], arrays)
    except (zipfile.BadZipFile, NotImplementedError, struct.error, zlib.error, EOFError) as error:
        refuse(f"It must be a zip: {shown(str(error) or 'a member ends too early')}")


def _name(member: zipfile.ZipInfo) -> str:
    """The name of a member that is a plain npy file within the archive."""
    name = member.filename
    if name.startswith("/") or ".." in name.split("/") or ":" in name or "\\" in name:
        refuse(f"Its member {shown(name)} points out of it", "Nothing was unpacked.")
    if stat.S_ISLNK(member.external_attr >> 16):
        refuse(f"Its member {shown(name)} is a link", "Nothing was unpacked.")
    if not name.endswith(".npy"):
        refuse(f"Its member {shown(name)} is no npy file", "Another format may be a zip too.")
    return name.removesuffix(".npy")


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo, size: int) -> Any:  # noqa: ANN401 - a leaf
    """One array, by its header."""
    name, held, claimed = shown(member.filename), member.compress_size, member.file_size
    if member.flag_bits & 0x1:
        refuse(f"{name} is encrypted", "Decrypt it first.")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        # others say how much memory they want; numpy writes none of them
        refuse(f"{name} is compressed as numpy never does", "Save it with `numpy.savez`.")
    if held > size or claimed > held * (_DENSEST if member.compress_type else 1):
        refuse(f"{name} claims {claimed:,} bytes in {held:,} of a file of {size:,}")
    with archive.open(member) as packed:
        start = io.BytesIO(packed.read(_HEADER))
    shape, dtype = _header(name, start)
    if dtype.hasobject:
        way_out = "Save arrays alone."
        refuse(f"{name} holds Python objects, which only running a pickle could read", way_out)
    # numpy has no bfloat16 of its own and writes it as two bytes without a meaning
    known = "bfloat16" if dtype.str[1:] == "V2" else dtype.name
    return array(member.filename, shape, known, claimed - start.tell())


def _header(name: str, start: BinaryIO) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """The shape and the dtype at the beginning of an npy file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of headers that Python 2 wrote
            match np.lib.format.read_magic(start):
                case (1, 0):
                    shape, _, dtype = np.lib.format.read_array_header_1_0(start)
                case (2, 0):
                    shape, _, dtype = np.lib.format.read_array_header_2_0(start)
                case version:  # the third is of records whose names are no Latin
                    raise ValueError(f"of npy's version {version}, which no plain array needs")
    except Exception as error:  # numpy's tokenizer and its parser raise errors of their own
        refuse(f"{name} has no npy header: {shown(first_line(error))}")
    return shape, dtype
