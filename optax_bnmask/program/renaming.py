"""What a reshape and a slice make of the cells of a degree: other names. Knows no JAX."""

from collections.abc import Mapping, Sequence
from typing import Any

from optax_bnmask.program.exponents import Cell, Degree
from optax_bnmask.program.indices import Segments, starts_of


def between(segments: Segments, low: int, high: int) -> dict[int, int]:
    """The segments between two borders, and which they are there."""
    inside = [t for t, at in enumerate(starts_of(segments)) if low <= at < high]
    return {t: k for k, t in enumerate(inside)}


def placed(x: Degree, places: Sequence[Mapping[int, int]]) -> Degree:
    """The cells of a value that have a place: which segment of an axis becomes which."""
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
    """The cells of a value under the names that a reshape gives them and their components."""
    known: dict[Any, Any] = {}
    out: Degree = {}
    for c, components in x.items():
        cell, places = [0] * len(outside), dict[Any, Any]()
        for number, (before, after) in enumerate(groups):
            key = (number, *(c[q] for q in before))
            if key not in known:
                known[key] = _landing(c, before, after, inside, outside)
            there, names = known[key]
            for q, t in there.items():
                cell[q] = t
            places.update(names)
        out[tuple(cell)] = components and {
            tuple(places[place] for place in component): form
            for component, form in components.items()
        }
    return out


def _landing(
    c: Cell,
    before: Sequence[int],
    after: Sequence[int],
    inside: Sequence[Segments],
    outside: Sequence[Segments],
) -> tuple[dict[int, int], dict[tuple[int, int], tuple[int, int]]]:
    """Where the first entry of a cell goes within a group of axes, and what its atoms are called.

    The first entry decides: both passes have cut the axes wherever another cell begins.
    """
    at = 0
    for q in before:
        starts = starts_of(inside[q])
        at = at * _length(inside[q]) + starts[c[q]]
    there: dict[int, int] = {}
    for q in reversed(after):
        at, here = divmod(at, _length(outside[q]))
        there[q] = max(t for t, s in enumerate(starts_of(outside[q])) if s <= here)
    old = [(q, k) for q in before for k in range(len(inside[q][c[q]]))]
    new = [(q, k) for q in after for k in range(len(outside[q][there[q]]))]
    atoms = [inside[q][c[q]][k] for q, k in old], [outside[q][there[q]][k] for q, k in new]
    if atoms[0] != atoms[1]:
        raise AssertionError("a reshape between axes that the first pass did not make the same")
    return there, dict(zip(old, new, strict=True))


def _length(segments: Segments) -> int:
    return starts_of([*segments, ()])[-1]
