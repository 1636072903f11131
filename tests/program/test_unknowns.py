"""Laws of the algebra of exponents."""

from fractions import Fraction

import hypothesis.strategies as st
import numpy as np
from entrywise import Assignment
from hypothesis import given, settings

from optax_bnmask.program.forms import plus, quotient, times
from optax_bnmask.program.unknowns import Unknowns

LAWS = settings(max_examples=200, deadline=None, derandomize=True)
COEFFICIENT = st.fractions(-3, 3, max_denominator=4).filter(bool)
FORM = st.dictionaries(st.integers(0, 5), COEFFICIENT, max_size=4)
SYSTEM = st.lists(st.dictionaries(st.integers(0, 7), COEFFICIENT, max_size=4), max_size=8)


@LAWS
@given(FORM, FORM, FORM, COEFFICIENT)
def test_forms_are_a_vector_space(a, b, c, k):
    assert plus(a, b) == plus(b, a)
    assert plus(plus(a, b), c) == plus(a, plus(b, c))
    assert plus(a, b, -1) == plus(a, times(b, -1))
    assert times(plus(a, b), k) == plus(times(a, k), times(b, k))
    assert plus(a, a, -1) == {}
    assert times(times(a, k), quotient(1, k)) == a


@LAWS
@given(FORM, COEFFICIENT)
def test_forms_are_never_changed_in_place(a, k):
    before = dict(a)
    plus(a, {0: k}, k)
    times(a, k)
    assert a == before


def test_a_whole_quotient_is_an_int():
    assert isinstance(quotient(6, 3), int)
    assert quotient(1, 2) == Fraction(1, 2)


def numbers(n: int) -> Unknowns:
    unknowns = Unknowns()
    for _ in range(n):
        unknowns.scalar()
    return unknowns


def rank_of(system) -> int:
    """The rank by plain elimination over the rationals."""
    rows = [[Fraction(form.get(i, 0)) for i in range(8)] for form in system]
    rank = 0
    for column in range(8):
        pivot = next((r for r in range(rank, len(rows)) if rows[r][column]), None)
        if pivot is None:
            continue
        rows[rank], rows[pivot] = rows[pivot], rows[rank]
        for r in range(len(rows)):
            if r != rank and rows[r][column]:
                k = rows[r][column] / rows[rank][column]
                rows[r] = [x - k * y for x, y in zip(rows[r], rows[rank], strict=True)]
        rank += 1
    return rank


@LAWS
@given(SYSTEM)
def test_equations_hold_and_no_more_than_they_say_is_solved(system):
    unknowns = numbers(8)
    for form in system:
        unknowns.equate_to_zero(form)
    assert len(unknowns.solved) == rank_of(system)
    for form in system:
        assert unknowns.resolve(form) == {}
    for key in range(8):
        once = unknowns.resolve({key: 1})
        assert unknowns.resolve(once) == once
        assert not once.keys() & unknowns.solved.keys()


@LAWS
@given(SYSTEM, SYSTEM)
def test_a_copy_learns_nothing_from_the_original(system, more):
    unknowns = numbers(8)
    for form in system:
        unknowns.equate_to_zero(form)
    copy = unknowns.copy()
    before = [copy.resolve({key: 1}) for key in range(8)]
    for form in more:
        unknowns.equate_to_zero(form)
    assert [copy.resolve({key: 1}) for key in range(8)] == before


# Vectors: what is solved is compared with the same equations, written out entry by entry.

LENGTH = 12
SIZES = (1, 2, 3, 4, 6, 12)
VIEW = st.tuples(st.integers(0, 5), st.sampled_from([1, 2, 3, 4, 6]))
EQUATION = st.lists(st.tuples(VIEW, st.sampled_from([-2, -1, 1, 2])), min_size=1, max_size=3)
CUT = st.lists(st.integers(1, LENGTH - 1), max_size=2)


def vectors() -> Unknowns:
    unknowns = Unknowns()
    for size in SIZES:
        unknowns.vector(size)
    return unknowns


def form_of(unknowns: Unknowns, terms) -> dict:
    """A form along `LENGTH` entries, of the views that fit into it."""
    form = {}
    for (key, inner), c in terms:
        if LENGTH % (SIZES[key] * (inner if SIZES[key] > 1 else 1)) == 0:
            form = plus(form, {unknowns.view(key, inner): c})
    return form


def dense(unknowns: Unknowns, form) -> np.ndarray:
    """The form as coefficients of the original entries, one row for each index."""
    starts = np.cumsum([0, *SIZES])
    rows = np.zeros((LENGTH, starts[-1]))
    for key, c in form.items():
        source, size = unknowns.source(key), unknowns.size[key]
        inner = 1 if size == 1 else unknowns.inner(key)
        for i in range(LENGTH):
            rows[i, starts[source] + (i // inner) % size] += c
    return rows


def solution(unknowns: Unknowns, rng) -> np.ndarray:
    """A random value of all original entries that the unknowns allow."""
    known = -1
    while known != len(unknowns.solved):
        known = len(unknowns.solved)
        profiles = [unknowns.resolve_along([(n, {k: 1})]) for k, n in enumerate(SIZES)]
    drawn = Assignment(unknowns, rng)
    return np.concatenate([drawn.profile(profile) for profile in profiles])


@LAWS
@given(st.lists(st.tuples(EQUATION, CUT), max_size=6))
def test_equations_between_vectors_hold_at_every_index(equations):
    unknowns = vectors()
    rows = [np.zeros((0, sum(SIZES)))]
    for terms, cuts in equations:
        form = form_of(unknowns, terms)
        rows.append(dense(unknowns, form))
        for n, part in unknowns.cut([(LENGTH, form)], sorted({*cuts, LENGTH})):
            unknowns.equate_along_to_zero(n, part)
    for seed in range(3):
        np.testing.assert_allclose(
            np.concatenate(rows) @ solution(unknowns, np.random.default_rng(seed)), 0, atol=1e-9
        )


@LAWS
@given(st.lists(EQUATION, max_size=4), EQUATION)
def test_flattening_makes_every_entry_the_number_it_returns(equations, terms):
    unknowns = vectors()
    for other in equations:
        unknowns.equate_along_to_zero(LENGTH, form_of(unknowns, other))
    form = form_of(unknowns, terms)
    level = unknowns.flattened([(LENGTH, form)])
    unknowns.resolve_along([(LENGTH, form)])
    drawn = Assignment(unknowns, np.random.default_rng(0))
    entries = drawn.profile([(LENGTH, form)])
    np.testing.assert_allclose(entries, drawn.form(unknowns.resolve(level))[0], atol=1e-9)


@LAWS
@given(EQUATION, CUT, st.integers(0, 11), st.integers(1, 12), st.sampled_from([1, 2, 3]))
def test_cutting_slicing_and_repeating_are_those_of_the_entries(terms, cuts, low, length, inner):
    unknowns = vectors()
    profile = [(LENGTH, form_of(unknowns, terms))]
    cut = unknowns.cut(profile, sorted({*cuts, LENGTH}))
    part = unknowns.slice(cut, low, min(low + length, LENGTH))
    repeated, tiled = unknowns.repeated(profile, inner), unknowns.tiled(cut, inner)
    for p in (profile, cut, part, repeated, tiled):
        unknowns.resolve_along(p)
    drawn = Assignment(unknowns, np.random.default_rng(0))
    entries = drawn.profile(profile)
    np.testing.assert_allclose(drawn.profile(cut), entries)
    np.testing.assert_allclose(drawn.profile(part), entries[low : low + length])
    np.testing.assert_allclose(drawn.profile(repeated), np.repeat(entries, inner))
    np.testing.assert_allclose(drawn.profile(tiled), np.tile(entries, inner))


def test_the_next_segment_knows_what_the_last_one_solved():
    unknowns = Unknowns()
    z, y, w, u, t = (unknowns.vector(n) for n in (6, 6, 3, 3, 3))
    for whole, halves in ((z, (w, w)), (y, (u, t))):
        for n, (place, half) in zip((3, 3), enumerate(halves), strict=True):
            (_, form), (_, other) = unknowns.cut([(6, {whole: 1})], [3, 6])
            unknowns.equate_along_to_zero(n, plus((form, other)[place], {half: 1}, -1))
    unknowns.equate_along_to_zero(6, {z: 1, y: -1})
    assert unknowns.resolve_along([(3, {w: 1, u: -1})]) == [(3, {})]
    assert unknowns.resolve_along([(3, {w: 1, t: -1})]) == [(3, {})]
