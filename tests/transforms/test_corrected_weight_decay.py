"""`corrected_weight_decay` against NumPy, against Optax, and against its own claim."""

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_bnmask as bnmask
from tests.support.transforms.cases import (
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
    wide,
)


def corrected(decay=DECAY, rate=SCHEDULE, peak=PEAK, mask=MASK, which=INVARIANT):
    return bnmask.corrected_weight_decay(decay, rate, peak, mask=mask, corrected=which)


def adam(grads):
    """Adam's directions, in NumPy."""
    mean = square = np.zeros_like(grads[0])
    for count, grad in enumerate(grads, 1):
        mean, square = 0.9 * mean + 0.1 * grad, 0.999 * square + 0.001 * grad**2
        yield mean / (1 - 0.9**count) / (np.sqrt(square / (1 - 0.999**count)) + 1e-8)


def trained(directions, decays, rates):
    """What `w -= eta * (u + lambda_t * w)` makes of each leaf, in NumPy."""

    def leaf(param, grads, decays, corrects):
        for rate, direction in zip(rates, directions(grads), strict=True):
            strength = DECAY * decays * (rate / PEAK if corrects else 1)
            param = param - rate * (direction + strength * param)
        return param

    return jax.tree.map(leaf, wide(PARAMS), wide(GRADS), decays, INVARIANT(PARAMS))


SCALINGS = {"sgd": (optax.identity, iter), "adamw": (optax.scale_by_adam, adam)}


@pytest.mark.usefixtures("optax_promotion")
@pytest.mark.parametrize("rate", [SCHEDULE, PEAK / 2], ids=["schedule", "number"])
@pytest.mark.parametrize("mask", [MASK, None], ids=["mask", "no mask"])
@pytest.mark.parametrize("name", SCALINGS)
def test_equals_numpy_with_a_schedule_or_a_number_as_the_rate(name, mask, rate):
    scaling, directions = SCALINGS[name]
    tx = optax.chain(scaling(), corrected(rate=rate, mask=mask), optax.scale_by_learning_rate(rate))
    rates = [float(rate(step)) if callable(rate) else rate for step in range(STEPS)]
    decays = jax.tree.map(lambda _: True, PARAMS) if mask is None else mask(PARAMS)
    got, state, _ = loop(tx, PARAMS, GRADS)
    chex.assert_trees_all_close(wide(got), trained(directions, decays, rates), rtol=1e-5)
    assert int(state[1].count) == STEPS


@pytest.mark.parametrize("mask", [MASK, MASK(PARAMS), None], ids=["Mask", "tree", "none"])
@pytest.mark.parametrize(
    ("decay", "dtype"),
    [(DECAY, jnp.float32), (DECAY, jnp.bfloat16), (SCHEDULE, jnp.float32)],
    ids=["float32", "bfloat16", "schedule"],
)
def test_nothing_corrected_is_add_decayed_weights_bit_by_bit(decay, dtype, mask):
    ours = corrected(decay, mask=mask, which=False)
    theirs = optax.add_decayed_weights(decay, mask)
    params, grads = cast(PARAMS, dtype), cast(GRADS, dtype)
    got, expected = scan(ours, params, grads), scan(theirs, params, grads)
    chex.assert_trees_all_equal((got[0], got[2]), (expected[0], expected[2]))


def test_leaves_not_corrected_decay_as_with_optax_bit_by_bit():
    got = scan(corrected(), PARAMS, GRADS)[2]
    expected = scan(optax.add_decayed_weights(DECAY, MASK), PARAMS, GRADS)[2]
    same = jax.tree.map(lambda a, b: bool((a == b).all()), got, expected)
    assert same == (~INVARIANT)(PARAMS)


def test_inject_hyperparams_takes_the_masks_as_static_args():
    injected = optax.inject_hyperparams(
        bnmask.corrected_weight_decay, static_args=("mask", "corrected")
    )(DECAY, SCHEDULE, PEAK, mask=MASK, corrected=INVARIANT)
    got, state, _ = loop(injected, PARAMS, GRADS)
    chex.assert_trees_all_close(got, loop(corrected(), PARAMS, GRADS)[0], rtol=1e-6)
    last = state.hyperparams["learning_rate"]
    np.testing.assert_allclose(last, SCHEDULE(STEPS - 1), rtol=1e-6)


def test_gradients_of_none_stay_none_and_the_others_decay():
    class Net(eqx.Module):
        weight: jax.Array
        width: int
        head: jax.Array

    net = Net(jnp.full(2, 3.0), 7, jnp.full(2, 5.0))
    grads = eqx.filter_grad(lambda net: jnp.sum(net.weight) + jnp.sum(net.head) * net.width)(net)
    everything = Net(True, True, True)
    only_weight = Net(True, False, False)
    tx = corrected(0.5, PEAK / 2, mask=everything, which=only_weight)
    updates, _ = tx.update(grads, tx.init(eqx.filter(net, eqx.is_array)), net)
    assert updates.width is None
    np.testing.assert_allclose(updates.weight, 1 + 0.25 * 3)
    np.testing.assert_allclose(updates.head, 7 + 0.5 * 5)


@pytest.mark.parametrize(
    "number", [float, np.float32, np.float64, jnp.float32], ids=["python", "np32", "np64", "jax"]
)
def test_bfloat16_stays_bfloat16_whatever_kind_of_number_the_decay_is(number):
    params = cast(PARAMS, jnp.bfloat16)
    for tx in (corrected(number(DECAY)), corrected(lambda count: number(DECAY))):
        updates, _ = tx.update(at(cast(GRADS, jnp.bfloat16), 0), tx.init(params), params)
        assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype(jnp.bfloat16)}


def steady_state(decay):
    """``|u| / |w|`` at the peak and at the end, measured where the gradient is orthogonal to `w`.

    The loss is the inner product of the direction of `w` with noise; the rate stays at 1, falls to
    0.1, and stays there for long enough to forget.
    """
    steps, width = 36000, 64
    schedule = optax.join_schedules(
        [optax.constant_schedule(1.0), optax.linear_schedule(1.0, 0.1, 20000)], [4000]
    )
    tx = optax.chain(decay(schedule), optax.scale_by_learning_rate(schedule))

    def step(carry, key):
        w, state = carry
        noise = jax.random.normal(key, (width,))
        gradient = jax.grad(lambda w: noise @ (w / jnp.linalg.norm(w)))(w)
        updates, state = tx.update(gradient, state, w)
        return (optax.apply_updates(w, updates), state), (gradient @ gradient) / (w @ w)

    w = jnp.ones(width)
    keys = jax.random.split(jax.random.key(1), steps)
    _, squares = jax.jit(lambda: jax.lax.scan(step, (w, tx.init(w)), keys))()
    return np.sqrt(np.mean(squares[2000:4000])), np.sqrt(np.mean(squares[-4000:]))


def test_correction_keeps_the_ratio_of_update_to_weight_as_the_schedule_falls():
    weight_decay = 0.02
    plain = steady_state(lambda _: optax.add_decayed_weights(weight_decay))
    fixed = steady_state(
        lambda schedule: bnmask.corrected_weight_decay(
            weight_decay, schedule, 1.0, mask=None, corrected=None
        )
    )
    at_peak = np.sqrt(2 * weight_decay / 1.0)
    np.testing.assert_allclose(plain, [at_peak, np.sqrt(2 * weight_decay / 0.1)], rtol=0.03)
    np.testing.assert_allclose(fixed, [at_peak, at_peak], rtol=0.03)


@pytest.mark.parametrize("peak", [0, -1.0, float("nan"), np.float32(0)])
def test_peak_that_is_not_positive_is_an_error(peak):
    with pytest.raises(ValueError, match=r"`peak_learning_rate` must be .* positive"):
        corrected(peak=peak)


def test_update_without_params_says_what_to_call():
    tx = corrected()
    with pytest.raises(ValueError, match=r"`corrected_weight_decay` needs the parameters"):
        tx.update(at(GRADS, 0), tx.init(PARAMS))
