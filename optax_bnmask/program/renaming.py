"""The cells and components of a degree, renamed for a reshape or a slice. Knows no JAX."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any

from optax_bnmask.program.exponents import Cell, Degree
from optax_bnmask.program.indices import Segments, starts_of


def between(segments: Segments, low: int, high: int) -> dict[int, int]:
    """The segments between two borders, ``{number before: number among these}``."""
    inside = [t for t, at in enumerate(starts_of(segments)) if low <= at < high]
    return {t: k for k, t in enumerate(inside)}


def placed(x: Degree, places: Sequence[Mapping[int, int]]) -> Degree:
    """The degree with cells renamed, ``{segment: new segment}`` for each axis; others dropped."""
    return {
        tuple(there[t] for there, t in zip(places, c, strict=True)): components
        for c, components in x.items()
        if all(t in there for there, t in zip(places, c, strict=True))
    }


def renamed(
    x: Degree,
    groups: Sequence[tuple[Sequence[int], Sequence[int]]],
    inside: Sequence[Segments],
    outside: Sequence[Segments],
) -> Degree:
    """The degree after a reshape, its cells and components renamed group by group.

    From (12,), atoms 4 x 3, to (4, 3), what varies along the 3 is ``((0, 1),)`` (atom 1 of axis
    0), then ``((1, 0),)``.
    """
    starts = [list(map(_borders, axes)) for axes in (inside, outside)]
    known: dict[Any, Any] = {}
    out: Degree = {}
    for c, components in x.items():
        cell, places = [0] * len(outside), dict[Any, Any]()
        for number, (before, after) in enumerate(groups):
            key = (number, *(c[q] for q in before))
            if key not in known:
                there = _landing(c, before, after, starts)
                known[key] = there, _names(c, there, (before, after), (inside, outside))
            there, names = known[key]
            for q, t in there.items():
                cell[q] = t
            places.update(names)
        out[tuple(cell)] = components and {
            tuple(places[place] for place in component): form
            for component, form in components.items()
        }
    return out


def _borders(segments: Segments) -> list[int]:
    """Where the segments of an axis start, and where the last one ends."""
    return starts_of([*segments, ()])


def _landing(
    c: Cell, before: Sequence[int], after: Sequence[int], borders: Sequence[Sequence[list[int]]]
) -> dict[int, int]:
    """For each new axis of a group, the segment with the first entry of a cell.

    The first entry decides: the axes were cut wherever another cell begins.
    """
    inside, outside = borders
    at = 0
    for q in before:
        at = at * inside[q][-1] + inside[q][c[q]]
    there: dict[int, int] = {}
    for q in reversed(after):
        at, here = divmod(at, outside[q][-1])
        there[q] = bisect_right(outside[q], here) - 1
    return there


def _names(
    c: Cell,
    there: Mapping[int, int],
    groups: tuple[Sequence[int], Sequence[int]],
    axes: tuple[Sequence[Segments], Sequence[Segments]],
) -> dict[tuple[int, int], tuple[int, int]]:
    """``{(axis, atom): (new axis, new atom)}`` for the atoms of a cell, in order, in a reshape."""
    (before, after), (inside, outside) = groups, axes
    old = [(q, k) for q in before for k in range(len(inside[q][c[q]]))]
    new = [(q, k) for q in after for k in range(len(outside[q][there[q]]))]
    atoms = [inside[q][c[q]][k] for q, k in old], [outside[q][there[q]][k] for q, k in new]
    if atoms[0] != atoms[1]:
        raise AssertionError("a reshape between axes that the first pass did not make the same")
    return dict(zip(old, new, strict=True))
