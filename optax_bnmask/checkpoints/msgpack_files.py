"""Flax's msgpack: read value by value with the library of msgpack, stepping over arrays' bytes.

Its `Unpacker` reads the heads of dicts and lists, the names and the numbers. It would also build
every string of bytes that it meets, and in a checkpoint these are the arrays: wherever one begins,
it is left behind, and another goes on where the bytes end. So no array is ever held, or even read.
A length is believed once the file is that long.
"""

import mmap
import struct
from typing import Any, BinaryIO, Final, NamedTuple

import jax
import msgpack

from optax_bnmask.checkpoints.trees import (
    DEEPEST,
    MOST_ENTRIES,
    Tree,
    array,
    bytes_of,
    distinct,
    refuse,
    shown,
)

_NDARRAY, _COMPLEX, _SCALAR = 1, 2, 3
"""The extension types of `flax.serialization`."""
_CHUNKED: Final = "__msgpack_chunked_array__"
_NUMBERS: Final = {bool: "bool", int: "int32", float: "float32"}
"""What JAX makes of a number."""
_LONGEST: Final = 64 * 1024
"""Bytes of a name or a string."""
_AT_ONCE: Final = 512
"""Bytes that are read where a value begins; it is rarely longer, but for arrays."""

MAPS: Final = frozenset([*range(0x80, 0x90), 0xDE, 0xDF])
"""The first bytes of dicts."""
_LISTS: Final = frozenset([*range(0x90, 0xA0), 0xDC, 0xDD])
_FIXED: Final = 0xD4
"""The first byte of an extension of one byte; those after it are of 2, 4, 8 and 16."""
_HEADS: Final = {
    **dict(zip(range(0xC4, 0xC7), (">B", ">H", ">I"), strict=True)),  # bytes: their length
    **dict(zip(range(0xC7, 0xCA), (">Bb", ">Hb", ">Ib"), strict=True)),  # extensions: and a code
    **dict.fromkeys(range(_FIXED, _FIXED + 5), ">b"),  # extensions of fixed length: a code
}
"""What follows the first byte of bytes and extensions, by that byte."""


class _Bytes(NamedTuple):
    """Bytes that were stepped over."""

    length: int


def msgpack_tree(file: BinaryIO, size: int) -> Tree:
    """What a file of `flax.serialization.to_bytes` of some size holds."""
    with mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) as data:
        walk = _Walk(data)
        tree = _tree(walk.value(0))
        if walk.at != size:
            refuse(f"After {walk.at:,} of its {size:,} bytes it ends")
    if not isinstance(tree, dict):
        refuse(f"It must hold a dict, and holds {shown(tree)}", "")
    return tree


def _tree(value: Any) -> Any:  # noqa: ANN401 - what was read, and a tree or a leaf
    """The tree of what was read: lists are dicts of their numbers, as Flax itself has them."""
    match value:
        case list():
            return _tree({str(index): child for index, child in enumerate(value)})
        case dict() if _CHUNKED in value:
            return _joined(value)
        case dict():
            return {key: _tree(child) for key, child in value.items()}
        case bool() | int() | float():
            return array("a number", (), _NUMBERS[type(value)])
        case str() | _Bytes():
            return "a string" if isinstance(value, str) else "a string of bytes"
    return value


def _joined(found: dict[str, Any]) -> jax.ShapeDtypeStruct:
    """The array whose chunks Flax stored one by one: msgpack holds no more than 4 GiB at once."""
    match found:
        case {"shape": dict(shape), "chunks": dict(chunks)} if chunks:
            parts = list(chunks.values())
        case _:
            refuse("An array in chunks must have a shape and chunks")
    dtypes = {getattr(part, "dtype", None) for part in parts}
    if len(dtypes) > 1 or None in dtypes:
        refuse("The chunks of an array must be arrays of one dtype")
    sizes = [shape.get(str(index)) for index in range(len(shape))]
    return array("an array in chunks", sizes, parts[0].dtype.name, sum(map(bytes_of, parts)))


class _Walk:
    """A place in the file, and the reading of what is there."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.values = 0
        self.jump(0)

    @property
    def at(self) -> int:
        return self.start + self.unpacker.tell()

    def jump(self, at: int) -> None:
        self.data.seek(at)
        self.start = at
        longest = _LONGEST + _AT_ONCE
        self.unpacker = msgpack.Unpacker(self.data, read_size=_AT_ONCE, max_buffer_size=longest)

    def room(self, count: int, of: str = "more") -> int:
        """The place, if as many bytes follow it; a value takes one at least."""
        at, size = self.at, len(self.data)
        if count > size - at:
            refuse(f"At byte {at:,} it claims {count:,} {of}, and ends at {size:,}")
        return at

    def value(self, depth: int) -> Any:  # noqa: ANN401 - whatever is there
        """The value that begins here."""
        at = self.room(1)
        self.values += 1
        if depth > DEEPEST or self.values > 4 * MOST_ENTRIES:
            refuse(f"At byte {at:,} it is nested too deep or has too many values", "")
        first = self.data[at]
        if first in _HEADS:
            return self.stepped_over(first)
        try:
            if first in MAPS:
                return self.mapping(self.unpacker.read_map_header(), depth + 1)
            if first in _LISTS:
                return self.several(self.unpacker.read_array_header(), depth + 1)
            return self.unpacker.unpack()
        except UnicodeDecodeError:
            refuse(f"The string at byte {at:,} is no text")
        except msgpack.BufferFull:
            refuse(f"At byte {at:,} is a string of more than {_LONGEST:,} bytes, no name", "")
        except (ValueError, msgpack.UnpackException):
            refuse(f"What is at byte {at:,} is cut off, or one that msgpack never writes")

    def several(self, count: int, depth: int) -> list[Any]:
        self.room(count, "values")
        return [self.value(depth) for _ in range(count)]

    def mapping(self, count: int, depth: int) -> dict[str, Any]:
        found = self.several(2 * count, depth)
        for key in found[::2]:
            if not isinstance(key, str | int):
                refuse(f"Before byte {self.at:,} a key is {shown(key)}, no name")
        return distinct(zip(map(str, found[::2]), found[1::2], strict=True))

    def stepped_over(self, first: int) -> Any:  # noqa: ANN401 - a leaf or the length of bytes
        """Bytes or an extension, of which no more than the shape and the dtype is read."""
        head = struct.Struct(_HEADS[first])
        at = self.room(1 + head.size) + 1
        length, code = (*head.unpack_from(self.data, at), None)[:2]
        if first >= _FIXED:
            length, code = 1 << first - _FIXED, length
        self.jump(at + head.size)
        end = self.room(length) + length
        found = _Bytes(length) if code is None else self.extension(code, end)
        self.jump(end)
        return found

    def extension(self, code: int, end: int) -> jax.ShapeDtypeStruct:
        """An array, which is a list of its shape, its dtype and its bytes."""
        at = self.at
        if code == _COMPLEX:
            return array("a number", (), "complex64")
        if code not in (_NDARRAY, _SCALAR):
            refuse(f"At byte {at:,} there is an extension {code}, which Flax has not", "")
        match self.value(DEEPEST - 2):  # a list, of a list, of numbers: there is nothing deeper
            case [shape, dtype, _Bytes(held)] if self.at == end:
                return array(f"the array at byte {at:,}", shape, dtype, held)
        return refuse(f"At byte {at:,} an array must have a shape, a dtype and its bytes")
