"""Index sets: every demand is met for good, or refused."""

import contextlib
import itertools

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from optax_bnmask.program.indices import (
    ROWS,
    Atom,
    Indices,
    Mismatch,
    joined,
    size_of,
    starts_of,
)

LAWS = settings(max_examples=300, deadline=None, derandomize=True)
SIZES = (1, 2, 3, 4, 6, 12)


def entries(indices: Indices, axis: Atom, named: dict) -> list:
    """A name for each entry of an axis; two entries have one name if no demand tells them apart."""
    out = []
    for segment in indices.segments(axis):
        parts = [
            [(named.setdefault(id(a), (len(named), a))[0], i) for i in range(a.size)]
            for a in segment
        ]
        row = [()]
        for part in parts:
            row = [(*r, p) for r in row for p in part]
        out += row
    return out


class Made:
    """Axes, the demands that were met, and what these promise.

    Attributes:
      same: Pairs of lists of axes that are the same once they are read together.
      borders: Axes, and where a segment of them ends.
    """

    def __init__(self, axes) -> None:
        self.indices, self.axes = Indices(), axes
        self.same, self.borders = [], []

    def unify(self, x, y, k):
        if x.size == y.size:
            self.indices.unify(x, y)
            self.same.append(([x], [y]))

    def cut(self, x, y, k):
        self.indices.cut(x, k % (x.size + 1))
        self.borders.append((x, k % (x.size + 1)))

    def split(self, x, y, k):
        inner = 1 + k % 6
        if x.size % inner == 0:
            self.axes += self.indices.split(x, inner)
            self.same.append(([x], self.axes[-2:]))

    def join(self, x, y, k):
        if x.size + y.size <= 60:
            self.axes.append(joined([x, y]))

    def merge(self, x, y, k):
        if x.size * y.size <= 60:
            self.axes.append(self.indices.merged([x, y]))
            self.same.append((self.axes[-1:], [x, y]))

    def part(self, x, y, k):
        low = k % x.size
        for border in (low, low + 1):
            self.indices.cut(x, border)
        self.axes.append(self.indices.part(x, low, low + 1))


DEMAND = st.tuples(
    st.sampled_from(["unify", "cut", "split", "join", "merge", "part"]),
    st.integers(0, 40),
    st.integers(0, 40),
    st.integers(0, 40),
)


@LAWS
@given(st.lists(st.sampled_from(SIZES), min_size=2, max_size=5), st.lists(DEMAND, max_size=12))
def test_axes_that_were_made_the_same_stay_the_same(sizes, demands):
    made = Made([Atom(n) for n in sizes])
    indices, axes = made.indices, made.axes
    for kind, i, j, k in demands:
        with contextlib.suppress(Mismatch):
            getattr(made, kind)(axes[i % len(axes)], axes[j % len(axes)], k)
    try:
        indices.settle(axes)
    except Mismatch:
        pytest.fail("a demand that was accepted is refused by a later reading")
    names: dict = {}
    for axis in axes:
        segments = indices.segments(axis)
        assert sum(size_of(s) for s in segments) == axis.size
        assert all(a.segments is None for s in segments for a in s)
    for left, right in made.same:
        assert product(indices, left, names) == product(indices, right, names)
    for axis, border in made.borders:
        assert border in (0, axis.size, *starts_of(indices.segments(axis)))


def product(indices: Indices, axes: list[Atom], names: dict) -> list:
    """The entries of some axes read together, row-major."""
    out = [()]
    for axis in axes:
        row = entries(indices, axis, names)
        out = [(*a, *b) for a in out for b in row]
    return out


def test_a_cut_is_carried_to_every_axis_that_is_the_same():
    indices, x, y = Indices(), Atom(12), Atom(12)
    indices.unify(x, y)
    indices.cut(y, 5)
    assert [size_of(s) for s in indices.segments(x)] == [5, 7]


def test_two_axes_joined_in_either_order_can_be_made_the_same():
    indices, a, b = Indices(), Atom(3), Atom(3)
    indices.unify(joined([a, b]), joined([b, a]))
    assert indices.segments(a) == indices.segments(b)


def test_a_factor_and_its_transpose_are_told_apart_entry_by_entry_or_refused():
    indices, axis = Indices(), Atom(6)
    indices.split(axis, 2)
    other = Atom(6)
    indices.split(other, 3)
    with pytest.raises(Mismatch):
        indices.unify(axis, other)


def test_a_border_within_too_many_rows_is_refused_to_whoever_demands_it():
    indices, row = Indices(), Atom(4)
    merged = indices.merged([Atom(ROWS + 1), row])
    with pytest.raises(Mismatch):
        indices.cut(row, 2)
    assert [size_of(s) for s in indices.segments(merged)] == [merged.size]


def test_the_second_look_at_a_pair_compares_two_pointers():
    indices = Indices()
    x = joined([Atom(n) for n in (2, 3, 4)])
    y = Atom(9)
    indices.unify(x, y)
    indices.unify(x, y)
    assert indices.segments(x) is indices.segments(y)


def test_long_chains_of_names_for_one_axis_are_followed_without_recursion():
    indices = Indices()
    axes = [Atom(3) for _ in range(5_000)]
    for a, b in itertools.pairwise(axes):
        indices.unify(a, b)
    indices.settle(axes)
    assert np.unique([id(indices.segments(a)[0][0]) for a in axes]).size == 1
