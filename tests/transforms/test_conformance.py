"""Every transformation through the same checks, however it is run and whatever holds the params."""

import functools

import chex
import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

import optax_bnmask as bnmask
from tests.support.transforms.cases import (
    ANALYSIS,
    DECAY,
    GRADS,
    INVARIANT,
    MASK,
    PARAMS,
    PEAK,
    SCHEDULE,
    STEPS,
    at,
    cast,
    loop,
    scan,
)


def momentum(rate):
    return optax.chain(optax.add_decayed_weights(DECAY, MASK), optax.sgd(rate, momentum=0.9))


def adamw(rate):
    return optax.adamw(rate, weight_decay=DECAY, mask=MASK)


def corrected(inner, rate):
    decay = bnmask.corrected_weight_decay(DECAY, rate, PEAK, mask=MASK, corrected=INVARIANT)
    return optax.chain(decay, inner)


def kept(inner, rate):
    del rate  # the norm is the same at any
    keep = bnmask.keep_norm(INVARIANT, axes=ANALYSIS.invariant_axes)
    return optax.chain(inner, keep)


def on_hyperball(inner, rate):
    ball = functools.partial(bnmask.hyperball, axes=ANALYSIS.invariant_axes, flip_sign=False)
    return optax.chain(inner, ball(rate, INVARIANT))


def exactly(inner, rate):
    ball = bnmask.hyperball(rate, INVARIANT, exact_angle=True, flip_sign=False)
    return optax.chain(inner, ball)


def monitored(inner, rate):
    del rate  # it is seen in the updates
    return bnmask.monitor_scale(inner, ANALYSIS)


def monitored_seldom(inner, rate):
    del rate
    return bnmask.monitor_scale(inner, ANALYSIS, every=2)


TRANSFORMS = {
    "corrected_weight_decay, sgd": (corrected, momentum),
    "corrected_weight_decay, adam": (corrected, optax.adam),
    "keep_norm, sgd": (kept, momentum),
    "keep_norm, adamw": (kept, adamw),
    "hyperball, sgd": (on_hyperball, momentum),
    "hyperball, adamw": (exactly, adamw),
    "monitor_scale, sgd": (monitored, momentum),
    "monitor_scale, adamw": (monitored, adamw),
    "monitor_scale every 2, adamw": (monitored_seldom, adamw),
}

every_transform = pytest.mark.parametrize("name", TRANSFORMS)
close = functools.partial(chex.assert_trees_all_close, rtol=2e-5, atol=2e-6)


def made(name, rate=SCHEDULE, around=lambda inner: inner):
    """The transformation, with something `around` the optimizer that it stands beside."""
    treat, inner = TRANSFORMS[name]
    return treat(around(inner(rate)), rate)


@functools.cache
def expected(name):
    """Params, state and updates of a plain loop."""
    with jax.numpy_dtype_promotion("standard"):
        return loop(made(name), PARAMS, GRADS)


pytestmark = pytest.mark.usefixtures("optax_promotion")


@every_transform
def test_params_move_and_the_state_stays_finite(name):
    params, state, _ = expected(name)
    moved = jax.tree.map(lambda a, b: bool((a != b).all()), params, PARAMS)
    assert all(jax.tree.leaves(moved))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state))


@every_transform
def test_scan_equals_the_donated_loop(name):
    close(scan(made(name), PARAMS, GRADS), expected(name))


@pytest.mark.parametrize("name", [name for name in TRANSFORMS if "sgd" in name])
def test_own_code_runs_under_strict_promotion(name):
    with jax.numpy_dtype_promotion("strict"):
        got = scan(made(name, PEAK), PARAMS, GRADS)
    close(got, loop(made(name, PEAK), PARAMS, GRADS))


@every_transform
def test_bfloat16_params_get_bfloat16_updates_and_a_state_of_constant_dtypes(name):
    params, grads = cast(PARAMS, jnp.bfloat16), cast(GRADS, jnp.bfloat16)
    tx = made(name, PEAK)
    got, state, updates = scan(tx, params, grads)
    chex.assert_trees_all_equal_dtypes(got, params)
    chex.assert_trees_all_equal_dtypes(updates, grads)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, tx.init(params))
    plain, _, _ = scan(tx, cast(params, jnp.float32), cast(grads, jnp.float32))
    chex.assert_trees_all_close(cast(got, jnp.float32), plain, rtol=0.05, atol=0.02)


@every_transform
def test_init_has_the_shapes_that_eval_shape_tells_and_update_keeps_them(name):
    tx = made(name)
    structs = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), PARAMS)
    state = jax.eval_shape(tx.init, structs)
    chex.assert_trees_all_equal_shapes_and_dtypes(tx.init(PARAMS), state)
    updates, new = jax.eval_shape(tx.update, structs, state, structs)
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, structs)
    chex.assert_trees_all_equal_shapes_and_dtypes(new, state)


@every_transform
def test_chain_changes_nothing(name):
    tx = optax.chain(optax.identity(), optax.chain(made(name)))
    close(loop(tx, PARAMS, GRADS)[0], expected(name)[0])


@every_transform
def test_partition_into_norms_and_others_changes_nothing(name):
    labels = ANALYSIS.labels(categories=("norm",), default="decay")
    tx = optax.partition({"norm": made(name), "decay": made(name)}, labels)
    close(loop(tx, PARAMS, GRADS)[0], expected(name)[0])


@every_transform
def test_masked_leaves_pass_and_the_others_are_treated(name):
    tx = optax.masked(made(name), lambda tree: {key: key != "head" for key in tree})
    _, _, updates = loop(tx, PARAMS, GRADS)
    chex.assert_trees_all_equal(updates["head"], GRADS["head"])
    close({**updates, "head": None}, {**expected(name)[2], "head": None})


@every_transform
def test_inject_hyperparams_around_follows_the_schedule(name):
    tx = optax.inject_hyperparams(lambda learning_rate: made(name, learning_rate))(SCHEDULE)
    params, state, _ = loop(tx, PARAMS, GRADS)
    close(params, expected(name)[0])
    np.testing.assert_allclose(state.hyperparams["learning_rate"], SCHEDULE(STEPS - 1), rtol=1e-6)


@every_transform
def test_multi_steps_around_treats_the_mean_of_the_gradients(name):
    tx = optax.MultiSteps(made(name), every_k_schedule=2).gradient_transformation()
    _, _, updates = scan(tx, PARAMS, GRADS)
    means = jax.tree.map(lambda x: (x[::2] + x[1::2]).repeat(2, 0) / 2, GRADS)
    tx, state, params = made(name), made(name).init(PARAMS), PARAMS
    for step in range(0, STEPS, 2):
        step_updates, state = jax.jit(tx.update)(at(means, step), state, params)
        close(at(updates, step + 1), step_updates)
        assert not any(x.any() for x in jax.tree.leaves(at(updates, step)))
        params = optax.apply_updates(params, step_updates)


@every_transform
def test_multi_steps_inside_moves_nothing_between_its_steps(name):
    def around(inner):
        return optax.MultiSteps(inner, every_k_schedule=2).gradient_transformation()

    tx = made(name, around=around)
    _, state, updates = scan(tx, PARAMS, GRADS)
    for step in range(STEPS):
        moves = [bool(x.any()) for x in jax.tree.leaves(at(updates, step))]
        assert set(moves) == {step % 2 == 1}
    chex.assert_trees_all_equal_shapes_and_dtypes(state, tx.init(PARAMS))


@every_transform
def test_apply_if_finite_skips_a_step_of_nan_and_keeps_the_state(name):
    tx = optax.apply_if_finite(made(name), max_consecutive_errors=2)
    spoilt = jax.tree.map(lambda x: jnp.concatenate([x[:2], x[:1] * jnp.nan, x[2:]]), GRADS)
    params, state, updates = scan(tx, PARAMS, spoilt)
    close((params, state.inner_state), expected(name)[:2])
    assert not any(x.any() for x in jax.tree.leaves(at(updates, 2)))


@every_transform
def test_frozen_dict_params_equal_dict_params(name):
    got = loop(made(name), flax.core.freeze(PARAMS), flax.core.freeze(GRADS))[0]
    close(got, flax.core.freeze(expected(name)[0]))


@every_transform
def test_boxed_params_stay_boxed_and_equal_bare_ones(name):
    def boxed(tree):
        return jax.tree.map(lambda x: nn.Partitioned(x, names=(None,) * x.ndim), tree)

    tx, params = made(name), boxed(PARAMS)
    state = tx.init(params)
    for step in range(STEPS):
        updates, state = jax.jit(tx.update)(boxed(at(GRADS, step)), state, params)
        params = optax.apply_updates(params, updates)
    close(params, boxed(expected(name)[0]))


class Scope(nnx.Module):
    """Params of any names as a module."""

    def __init__(self, children):
        for key, value in children.items():
            setattr(self, key, Scope(value) if isinstance(value, dict) else nnx.Param(value))


@every_transform
def test_nnx_optimizer_equals_bare_params(name):
    model = Scope(PARAMS)
    optimizer = nnx.Optimizer(model, made(name), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, grads):
        optimizer.update(model, grads)

    for index in range(STEPS):
        step(model, optimizer, nnx.state(Scope(at(GRADS, index)), nnx.Param))
    close(nnx.to_pure_dict(nnx.state(model, nnx.Param)), expected(name)[0])


@every_transform
def test_linen_train_state_equals_a_plain_loop(name):
    state = TrainState.create(apply_fn=None, params=PARAMS, tx=made(name))
    step = jax.jit(lambda state, grads: state.apply_gradients(grads=grads))
    for index in range(STEPS):
        state = step(state, at(GRADS, index))
    close((state.params, state.opt_state), expected(name)[:2])


@every_transform
def test_tree_map_params_maps_the_moments_of_the_optimizer_and_nothing_else(name):
    def mapped(tx):
        seen = []
        state = optax.tree_map_params(tx, lambda x: seen.append(x.shape) or x, tx.init(PARAMS))
        chex.assert_trees_all_equal(state, tx.init(PARAMS))
        return sorted(seen)

    alone = mapped(TRANSFORMS[name][1](SCHEDULE))
    assert mapped(made(name)) == alone
    assert len(alone) >= len(jax.tree.leaves(PARAMS))


@every_transform
def test_vmap_over_init_and_update_equals_one_after_another(name):
    tx = made(name)

    def run(params, grads):
        state = tx.init(params)
        for step in range(2):
            updates, state = tx.update(at(grads, step), state, params)
            params = optax.apply_updates(params, updates)
        return params, state

    ensemble = [jax.tree.map(lambda x, f=f: x * f, PARAMS) for f in (1.0, 0.5)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *ensemble)
    got = jax.jit(jax.vmap(run, in_axes=(0, None)))(stacked, GRADS)
    for index, params in enumerate(ensemble):
        close(at(got, index), jax.jit(run)(params, GRADS))
