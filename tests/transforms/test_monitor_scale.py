"""`monitor_scale` against NumPy, and what it must leave alone."""

import collections
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_bnmask as bnmask
from optax_bnmask import PathError
from tests.support.transforms.cases import (
    ANALYSIS,
    DECAY,
    GRADS,
    IMAGES,
    PARAMS,
    PEAK,
    at,
    cast,
    loop,
    network,
    scan,
    wide,
)
from tests.support.transforms.watched import INNER, KERNEL, SCALE, sgd, told, trajectory

pytestmark = pytest.mark.usefixtures("optax_promotion")


@pytest.mark.parametrize("name", ["momentum", "adamw"])
def test_every_third_step_is_measured_as_without_every_and_stays_in_between(name):
    each, third = (bnmask.monitor_scale(INNER[name], ANALYSIS, every=k) for k in (1, 3))
    chex.assert_trees_all_equal_structs(each.init(PARAMS), third.init(PARAMS))

    def watched(tx):
        def step(carry, grads):
            params, state = carry
            updates, state = tx.update(grads, state, params)
            params = optax.apply_updates(params, updates)
            return (params, state), (params, *state[3:])

        return jax.jit(lambda: jax.lax.scan(step, (PARAMS, tx.init(PARAMS)), GRADS)[1])()

    (params, *all_values), (same, *values) = watched(each), watched(third)
    chex.assert_trees_all_close(params, same, rtol=1e-6)
    due = np.array([0, 0, 0, 3])
    expected = jax.tree.map(lambda x: x[due], all_values)
    chex.assert_trees_all_close(values, expected, rtol=1e-5)


@pytest.mark.parametrize("every", [0, -1, True, 2**31])
def test_every_that_is_no_number_of_steps_is_an_error(every):
    said = rf"`every` must be a number of steps, from 1 to below 2\*\*31\. Found {every}"
    with pytest.raises(ValueError, match=said):
        bnmask.monitor_scale(optax.sgd(PEAK), ANALYSIS, every=every)


@pytest.mark.parametrize("name", ["sgd", "momentum", "adamw", "lion", "muon", "partition"])
def test_norm_angle_and_effective_rate_equal_float64(name):
    for params, grads, updates, state in trajectory(INNER[name]):
        w, u, g = (tree["conv"]["kernel"].ravel() for tree in (params, updates, grads))
        new = w + u
        norms = np.linalg.norm(w), np.linalg.norm(new)
        np.testing.assert_allclose(state.weight_norm[KERNEL], norms[1], rtol=1e-6)
        angle = np.arccos(w @ new / norms[0] / norms[1])
        np.testing.assert_allclose(state.angle[KERNEL], angle, rtol=1e-5)
        turn, fall = (np.linalg.norm(x - (x @ w) / (w @ w) * w) for x in (u, g))
        rate = (turn / norms[0]) / (norms[0] * fall)
        np.testing.assert_allclose(state.effective_learning_rate[KERNEL], rate, rtol=1e-5)


def test_effective_rate_of_sgd_on_a_real_gradient_is_eta_over_the_squared_norm():
    gradient = jax.grad(lambda params: jnp.square(network(params, IMAGES) - 1).mean())(PARAMS)
    tx = bnmask.monitor_scale(sgd(), ANALYSIS)
    _, state = tx.update(gradient, tx.init(PARAMS), PARAMS)
    expected = PEAK / np.linalg.norm(wide(PARAMS)["conv"]["kernel"]) ** 2
    np.testing.assert_allclose(state.effective_learning_rate[KERNEL], expected, rtol=1e-5)


@pytest.mark.parametrize("radial", [0, -0.01, 0.5], ids=str)
@pytest.mark.parametrize("turn", [1e-2, 1e-5])
def test_tiny_angles_are_exact_though_arccos_would_round_them_to_0(turn, radial):
    rng = np.random.default_rng(0)
    w = rng.normal(size=(3, 2, 4)).astype(np.float32).astype(np.float64)
    across = rng.normal(size=w.shape)
    across -= np.sum(across * w) / np.sum(w * w) * w
    u = radial * w + turn * across * np.linalg.norm(w) / np.linalg.norm(across)
    params = PARAMS | {"conv": {"kernel": jnp.asarray(w, jnp.float32)}}
    grads = at(GRADS, 0) | {"conv": {"kernel": jnp.asarray(-u, jnp.float32)}}
    tx = bnmask.monitor_scale(optax.sgd(1.0), ANALYSIS)
    _, state = tx.update(grads, tx.init(params), params)
    np.testing.assert_allclose(state.angle[KERNEL], np.arctan(turn / (1 + radial)), rtol=3e-3)


def test_pure_decay_turns_by_nothing_that_shows():
    *_, state = trajectory(INNER["sgd"], jax.tree.map(jnp.zeros_like, GRADS))[0]
    assert state.angle[KERNEL] < 1e-8
    assert state.effective_learning_rate[KERNEL] == 0


def test_before_the_first_step_the_state_is_what_the_docstring_says():
    state = bnmask.monitor_scale(sgd(), ANALYSIS).init(PARAMS)
    assert state.gain_rate == {SCALE: 1}
    assert state.effective_learning_rate == state.angle == {KERNEL: 0}
    norm = np.linalg.norm(PARAMS["conv"]["kernel"])
    np.testing.assert_allclose(state.weight_norm[KERNEL], norm, rtol=1e-6)


@pytest.mark.parametrize("name", INNER)
def test_updates_and_inner_state_are_those_of_the_inner_bit_by_bit(name):
    """One operation after another: where XLA fuses them, it rounds as the fusion happens to."""
    inner = INNER[name]
    tx = bnmask.monitor_scale(inner, ANALYSIS)
    with told(name):
        state, alone = tx.init(PARAMS), inner.init(PARAMS)
    for step in range(2):
        got, state = tx.update(at(GRADS, step), state, PARAMS)
        expected, alone = inner.update(at(GRADS, step), alone, PARAMS)
        chex.assert_trees_all_equal((got, state.inner_state), (expected, alone))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state))
    assert state.angle[KERNEL] > 0


def test_extra_arguments_reach_the_inner():
    inner = optax.chain(sgd(), optax.contrib.reduce_on_plateau(factor=0.5, patience=0, cooldown=0))
    tx = bnmask.monitor_scale(inner, ANALYSIS)
    state, alone, grads = tx.init(PARAMS), inner.init(PARAMS), at(GRADS, 0)
    for _ in range(3):  # a value that never falls
        got, state = tx.update(grads, state, PARAMS, value=1.0)
        expected, alone = inner.update(grads, alone, PARAMS, value=1.0)
    chex.assert_trees_all_equal((got, state.inner_state), (expected, alone))
    assert alone[1].scale < 1
    gradient, scale = wide(grads)["norm"]["scale"], wide(PARAMS)["norm"]["scale"]
    share = np.mean(np.abs(gradient) / (np.abs(gradient) + DECAY * scale))
    np.testing.assert_allclose(state.gain_rate[SCALE], share, rtol=1e-5)


@pytest.mark.parametrize("name", ["adamw", "injected", "partition", "momentum"])
@pytest.mark.parametrize(
    "key", ["learning_rate", "mu", "nu", "count", "trace", "hyperparams", "kernel", "scale"]
)
def test_tree_get_finds_what_it_finds_in_the_inner_alone(name, key):
    inner = INNER[name]
    found = optax.tree_utils.tree_get_all_with_path
    state = bnmask.monitor_scale(inner, ANALYSIS).init(PARAMS)
    got = [value for _, value in found(state, key)]
    chex.assert_trees_all_equal(got, [value for _, value in found(inner.init(PARAMS), key)])


def test_tree_get_reads_each_value_also_from_within_a_chain():
    tx = optax.chain(optax.identity(), bnmask.monitor_scale(INNER["adamw"], ANALYSIS))
    _, state, _ = loop(tx, PARAMS, GRADS)
    for name in ("gain_rate", "weight_norm", "effective_learning_rate", "angle"):
        (value,) = optax.tree_utils.tree_get(state, name).values()
        assert value.shape == ()
        assert value > 0


def test_leaf_that_the_analysis_does_not_know_is_an_error_on_init_and_update():
    tx = bnmask.monitor_scale(optax.sgd(PEAK), ANALYSIS)
    other = PARAMS | {"tail": {"kernel": jnp.ones(2)}}
    with pytest.raises(PathError, match=r"no leaf 'tail/kernel'; the nearest are 'head/kernel'"):
        tx.init(other)
    state = tx.init(PARAMS)
    with pytest.raises(PathError, match=r"no leaf 'tail/kernel'"):
        tx.update(other, state, other)


def test_update_without_params_says_what_to_call():
    tx = bnmask.monitor_scale(optax.sgd(PEAK), ANALYSIS)
    with pytest.raises(ValueError, match=r"`monitor_scale` needs the parameters"):
        tx.update(PARAMS, tx.init(PARAMS))


def test_structure_alone_watches_the_gains():
    tx = bnmask.monitor_scale(sgd(), bnmask.analyze_structure(PARAMS))
    _, state, _ = loop(tx, PARAMS, GRADS)
    assert state.gain_rate.keys() == {SCALE}
    assert state.weight_norm == state.angle == state.effective_learning_rate == {}


def test_leaves_without_a_gradient_keep_the_structure_of_the_state_and_their_values():
    tx = bnmask.monitor_scale(sgd(), ANALYSIS)
    state = tx.init(PARAMS)
    for frozen in ("conv", "norm"):
        grads = at(GRADS, 0)
        grads[frozen] = dict.fromkeys(grads[frozen])
        updates, new = jax.jit(tx.update)(grads, state, PARAMS)
        assert jax.tree.leaves(updates[frozen]) == []
        chex.assert_trees_all_equal_shapes_and_dtypes(new, state)
        assert (new.angle[KERNEL] == 0) == (frozen == "conv")
        assert (new.gain_rate[SCALE] == 1) == (frozen == "norm")


def test_no_buffer_is_in_the_state_twice_for_donation():
    for params in (PARAMS, {}):
        state = bnmask.monitor_scale(INNER["adamw"], ANALYSIS).init(params)
        leaves = jax.tree.leaves(state)
        assert len({leaf.unsafe_buffer_pointer() for leaf in leaves}) == len(leaves) > 0


def test_state_has_no_empty_array_which_a_checkpoint_would_refuse():
    state = bnmask.monitor_scale(INNER["adamw"], ANALYSIS).init(PARAMS)
    assert min(leaf.size for leaf in jax.tree.leaves(state)) > 0


def test_complex_weights_are_watched_with_real_numbers_of_constant_dtype():
    params = {"w": jnp.asarray([3 + 4j, 1j], jnp.complex64)}
    analysis = bnmask.analyze(lambda p, x: x * p["w"] / jnp.linalg.norm(p["w"]), params, 1.0)
    assert analysis.select("scale_invariant")["w"]
    tx = bnmask.monitor_scale(optax.sgd(PEAK), analysis)
    state = tx.init(params)
    _, new = tx.update({"w": jnp.asarray([1, 1j], jnp.complex64)}, state, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(new, state)
    expected = np.linalg.norm([3 + 4j - PEAK, 1j - PEAK * 1j])
    np.testing.assert_allclose(new.weight_norm["w"], expected, rtol=1e-6)


def test_values_of_bfloat16_params_are_float32_from_init_on():
    params, grads = cast(PARAMS, jnp.bfloat16), cast(GRADS, jnp.bfloat16)
    tx = bnmask.monitor_scale(INNER["momentum"], ANALYSIS)
    state = tx.init(params)
    values = jax.tree.leaves(state._replace(inner_state=None, decay_state=None, step_count=None))
    assert {leaf.dtype for leaf in values} == {jnp.dtype(jnp.float32)}
    chex.assert_trees_all_equal_shapes_and_dtypes(scan(tx, params, grads)[1], state)


def operations(tx, params, shape):
    """How often each operation of a compiled update touches arrays of a shape."""
    grads = jax.tree.map(jnp.ones_like, params)
    text = jax.jit(tx.update).lower(grads, tx.init(params), params).compile().as_text()
    name = re.escape(f"f32[{shape}]")
    lines = [line for line in text.splitlines() if re.search(name, line) and " = " in line]
    return collections.Counter(re.search(r" ([a-z][\w-]*)\(", line)[1] for line in lines)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_params_that_are_not_watched_are_computed_with_as_in_the_inner_alone(name):
    params = PARAMS | {
        "conv": {"kernel": jnp.ones((3, 2, 41))},
        "head": {"kernel": jnp.ones((41, 3))},
    }
    params["norm"] = {"bias": jnp.ones(41), "scale": jnp.ones(41)}
    inner = INNER[name]
    watched = bnmask.monitor_scale(inner, ANALYSIS)
    same, more = "41,3", "3,2,41"
    assert operations(watched, params, same) == operations(inner, params, same)
    assert operations(inner, params, same)["multiply"] > 0
    assert operations(watched, params, more) != operations(inner, params, more)
