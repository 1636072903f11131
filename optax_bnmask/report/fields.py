"""The fields of a JSON object, each of the right type or an error that says which is not."""

from enum import StrEnum
from typing import Any, Final, TypeVar

from optax_bnmask.errors import StructureError

T = TypeVar("T")
E = TypeVar("E", bound=StrEnum)

_KINDS: Final[dict[type, str]] = {
    str: "a string",
    int: "an integer",
    dict: "an object",
    list: "a list",
}
_SHOWN = 60
"""What was found is quoted up to so many characters."""


class Fields:
    """One object of a JSON text.

    Attributes:
      where: What the errors call it.
      record: The object itself.
    """

    __slots__ = ("record", "where")

    def __init__(self, record: object, where: str) -> None:
        self.where = where
        self.record: dict[str, Any] = self.checked(dict, record)

    def wrong(self, must: str, found: object, field: str = "") -> StructureError:
        """The error for a field, or the object itself, that is not as it must be."""
        shown = repr(found)
        shown = shown if len(shown) <= _SHOWN else f"{shown[: _SHOWN - 3]}..."
        name = f"`{field}` of {self.where}" if field else self.where
        return StructureError(
            f"In an analysis as JSON, {name} must {must}. Found {shown}. Was it written by "
            f"`to_json`, and not changed since?"
        )

    def checked(self, kind: type[T], value: object, field: str = "") -> T:
        """The value, if it is of that type; in JSON a boolean is no number."""
        if not isinstance(value, kind) or isinstance(value, bool):
            raise self.wrong(f"be {_KINDS[kind]}", value, field)
        return value

    def of(self, kind: type[T], field: str) -> T:
        """A field of that type."""
        if field not in self.record:
            raise self.wrong(f"have a field `{field}`", sorted(self.record))
        return self.checked(kind, self.record[field], field)

    def each(self, kind: type[T], field: str) -> list[T]:
        """A list whose items are all of that type."""
        return [self.checked(kind, item, field) for item in self.of(list, field)]

    def lengths(self, field: str) -> tuple[int, ...]:
        """A list of integers, none of them negative."""
        numbers = self.each(int, field)
        if any(number < 0 for number in numbers):
            raise self.wrong("hold no negative number", numbers, field)
        return tuple(numbers)

    def objects(self, field: str) -> list["Fields"]:
        """A list of objects."""
        items = self.of(list, field)
        return [Fields(item, f"`{field}[{index}]`") for index, item in enumerate(items)]

    def member(self, kind: type[E], value: str, field: str) -> E:
        """The member of an enumeration that has that value."""
        try:
            return kind(value)
        except ValueError:
            names = ", ".join(repr(member.value) for member in kind)
            raise self.wrong(f"be one of {names}", value, field) from None
