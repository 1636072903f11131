"""What adding to some leaves changes in a value: terms, each constant along some axes. No JAX.

Add something to a leaf, whatever it is, and a value ``v`` becomes ``v + d``. Of ``d`` two things
are kept. Along which axes it is constant: a bias of shape (8,) broadcast to (32, 8) changes all 32
rows alike. And *what* it is, as far as that can be told: a multiple of what was added at one place
of the program, its `Source`. So the change of ``v - mean(v)`` is known to be 0: ``v`` and its mean
change by the same source, the same number of times.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from fractions import Fraction

Perturbation = tuple[int, int | None]
"""A leaf, and what is added to it: anything (`None`), or what is constant along this axis."""

Places = tuple[int | None, ...]
"""For each axis of a value, which axis of the source it is; `None` where the change is constant."""


class Source:
    """An unknown array, of which the changes of values are multiples.

    Attributes:
      start: The leaf that it is added to, if it is one.
      parts: Otherwise, the sources that it is computed from.
      square: ``(v, axes)`` if it is the change of ``mean(v, axes)**2``; without axes, of ``v**2``.
      lost: Whether all that it starts from is known to matter. Nothing is added there from then on,
        so that this array is 0.
    """

    __slots__ = ("lost", "parts", "square", "start")

    def __init__(
        self,
        parts: Iterable["Source"] = (),
        start: Perturbation | None = None,
        square: tuple[int, frozenset[int]] | None = None,
    ) -> None:
        self.start, self.parts, self.square = start, list(parts), square
        self.lost = False

    def is_alive(self) -> bool:
        """Whether it may change at all: something that it comes from still may."""
        if not self.lost and self.start is None:
            self.lost = all(part.lost for part in self.parts)
        return not self.lost


Term = tuple[Source, Places]

Changes = dict[Term, Fraction | int]
"""The terms of a change, each with the number that the source is taken times."""


def starts_of(sources: Iterable[Source]) -> set[Perturbation]:
    """The starts that some sources are computed from."""
    waiting, seen = list(sources), set[int]()
    found = set[Perturbation]()
    while waiting:
        source = waiting.pop()
        if id(source) not in seen:
            seen.add(id(source))
            waiting += source.parts
            found |= {source.start} if source.start else set()
    return found


def lost(sources: Iterable[Source]) -> set[Perturbation]:
    """Marks sources and all that they are computed from as lost, and returns their starts.

    What is marked is passed over, so that over a whole program each source is met once.
    """
    waiting, found = list(sources), set[Perturbation]()
    while waiting:
        source = waiting.pop()
        if not source.lost:
            source.lost = True
            waiting += source.parts
            found |= {source.start} if source.start else set()
    return found


def alive(changes: Changes) -> Changes:
    """The terms whose sources are not lost."""
    for source, _ in changes:
        if source.lost or not source.is_alive():
            return {term: c for term, c in changes.items() if term[0].is_alive()}
    return changes


def times(changes: Mapping[Term, Fraction | int], number: Fraction | int) -> Changes:
    """``number * changes``."""
    return {term: c * number for term, c in changes.items()} if number else {}


def plus(a: Changes, b: Changes, k: int) -> tuple[Changes, list[Source]]:
    """The change of ``x + k*y`` from those of `x` and `y`, and the sources that cancelled in it."""
    out, gone = dict(a), list[Source]()
    for term, c in b.items():
        total = out.pop(term, 0) + k * c
        if total:
            out[term] = total
        else:
            gone.append(term[0])
    return out, gone


def moved(changes: Changes, to: Mapping[int, int], rank: int) -> Changes:
    """The change once axis ``a`` is axis ``to[a]`` of `rank`; along all others it is constant."""
    out: Changes = {}
    for (source, places), c in changes.items():
        new: list[int | None] = [None] * rank
        for a, q in to.items():
            new[q] = places[a]
        out[source, tuple(new)] = c
    return out


def varies(term: Term, axes: Iterable[int]) -> bool:
    """Whether a change varies along one of some axes."""
    return any(term[1][a] is not None for a in axes)


def constant_along(places: Places) -> list[bool]:
    """For each axis, whether a change is constant along it."""
    return [place is None for place in places]


def is_any(along: Collection[bool], shape: Sequence[int]) -> bool:
    """Whether something holds along any axis of more than one entry."""
    return any(held and n > 1 for held, n in zip(along, shape, strict=True))


def every_place(shape: Sequence[int]) -> Places:
    """The places of a change that varies along all axes of more than one entry."""
    return varying([False] * len(shape), shape)


def varying(constant: Sequence[bool], shape: Sequence[int]) -> Places:
    """The places of a change that varies along all axes but those along which it is constant."""
    pairs = enumerate(zip(constant, shape, strict=True))
    return tuple([None if same or n == 1 else a for a, (same, n) in pairs])
