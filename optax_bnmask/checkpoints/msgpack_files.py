"""Flax's msgpack: read value by value with the library of msgpack, stepping over arrays' bytes.

Its `Unpacker` reads the heads of dicts and lists, the names and the numbers. It would also build
every string of bytes that it meets, and in a checkpoint these are the arrays: wherever one begins,
it is left behind, and another goes on where the bytes end. So no array is ever held, or even read.
A length is believed once the file is that long.
"""

import mmap
import struct
from collections.abc import Callable, Iterable
from typing import Any, BinaryIO, Final, NamedTuple

import msgpack

from optax_bnmask.checkpoints.stored import (
    DEEPEST,
    MOST_ENTRIES,
    Keys,
    Leaves,
    array,
    bytes_of,
    refuse,
    shown,
)

_NDARRAY, _COMPLEX, _SCALAR = 1, 2, 3
"""The extension types of `flax.serialization`."""
_CHUNKED: Final = "__msgpack_chunked_array__"
_LONGEST: Final = 64 * 1024
"""Bytes of a name or a string."""
_AT_ONCE: Final = 512
"""Bytes that are read where a value begins; it is rarely longer, but for arrays."""

_MAPS: Final = frozenset([*range(0x80, 0x90), 0xDE, 0xDF])
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


def msgpack_leaves(file: BinaryIO, size: int) -> Leaves:
    """What a file of `flax.serialization.to_bytes` of some size holds."""
    with mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) as data:
        walk = _Walk(data)
        tree = walk.value(0)
        if walk.at != size:
            refuse(f"After {walk.at:,} of its {size:,} bytes it ends")
    if not isinstance(tree, dict):
        refuse(f"It must hold a dict, and holds {shown(tree)}", "")
    return dict(_leaves((), tree))


def _leaves(keys: Keys, value: Any) -> Iterable[tuple[Keys, Any]]:  # noqa: ANN401 - what was read
    """The leaves of what was read; lists are dicts of their numbers, as Flax itself has them."""
    match value:
        case list():
            yield from _leaves(keys, {str(index): child for index, child in enumerate(value)})
        case dict() if value:
            for key, child in value.items():
                yield from _leaves((*keys, key), child)
        case bool() | int() | float():
            dtype = {bool: "bool", int: "int32", float: "float32"}[type(value)]
            yield keys, array("a number", (), dtype)
        case str() | _Bytes():
            yield keys, "a string" if isinstance(value, str) else "a string of bytes"
        case _:
            yield keys, value


class _Walk:
    """A place in the file, and the reading of what is there."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.values = 0
        self.jump(0)

    @property
    def at(self) -> int:
        """The place."""
        return self.start + self.unpacker.tell()

    def jump(self, at: int) -> None:
        """Goes to another place."""
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

    def unpacked(self, read: Callable[[], Any]) -> Any:  # noqa: ANN401 - whatever is there
        """What the library reads here."""
        at = self.at
        try:
            return read()
        except UnicodeDecodeError:
            refuse(f"The string at byte {at:,} is no text")
        except msgpack.BufferFull:
            refuse(f"At byte {at:,} is a string of more than {_LONGEST:,} bytes, no name", "")
        except (ValueError, msgpack.UnpackException):
            refuse(f"What is at byte {at:,} is cut off, or one that msgpack never writes")

    def value(self, depth: int) -> Any:  # noqa: ANN401 - whatever is there
        """The value that begins here."""
        at = self.room(1)
        self.values += 1
        if depth > DEEPEST or self.values > 4 * MOST_ENTRIES:
            refuse(f"At byte {at:,} it is nested too deep or has too many values", "")
        first = self.data[at]
        if first in _MAPS:
            return self.mapping(depth)
        if first in _LISTS:
            count = self.unpacked(self.unpacker.read_array_header)
            self.room(count, "values")
            return [self.value(depth + 1) for _ in range(count)]
        if first in _HEADS:
            return self.stepped_over(first)
        return self.unpacked(self.unpacker.unpack)

    def mapping(self, depth: int) -> Any:  # noqa: ANN401 - a dict or a chunked array
        """A dict, whose keys must differ, or an array that Flax cut into chunks."""
        count = self.unpacked(self.unpacker.read_map_header)
        self.room(2 * count, "values")
        found: dict[str, Any] = {}
        for _ in range(count):
            key = self.value(depth + 1)
            if not isinstance(key, str | int):
                refuse(f"At byte {self.at:,} a key is {shown(key)}, no name")
            if str(key) in found:
                refuse(f"The key {shown(key)} stands twice in one dict", "")
            found[str(key)] = self.value(depth + 1)
        return _joined(found) if _CHUNKED in found else found

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

    def extension(self, code: int, end: int) -> Any:  # noqa: ANN401 - a leaf
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


def _joined(found: dict[str, Any]) -> Any:  # noqa: ANN401 - a leaf
    """The array whose chunks Flax stored one by one: msgpack holds no more than 4 GiB at once."""
    shape, chunks = found.get("shape"), found.get("chunks")
    if not isinstance(shape, dict) or not isinstance(chunks, dict) or not chunks:
        refuse("An array in chunks must have a shape and chunks")
    first, *_ = parts = list(chunks.values())
    if any(getattr(part, "dtype", 0) != getattr(first, "dtype", 1) for part in parts):
        refuse("The chunks of an array must be arrays of one dtype")
    leaf = array("the array", [shape.get(str(i)) for i in range(len(shape))], first.dtype.name)
    if bytes_of(leaf) != sum(map(bytes_of, parts)):
        refuse(f"The chunks of an array of shape {shown(leaf.shape)} do not fill it")
    return leaf
