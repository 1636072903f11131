"""Every transformation of Optax, found in its modules, in front of each treatment.

A new one appears here by itself: it works, or it stands in one of the lists below with a reason.
"""

import inspect
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

import optax_bnmask as bnmask
from tests.support.transforms.cases import ANALYSIS, GRADS, INVARIANT, PARAMS, at

ANGLE, KERNEL, SCALE = 0.05, "conv/kernel", "norm/scale"
GIVEN = {"learning_rate": 1e-2}
NO_DECAY = ("weight_decay", "weight_decay_rate")

NOT_RUN = {
    # They call the model itself, or want its second derivatives, from within the update.
    *("lbfgs", "scale_by_lbfgs", "hutchinson_estimator_diag_hessian", "sophia"),
    # It wants a tree of matrices, and dimension numbers for any other.
    "scale_by_muon",
}

LOOKS_AT_PARAMS = {
    *("adafactor", "fromage", "lamb", "lars", "momo", "scale_by_trust_ratio"),
    *("keep_params_nonnegative", "scale_by_param_block_norm", "scale_by_param_block_rms"),
}
"""Not split: the update depends on the params without any decay, in step lengths or bounds."""

REMEMBERS = {
    *("cocob", "madgrad", "prodigy", "scale_by_cocob", "scale_by_distance_over_gradients"),
    *("scale_by_madgrad", "schedule_free_adamw", "schedule_free_sgd"),
}
"""Refused in words: the state holds params."""


def found():
    for module in (optax, contrib):
        for name, make in sorted(vars(module).items()):
            if name.startswith("_") or not inspect.isfunction(make) or name in NOT_RUN:
                continue
            parameters = inspect.signature(make).parameters
            if make.__annotations__.get("return") is None or required(parameters) - GIVEN.keys():
                continue
            if "Transformation" in str(make.__annotations__["return"]):
                yield name, make, parameters


def required(parameters):
    return {n for n, p in parameters.items() if p.default is p.empty and p.kind != p.VAR_KEYWORD}


def built(make, parameters):
    options = {name: value for name, value in GIVEN.items() if name in required(parameters)}
    options |= {name: 0.0 for name in NO_DECAY if name in parameters}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated arguments by default
        return optax.with_extra_args_support(make(**options))


FOUND = {name: (make, parameters) for name, make, parameters in found()}

pytestmark = [pytest.mark.usefixtures("optax_promotion"), pytest.mark.once]


def test_there_are_many():
    assert len(FOUND) > 70
    assert FOUND.keys() >= LOOKS_AT_PARAMS | REMEMBERS | {"adamw", "muon", "lion", "galore"}


def angle(a, b):
    a, b = (np.asarray(x, np.float64).ravel() for x in (a, b))
    a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
    return 2 * np.arctan2(np.linalg.norm(a - b), np.linalg.norm(a + b))


@pytest.mark.parametrize("name", FOUND)
def test_norms_are_kept_angles_are_as_scheduled_and_watching_changes_nothing(name):
    base = built(*FOUND[name])
    keep = bnmask.keep_norm(INVARIANT)
    ball = bnmask.hyperball(ANGLE, INVARIANT, exact_angle=True, flip_sign=False)
    watched = bnmask.monitor_scale(base, ANALYSIS)

    @jax.jit
    def step(grads, state):
        updates, state = watched.update(grads, state, PARAMS, value=jnp.float32(1.0))
        treated = (tx.update(updates, tx.init(PARAMS), PARAMS)[0] for tx in (keep, ball))
        return updates, state, *treated

    @jax.jit
    def alone(grads, state):
        return base.update(grads, state, PARAMS, value=jnp.float32(1.0))

    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        state = watched.init(PARAMS)
    refused = any("`gain_rate` stays empty" in str(w.message) for w in heard)
    bare = base.init(PARAMS)
    for index in range(2):
        grads = at(GRADS, index)
        updates, state, kept, turned = step(grads, state)
        expected, bare = alone(grads, bare)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), updates, expected
    )
    w, u = PARAMS["conv"]["kernel"], updates["conv"]["kernel"]
    moves = float(jnp.abs(u).max()) > 0
    lengths = (np.linalg.norm(x) for x in (w + kept["conv"]["kernel"], w))
    np.testing.assert_allclose(*lengths, rtol=1e-6)
    np.testing.assert_allclose(
        angle(w, w + turned["conv"]["kernel"]), ANGLE if moves else 0, atol=1e-6
    )
    assert kept["head"]["kernel"] is not None
    assert refused == (name in REMEMBERS)
    if not refused:
        apart = abs(float(state.gain_rate[SCALE]) - 1) > 1e-5
        assert apart == (name in LOOKS_AT_PARAMS)
