"""Whether what `analyze` says of scale is so, kind by kind of value that is easily mistaken."""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_bnmask as bnmask
from tests.support.program.kinds import CASES, W, X, moved, norm, rms_normed

for table in ("small_constants", "special_values"):
    importlib.import_module(f"tests.support.program.{table}")

MOVES, SAME = 1e-2, 1e-6
"""What moves outputs moves them by at least the first; what does not, by at most the second."""

EVERY_CASE = pytest.mark.parametrize("name", CASES)
LEAVES_THAT_SCALE_OUTPUTS = [(name, path) for name, c in CASES.items() for path in c.moves]
LEAVES_THAT_DO_NOT = [(name, path) for name, c in CASES.items() for path in c.hides]


@pytest.fixture(autouse=True)
def _users_promote():
    """The cases are users' programs, and run in double precision beside constants in single."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@functools.cache
def analysis_of(name):
    c = CASES[name]
    return bnmask.analyze(c.fn, c.params, *c.args)


def movement(name, exponents):
    c = CASES[name]
    return moved(c.fn, c.params, c.args, exponents)


@pytest.mark.parametrize(("name", "path"), LEAVES_THAT_SCALE_OUTPUTS)
def test_what_scales_the_outputs_is_not_called_invariant(name, path):
    assert movement(name, {path: 1}) >= MOVES
    assert analysis_of(name)[path].scale is not bnmask.Scale.INVARIANT


@pytest.mark.parametrize(("name", "path"), LEAVES_THAT_DO_NOT)
def test_what_hides_a_scale_is_called_invariant(name, path):
    assert movement(name, {path: 1}) <= SAME
    assert analysis_of(name)[path].scale is bnmask.Scale.INVARIANT


@EVERY_CASE
def test_every_symmetry_holds_in_numbers(name):
    for symmetry in analysis_of(name).symmetries:
        assert movement(name, symmetry) <= SAME


@EVERY_CASE
def test_every_index_of_an_invariant_axis_may_be_scaled_on_its_own(name):
    analysis = analysis_of(name)
    for path, axes in analysis.invariant_axes.items():
        shape = CASES[name].params[path].shape
        for axis in axes if analysis[path].scale is bnmask.Scale.INVARIANT else ():
            length = [-1 if a == axis else 1 for a in range(len(shape))]
            exponents = np.arange(shape[axis]).reshape(length) % 3 - 1
            assert movement(name, {path: exponents}) <= SAME


@EVERY_CASE
def test_nothing_has_no_rule(name):
    assert not analysis_of(name).unhandled


@pytest.mark.parametrize("name", [name for name, c in CASES.items() if c.kind == "epsilon"])
def test_every_epsilon_is_on_record(name):
    assert {a.kind for a in analysis_of(name).assumptions} == {"epsilon"}


@pytest.mark.parametrize("name", [name for name, c in CASES.items() if c.kind == "zeros"])
def test_zeros_of_a_captured_array_are_on_record(name):
    (assumption,) = analysis_of(name).assumptions
    assert assumption.kind == "zeros"
    assert assumption.value == 0
    assert "special_values.py" in assumption.where
    assert "in all of an array that the function closes over" in str(assumption)


def test_a_guard_that_is_one_is_on_record():
    (assumption,) = analysis_of("a_guard_on_a_norm").assumptions
    assert (assumption.kind, assumption.value) == ("guard", 1)


def test_a_ceiling_that_stands_for_infinity_is_on_record():
    (assumption,) = analysis_of("a_ceiling_above_the_reciprocal_of_a_norm").assumptions
    assert (assumption.kind, assumption.value) == ("infinity", 1e7)


@pytest.mark.xfail(
    strict=True,
    reason="a carry has one degree in all iterations, and this one starts with another",
)
def test_a_normalisation_that_is_repeated_hides_the_scale_of_what_it_starts_with():
    def doubly_stochastic(p, x):
        def step(z, _):
            z = z / (z.sum(0, keepdims=True) + 1e-9)
            return z / (z.sum(1, keepdims=True) + 1e-9), None

        return jax.lax.scan(step, jnp.abs(x @ p["w"]), None, length=4)[0]

    assert moved(doubly_stochastic, W, (X,), {"w": 1}) <= SAME
    analysis = bnmask.analyze(doubly_stochastic, W, X)
    assert analysis["w"].scale is bnmask.Scale.INVARIANT


@pytest.mark.xfail(
    strict=True, reason="a guard that compares with more than 0 compares with a threshold"
)
def test_a_guard_by_a_small_threshold_is_a_guard():
    def standardised(p, x):
        z = x @ p["w"]
        s = jnp.sqrt(z.var(0))
        return (z - z.mean(0)) / jnp.where(s > 1e-6, s, 1.0)

    assert moved(standardised, W, (X,), {"w": 1}) <= SAME
    assert bnmask.analyze(standardised, W, X)["w"].scale is bnmask.Scale.INVARIANT


# Outputs beside the first.


def with_metrics(p, x):
    z = x @ p["w"]
    return rms_normed(z), {"mean": z.mean(), "rows": norm(z)}


def test_a_note_names_the_output_that_makes_a_leaf_matter():
    analysis = bnmask.analyze(with_metrics, W, X)
    assert analysis["w"].scale is bnmask.Scale.SENSITIVE
    (note,) = analysis.notes
    assert "the scale of 'w' matters for the output '1/mean'" in note
    assert "has_aux=True" in note


def test_a_note_counts_the_leaves_that_one_output_makes_matter():
    def fn(p, x):
        return sum(rms_normed(x @ v) for v in p.values()), sum(v.sum() for v in p.values())

    (note,) = bnmask.analyze(fn, dict.fromkeys("abc", W["w"]), X).notes
    assert "the scale of 'a' and 2 more matters for the output '1'" in note


def test_outputs_that_add_nothing_are_not_noted():
    def fn(p, x):
        z = x @ p["w"]
        return z, rms_normed(z), jnp.argmax(z, -1), z.mean()

    assert bnmask.analyze(fn, W, X).notes == ()


def test_a_random_key_is_an_output_like_others():
    def fn(p, x):
        seed = (10 * jnp.abs(p["w"]).sum()).astype(jnp.uint32)
        return rms_normed(x @ p["w"]), jax.random.fold_in(jax.random.key(0), seed)

    analysis = bnmask.analyze(fn, W, X)
    assert analysis["w"].scale is bnmask.Scale.SENSITIVE
    (note,) = analysis.notes
    assert "the scale of 'w' matters for the output '1'" in note


def test_the_second_of_a_pair_is_set_aside():
    analysis = bnmask.analyze(with_metrics, W, X, has_aux=True)
    assert analysis["w"].scale is bnmask.Scale.INVARIANT
    assert analysis.notes == ()


def test_what_is_set_aside_may_be_anything_and_makes_nothing_live():
    params = W | {"seen": jnp.ones(3)}
    analysis = bnmask.analyze(
        lambda p, x: (rms_normed(x @ p["w"]), (p["seen"], "a name", None)), params, X, has_aux=True
    )
    assert analysis["seen"].scale is bnmask.Scale.UNUSED


@pytest.mark.parametrize(
    "out", [lambda z: z, lambda z: (z, z, z), lambda z: [z, z], lambda z: {"out": z, "aux": z}]
)
def test_an_output_without_anything_beside_it_is_refused(out):
    with pytest.raises(bnmask.StructureError, match="must return a pair"):
        bnmask.analyze(lambda p, x: out(x @ p["w"]), W, X, has_aux=True)
