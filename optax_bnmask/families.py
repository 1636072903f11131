"""Paths that differ only in a number, folded into a pattern: ``block{0..35}/conv/kernel``.

Paths are put into a tree by their components, and the tree is folded from its leaves up: children
of one scope that differ in one number of their name, and below which everything is of one kind,
become one child whose number is a range. A fold puts together what is equal in all else, so a
pattern stands for the product of its ranges, and for nothing more.
"""

import dataclasses
import re
from collections.abc import Hashable, Iterable, Sequence

_NUMBER = re.compile(r"([0-9]+)")
_DIGITS = 9
"""Longer runs of digits are no index: a hash, a date."""


@dataclasses.dataclass(frozen=True, slots=True)
class Family:
    """Paths of one kind that one pattern stands for.

    Attributes:
      pattern: A path, or one in which ranges in braces stand for numbers: ``h.{0,2..5}/up``.
      members: The indices of the paths in the sequence that was folded, ascending.
    """

    pattern: str
    members: tuple[int, ...]


def families(paths: Sequence[str], kinds: Sequence[Hashable] | None = None) -> list[Family]:
    """Folds paths that differ only in numbers into patterns, each of which stands for a family.

    Args:
      paths: Paths, each but once.
      kinds: What each path stands for; only paths of one kind are put together.

    Returns:
      Each path in one `Family`, in the order of their first members.

    Example:
      >>> [family.pattern for family in families(["h.0/up", "h.2/up", "h.3/up", "h.4/up"])]
      ['h.{0,2..4}/up']
    """
    root = _Scope()
    for number, path in enumerate(paths):
        scope = root
        for name in path.split("/"):
            scope = scope.inner.setdefault(name, _Scope())
        scope.here = number
    # A name that has braces of its own could be taken for a pattern: it is folded with no other.
    kind_of = [
        (kinds[number] if kinds else None, number if set("{}") & set(path) else None)
        for number, path in enumerate(paths)
    ]
    found = [Family(row.pattern[1:], tuple(sorted(row.members))) for row in _folded(root, kind_of)]
    return sorted(found, key=lambda family: family.members)


def folded_lines(lines: Sequence[str]) -> list[str]:
    """Folds lines that differ only in numbers into lines with ranges.

    A number that occurs several times in a line, such as that of a block in a path and in a place,
    counts once: equal ranges in a folded line stand for the same number.

    Example:
      >>> folded_lines(["b0/w is read at net.py:3 (b0)", "b1/w is read at net.py:3 (b1)"])
      ['b{0,1}/w is read at net.py:3 (b{0,1})']
    """
    alike: dict[Hashable, list[list[str]]] = {}
    for line in dict.fromkeys(lines):
        parts = _NUMBER.split(line)
        alike.setdefault(line if set("{}") & set(line) else tuple(parts[::2]), []).append(parts)
    return [line for group in alike.values() for line in _folded_alike(group)]


def _folded_alike(lines: Sequence[list[str]]) -> list[str]:
    """Folds lines that have the same words, each given as words and numbers in turn."""
    first: dict[tuple[str, ...], int] = {}
    places = [first.setdefault(column, k) for k, column in enumerate(zip(*lines, strict=True))]
    own = [k for k in range(1, len(places), 2) if places[k] == k]
    entries = _merged([_Entry(" ".join(parts[k] for k in own), (), []) for parts in lines])
    shown = [dict(zip(own, entry.name.split(" "), strict=False)) for entry in entries]
    ranges_of = [[text for text in numbers.values() if "{" in text] for numbers in shown]
    if any(len(set(found)) < len(found) for found in ranges_of):  # read as one number
        by_first: dict[str, list[list[str]]] = {}
        for parts in lines:
            by_first.setdefault(parts[own[0]], []).append(parts)
        return [line for group in by_first.values() for line in _folded_alike(group)]
    return [
        "".join(numbers[places[k]] if k % 2 else part for k, part in enumerate(lines[0]))
        for numbers in shown
    ]


def listed(paths: Sequence[str], most: int) -> str:
    """Paths in a sentence: the first few, those of repeated blocks once, and how many are left."""
    found = families(paths)
    shown = ", ".join(repr(family.pattern) for family in found[:most])
    left = sum(len(family.members) for family in found[most:])
    return f"{shown} and {left:,} more" if left else shown


def ranges(numbers: Iterable[int]) -> str:
    """Numbers, put briefly: ``0,2..5``."""
    return _ranges(sorted(numbers), 0)


@dataclasses.dataclass(slots=True)
class _Scope:
    """A node of the tree of path components: a leaf (`here` is its index), a scope, or both."""

    inner: dict[str, "_Scope"] = dataclasses.field(default_factory=dict)
    here: int | None = None


@dataclasses.dataclass(slots=True)
class _Row:
    pattern: str
    members: list[int]


@dataclasses.dataclass(slots=True)
class _Entry:
    """A child of a scope: its name, its form (alike forms may be merged), and its folded rows."""

    name: str
    form: tuple[Hashable, ...]
    rows: list[_Row]


def _folded(scope: _Scope, kind_of: Sequence[Hashable]) -> list[_Row]:
    """The rows of what is in a scope, sorted by their patterns, which begin with a slash."""
    entries = []
    for name, child in scope.inner.items():
        rows = _folded(child, kind_of) if child.inner else []
        rows += [] if child.here is None else [_Row("", [child.here])]
        form = tuple((row.pattern, kind_of[row.members[0]]) for row in rows)
        entries.append(_Entry(name, form, rows))
    rows = [
        _Row(f"/{entry.name}{row.pattern}", row.members)
        for entry in _merged(entries)
        for row in entry.rows
    ]
    return sorted(rows, key=lambda row: row.pattern)


def _merged(entries: list[_Entry]) -> list[_Entry]:
    """The entries, those of one form put together number by number, the last number first."""
    split = [(_NUMBER.split(entry.name), entry) for entry in entries]
    for place in range(max((len(parts) for parts, _ in split), default=0) - 2, 0, -2):
        alike: dict[Hashable, list[tuple[list[str], _Entry]]] = {}
        for parts, entry in split:
            alike.setdefault(_but_for(parts, place, entry), []).append((parts, entry))
        split = [each for group in alike.values() for each in _joined(group, place)]
    return [entry for _, entry in split]


def _but_for(parts: list[str], place: int, entry: _Entry) -> Hashable:
    """What two entries must share to be put together at a place."""
    if place >= len(parts) or len(parts[place]) > _DIGITS:
        return id(entry)
    return (*parts[:place], None, *parts[place + 1 :], entry.form)


def _joined(group: list[tuple[list[str], _Entry]], place: int) -> list[tuple[list[str], _Entry]]:
    """One entry for a group, or one for each way in which its numbers are padded with zeros."""
    if len(group) == 1:
        return group
    written = [parts[place] for parts, _ in group]
    padded = {len(number) for number in written if number[0] == "0" and len(number) > 1}
    by_width: dict[int, list[tuple[list[str], _Entry]]] = {}
    for parts, entry in group:
        width = len(parts[place])
        by_width.setdefault(width if width in padded else 0, []).append((parts, entry))
    return [
        each[0] if len(each) == 1 else _one(each, place, width) for width, each in by_width.items()
    ]


def _one(group: list[tuple[list[str], _Entry]], place: int, width: int) -> tuple[list[str], _Entry]:
    """The entry that stands for a group; each of its rows has the members of theirs."""
    first_parts, first = group[0]
    shown = _ranges(sorted(int(parts[place]) for parts, _ in group), width)
    parts = [*first_parts[:place], f"{{{shown}}}", *first_parts[place + 1 :]]
    rows = [
        _Row(row.pattern, [member for _, entry in group for member in entry.rows[at].members])
        for at, row in enumerate(first.rows)
    ]
    return parts, _Entry("".join(parts), first.form, rows)


def _ranges(numbers: Sequence[int], width: int) -> str:
    """Sorted numbers; three in a row or more as a range, with zeros in front up to a width."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(
        f"{run[0]:0{width}}..{run[-1]:0{width}}"
        if len(run) > 2
        else ",".join(f"{number:0{width}}" for number in run)
        for run in runs
    )
