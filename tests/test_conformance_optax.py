"""Every Optax transformation that decays weights takes the mask, however it is run.

What must hold, leaf by leaf: an exempt leaf gets exactly the update that it gets with decay 0, any
other leaf exactly the one that it gets with decay on everything. Trust ratios and factored moments
are a leaf's own, so this holds for LAMB, LARS and Adafactor too.
"""

import functools

import chex
import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training.train_state import TrainState

import optax_bnmask as bnmask
from tests.support.decaying import (
    ANALYSIS,
    DECAY,
    GRADS,
    MASK,
    PARAMS,
    RATE,
    STATS,
    STEPS,
    TRANSFORMS,
)


def partitioned(decay, mask):
    """`optax.partition`: one transformation for each label; the mask meets the holes."""
    del mask  # the labels say the same
    return optax.partition(
        {"decay": optax.adamw(RATE, weight_decay=decay), "norm": optax.adamw(RATE, weight_decay=0)},
        ANALYSIS.labels(categories=("norm",), default="decay"),
    )


pytestmark = pytest.mark.usefixtures("optax_promotion")


def cast(tree, dtype):
    return jax.tree.map(lambda x: x.astype(dtype), tree)


def at(grads, step):
    return jax.tree.map(lambda x: x[step], grads)


def loop(tx, params, grads):
    """One jitted update after another, whose state is donated."""
    update, init = jax.jit(tx.update, donate_argnums=1), jax.jit(tx.init)
    state, every = init(params), []
    for step in range(STEPS):
        updates, state = update(at(grads, step), state, params)
        every.append(updates)
    return jax.tree.map(lambda *x: np.stack(x), *every)


def scan(tx, params, grads):
    """All updates in one `lax.scan`, whose carry is the state."""

    def step(state, grad):
        updates, state = tx.update(grad, state, params)
        return state, updates

    return jax.jit(lambda: jax.lax.scan(step, tx.init(params), grads)[1])()


@pytest.mark.parametrize(
    ("run", "dtype"),
    [(loop, jnp.float32), (scan, jnp.float32), (scan, jnp.bfloat16)],
    ids=["donated", "scan", "bfloat16"],
)
@pytest.mark.parametrize("name", TRANSFORMS)
def test_exempt_leaves_update_as_without_decay_and_others_as_with_it(name, dtype, run):
    make = TRANSFORMS[name]
    params, grads = cast(PARAMS, dtype), cast(GRADS, dtype)
    got = run(make(DECAY, MASK), params, grads)
    on = run(make(DECAY, lambda tree: jax.tree.map(lambda _: True, tree)), params, grads)
    off = run(make(0.0, MASK), params, grads)
    expected = jax.tree.map(lambda d, a, b: a if d else b, MASK(params), on, off)
    chex.assert_trees_all_equal(got, expected)
    chex.assert_trees_all_equal_dtypes(got, on)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), on, off)
    assert all(jax.tree.leaves(moved)), "decay on everything must differ on every leaf"


@pytest.mark.parametrize("run", [loop, scan], ids=lambda run: run.__name__)
def test_partition_by_labels_equals_the_mask(run):
    got = run(partitioned(DECAY, MASK), PARAMS, GRADS)
    expected = run(optax.adamw(RATE, weight_decay=DECAY, mask=MASK), PARAMS, GRADS)
    chex.assert_trees_all_equal(got, expected)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_adamw_keeps_the_dtype_of_the_params(dtype):
    params = cast(PARAMS, dtype)
    updates = loop(optax.adamw(RATE, weight_decay=DECAY, mask=MASK), params, cast(GRADS, dtype))
    assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype(dtype)}


def test_frozen_dict_params_take_a_mask_made_from_a_dict():
    params, grads = flax.core.freeze(PARAMS), flax.core.freeze(GRADS)
    tx = optax.adamw(RATE, weight_decay=DECAY, mask=MASK)
    chex.assert_trees_all_equal(loop(tx, params, grads), flax.core.freeze(loop(tx, PARAMS, GRADS)))


def test_subtree_frozen_by_set_to_zero_leaves_holes_for_the_mask():
    trained = optax.masked(
        optax.adamw(RATE, weight_decay=DECAY, mask=MASK),
        lambda tree: {k: k != "conv" for k in tree},
    )
    tx = optax.chain(
        trained, optax.masked(optax.set_to_zero(), lambda tree: {k: k == "conv" for k in tree})
    )
    got = loop(tx, PARAMS, GRADS)
    full = loop(optax.adamw(RATE, weight_decay=DECAY, mask=MASK), PARAMS, GRADS)
    chex.assert_trees_all_equal(got["head"], full["head"])
    chex.assert_trees_all_equal(got["conv"], jax.tree.map(jnp.zeros_like, full["conv"]))


def test_new_equal_mask_in_each_step_compiles_once():
    @functools.partial(jax.jit, static_argnums=0)
    @chex.assert_max_traces(n=1)
    def decayed(mask, params):
        tx = optax.add_decayed_weights(DECAY, mask)
        return tx.update(params, tx.init(params), params)[0]

    chex.clear_trace_counter()
    for _ in range(3):
        decayed(bnmask.decay_mask(PARAMS, STATS), PARAMS)


class Residual(nn.Module):
    @nn.compact
    def __call__(self, x):
        y = nn.Conv(4, (3, 3), use_bias=False)(x)
        y = nn.relu(nn.BatchNorm(use_running_average=False)(y))
        y = nn.Conv(4, (3, 3), use_bias=False)(y)
        return nn.relu(x + nn.BatchNorm(use_running_average=False)(y))


class ResNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (3, 3), name="stem")(x)
        for _ in range(2):
            x = Residual()(x)
        return nn.Dense(3, name="head")(x.mean((1, 2)))


def compiled_step(tx, variables):
    """The optimized HLO of a jitted training step."""
    net = ResNet()

    def step(state, stats, images):
        def loss(params):
            logits, new = net.apply(
                {"params": params, "batch_stats": stats}, images, mutable=["batch_stats"]
            )
            return jnp.square(logits).mean(), new["batch_stats"]

        grads, stats = jax.grad(loss, has_aux=True)(state.params)
        return state.apply_gradients(grads=grads), stats

    state = TrainState.create(apply_fn=net.apply, params=variables["params"], tx=tx)
    images = jnp.ones((2, 8, 8, 1))
    return jax.jit(step).lower(state, variables["batch_stats"], images).compile().as_text()


def test_compiled_training_step_equals_the_one_with_a_mask_written_by_hand():
    with jax.numpy_rank_promotion("allow"):  # Flax's layers add a bias to a batch
        variables = ResNet().init(jax.random.key(0), jnp.ones((2, 8, 8, 1)))
        block = {
            "BatchNorm_0": {"bias": False, "scale": False},
            "BatchNorm_1": {"bias": False, "scale": False},
            "Conv_0": {"kernel": True},
            "Conv_1": {"kernel": True},
        }
        by_hand = {
            "Residual_0": block,
            "Residual_1": block,
            "head": {"bias": True, "kernel": True},
            "stem": {"bias": True, "kernel": True},
        }
        mask = bnmask.decay_mask(variables["params"], variables["batch_stats"])
        texts = [
            compiled_step(optax.adamw(1e-3, weight_decay=DECAY, mask=chosen), variables)
            for chosen in (mask, by_hand, None)
        ]
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]  # the text does show where decay goes
    assert "ROOT" in texts[0]
