"""Sizes from the smallest to the largest that a dtype holds, and leaves of other kinds."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_bnmask as bnmask

TREATMENTS = {
    "keep_norm": lambda: bnmask.keep_norm(None),
    "hyperball": lambda: bnmask.hyperball(0.1),
    "exact angle": lambda: bnmask.hyperball(0.1, exact_angle=True),
}
WEIGHT, ACROSS = np.array([3.0, 4.0]) / 5, np.array([4.0, -3.0]) / 5


def turned(make, weight, update):
    """The params after a step, in double precision and in units of the weight's norm."""
    tx = make()
    (step,) = tx.update((update,), tx.init((weight,)), (weight,))[0]
    exact = np.asarray(weight, np.float64), np.asarray(step, np.float64)
    return sum(exact) / np.linalg.norm(exact[0])


def angle(moved):
    return np.arctan2(abs(moved[0] * WEIGHT[1] - moved[1] * WEIGHT[0]), moved @ WEIGHT)


SIZES = [1e-37, 2.5e-38, 4.6e-38, 1e-30, 1e30, 2e38]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["hyperball", "exact angle"])
def test_hyperball_hears_the_direction_alone(name, size):
    moved = turned(
        TREATMENTS[name], jnp.asarray(WEIGHT, jnp.float32), jnp.asarray(ACROSS * size, jnp.float32)
    )
    assert np.linalg.norm(moved) == pytest.approx(1, rel=1e-6)
    assert angle(moved) == pytest.approx(0.1 if name == "exact angle" else np.arctan(0.1), rel=1e-4)


@pytest.mark.parametrize("size", [1e-33, 1e-30, 1e34, 1e36, 1e38])
@pytest.mark.parametrize("name", TREATMENTS)
def test_weights_of_any_size_turn_alike(name, size):
    weight = jnp.asarray(WEIGHT * size, jnp.float32)
    update = jnp.asarray((0.1 * ACROSS + 0.01 * WEIGHT) * size, jnp.float32)
    expected = turned(
        TREATMENTS[name],
        jnp.asarray(WEIGHT, jnp.float32),
        jnp.asarray(0.1 * ACROSS + 0.01 * WEIGHT, jnp.float32),
    )
    np.testing.assert_allclose(turned(TREATMENTS[name], weight, update), expected, rtol=1e-5)


@pytest.mark.parametrize("size", [1e-300, 1e-200, 1.0, 1e200, 1e300])
@pytest.mark.parametrize("name", TREATMENTS)
def test_in_double_precision_its_own_range_counts(name, size):
    with jax.enable_x64(True):
        moved = turned(TREATMENTS[name], jnp.asarray(WEIGHT), jnp.asarray(ACROSS * size))
        assert np.linalg.norm(moved) == pytest.approx(1, rel=1e-14)
        far = {"keep_norm": np.arctan(size), "hyperball": np.arctan(0.1), "exact angle": 0.1}
        assert angle(moved) == pytest.approx(far[name], rel=1e-12, abs=1e-15)
        kept = bnmask.keep_norm(None).init(jnp.asarray(WEIGHT * size)).kept_norm[""]
        assert float(kept[0]) == pytest.approx(size, rel=1e-14)


def test_an_array_of_numpy_in_double_precision_is_one_of_single_here():
    weight = np.random.default_rng(0).normal(size=(40, 50))
    tx = TREATMENTS["exact angle"]()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        updates, _ = tx.update({"w": 3 * weight}, tx.init({"w": weight}), {"w": weight})
    assert float(jnp.max(jnp.abs(updates["w"]))) == 0


@pytest.mark.parametrize(("across", "expected"), [(0.0, 0.0), (0.001, 0.0), (0.01, 0.1)])
def test_of_a_radial_update_in_bfloat16_no_more_than_rounding_is_taken_for_rounding(
    across, expected
):
    rng = np.random.default_rng(0)
    weight = jnp.asarray(rng.normal(size=(64, 64)), jnp.bfloat16)
    radial = np.asarray(weight, np.float64) / np.linalg.norm(np.asarray(weight, np.float64))
    turn = rng.normal(size=(64, 64))
    turn -= np.sum(turn * radial) * radial
    update = jnp.asarray(radial + across * turn / np.linalg.norm(turn), jnp.bfloat16)
    tx = TREATMENTS["exact angle"]()
    (step,) = tx.update((update,), tx.init((weight,)), (weight,))[0]
    length = float(jnp.linalg.norm(step.astype(jnp.float32)))
    assert length / np.linalg.norm(np.asarray(weight, np.float64)) == pytest.approx(
        expected, rel=1e-2
    )


def net(p, x):
    return jax.nn.standardize(x @ p["kernel"], 0) * p["scale"][None]


PARAMS = {"kernel": jax.random.normal(jax.random.key(1), (3, 4)), "scale": jnp.full(4, 2.0)}
DATA = jax.random.normal(jax.random.key(0), (5, 3))
ANALYSIS = bnmask.analyze(net, PARAMS, DATA)


@pytest.mark.parametrize("size", [1e-25, 1e25])
def test_norms_of_any_size_are_watched(size):
    params = PARAMS | {"kernel": PARAMS["kernel"] * size}
    state = bnmask.monitor_scale(optax.sgd(0.1), ANALYSIS).init(params)
    length = np.linalg.norm(np.asarray(params["kernel"], np.float64))
    assert float(state.weight_norm["kernel"]) == pytest.approx(length, rel=1e-6)


@pytest.mark.parametrize(
    "make",
    [
        bnmask.monitor_scale,
        lambda inner, _: optax.chain(inner, bnmask.keep_norm(None)),
        lambda inner, _: optax.chain(inner, bnmask.hyperball(0.1, flip_sign=False)),
    ],
)
def test_leaves_of_integers_pass(make):
    params = PARAMS | {"steps": jnp.arange(3)}
    analysis = bnmask.analyze(
        lambda p, x: net(p, x) * (p["steps"].sum() > 0).astype(jnp.float32), params, DATA
    )
    inner = optax.partition(
        {"train": optax.sgd(0.1), "freeze": optax.set_to_zero()},
        {"kernel": "train", "scale": "train", "steps": "freeze"},
    )
    tx = make(inner, analysis)
    grads = jax.tree.map(jnp.ones_like, params)
    updates, _ = jax.jit(tx.update)(grads, tx.init(params), params)
    assert updates["steps"].dtype == jnp.int32
    assert not np.any(updates["steps"])
    assert np.any(updates["kernel"])


@pytest.mark.parametrize("every", [1, 2])
def test_gradients_in_double_precision_keep_the_dtypes_of_the_state(every):
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        params = jax.tree.map(lambda x: x.astype(jnp.float32), PARAMS)
        grads = jax.tree.map(lambda x: x.astype(jnp.float64), params)
        inner = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1))
        tx = bnmask.monitor_scale(inner, ANALYSIS, every=every)
        before = tx.init(params)
        after = tx.update(grads, before, params)[1]
        assert [x.dtype for x in jax.tree.leaves(after)] == [
            x.dtype for x in jax.tree.leaves(before)
        ]


@pytest.mark.parametrize(
    "inner",
    [
        optax.chain(optax.add_decayed_weights(0.5), optax.flatten(optax.sgd(0.1, momentum=0.9))),
        optax.flatten(optax.contrib.schedule_free_sgd(0.1)),
        optax.lbfgs(0.1, linesearch=None),
    ],
    ids=["momentum, flat", "schedule-free, flat", "L-BFGS"],
)
def test_gains_that_cannot_be_kept_apart_are_not_watched(inner):
    with pytest.warns(UserWarning, match="cannot tell what decay takes"):
        state = bnmask.monitor_scale(inner, ANALYSIS).init(PARAMS)
    assert state.gain_rate == {}


def test_gains_in_parts_are_kept_apart_as_whole_ones_are():
    def gated(p, x):
        z = jax.nn.standardize(x @ p["w"], -1) * p["scale"][None]
        gate, up = jnp.split(z, 2, -1)
        return jax.nn.silu(gate) * up

    params = {"w": jax.random.normal(jax.random.key(1), (4, 12)), "scale": jnp.linspace(1, 2, 12)}
    analysis = bnmask.analyze(gated, params, jax.ShapeDtypeStruct((5, 4), "float32"))
    momentum = optax.chain(optax.add_decayed_weights(0.5), optax.sgd(0.1, momentum=0.9))
    rates = []
    for inner in (momentum, bnmask.by_blocks(momentum, analysis)):
        tx = bnmask.monitor_scale(inner, analysis)
        state, rng = tx.init(params), np.random.default_rng(0)
        for _ in range(4):
            grads = jax.tree.map(
                lambda x, rng=rng: jnp.asarray(rng.normal(size=x.shape), jnp.float32), params
            )
            _, state = tx.update(grads, state, params)
        rates.append(float(state.gain_rate["scale"]))
    assert rates[0] == pytest.approx(rates[1], rel=1e-6)


def test_axes_and_radii_of_parts_and_of_the_leaf_they_are_parts_of():
    def fn(p, x):
        q, k, v = jnp.split(x @ p["fused"], 3, -1)
        return jax.nn.standardize(q, 0) * jax.nn.standardize(k, 0) * v

    params = {"fused": jax.random.normal(jax.random.key(1), (4, 12))}
    analysis = bnmask.analyze(fn, params, jax.random.normal(jax.random.key(0), (5, 4)))
    mask = analysis.select("scale_invariant", by_blocks=True)
    q, k = mask.decayed

    def radii(**given):
        return bnmask.by_blocks(bnmask.hyperball(0.1, mask, **given), analysis).init(params).radius

    shapes = {path: r.shape for path, r in radii(axes={"fused": (1,)}).items()}
    assert shapes == {q: (1, 4), k: (1, 4)}
    shapes = {path: r.shape for path, r in radii(axes={q: (1,)}).items()}
    assert shapes == {q: (1, 4), k: (1, 1)}
    assert {path: r.item() for path, r in radii(radius={"fused": 7.0}).items()} == {q: 7.0, k: 7.0}
    given = radii(radius={q: 7.0})
    assert given[q].item() == 7.0
    assert given[k].item() != 7.0


def test_an_exact_angle_at_both_ends_of_float32():
    w = {"w": jnp.asarray([3e35, 4e35], jnp.float32)}
    u = {"w": jnp.asarray([-4e-33, 3e-33], jnp.float32)}
    tx = bnmask.hyperball(0.1, exact_angle=True, flip_sign=False)
    steps, _ = tx.update(u, tx.init(w), w)
    after = np.asarray(w["w"], np.float64) + np.asarray(steps["w"], np.float64)
    angle = np.arctan2(after[1], after[0]) - np.arctan2(4, 3)
    assert angle == pytest.approx(0.1, rel=1e-5)


def test_a_decay_that_float16_holds_is_not_lost_with_its_rate():
    schedule = optax.cosine_decay_schedule(1.0, 1000)
    tx = bnmask.corrected_weight_decay(1e-4, schedule, 1.0, mask=None, corrected=None)
    w = {"w": jnp.full(2, 1000, jnp.float16)}
    state = tx.init(w)._replace(count=jnp.asarray(990))
    updates, _ = tx.update({"w": jnp.zeros(2, jnp.float16)}, state, w)
    wanted = 1e-4 * float(schedule(990)) * 1000
    np.testing.assert_allclose(updates["w"], wanted, rtol=1e-2)
