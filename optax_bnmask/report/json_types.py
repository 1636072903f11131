"""Values of JSON as values of annotated types: what a dataclass says of its fields reads them."""

import collections.abc
import contextlib
import dataclasses
import functools
import re
from collections.abc import Iterable, Mapping
from enum import StrEnum
from fractions import Fraction
from types import UnionType
from typing import Any, Final, get_args, get_origin, get_type_hints

import jax
import jax.numpy as jnp

from optax_bnmask.errors import StructureError

_WORDS: Final[Mapping[Any, str]] = {
    str: "a string",
    int: "an integer",
    bool: "true or false",
    dict: "an object",
    list: "a list",
}
_SHOWN: Final = 60
"""What was found is quoted up to so many characters."""
_PRNGS: Final = ("threefry2x32", "rbg", "unsafe_rbg")


def wrong(must: str, found: object, name: str = "") -> StructureError:
    """The error for a value that is not as it must be.

    Args:
      must: What must hold, after the word "must".
      found: The value.
      name: Where it stands, as ``"leaves[0].shape"``; empty for the whole text.
    """
    shown = repr(found)
    shown = shown if len(shown) <= _SHOWN else f"{shown[: _SHOWN - 3]}..."
    return StructureError(
        f"In an analysis as JSON, {_in_words(name)} must {must}. Found {shown}. Was it written by "
        f"`to_json`, and not changed since?"
    )


def _in_words(name: str) -> str:
    owner, _, field = name.rpartition(".")
    if owner:
        return f"`{field}` of `{owner}`"
    return f"`{name}`" if name.endswith("]") else f"`{name}` of the whole" if name else "the whole"


def decoded(kind: Any, value: Any, name: str = "") -> Any:  # noqa: ANN401 - any type and its values
    """The value of a type that a value of JSON stands for.

    Args:
      kind: A dataclass or a `NamedTuple`, written as an object or, the latter, as a row; a tuple or
        a frozenset of one type, written as a list; a mapping; any of these or `None`; an
        enumeration, a string, a natural number, a float, a `Fraction` or a boolean. What a
        dataclass annotates as `Any` is a dtype.
      value: The value of JSON.
      name: Where it stands, for the error.

    Returns:
      The value. Fields of an object that its type does not have are passed over, and those that
      have a default may be missing.

    Raises:
      StructureError: The value is none that the type has.
    """
    read = _READERS.get(get_origin(kind) or kind)
    if read is None:
        read = _member if issubclass(kind, StrEnum) else _object
    return read(kind, value, name)


def checked(kind: type, value: Any, name: str = "") -> Any:  # noqa: ANN401 - as in `decoded`
    """The value, if it is of that type of JSON's; a boolean is no number, and none is negative."""
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise wrong(f"be {_WORDS[kind]}", value, name)
    if kind is int and value < 0:
        raise wrong("hold no negative number", value, name)
    return value


def _optional(kind: Any, value: Any, name: str) -> Any:  # noqa: ANN401 - as in `decoded`
    return None if value is None else decoded(get_args(kind)[0], value, name)


def _sequence(kind: Any, value: Any, name: str) -> Any:  # noqa: ANN401 - as in `decoded`
    inner = get_args(kind)[0]
    numbered = dataclasses.is_dataclass(inner)
    return get_origin(kind)(
        decoded(inner, item, f"{name}[{i}]" if numbered else name)
        for i, item in enumerate(checked(list, value, name))
    )


def _mapping(kind: Any, value: Any, name: str) -> dict[Any, Any]:  # noqa: ANN401 - as in `decoded`
    """A mapping; JSON writes those from axes with the axes as strings."""
    key, inner = get_args(kind)
    found = {k: decoded(inner, item, name) for k, item in checked(dict, value, name).items()}
    if key is str:
        return found
    if not all(k.isdecimal() for k in found):
        raise wrong("hold a list by axis", value, name)
    return {int(k): item for k, item in found.items()}


def _member(kind: Any, value: Any, name: str) -> Any:  # noqa: ANN401 - as in `decoded`
    with contextlib.suppress(ValueError):
        return kind(value)
    raise wrong(one_of(member.value for member in kind), value, name)


def one_of(values: Iterable[str]) -> str:
    """What must hold where only some values are possible."""
    return f"be one of {', '.join(map(repr, values))}"


def _object(kind: Any, value: Any, name: str) -> Any:  # noqa: ANN401 - as in `decoded`
    """The dataclass or `NamedTuple` of some fields, by name or, of the latter, in their order."""
    if dataclasses.is_dataclass(kind):
        of_kind = [f for f in dataclasses.fields(kind) if f.init and f.compare]
        fields = [f.name for f in of_kind]
        needed = [f.name for f in of_kind if f.default is f.default_factory is dataclasses.MISSING]
    else:
        fields = needed = kind._fields
        if isinstance(value, list) and len(value) == len(fields):
            value = dict(zip(fields, value, strict=True))
    found = checked(dict, value, name)
    for field in needed:
        if field not in found:
            raise wrong(f"have a field `{field}`", sorted(found), name)
    hints, dot = get_type_hints(kind), "." if name else ""
    return kind(
        **{
            field: decoded(hints[field], found[field], f"{name}{dot}{field}")
            for field in fields
            if field in found
        }
    )


def _number(_: Any, value: Any, name: str) -> float:  # noqa: ANN401 - as in `decoded`
    """A number; JSON has no infinity and no NaN, which are written as strings."""
    if isinstance(value, bool) or not (
        isinstance(value, int | float) or value in ("inf", "-inf", "nan")
    ):
        raise wrong("be a number", value, name)
    return float(value)


def _fraction(_: Any, value: Any, name: str) -> Fraction:  # noqa: ANN401 - as in `decoded`
    """A fraction, from ``"3"`` or ``"-1/2"``; `Fraction` alone would take ``"1e999999999"``."""
    if not re.fullmatch(r"-?[0-9]{1,99}(/[1-9][0-9]{0,99})?", checked(str, value, name)):
        raise wrong("be an exponent such as '1/2'", value, name)
    return Fraction(value)


def _dtype(_: Any, value: Any, name: str) -> Any:  # noqa: ANN401 - a dtype, extended ones included
    """The dtype of that name; any other string is refused, as NumPy would read records from it."""
    if checked(str, value, name) in _extended():
        return _extended()[value]
    if re.fullmatch(r"[a-z]\w*", value):
        with contextlib.suppress(TypeError):
            return jnp.dtype(value)
    raise wrong("be a dtype that this JAX knows", value, name)


@functools.cache
def _extended() -> dict[str, Any]:
    """The dtypes that NumPy cannot find by name: those of random keys, and the tangents' float0."""
    keys = [jax.eval_shape(functools.partial(jax.random.key, 0, impl=impl)) for impl in _PRNGS]
    return {str(dtype): dtype for dtype in (*(key.dtype for key in keys), jax.dtypes.float0)}


_READERS: Final[dict[Any, Any]] = {
    **dict.fromkeys(_WORDS, checked),
    **dict.fromkeys((tuple, frozenset), _sequence),
    collections.abc.Mapping: _mapping,
    UnionType: _optional,
    float: _number,
    Fraction: _fraction,
    Any: _dtype,
}
"""How a value of each type is read; an enumeration or a class with fields has no entry."""
