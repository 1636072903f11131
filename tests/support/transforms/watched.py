"""Optimizers to watch, and the states that they go through."""

import contextlib

import jax
import optax
import pytest

import optax_bnmask as bnmask
from tests.support.transforms.cases import (
    ANALYSIS,
    DECAY,
    GRADS,
    MASK,
    PARAMS,
    PEAK,
    SCHEDULE,
    STEPS,
    at,
    wide,
)

KERNEL, SCALE = "conv/kernel", "norm/scale"
EVERYTHING = jax.tree.map(lambda _: True, PARAMS)


def sgd(momentum=None):
    return optax.chain(optax.add_decayed_weights(DECAY), optax.sgd(PEAK, momentum=momentum))


INNER = {
    "sgd": sgd(),
    "momentum": sgd(0.9),
    "nesterov": optax.chain(
        optax.add_decayed_weights(DECAY), optax.sgd(SCHEDULE, momentum=0.9, nesterov=True)
    ),
    "adamw": optax.adamw(SCHEDULE, weight_decay=DECAY),
    "lion": optax.lion(PEAK, weight_decay=DECAY),
    "muon": optax.contrib.muon(PEAK, weight_decay=DECAY),
    "lamb": optax.lamb(PEAK, weight_decay=DECAY),
    "adafactor": optax.adafactor(PEAK, min_dim_size_to_factor=2, weight_decay_rate=DECAY),
    "schedule free": optax.contrib.schedule_free_adamw(PEAK, weight_decay=DECAY),
    "tree of bools": optax.adamw(PEAK, weight_decay=DECAY, mask=MASK(PARAMS)),
    "partition": optax.partition(
        {"norm": optax.adamw(PEAK, weight_decay=DECAY), "decay": sgd(0.9)},
        ANALYSIS.labels(categories=("norm",), default="decay"),
    ),
    "partition by a tree": optax.partition(
        {"norm": optax.adamw(PEAK, weight_decay=DECAY), "decay": sgd(0.9)},
        {"conv": "decay", "head": "decay", "norm": "norm"},
    ),
    "injected": optax.inject_hyperparams(optax.adamw)(SCHEDULE, weight_decay=DECAY),
    "clipped": optax.chain(optax.clip_by_global_norm(0.1), optax.adamw(PEAK, weight_decay=DECAY)),
}


def told(name):
    """Expects the warning where the state of an inner remembers the params."""
    if name != "schedule free":
        return contextlib.nullcontext()
    return pytest.warns(UserWarning, match="cannot tell what decay takes from gains")


def trajectory(inner, grads=GRADS):
    """Params before each step, and the update and state that each step gave."""
    tx, params = bnmask.monitor_scale(inner, ANALYSIS), PARAMS
    update, state, steps = jax.jit(tx.update), tx.init(params), []
    for step in range(STEPS):
        updates, state = update(at(grads, step), state, params)
        steps.append((wide(params), wide(at(grads, step)), wide(updates), state))
        params = optax.apply_updates(params, updates)
    return steps
