"""What `keep_norm` and `hyperball` hold, inside and outside of wrappers that average params.

The figures are those that docs/treatments.md tells.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_bnmask as bnmask

RATE, STEPS = 0.3, 200
DRAWS = np.random.default_rng(0).normal(size=(2, 8, 4))
START, AIM = (jnp.asarray(x / np.linalg.norm(x), jnp.float32) for x in DRAWS)
TREATMENTS = {
    "keep_norm": bnmask.keep_norm(None),
    "hyperball": bnmask.hyperball(0.05, flip_sign=False),
}


def loss(w):
    """Of the direction alone."""
    return -jnp.sum(w / jnp.linalg.norm(w) * AIM)


def norms(tx, params, gradient_at, read):
    """The least and the largest norm of what is read after each step."""

    @jax.jit
    def step(params, state):
        updates, state = tx.update(jax.grad(loss)(gradient_at(params)), state, params)
        return optax.apply_updates(params, updates), state

    state, every = tx.init(params), []
    for _ in range(STEPS):
        params, state = step(params, state)
        every.append([float(jnp.linalg.norm(x)) for x in read(params, state)])
    return np.min(every, 0), np.max(every, 0)


def under_lookahead(treatment, *, inside):
    sgd = optax.sgd(RATE)
    if inside:
        tx = optax.lookahead(optax.chain(sgd, treatment), 5, 0.5)
    else:
        tx = optax.chain(optax.lookahead(sgd, 5, 0.5), treatment)

    def gradients(tx):  # `lookahead` takes gradients at the fast params, for these alone
        return norms(tx, optax.LookaheadParams.init_synced(START), lambda p: p.fast, lambda p, _: p)

    return gradients(tx)


def under_schedule_free(treatment, *, inside):
    sgd = optax.sgd(RATE)
    if inside:
        tx = optax.contrib.schedule_free(optax.chain(sgd, treatment), RATE)
    else:
        tx = optax.chain(optax.contrib.schedule_free(sgd, RATE), treatment)

    def read(params, state):
        averaging = state if inside else state[0]
        return params, optax.contrib.schedule_free_eval_params(averaging, params)

    return norms(tx, START, lambda p: p, read)


pytestmark = pytest.mark.usefixtures("optax_promotion")


@pytest.mark.parametrize("name", TREATMENTS)
def test_around_lookahead_fast_and_slow_params_keep_the_norm(name):
    least, most = under_lookahead(TREATMENTS[name], inside=False)
    np.testing.assert_allclose([least, most], 1, atol=5e-7)


@pytest.mark.parametrize(("name", "shortest"), [("keep_norm", 0.815), ("hyperball", 0.984)])
def test_inside_lookahead_the_chord_between_fast_and_slow_is_shorter(name, shortest):
    least, most = under_lookahead(TREATMENTS[name], inside=True)
    np.testing.assert_allclose(least, shortest, atol=1e-3)
    np.testing.assert_allclose(most, 1, atol=5e-7)


@pytest.mark.parametrize(
    ("name", "expected"), [("keep_norm", (0.989, 1.055)), ("hyperball", (0.997, 1.016))]
)
def test_inside_schedule_free_the_averaged_params_nearly_keep_the_norm(name, expected):
    least, most = under_schedule_free(TREATMENTS[name], inside=True)
    np.testing.assert_allclose((least[1], most[1]), expected, atol=1e-3)


@pytest.mark.parametrize(("name", "shortest"), [("keep_norm", 0.918), ("hyperball", 0.423)])
def test_around_schedule_free_the_params_keep_the_norm_and_their_average_loses_it(name, shortest):
    least, most = under_schedule_free(TREATMENTS[name], inside=False)
    np.testing.assert_allclose((least[0], most[0]), 1, atol=5e-7)
    np.testing.assert_allclose(least[1], shortest, atol=2e-3)
