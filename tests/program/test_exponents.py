"""Laws of forms, and of the system that solves equations between them."""

from fractions import Fraction

import hypothesis.strategies as st
from hypothesis import given, settings

from optax_bnmask.program.equations import System, plus, quotient, times
from optax_bnmask.program.exponents import Degrees
from optax_bnmask.program.indices import Atom

LAWS = settings(max_examples=200, deadline=None, derandomize=True)
COEFFICIENT = st.sampled_from([Fraction(n, d) for n in (-3, -2, -1, 1, 2, 3) for d in (1, 2, 3)])
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


def system_of(n: int) -> System:
    system = System()
    for _ in range(n):
        system.unknown()
    return system


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
def test_equations_hold_and_no_more_than_they_say_is_solved(equations):
    system = system_of(8)
    for form in equations:
        system.zero(form)
    assert len(system.solved) == rank_of(equations)
    for form in equations:
        assert system.resolve(form) == {}
    for unknown in range(8):
        once = system.resolve({unknown: 1})
        assert system.resolve(once) == once
        assert not once.keys() & system.solved.keys()


@LAWS
@given(SYSTEM, SYSTEM)
def test_a_copy_learns_nothing_from_the_original(equations, more):
    system = system_of(8)
    for form in equations:
        system.zero(form)
    copy = system.copy()
    before = [copy.resolve({unknown: 1}) for unknown in range(8)]
    for form in more:
        system.zero(form)
    assert [copy.resolve({unknown: 1}) for unknown in range(8)] == before


@LAWS
@given(SYSTEM)
def test_unknowns_that_are_no_leafs_are_solved_for_first(equations):
    system = system_of(8)
    system.own = {1, 2}
    for form in equations:
        system.zero(form)
    for unknown in (1, 2):
        if unknown not in system.solved:
            assert all(unknown not in form for form in equations if system.own.isdisjoint(form))
    for unknown, form in system.solved.items():
        if unknown not in system.own:
            assert system.own.isdisjoint(form)


def test_a_long_chain_of_equal_unknowns_is_resolved_without_recursion():
    system = system_of(5_000)
    for unknown in range(1, 5_000):
        system.zero({unknown: 1, unknown - 1: -1})
    assert system.resolve({4_999: 1}) == {0: 1}


def divided():
    """A leaf along one axis of two segments, and the segments."""
    segments = ((Atom(2),), (Atom(3), Atom(2)))
    system = System()
    degrees = Degrees(system)
    return system, degrees, degrees.leaf([segments]), [segments]


def test_an_axis_as_a_whole_has_one_unknown_until_a_part_of_it_is_asked_for():
    system, degrees, leaf, axes = divided()
    assert len(system.atoms) == 2
    full = degrees.full(leaf, axes)
    # The mean and one component for the first segment; of the second a mean of its own, too, and
    # components along either of its atoms and both.
    assert [sorted(len(c) for c in full[cell]) for cell in ((0,), (1,))] == [[0, 1], [0, 1, 1, 2]]


def test_parts_made_before_obey_what_is_solved_of_the_whole_later():
    system, degrees, leaf, axes = divided()
    full = degrees.full(leaf, axes)
    (whole,) = (form for component, form in leaf[(0,)].items() if component)
    system.zero(whole)
    for components in full.values():
        for component, form in components.items():
            assert bool(system.resolve(form)) == (not component)
    assert system.resolve(full[(0,)][()]) == system.resolve(full[(1,)][()])


def test_what_is_summed_over_must_not_vary_and_is_gone():
    system, degrees, leaf, axes = divided()
    out = degrees.moved(leaf, {}, 0, [Atom(8, axes[0])])
    assert list(out) == [()]
    assert {c: system.resolve(f) for c, f in out[()].items()} == {(): {0: 1}}
    assert all(
        not system.resolve(f) for c in degrees.full(leaf, axes).values() for k, f in c.items() if k
    )


def test_equal_products_of_cells_are_one_object():
    system, degrees, leaf, _ = divided()
    other = degrees.leaf([((Atom(8),),)])
    del system
    first, second = degrees.product(leaf, other), degrees.product(leaf, other)
    assert first[(0,)] is second[(0,)]
