"""What `monitor_scale` says of gains, against references, and the optimizers that it refuses."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_bnmask as bnmask
from tests.support.transforms.cases import (
    ANALYSIS,
    DECAY,
    GRADS,
    PARAMS,
    PEAK,
    at,
)
from tests.support.transforms.watched import INNER, KERNEL, SCALE, trajectory

pytestmark = pytest.mark.usefixtures("optax_promotion")


def gathered(values, momentum):
    """What momentum makes of a sequence, in NumPy."""
    total = 0
    for value in values:
        total = momentum * total + value
        yield total


def adam_direction(grads):
    mean = square = 0
    for count, grad in enumerate(grads, 1):
        mean, square = 0.9 * mean + 0.1 * grad, 0.999 * square + 0.001 * grad**2
        yield mean / (1 - 0.9**count) / (np.sqrt(square / (1 - 0.999**count)) + 1e-8)


def lion_direction(grads):
    mean = 0
    for grad in grads:
        yield np.sign(0.9 * mean + 0.1 * grad)
        mean = 0.99 * mean + 0.01 * grad


REFERENCE = {
    "sgd": lambda grads, scales: (grads, [DECAY * scale for scale in scales]),
    "momentum": lambda grads, scales: (
        gathered(grads, 0.9),
        gathered([DECAY * scale for scale in scales], 0.9),
    ),
    "adamw": lambda grads, scales: (adam_direction(grads), [DECAY * scale for scale in scales]),
    "lion": lambda grads, scales: (lion_direction(grads), [DECAY * scale for scale in scales]),
}


@pytest.mark.parametrize("name", REFERENCE)
def test_gain_rate_is_the_mean_share_of_the_data_in_what_moves_each_scale(name):
    steps = trajectory(INNER[name])
    grads = [grad["norm"]["scale"] for _, grad, _, _ in steps]
    scales = [params["norm"]["scale"] for params, _, _, _ in steps]
    datas, decays = REFERENCE[name](grads, scales)
    expected = [
        np.mean(np.abs(data) / (np.abs(data) + np.abs(decay)))
        for data, decay in zip(datas, decays, strict=True)
    ]
    got = [state.gain_rate[SCALE] for *_, state in steps]
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    assert 0 < min(expected) < max(expected) < 1


def test_gain_rate_of_plain_sgd_is_the_formula_of_the_note():
    params, grads, _, state = trajectory(INNER["sgd"], jax.tree.map(jnp.abs, GRADS))[0]
    gradient, scale = grads["norm"]["scale"], params["norm"]["scale"]
    expected = np.mean(gradient / (gradient + DECAY * scale))
    np.testing.assert_allclose(state.gain_rate[SCALE], expected, rtol=1e-6)


def test_gain_rate_is_1_without_decay_and_where_nothing_moves_and_0_without_gradient():
    still = jax.tree.map(jnp.zeros_like, GRADS)
    for inner, grads, expected in (
        (optax.adam(PEAK), GRADS, 1),
        (optax.sgd(PEAK), still, 1),
        (INNER["sgd"], still, 0),
    ):
        *_, state = trajectory(inner, grads)[0]
        np.testing.assert_allclose(state.gain_rate[SCALE], expected, atol=1e-6)


def without_decay_of_scales(make):
    """The updates of `make(mask)` on the scales from one state, with decay of them and without."""
    everything = jax.tree.map(lambda _: True, PARAMS)
    others = everything | {"norm": {"bias": True, "scale": False}}
    return (
        make(mask).update(at(GRADS, 0), make(mask).init(PARAMS), PARAMS)[0]["norm"]["scale"]
        for mask in (everything, others)
    )


COUPLED = {
    "decay, clipping, sgd": lambda mask: optax.chain(
        optax.add_decayed_weights(DECAY, mask), optax.clip_by_global_norm(0.1), optax.sgd(PEAK)
    ),
    "global normalisation": lambda mask: optax.chain(
        optax.add_decayed_weights(DECAY, mask), optax.normalize_by_update_norm(), optax.sgd(PEAK)
    ),
    "adam behind decay": lambda mask: optax.chain(
        optax.add_decayed_weights(DECAY, mask), optax.adam(PEAK)
    ),
}


@pytest.mark.parametrize("name", COUPLED)
def test_gain_rate_of_coupled_leaves_is_the_difference_that_decay_makes_from_one_state(name):
    make = COUPLED[name]
    moved, data = without_decay_of_scales(make)
    expected = np.mean(np.abs(data) / (np.abs(data) + np.abs(moved - data)))
    *_, state = trajectory(make(None))[0]
    np.testing.assert_allclose(state.gain_rate[SCALE], expected, rtol=1e-5)


def test_gain_rate_of_a_skipped_step_is_1_as_nothing_moves():
    grads = jax.tree.map(lambda x: x.at[1].set(jnp.nan), GRADS)
    steps = trajectory(optax.apply_if_finite(INNER["momentum"], 3), grads)
    rates = [float(state.gain_rate[SCALE]) for *_, state in steps]
    assert rates[1] == 1
    assert max(rates[0], *rates[2:]) < 1


REMEMBER = {
    "schedule free": lambda: optax.contrib.schedule_free_adamw(PEAK),
    "dog": lambda: optax.contrib.dog(PEAK),
    "dowg": lambda: optax.contrib.dowg(PEAK),
    "prodigy": optax.contrib.prodigy,
}


@pytest.mark.parametrize("name", REMEMBER)
def test_optimizers_whose_state_holds_params_are_refused_in_words_and_watched_otherwise(name):
    tx = bnmask.monitor_scale(REMEMBER[name](), ANALYSIS)
    with pytest.warns(
        UserWarning, match=r"holds their values, or .* array\. `gain_rate` stays empty"
    ):
        state = tx.init(PARAMS)
    _, new = jax.jit(tx.update)(at(GRADS, 0), state, PARAMS)
    assert new.gain_rate == {}
    assert new.weight_norm[KERNEL] > 0
    chex.assert_trees_all_equal_shapes_and_dtypes(new, state)


def test_an_optimizer_with_a_line_search_is_refused_in_words():
    with pytest.warns(UserWarning, match="cannot tell what decay takes from gains"):
        state = bnmask.monitor_scale(optax.lbfgs(0.1), ANALYSIS).init(PARAMS)
    assert state.gain_rate == {}


def test_gain_rate_does_not_depend_on_the_keys_of_the_params():
    def network(k, g, o, x):
        z = x @ k
        return z / jnp.linalg.norm(z, axis=1, keepdims=True) * g[None] @ o

    x, leaves = jax.random.normal(jax.random.key(0), (5, 6)), []
    for number, shape in enumerate([(6, 2), (2,), (2, 3)]):
        leaves.append(1 + 0.1 * jax.random.normal(jax.random.key(number), shape))
    named = dict(zip("kgo", leaves, strict=True))
    tx = optax.chain(optax.add_decayed_weights(0.3), optax.sm3(0.1))

    def rate(params, fn):
        watched = bnmask.monitor_scale(tx, bnmask.analyze(fn, params, x))
        state = watched.init(params)
        for _ in range(4):
            grads = jax.grad(lambda p: jnp.square(fn(p, x)).sum())(params)
            updates, state = watched.update(grads, state, params)
            params = optax.apply_updates(params, updates)
        (value,) = state.gain_rate.values()
        return float(value)

    by_name = rate(named, lambda p, x: network(p["k"], p["g"], p["o"], x))
    assert rate(leaves, lambda p, x: network(*p, x)) == pytest.approx(by_name, rel=1e-6)
