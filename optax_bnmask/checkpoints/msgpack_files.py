"""Flax's msgpack: walked from value to value, stepping over the arrays' bytes.

The library of msgpack builds every value that it meets; for a checkpoint that is every array. This
reader looks only at what says how long things are. A length is believed once the file is that long,
so it takes no more memory than the names do.
"""

import struct
from collections.abc import Mapping
from typing import Any, Final

from optax_bnmask.checkpoints.stored import (
    DEEPEST,
    MOST_ENTRIES,
    Kind,
    Tree,
    array,
    bytes_of,
    checked,
    refuse,
    shown,
)

_KIND: Final = Kind.MSGPACK
_NDARRAY, _COMPLEX, _SCALAR = 1, 2, 3
"""The extension types of `flax.serialization`."""
_LONGEST: Final = 64 * 1024
"""Bytes of a name or a string; nothing else is ever copied."""
_CHUNKED: Final = "__msgpack_chunked_array__"

_WHOLE, _SIGNED = (">B", ">H", ">I", ">Q"), (">b", ">h", ">i", ">q")
_NUMBERS: Final = dict(zip(range(0xCA, 0xD4), (">f", ">d", *_WHOLE, *_SIGNED), strict=True))
"""How a number is written, by its first byte."""
_LENGTHS: Final = {
    first + index: (kind, form)
    for first, kind, forms in (
        (0xC4, "bin", _WHOLE[:3]),
        (0xC7, "ext", _WHOLE[:3]),
        (0xD9, "str", _WHOLE[:3]),
        (0xDC, "list", _WHOLE[1:3]),
        (0xDE, "map", _WHOLE[1:3]),
    )
    for index, form in enumerate(forms)
}
"""What a value is and how its length is written, by its first byte."""
_SHORT: Final = (
    *((first, "", first) for first in range(0x80)),
    *((0x80 + length, "map", length) for length in range(0x10)),
    *((0x90 + length, "list", length) for length in range(0x10)),
    *((0xA0 + length, "str", length) for length in range(0x20)),
    *((0xD4 + power, "ext", 1 << power) for power in range(5)),
    *((first, "", first - 0x100) for first in range(0xE0, 0x100)),
    *((0xC0, "", None), (0xC2, "", False), (0xC3, "", True)),
)
_HEADS: Final = {first: (kind, length) for first, kind, length in _SHORT}
"""What a value is and how long, where its first byte says it all."""


class _Bytes:
    """Marks the place of bytes that were stepped over."""

    def __init__(self, length: int) -> None:
        self.length = length


def msgpack_tree(data: Any) -> Tree:  # noqa: ANN401 - bytes or a memory map
    """The tree of a file that `flax.serialization.to_bytes` wrote.

    Args:
      data: The file's bytes; a memory map will do, of which only a few pages are then touched.

    Returns:
      The tree.

    Raises:
      StructureError: The bytes are not such a file, or claim what it cannot hold.
    """
    walk = _Walk(data)
    tree = walk.value(0)
    if walk.at != len(data):
        refuse(_KIND, f"After {walk.at:,} of its {len(data):,} bytes it ends")
    if not isinstance(tree, dict):
        refuse(_KIND, f"It must hold a dict, and holds {shown(tree)}", "")
    return _plain(tree)


def _plain(value: Any) -> Any:  # noqa: ANN401 - a tree or a leaf
    """What was read as a `Tree`: numbers as arrays of shape ``()``, strings as descriptions."""
    match value:
        case dict():
            return {key: _plain(child) for key, child in value.items()}
        case list():  # as Flax itself names what stands in a list
            return {str(index): _plain(child) for index, child in enumerate(value)}
        case bool() | int() | float():
            dtype = {bool: "bool", int: "int32", float: "float32"}[type(value)]
            return array(_KIND, "a number", (), dtype)
        case str():
            return "a string"
        case _Bytes():
            return "a string of bytes"
    return value


class _Walk:
    """A place in the bytes, and the reading of what is there."""

    def __init__(self, data: Any, at: int = 0, end: int | None = None) -> None:  # noqa: ANN401
        self.data = data
        self.at = at
        self.end = len(data) if end is None else end
        self.values = 0

    def skip(self, length: int) -> int:
        """Steps over bytes that must be there; returns where they begin."""
        begin = self.at
        if length > self.end - begin:
            refuse(_KIND, f"At byte {begin:,} it claims {length:,} more of {self.end:,}")
        self.at = begin + length
        return begin

    def number(self, form: str) -> Any:  # noqa: ANN401 - an int or a float
        """A number of fixed length."""
        return struct.unpack_from(form, self.data, self.skip(struct.calcsize(form)))[0]

    def value(self, depth: int) -> Any:  # noqa: ANN401 - whatever is there
        """The value that begins here."""
        self.values += 1
        if depth > DEEPEST or self.values > 4 * MOST_ENTRIES:
            refuse(_KIND, f"At byte {self.at:,} it is nested too deep or has too many values", "")
        kind, length = self.head()
        match kind:
            case "map":
                return self.mapping(length, depth)
            case "list":
                self.room(length)
                return [self.value(depth + 1) for _ in range(length)]
            case "str":
                return self.text(length)
            case "bin":
                self.skip(length)
                return _Bytes(length)
            case "ext":
                return self.extension(length)
        return length  # a number or a constant is its own head

    def head(self) -> tuple[str, Any]:
        """The kind and the length of the value that begins here; of a number, ``""`` and itself."""
        first = self.number(">B")
        if first in _HEADS:
            return _HEADS[first]
        if first in _LENGTHS:
            kind, form = _LENGTHS[first]
            return kind, self.number(form)
        if first in _NUMBERS:
            return "", self.number(_NUMBERS[first])
        return refuse(_KIND, f"At byte {self.at - 1:,} there is one that msgpack never writes")

    def room(self, count: int) -> None:
        """Fails if there cannot be so many values: each takes a byte at least."""
        if count > self.end - self.at:
            refuse(_KIND, f"At byte {self.at:,} it claims {count:,} values in what is left of it")

    def text(self, length: int) -> str:
        """A string."""
        begin = self.skip(length)
        if length > _LONGEST:
            refuse(_KIND, f"At byte {begin:,} there is a string of {length:,} bytes, no name", "")
        try:
            return bytes(self.data[begin : self.at]).decode()
        except UnicodeDecodeError:
            return refuse(_KIND, f"The string at byte {begin:,} is no text")

    def mapping(self, count: int, depth: int) -> Any:  # noqa: ANN401 - a dict or a chunked array
        """A dict, whose keys must differ, or an array that Flax cut into chunks."""
        self.room(2 * count)
        found: Tree = {}
        for _ in range(count):
            key = self.value(depth + 1)
            if not isinstance(key, str | int):
                refuse(_KIND, f"At byte {self.at:,} a key is {shown(key)}, no name")
            if checked(_KIND, str(key)) in found:
                refuse(_KIND, f"The key {shown(key)} stands twice in one dict", "")
            found[str(key)] = self.value(depth + 1)
        return _joined(found) if _CHUNKED in found else found

    def extension(self, length: int) -> Any:  # noqa: ANN401 - a leaf
        """An array, of which only the shape and the dtype are read."""
        code = self.number(">b")
        begin = self.skip(length)
        if code == _COMPLEX:
            return array(_KIND, "a number", (), "complex64")
        if code not in (_NDARRAY, _SCALAR):
            refuse(_KIND, f"At byte {begin:,} there is an extension {code}, which Flax has not", "")
        inner = _Walk(self.data, begin, self.at)
        kind, count = inner.head()
        parts = [inner.value(DEEPEST - 1) for _ in range(3)] if (kind, count) == ("list", 3) else []
        if not parts or inner.at != inner.end or not isinstance(parts[2], _Bytes):
            refuse(_KIND, f"At byte {begin:,} an array must have a shape, a dtype and its bytes")
        dtype = parts[1] if isinstance(parts[1], str) else repr(parts[1])
        leaf = array(_KIND, f"the array at byte {begin:,}", parts[0], dtype)
        if bytes_of(leaf) != parts[2].length:
            refuse(
                _KIND,
                f"The array at byte {begin:,} has {parts[2].length:,} bytes, and its shape "
                f"{shown(leaf.shape)} of {leaf.dtype} needs {bytes_of(leaf):,}",
            )
        return leaf


def _joined(found: Mapping[str, Any]) -> Any:  # noqa: ANN401 - a leaf
    """The array whose chunks Flax stored one by one: msgpack holds no more than 4 GiB at once."""
    shape, chunks = found.get("shape"), found.get("chunks")
    if not isinstance(shape, dict) or not isinstance(chunks, dict) or not chunks:
        refuse(_KIND, "An array in chunks must have a shape and chunks")
    first, *_ = parts = list(chunks.values())
    if any(getattr(part, "dtype", 0) != getattr(first, "dtype", 1) for part in parts):
        refuse(_KIND, "The chunks of an array must be arrays of one dtype")
    sizes = [shape.get(str(axis), -1) for axis in range(len(shape))]
    leaf = array(_KIND, "an array in chunks", sizes, first.dtype.name)
    if bytes_of(leaf) != sum(map(bytes_of, parts)):
        refuse(_KIND, f"The chunks of an array of shape {shown(leaf.shape)} do not fill it")
    return leaf
