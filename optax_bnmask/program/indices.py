"""What the axes of values range over, refined until every operation respects it. Knows no JAX.

An axis is an `Atom`. An atom is whole, or refined into *segments* that follow each other, each of
which is a row-major product of atoms. Operations only make demands: entry by entry, that two axes
are the same (`unify`); slices and concatenations, that there is a border (`cut`); reshapes, that an
axis has an inner factor (`split`). A demand refines an atom for everyone who holds it::

    kernel (3, 12) -> reshape (3, 4, 3)      12  becomes  4 x 3       (a product)
    concatenate 12 and 5                     17  is       [12][5]     (refined from birth)
    slice 17 at 4                            12  becomes  [4][8]      (a sum), in the kernel too

What no demand has told apart is never told apart, so that a kernel of a million columns is one
atom. Run to the end before any exponent is thought of, this leaves a few segments for each axis.
"""

from collections.abc import Iterable, Iterator, Sequence
from math import prod
from typing import Final

ROWS = 64
"""At most so many rows are told apart one by one; each of them is an unknown of its own later."""

_ROUNDS = 200
"""How often a demand may refine what it looks at. Every round makes some atom smaller, and real
programs need fewer than ten; a demand that is not met by then counts as one that cannot be."""


class Mismatch(Exception):  # noqa: N818 - no error: whoever demanded it takes the axis as one
    """A demand that cannot be met: no two entries along that axis may differ."""


class Atom:
    """An index set of so many entries.

    Attributes:
      size: The number of entries.
      segments: `None` while whole; else what it was refined into, in terms of atoms that were
        whole when this was last brought up to date.
      seen: `Indices.refinements` at that time.
      rows: In how many rows it recurs, each of which a border in it would cut. Above `ROWS` the
        demand for a border is refused, so that no later reading of the atom can fail.
    """

    __slots__ = ("rows", "seen", "segments", "size")

    def __init__(self, size: int, segments: "Segments | None" = None) -> None:
        self.size = size
        self.segments = _ONE_ENTRY if size == 1 else segments
        self.seen = -1
        self.rows = 1


Segment = tuple[Atom, ...]
"""A row-major product of whole atoms; the empty product has one entry."""

Segments = tuple[Segment, ...]

_ONE_ENTRY: Segments = ((),)

ONE: Final = Atom(1)
"""The axis of one entry, which no demand can refine."""


def size_of(segment: Segment) -> int:
    """The number of entries of a segment."""
    return segment[0].size if len(segment) == 1 else prod(a.size for a in segment)


def starts_of(segments: Iterable[Segment]) -> list[int]:
    """The first index of each segment."""
    out: list[int] = []
    at = 0
    for s in segments:
        out.append(at)
        at += size_of(s)
    return out


class Indices:
    """The index sets of one program, and the demands that refine them.

    Attributes:
      refinements: How many there have been; an atom seen since the last one is up to date.
      most: At most so many rows are told apart.
    """

    def __init__(self, most: int = ROWS) -> None:
        self.refinements = 0
        self.most = most

    def segments(self, axis: Atom) -> Segments:
        """The segments of an axis, in terms of whole atoms.

        The tuple is kept on the atom, and axes that are the same share it, so that comparing two of
        them a second time compares two pointers.
        """
        chain: list[Atom] = []
        while (parts := axis.segments) is not None and axis.seen != self.refinements:
            if len(parts) != 1 or len(parts[0]) != 1:
                break
            chain.append(axis)  # the same as another axis; such chains may be long
            (axis,) = parts[0]
        found = self._segments(axis)
        for one in chain:
            one.segments, one.seen = found, self.refinements
        return found

    def _segments(self, axis: Atom) -> Segments:
        """`segments` of an axis that is whole, or is no mere alias of another one."""
        if axis.segments is None:
            return ((axis,),)
        if axis.seen != self.refinements and axis.segments is not _ONE_ENTRY:
            while any(a.segments is not None for s in axis.segments for a in s):
                axis.segments = tuple(t for s in axis.segments for t in self._multiplied_out(s))
            axis.seen = self.refinements
        return axis.segments

    def _multiplied_out(self, product: Segment) -> Segments:
        """The segments of a product of atoms, some of which are refined."""
        out: Segments = _ONE_ENTRY
        for atom in reversed(product):
            rows = self.segments(atom)
            if len(out) > 1 and any(rows):  # borders within rows: the rows are told apart
                for row in rows:
                    for a in row:
                        self._enumerate(a)
                rows = self.segments(atom)
            out = tuple(row + rest for row in rows for rest in out)
        return out

    def _refine(self, atom: Atom, segments: Sequence[Segment]) -> None:
        if len(segments) > 1 and atom.rows > self.most:
            raise Mismatch
        for segment in segments:
            rows = atom.rows
            for a in segment:
                a.rows = max(a.rows, rows)
                rows *= a.size
        atom.segments = tuple(segments)
        self.refinements += 1

    def _enumerate(self, atom: Atom) -> None:
        """Tells the entries of an atom apart."""
        if atom.segments is None:
            if atom.size > self.most:
                raise Mismatch
            self._refine(atom, [()] * atom.size)

    def cut(self, axis: Atom, border: int) -> None:
        """Demands that a segment ends before the index `border`."""
        while 0 < border < axis.size:
            start = 0
            for segment in self.segments(axis):
                n = size_of(segment)
                if start < border < start + n:
                    self._cut(segment, border - start)
                    break
                if start == border:
                    return
                start += n
            else:
                return

    def _cut(self, segment: Segment, at: int) -> None:
        first, rest = segment[0], segment[1:]
        row, within = divmod(at, size_of(rest))
        if within:  # in the midst of a row, so in the midst of every row, or of this one alone
            self._enumerate(first)
            self._cut(rest, within)
        elif first.segments is None and 0 < row < first.size:
            self._refine(first, [(Atom(row),), (Atom(first.size - row),)])

    def unify(self, x: Atom, y: Atom) -> None:
        """Demands that two axes of one length are the same index set.

        Raises:
          Mismatch: Not possible, such as 6 as 2 x 3 with 6 as 3 x 2.
        """
        for _ in range(_ROUNDS):
            s, t = self.segments(x), self.segments(y)
            if s is t:
                return
            if s == t:
                if len(s) > 1:  # from now on one look tells
                    y.segments, y.seen = x.segments, x.seen
                return
            for one, other in _runs(s, t):
                if one != other:
                    self._unify_runs(one, other)
        raise Mismatch

    def _unify_runs(self, s: Segments, t: Segments) -> None:
        """One step towards making two runs of segments of one length the same."""
        if any(a.segments is not None for r in (*s, *t) for a in r):
            return  # refined meanwhile, by the run before: the next round sees it
        for one, other in ((s, t), (t, s)):
            if len(one) == len(one[0]) == 1:
                self._refine(one[0][0], other)
                return
        if len(s) > 1 and len(t) > 1:
            short, long = (s, t) if size_of(s[0]) < size_of(t[0]) else (t, s)
            self._cut(long[0], size_of(short[0]))
        elif len(s) > 1:
            self._cut(t[0], size_of(s[0]))
        elif len(t) > 1:
            self._cut(s[0], size_of(t[0]))
        else:
            self._unify_products(s[0], t[0])

    def _unify_products(self, s: Segment, t: Segment) -> None:
        while s[-1] is t[-1]:
            s, t = s[:-1], t[:-1]
        a, b = s[-1], t[-1]
        if a.size == b.size:
            self._refine(a, [(b,)])
        elif a.size % b.size == 0:
            self._factor(a, b.size)
        elif b.size % a.size == 0:
            self._factor(b, a.size)
        else:
            raise Mismatch

    def _factor(self, atom: Atom, inner: int) -> None:
        self._refine(atom, [(Atom(atom.size // inner), Atom(inner))])

    def part(self, axis: Atom, low: int, high: int) -> Atom:
        """The entries of an axis between two borders, both demanded before."""
        if low == 0 and high == axis.size:
            return axis
        segments = self.segments(axis)
        inside = zip(segments, starts_of(segments), strict=True)
        return Atom(high - low, tuple(s for s, at in inside if low <= at < high))

    def merged(self, axes: Sequence[Atom]) -> Atom:
        """The axes as one, row-major: what a reshape makes of them.

        Raises:
          Mismatch: More than `most` rows would have to be told apart.
        """
        if len(axes) == 1:
            return axes[0]
        rows = 1
        for axis in axes:
            if rows > self.most and len(self.segments(axis)) > 1:
                raise Mismatch
            for segment in self.segments(axis):
                for a in segment:
                    a.rows = max(a.rows, rows)
            rows *= axis.size
        return Atom(rows, (tuple(axes),))

    def split(self, axis: Atom, inner: int) -> tuple[Atom, Atom]:
        """The axis as rows of `inner` entries: two axes.

        Raises:
          Mismatch: The rows cannot be made alike.
        """
        if inner == 1:
            return axis, ONE
        if inner == axis.size:
            return ONE, axis
        for _ in range(_ROUNDS):
            segments = self.segments(axis)
            if len(segments) > 1 and any(size_of(s) % inner for s in segments):
                break
            halves = self._all_halves(axis, segments, inner)
            if halves is None:
                continue
            first, *rows = [Atom(inner, (row,)) for _, row in halves]
            for row in rows:
                self.unify(first, row)
            if self.segments(axis) == segments:
                return Atom(axis.size // inner, tuple(outer for outer, _ in halves)), first
        return self._split_by_rows(axis, inner)

    def _all_halves(
        self, axis: Atom, segments: Segments, inner: int
    ) -> list[tuple[Segment, Segment]] | None:
        """`_halves` of each segment; `None` as soon as one had to be refined."""
        out = []
        for segment in segments:
            half = self._halves(axis, segment, inner)
            if half is None:
                return None
            out.append(half)
        return out

    def _halves(self, axis: Atom, segment: Segment, inner: int) -> tuple[Segment, Segment] | None:
        """The outer and the inner factors of a segment; `None` if it had to be refined for that."""
        k, tail = len(segment), 1
        while tail < inner:
            k -= 1
            tail *= segment[k].size
        if tail == inner:
            return segment[:k], segment[k:]
        rest = tail // segment[k].size
        if inner % rest or segment[k].size % (inner // rest):
            if axis.size > self.most:
                raise Mismatch
            for border in range(axis.size):  # no common factors: the entries are told apart
                self.cut(axis, border)
        else:
            self._factor(segment[k], inner // rest)
        return None

    def _split_by_rows(self, axis: Atom, inner: int) -> tuple[Atom, Atom]:
        """`split` where there are borders within rows: rows are cut apart, and unified."""
        n = axis.size // inner
        if n > self.most:
            raise Mismatch
        for border in range(0, axis.size, inner):
            self.cut(axis, border)
        rows = [self.part(axis, border, border + inner) for border in range(0, axis.size, inner)]
        for row in rows[1:]:
            self.unify(rows[0], row)
        return Atom(n, ((),) * n), rows[0]

    def settle(self, axes: Iterable[Atom]) -> None:
        """Reads all axes until none is refined by the reading of another."""
        every = list({id(a): a for a in axes}.values())
        before = -1
        while before != self.refinements:
            before = self.refinements
            for axis in every:
                if axis.segments is not None:
                    self.segments(axis)


def _runs(s: Segments, t: Segments) -> Iterator[tuple[Segments, Segments]]:
    """The shortest runs of segments of two axes that end together."""
    i = j = 0
    while i < len(s):
        m, n, k, l = size_of(s[i]), size_of(t[j]), i + 1, j + 1  # noqa: E741
        while m != n:
            if m < n:
                m, k = m + size_of(s[k]), k + 1
            else:
                n, l = n + size_of(t[l]), l + 1  # noqa: E741
        yield s[i:k], t[j:l]
        i, j = k, l


def joined(axes: Sequence[Atom]) -> Atom:
    """The axes one after the other: what a concatenation makes of them."""
    axes = [a for a in axes if a.size]
    return axes[0] if len(axes) == 1 else Atom(sum(a.size for a in axes), tuple((a,) for a in axes))
