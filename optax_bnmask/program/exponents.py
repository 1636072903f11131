"""Unknown exponents, and degrees: how a value scales, entry by entry. Knows no JAX.

With the index sets final, the exponents of a leaf are split as in an analysis of variance. A leaf
of shape (3, 12), its second axis refined to ``4 x 3``, has the exponents

    k[i, (j, l)] = u + v[i] + w[j] + x[l] + y[j, l]        each of v, w, x, y of mean 0

and since an equation between such sums holds if and only if it holds component by component, each
component needs *one scalar unknown*, however long it is: what the equations say of ``w`` they say
of every ``w[j]`` alike. "The same along axis 1" is ``w = x = y = 0``.

A *degree* gives, for each *cell* (a choice of one segment of each axis), its components: the axes
and atoms along which it varies, each with a linear *form* in the unknowns. Cells are never changed;
they are shared, and what is computed of one is kept under its identity.

Along an axis of several segments a leaf starts with one component for the axis *as a whole*, taken
apart once a part of it is asked for. A leaf of shape (5,) in segments of 2 and 3 has two unknowns::

    k = u0 + u1[i]                                 {(0,): {(): {0: 1}, ((0, WHOLE),): {1: 1}}}

With ``k = (1, 3, 7, 8, 9)`` the ``u1`` is of mean 0 over the *first* segment: ``u0 = 2`` and ``u1 =
(-1, 1, 5, 6, 7)``. Products and powers need no more. A slice ``[2:]`` asks for the second segment,
and takes ``u1`` apart (`Degrees.apart`)::

    u1[:2] = u2[i]              u2 = (-1, 1)       {(0,): {(): {0: 1}, ((0, 0),): {2: 1}},
    u1[2:] = u3 + u4[i]         u3 = 6              (1,): {(): {0: 1, 3: 1}, ((0, 0),): {4: 1}}}
                                u4 = (-1, 0, 1)

So ``u1 = 0`` is the same as ``u2 = u3 = u4 = 0``, and whatever is solved of ``u1`` later is imposed
on its parts as well (`equations.System.zero`).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import product
from typing import Any

from optax_bnmask.program.equations import (
    NOTHING,
    Component,
    Components,
    Number,
    System,
    plus,
    subsets,
    times,
)
from optax_bnmask.program.indices import ONE, Atom, Indices, Segments

Cell = tuple[int, ...]
"""Which segment of each axis."""

Degree = dict[Cell, Components | None]
"""By cell its components; `None` where the entries are constants of every degree at once (zeros).

A degree of one cell stands for all cells, however many segments the axes have.
"""

WHOLE = -1
"""In the place of an atom: the component varies along all segments, of mean 0 over the first."""


class Degrees:
    """The arithmetic of degrees over one system of unknowns.

    Attributes:
      system: The unknowns, and what is known of them.
      indices: The index sets of the axes, refined to the end.
    """

    def __init__(self, system: System, indices: Indices | None = None) -> None:
        self.system = system
        self.indices = indices or Indices()
        self._memo: dict[Any, Any] = {}

    def _kept(
        self,
        key: Any,  # noqa: ANN401 - hashable
        cells: tuple[Components, ...],
        make: Callable[..., Components],
    ) -> Components:
        """The result of `make` on cells, computed once; the cells are kept alive with it."""
        key = (key, *map(id, cells))
        hit = self._memo.get(key)
        if hit is None:
            hit = self._memo[key] = (make(*cells), cells)
        return hit[0]

    def leaf(self, axes: Sequence[Segments]) -> Degree:
        """The degree of a leaf, an unknown for each of its components.

        It varies along one axis at a time: components across two axes are not made.
        """
        out: Components = {(): self.system.unknown()}
        for p, segments in enumerate(axes):
            if len(segments) > 1:
                out[((p, WHOLE),)] = self.system.unknown(segments)
            else:
                (s,) = segments
                for subset in subsets(len(s), smallest=1):
                    component = tuple((p, k) for k in subset)
                    out[component] = self.system.unknown(tuple(s[k] for k in subset))
        return {(0,) * len(axes): out}

    def apart(self, cell: Cell, components: Components, axes: Sequence[Segments]) -> Components:
        """The components of a cell, those of whole axes taken apart."""
        if not any(_is_whole(c) for c in components):
            return components
        out = {c: f for c, f in components.items() if not _is_whole(c)}
        for component, form in components.items():
            if not _is_whole(component):
                continue
            ((p, _),) = component
            resolved = self.system.resolve(form)
            if resolved:
                own = self.system.apart_at(resolved, axes[p], cell[p])
                for places, f in own.items():
                    renamed = tuple((p, k) for _, k in places)
                    out[renamed] = plus(out.get(renamed, NOTHING), f)
        return out

    def full(self, x: Degree, axes: Sequence[Segments]) -> Degree:
        """The degree with an entry for each cell, components of whole axes taken apart."""
        if len(x) == 1:
            if all(len(s) == 1 for s in axes):
                return x
            (one,) = x.values()
            x = dict.fromkeys(product(*(range(len(s)) for s in axes)), one)
        return {c: d and self.apart(c, d, axes) for c, d in x.items()}

    def segments(self, axes: Iterable[Atom]) -> list[Segments]:
        """The segments of some axes."""
        return [self.indices.segments(a) for a in axes]

    def power(self, x: Degree, k: Number) -> Degree:
        """The degree of ``x**k``."""
        if k == 1:
            return x

        def one(d: Components) -> Components:
            return {c: times(f, k) for c, f in d.items()}

        return {c: self._kept(k, (d,), one) if d else d for c, d in x.items()}

    def product(self, x: Degree, y: Degree, k: Number = 1) -> Degree:
        """The degree of ``x * y**k``, cell by cell."""
        if len(y) == 1 and NOTHING in y.values():
            return x
        if k == 1 and len(x) == 1 and NOTHING in x.values():
            return y

        def one(d: Components, e: Components) -> Components:
            out = {}
            for c in {**d, **e}:
                if f := plus(d.get(c, NOTHING), e.get(c, NOTHING), k):
                    out[c] = f
            return out or NOTHING

        key = ("product", k)
        out = {
            c: None if d is None or e is None else self._kept(key, (d, e), one) if e else d
            for c, d, e in _paired(x, y)
        }
        return self._collapsed(out) if len(out) > 1 else out

    @staticmethod
    def _collapsed(x: Degree) -> Degree:
        """One cell for all if all are equal and do not vary along an atom of a divided axis."""
        (cell, first), last = next(iter(x.items())), max(x)
        if first is None or any(d != first for d in x.values()):
            return x
        divided = any(last[p] for c in first if not _is_whole(c) for p, _ in c)
        return x if divided else {cell: first}

    def equal(
        self,
        d: Components,
        e: Components,
        cell: Cell,
        axes: Sequence[Atom] | None,
    ) -> None:
        """Imposes that two cells are equal.

        Args:
          d: The components of one.
          e: The components of the other.
          cell: Which cell.
          axes: The axes, unless one cell stands for all.
        """
        if d is e:
            return
        gap = {}
        for c in {**d, **e}:
            if f := plus(d.get(c, NOTHING), e.get(c, NOTHING), -1):
                gap[c] = f
        for form in (self.apart(cell, gap, self.segments(axes)) if axes else gap).values():
            self.system.zero(form)

    def agree(self, degrees: Sequence[Degree], axes: Sequence[Atom]) -> Degree:
        """Imposes that all degrees are equal, cell by cell, and returns that one degree.

        A cell that is of every degree in one of them is what it is in another.
        """
        x, *rest = degrees
        for y in rest:
            if x is y:
                continue
            out: Degree = {}
            within = None if len(x) == len(y) == 1 else axes
            for c, d, e in _paired(x, y):
                if d is not None and e is not None:
                    self.equal(d, e, c, within)
                out[c] = _shorter(d, e)
            x = out
        return x

    def pin(self, x: Degree, axes: Sequence[Atom]) -> None:
        """Imposes degree 0 on every entry."""
        for c, d in x.items():
            components = self.apart(c, d, self.segments(axes)) if d and len(x) > 1 else d
            for form in (components or NOTHING).values():
                self.system.zero(form)

    def moved(
        self,
        x: Degree,
        to: Mapping[int, int],
        rank: int,
        axes: Sequence[Atom],
    ) -> Degree:
        """The degree once axis ``p`` is axis ``to[p]``; along the others it must not vary.

        Of several cells there is only segment 0 along axes that are new: `spread` repeats it.

        Args:
          x: The degree.
          to: Where each axis goes.
          rank: The number of axes of the result.
          axes: The axes of `x`.
        """
        if len(x) == 1:
            (d,) = x.values()
            is_even = not d or (len(d) == 1 and () in d)  # as most values are
            return {(0,) * rank: d if is_even else self._renamed(d, to)}
        if len(to) == rank == len(next(iter(x))) and [*to] == [*to.values()]:
            return x
        back = {q: p for p, q in to.items()}
        origins = [back.get(q) for q in range(rank)]
        out: Degree = {}
        for c, d in x.items():
            whole = d and any(_is_whole(k) and k[0][0] not in to for k in d)
            own = self.apart(c, d, self.segments(axes)) if d and whole else d
            cell = tuple(0 if p is None else c[p] for p in origins)
            self._add(out, cell, self._renamed(own, to) if own else own, origins, axes)
        return out

    def _renamed(self, d: Components, to: Mapping[int, int]) -> Components:
        """The components of a cell with axis ``p`` called ``to[p]``; others are made 0."""

        def one(d: Components) -> Components:
            out = {}
            for c, form in d.items():
                places = [(to[p], k) for p, k in c if p in to]
                if len(places) == len(c):
                    out[tuple(places)] = form
                else:
                    self.system.zero(form)
            return out or NOTHING

        return self._kept(tuple(to.items()), (d,), one)

    def _add(
        self,
        out: Degree,
        cell: Cell,
        d: Components | None,
        origins: Sequence[int | None],
        axes: Sequence[Atom],
    ) -> None:
        """Adds a cell to a degree; if it is there already, imposes that the two are equal.

        Args:
          out: The degree.
          cell: Which cell.
          d: Its components.
          origins: For each axis of the degree, which it was before it was moved.
          axes: These.
        """
        there = out.get(cell)
        if there is None:
            out[cell] = d
        elif d is not None:
            self.equal(there, d, cell, [ONE if p is None else axes[p] for p in origins])


def spread(x: Degree, counts: Sequence[int], axes: Iterable[int]) -> Degree:
    """The degree, its cells repeated for each segment of `axes`, along which it does not vary."""
    for q in axes:
        if counts[q] > 1:
            x = {(*c[:q], t, *c[q + 1 :]): d for c, d in x.items() for t in range(counts[q])}
    return x


def _shorter(d: Components | None, e: Components | None) -> Components | None:
    """The one of two equal cells with fewer terms, so that sums do not grow from layer to layer."""
    if d is None or e is None:
        return e if d is None else d
    return d if sum(map(len, d.values())) <= sum(map(len, e.values())) else e


def _is_whole(component: Component) -> bool:
    return bool(component) and component[0][1] == WHOLE


def _paired(x: Degree, y: Degree) -> Iterator[tuple[Cell, Components | None, Components | None]]:
    """The cells of two degrees side by side, where one cell may stand for all."""
    if len(x) == len(y):
        for c, d in x.items():
            yield c, d, y[c]
    elif len(y) == 1:
        (e,) = y.values()
        for c, d in x.items():
            yield c, d, e
    else:
        (d,) = x.values()
        for c, e in y.items():
            yield c, d, e
