"""Linear forms over the rationals, and homogeneous equations between them. Knows no JAX."""

from collections.abc import Iterator
from fractions import Fraction
from itertools import combinations
from typing import Any

from optax_bnmask.program.indices import Atom, Segments

Number = int | Fraction

Form = dict[int, Number]
"""A linear form over the rationals, ``{unknown: coefficient}`` without the zeros."""

NOTHING: Any = {}
"""The form 0, and the components of a cell of degree 0; never changed."""

Component = tuple[tuple[int, int], ...]
"""Along what a component varies: places ``(axis, atom of its segment)``; empty for the mean."""

Components = dict[Component, Form]


def plus(a: Form, b: Form, k: Number = 1) -> Form:
    """``a + k*b``."""
    if not b:
        return a
    if not a:
        return times(b, k)
    out = dict(a)
    for unknown, c in b.items():
        total = out.get(unknown, 0) + k * c
        if total:
            out[unknown] = total
        else:
            del out[unknown]
    return out


def times(a: Form, k: Number) -> Form:
    """``k*a``."""
    if k == 1 or not a:
        return a
    if type(k) is int:
        return {u: exact(k * c) for u, c in a.items()} if k else NOTHING
    over, under = k.numerator, k.denominator
    return {
        # half of ``2*c``, as for the root of a square, needs no `Fraction`
        u: c * over // under if type(c) is int and c % under == 0 else exact(k * c)
        for u, c in a.items()
    }


def exact(q: Number) -> Number:
    """The number as an `int` where it is one, which is many times faster."""
    return q if type(q) is int else q.numerator if q.denominator == 1 else q


def quotient(a: Number, b: Number) -> Number:
    """``a/b`` exactly."""
    return a if b == 1 else -a if b == -1 else exact(Fraction(a) / Fraction(b))


class System:
    """Homogeneous linear equations over the rationals, solved as they come.

    Attributes:
      solved: What the solved unknowns stand for, in terms of others.
      atoms: For each unknown of a component, the index set that it varies over.
      parts: For each unknown of an axis as a whole that was taken apart: for each segment of the
        axis its components.
      own: Unknowns that are no leaf's: those of carries that start from a constant.
    """

    def __init__(self) -> None:
        self.solved: dict[int, Form] = {}
        self.atoms: list[Any] = []
        self.parts: dict[int, list[Components]] = {}
        self.own: set[int] = set()

    def unknown(self, atoms: Segments | tuple[Atom, ...] = ()) -> Form:
        """A new unknown that varies over `atoms`, as a form."""
        self.atoms.append(atoms)
        return {len(self.atoms) - 1: 1}

    def copy(self) -> "System":
        """A copy to try further equations on; a new unknown has a number that no other copy has."""
        other = System()
        other.atoms = self.atoms
        other.solved, other.parts = dict(self.solved), dict(self.parts)
        return other

    def resolve(self, form: Form) -> Form:
        """The form in terms of the unknowns that are still free."""
        solved = self.solved
        for unknown in form:
            if unknown in solved:
                break
        else:
            return form
        if len(form) == 1:  # of most leaves it is 0 in the end
            return times(self._resolved(unknown), form[unknown]) if solved[unknown] else NOTHING
        out: Form = {}
        for unknown, c in form.items():
            if unknown in solved:
                for other, k in self._resolved(unknown).items():
                    out[other] = out.get(other, 0) + c * k
            else:
                out[unknown] = out.get(unknown, 0) + c
        return {u: exact(c) for u, c in out.items() if c}

    def _resolved(self, unknown: int) -> Form:
        """What a solved unknown stands for, resolved once and for all; without recursion.

        A loop or a long chain of equal values solves thousands of unknowns one by the next.
        """
        solved = self.solved
        if not solved[unknown] or solved[unknown].keys().isdisjoint(solved.keys()):
            return solved[unknown]
        stack = [unknown]
        while stack:
            form = solved[stack[-1]]
            known = (u for u in form if u in solved)
            waiting = [u for u in known if not solved[u].keys().isdisjoint(solved.keys())]
            if waiting:
                stack += waiting
                continue
            top = stack.pop()
            if not form.keys().isdisjoint(solved.keys()):
                out: Form = NOTHING
                for u, c in form.items():
                    out = plus(out, solved.get(u, {u: 1}), c)
                solved[top] = out
        return solved[unknown]

    def zero(self, form: Form) -> None:
        """Imposes ``form = 0``, solved for its newest unknown in `own`, or else for `_pivot`.

        So what stays free are unknowns of leaves rather than those of carries.
        """
        form = self.resolve(form)
        if not form:
            return
        own = self.own and self.own.intersection(form)
        pivot = max(own) if own else self._pivot(form)
        c = form[pivot]
        value = {u: quotient(-k, c) for u, k in form.items() if u != pivot}
        self.solved[pivot] = value
        if pivot in self.parts:  # its parts, made before, obey the equation too
            segments = self.atoms[pivot]
            for part, other in zip(self.parts[pivot], self.apart(value, segments), strict=True):
                for component in {**part, **other}:
                    gap = plus(part.get(component, NOTHING), other.get(component, NOTHING), -1)
                    self.zero(gap)

    @staticmethod
    def _pivot(form: Form) -> int:
        """The unknown to solve for.

        The newest on the longer side of the equation, or of all if both are as long. In a chain of
        layers, ``bias_k = bias_(k-1) + weight_k`` solved for the weight keeps every form short;
        solved for the bias it would be the sum of all weights before it.
        """
        if len(form) < 3:  # either side is as long as the other, or there is one
            return max(form)
        right = [unknown for unknown, c in form.items() if c > 0]
        if 2 * len(right) == len(form):
            return max(form)
        return max(right if 2 * len(right) > len(form) else form.keys() - right)

    def apart(self, form: Form, segments: Segments) -> list[Components]:
        """What a form for an axis as a whole says of each of its segments."""
        return [self.apart_at(form, segments, place) for place in range(len(segments))]

    def apart_at(self, form: Form, segments: Segments, place: int) -> Components:
        """What a form for an axis as a whole says of one of its segments.

        A segment has a mean of its own, but for the first, and a component for each subset of its
        atoms.
        """
        out: Components = {}
        for unknown, c in form.items():
            if unknown not in self.parts:
                self._take_apart(unknown, segments)
            for component, f in self.parts[unknown][place].items():
                out[component] = plus(out.get(component, NOTHING), f, c)
        return out

    def _take_apart(self, unknown: int, segments: Segments) -> None:
        """Gives an unknown of an axis as a whole its parts."""
        self.parts[unknown] = [
            {
                tuple((0, k) for k in subset): self.unknown(tuple(s[k] for k in subset))
                for subset in subsets(len(s), smallest=0 if t else 1)
            }
            for t, s in enumerate(segments)
        ]
        if unknown in self.own:
            self.own.update(u for p in self.parts[unknown] for f in p.values() for u in f)


def subsets(n: int, smallest: int) -> Iterator[tuple[int, ...]]:
    """The subsets of ``range(n)`` with at least `smallest` elements, small ones first."""
    return (s for r in range(smallest, n + 1) for s in combinations(range(n), r))
