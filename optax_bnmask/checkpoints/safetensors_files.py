"""Safetensors: a length, a JSON header of that length, and the arrays, which are not read.

The format's own library would be one more thing to install, and it takes the last of two entries of
one name; the header is plain JSON.
"""

from typing import Any, BinaryIO, Final

from optax_bnmask.checkpoints.trees import (
    LARGEST_JSON,
    Tree,
    array,
    json_object,
    named,
    refuse,
    shown,
)

_DTYPES: Final = {
    "BOOL": "bool",
    "BF16": "bfloat16",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    **{f"F{bits}": f"float{bits}" for bits in (16, 32, 64)},
    **{f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"U{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
}


def safetensors_tree(file: BinaryIO, size: int) -> Tree:
    """What a safetensors file of some size holds, from its header alone."""
    length = int.from_bytes(file.read(8), "little")
    stored = size - 8 - length
    if stored < 0 or length > LARGEST_JSON:
        refuse(f"Its header claims {length:,} bytes of a file of {size:,}")
    header = json_object(file.read(length), "Its header")
    header.pop("__metadata__", None)
    return named([*header], (_array(name, entry, stored) for name, entry in header.items()))


def _array(name: str, entry: object, stored: int) -> Any:  # noqa: ANN401 - a leaf
    """One array of the header, whose place in the file must fit its shape."""
    if not isinstance(entry, dict):
        refuse(f"The header's entry {shown(name)} is {shown(entry)}, not a description")
    place, dtype = entry.get("data_offsets"), entry.get("dtype")
    if not (isinstance(place, list) and [type(at) for at in place] == [int, int]):
        refuse(f"{shown(name)} has the place {shown(place)}, not two offsets")
    begin, end = place
    if not 0 <= begin <= end <= stored:
        refuse(f"{shown(name)} lies at {shown(place)} of {stored:,} bytes of arrays")
    return array(name, entry.get("shape"), _DTYPES.get(str(dtype), dtype), end - begin)
