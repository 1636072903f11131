"""Safetensors: a length, a JSON header of that length, and the arrays, which are not read."""

from typing import Any, BinaryIO, Final

from optax_bnmask.checkpoints.parser import json_object
from optax_bnmask.checkpoints.stored import (
    LARGEST_JSON,
    Kind,
    Tree,
    array,
    bytes_of,
    refuse,
    shown,
    split,
    tree_of,
)

_KIND: Final = Kind.SAFETENSORS
_DTYPES: Final = {
    "BOOL": "bool",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    **{f"F{bits}": f"float{bits}" for bits in (16, 32, 64)},
    **{f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"U{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
    "C64": "complex64",
}


def safetensors_tree(file: BinaryIO, size: int) -> Tree:
    """The tree of a safetensors file, from its header alone.

    Args:
      file: The file, at its beginning.
      size: How many bytes it has.

    Returns:
      The tree; names are taken apart at ``/``, or at ``.`` where no name has a ``/``.

    Raises:
      StructureError: The header is not one, or claims what the file cannot hold.
    """
    length = int.from_bytes(file.read(8), "little")
    if length > min(size - 8, LARGEST_JSON):
        refuse(_KIND, f"Its header claims {length:,} bytes of a file of {size:,}")
    header = json_object(_KIND, file.read(length), "Its header")
    header.pop("__metadata__", None)
    stored = size - 8 - length
    arrays = {name: _array(name, entry, stored) for name, entry in header.items()}
    keys = split(arrays)
    return tree_of(_KIND, ((keys[name], leaf) for name, leaf in arrays.items()))


def _array(name: str, entry: object, stored: int) -> Any:  # noqa: ANN401 - a leaf
    """One array of the header, whose place in the file must fit its shape."""
    if not isinstance(entry, dict):
        refuse(_KIND, f"The header's entry {shown(name)} is {shown(entry)}, not a description")
    dtype = entry.get("dtype")
    known = _DTYPES.get(dtype, dtype) if isinstance(dtype, str) else repr(dtype)
    leaf = array(_KIND, name, entry.get("shape"), known)
    place = entry.get("data_offsets")
    if not (isinstance(place, list) and [type(at) for at in place] == [int, int]):
        refuse(_KIND, f"{shown(name)} has the place {shown(place)}, not two offsets")
    begin, end = place
    if not 0 <= begin <= end <= stored:
        refuse(_KIND, f"{shown(name)} lies at {shown(place)} of {stored:,} bytes of arrays")
    if end - begin != bytes_of(leaf):
        refuse(
            _KIND,
            f"{shown(name)} takes {end - begin:,} bytes, and its shape {shown(leaf.shape)} of "
            f"{leaf.dtype} needs {bytes_of(leaf):,}",
        )
    return leaf
