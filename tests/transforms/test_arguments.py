"""Arguments of another kind are named in a sentence."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_bnmask as bnmask
from optax_bnmask import StructureError

PARAMS = {"kernel": jnp.ones((3, 4)), "scale": jnp.ones(4)}
DATA = jax.random.normal(jax.random.key(0), (5, 3))


def net(params, x):
    return jax.nn.standardize(x @ params["kernel"], 0) * params["scale"][None]


ANALYSIS = bnmask.analyze(net, PARAMS, DATA)
MASK = ANALYSIS.decay_mask()


@pytest.mark.parametrize(
    "call",
    [
        lambda: bnmask.monitor_scale(optax.sgd(0.1), MASK),
        lambda: bnmask.by_blocks(optax.sgd(0.1), MASK),
        lambda: bnmask.verify(MASK, net, PARAMS, DATA, key=jax.random.key(0)),
    ],
)
def test_a_mask_is_no_analysis(call):
    with pytest.raises(TypeError, match=r"`analysis` must be an `Analysis`.* Found a Mask"):
        call()


@pytest.mark.parametrize("treatment", [bnmask.keep_norm, lambda _, **k: bnmask.hyperball(0.1, **k)])
def test_axes_are_by_path(treatment):
    with pytest.raises(TypeError, match=r"`axes` must map paths of leaves to axes.* Found \(3,\)"):
        treatment(MASK, axes=(3,))


@pytest.mark.parametrize("treatment", [bnmask.keep_norm, lambda _, **k: bnmask.hyperball(0.1, **k)])
def test_axes_of_a_leaf_are_a_tuple(treatment):
    with pytest.raises(TypeError, match=r"`axes\['kernel'\]` must be a tuple of axes. Found 1"):
        treatment(MASK, axes={"kernel": 1})


CORRECTED = {"mask": None, "corrected": MASK}


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda: bnmask.hyperball(None), TypeError, "`learning_rate` must be a number or a sch"),
        (lambda: bnmask.hyperball("0.1"), TypeError, "a number or a schedule.* Found '0.1'"),
        (lambda: bnmask.hyperball(-0.1), ValueError, "`learning_rate` must be finite and at least"),
        (lambda: bnmask.hyperball(MASK), TypeError, "`learning_rate` must be .* Found a Mask"),
        (lambda: bnmask.hyperball(0.1, radius="1"), TypeError, "`radius` must be a number"),
        (lambda: bnmask.hyperball(0.1, radius={"kernel": -1}), ValueError, "`radius` must be fin"),
        (
            lambda: bnmask.corrected_weight_decay(None, 0.1, 0.1, **CORRECTED),
            TypeError,
            "`weight_decay` must be a number or a schedule",
        ),
        (
            lambda: bnmask.corrected_weight_decay(0.1, "0.1", 0.1, **CORRECTED),
            TypeError,
            "`learning_rate` must be a number or a schedule",
        ),
    ],
)
def test_a_rate_is_a_number_or_a_schedule(call, error, said):
    with pytest.raises(error, match=said):
        call()


@pytest.mark.parametrize(
    "treatment",
    [
        bnmask.keep_norm,
        lambda mask: bnmask.hyperball(0.1, mask),
        lambda mask: bnmask.corrected_weight_decay(0.1, 0.1, 0.1, mask=mask, corrected=MASK),
    ],
)
def test_a_mask_of_some_of_the_leaves_is_refused(treatment):
    tx = treatment({"kernel": True})
    with pytest.raises(bnmask.StructureError, match="`mask` must hold a bool for each leaf"):
        tx.update(PARAMS, tx.init(PARAMS), PARAMS)


def test_a_number_is_no_key():
    with pytest.raises(TypeError, match=r"`key` must be a key of JAX's.* Found 0"):
        bnmask.verify(ANALYSIS, net, PARAMS, DATA, key=0)


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda: bnmask.hyperball(0.1, radius=jnp.ones(2)), TypeError, r"an array of shape \(\)"),
        (lambda: bnmask.hyperball(0.1, radius=False), TypeError, "`radius` must .* Found False"),
        (lambda: bnmask.hyperball(0.1, radius=""), TypeError, "`radius` must .* Found ''"),
        (lambda: bnmask.hyperball(jnp.ones(2)), TypeError, r"an array of shape \(\)"),
        (lambda: bnmask.hyperball(0.1, radius={3: 1.0}), TypeError, "`radius` must .* Found 3"),
        (lambda: bnmask.hyperball(0.1, axes={3: (0,)}), TypeError, "`axes` must name .* Found 3"),
        (
            lambda: bnmask.hyperball(0.1, radius={"kernle": 1.0}).init(PARAMS),
            bnmask.PathError,
            "names none. There is no leaf 'kernle'; the nearest are 'kernel'",
        ),
        (
            lambda: bnmask.keep_norm(None, axes={"kernle": (1,)}).init(PARAMS),
            bnmask.PathError,
            "`axes` must name leaves",
        ),
        (lambda: bnmask.keep_norm(PARAMS).init(PARAMS), TypeError, "a bool for each leaf"),
        (lambda: bnmask.keep_norm({"kernel": 2}).init(PARAMS), TypeError, "each leaf. Found 2"),
        (
            lambda: bnmask.hyperball(0.1, exact_angle="no"),
            TypeError,
            "`exact_angle` must be True or",
        ),
        (lambda: bnmask.hyperball(0.1, flip_sign=None), TypeError, "`flip_sign` must be True or"),
        *(
            (lambda peak=peak: bnmask.corrected_weight_decay(0.1, 0.1, peak, **CORRECTED), e, said)
            for peak, e, said in [
                (optax.constant_schedule(0.1), TypeError, "Found a function"),
                (None, TypeError, "`peak_learning_rate` must be a number. Found None"),
                ("0.1", TypeError, "Found '0.1'"),
                (float("inf"), ValueError, "the largest value"),
            ]
        ),
        (lambda: bnmask.monitor_scale(optax.sgd(0.1), ANALYSIS, every=2.0), ValueError, "static_a"),
    ],
)
def test_values_of_another_kind_are_named(call, error, said):
    with pytest.raises(error, match=said):
        call()


@pytest.mark.parametrize(
    "tx",
    [bnmask.keep_norm(None), bnmask.hyperball(0.1), bnmask.monitor_scale(optax.sgd(1), ANALYSIS)],
)
def test_state_and_params_in_the_wrong_order(tx):
    with pytest.raises(TypeError, match=r"Call `tx.update\(updates, state, params\)`"):
        tx.update(PARAMS, PARAMS, tx.init(PARAMS))


@pytest.mark.parametrize("make", [bnmask.keep_norm, lambda mask: bnmask.hyperball(0.1, mask)])
def test_a_state_of_another_mask_and_updates_of_other_params(make):
    state = make({"kernel": True, "scale": False}).init(PARAMS)
    with pytest.raises(StructureError, match=r"no norm of 'scale'\. Was it made with another mask"):
        make(None).update(PARAMS, state, PARAMS)
    with pytest.raises(StructureError, match="It has 'more', and `params` has not"):
        make(None).update(PARAMS | {"more": jnp.ones(2)}, make(None).init(PARAMS), PARAMS)


def _nothing(_):
    return None


SCHEDULED = {
    "hyperball": bnmask.hyperball,
    "weight_decay": lambda s: bnmask.corrected_weight_decay(s, 0.1, 0.1, **CORRECTED),
    "learning_rate": lambda s: bnmask.corrected_weight_decay(0.1, s, 0.1, **CORRECTED),
}


@pytest.mark.parametrize("jit", [lambda f: f, jax.jit], ids=["eager", "jit"])
@pytest.mark.parametrize("make", SCHEDULED.values(), ids=SCHEDULED)
@pytest.mark.parametrize(
    ("schedule", "error", "said"),
    [
        (_nothing, TypeError, "must be a number at each step. Found None"),
        (lambda _: jnp.ones(3), TypeError, r"One number is an array of shape \(\)"),
        (lambda _: "0.1", TypeError, "Found '0.1'"),
        (lambda _: -0.1, ValueError, "must be finite and at least 0. Found -0.1"),
        (lambda _: jnp.nan, ValueError, "Found nan"),
    ],
    ids=["None", "array", "string", "negative", "NaN"],
)
def test_a_schedule_returns_a_number_at_each_step(make, schedule, error, said, jit):
    with pytest.raises(error, match=rf"`\w+\(count\)` .*{said}"):
        jit(make(schedule).init)(PARAMS)


def test_a_schedule_of_arrays_is_refused_where_a_step_is_traced():
    tx, state = bnmask.hyperball(lambda _: jnp.ones(3)), bnmask.hyperball(0.1).init(PARAMS)
    with pytest.raises(TypeError, match=r"`learning_rate\(count\)` must be a number"):
        jax.jit(tx.update)(PARAMS, state, PARAMS)


WARM_UP = optax.warmup_cosine_decay_schedule(0.0, 1e-2, 500, 10_000)


def test_a_learning_rate_above_its_peak_is_refused():
    with pytest.raises(ValueError, match=r"the largest value of `learning_rate`. Found 0.001, and"):
        bnmask.corrected_weight_decay(0.1, 1e-2, 1e-3, **CORRECTED)
    tx = bnmask.corrected_weight_decay(0.1, WARM_UP, 1e-3, **CORRECTED)
    for init in (tx.init, jax.jit(tx.init)):
        with pytest.raises(ValueError, match=r"The order is `weight_decay, learning_rate, peak"):
            init(PARAMS)
    with pytest.raises(ValueError, match=r"a learning rate of 0.1\. The order is"):
        bnmask.corrected_weight_decay(1e-3, 0.1, 1e-3, **CORRECTED)  # decay and rate swapped


def test_a_peak_may_be_rounded_and_a_schedule_may_end():
    bnmask.corrected_weight_decay(0.1, WARM_UP, 1e-2, **CORRECTED).init(PARAMS)
    table = [1e-3, 1e-3 * 1.001]
    ending = bnmask.corrected_weight_decay(0.1, lambda count: table[int(count)], 1e-3, **CORRECTED)
    ending.init(PARAMS)


NONE_CHOSEN = MASK & ~MASK


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (bnmask.keep_norm, "`keep_norm` has nothing to do: its mask chooses none of the 2 leaves"),
        (lambda mask: bnmask.hyperball(0.1, mask), "`hyperball` has nothing to do"),
        (
            lambda mask: bnmask.corrected_weight_decay(0.1, 0.1, 0.1, mask=MASK, corrected=mask),
            "`corrected_weight_decay` corrects nothing.* of the 2 leaves",
        ),
    ],
)
def test_a_treatment_of_nothing_warns_unless_it_is_meant(make, said):
    with pytest.warns(UserWarning, match=said):
        make(NONE_CHOSEN).init(PARAMS)
    make(False).init(PARAMS)  # warnings are errors
    make(NONE_CHOSEN).init({"kernel": PARAMS["kernel"], "scale": optax.MaskedNode()})


ALL = {
    "keep_norm": bnmask.keep_norm(None),
    "hyperball": bnmask.hyperball(0.1),
    "corrected_weight_decay": bnmask.corrected_weight_decay(0.1, 0.1, 0.1, **CORRECTED),
    "monitor_scale": bnmask.monitor_scale(optax.sgd(0.1), ANALYSIS),
}


@pytest.mark.parametrize("name", ALL)
def test_no_params_and_updates_of_a_part_of_them_are_refused(name):
    with pytest.raises(ValueError, match=rf"`{name}` needs the parameters, and `init` got none"):
        ALL[name].init(None)
    state = ALL[name].init(PARAMS)
    with pytest.raises(StructureError, match=r"or None in their place.* nothing for 'scale'"):
        ALL[name].update({"kernel": PARAMS["kernel"]}, state, PARAMS)
    ALL[name].update({"kernel": PARAMS["kernel"], "scale": None}, state, PARAMS)


@pytest.mark.parametrize("name", ["keep_norm", "hyperball", "monitor_scale"])
def test_shapes_have_no_norm(name):
    shapes = jax.eval_shape(lambda: PARAMS)
    with pytest.raises(TypeError, match=r"Found a ShapeDtypeStruct. .*`jax.eval_shape\(tx.init"):
        ALL[name].init(shapes)
    jax.eval_shape(ALL[name].init, shapes)


def test_a_leaf_that_is_no_array_is_named():
    with pytest.raises(TypeError, match=r"`params\['act'\]` must be an array.* Found a function"):
        bnmask.keep_norm(None).init({"w": jnp.ones(3), "act": _nothing})


def test_every_may_be_any_integer():
    bnmask.monitor_scale(optax.sgd(0.1), ANALYSIS, every=np.int64(5)).init(PARAMS)


def test_a_radius_may_be_injected():
    tx = optax.inject_hyperparams(bnmask.hyperball)(learning_rate=0.1, radius=2.0)
    updates, _ = jax.jit(tx.update)(PARAMS, tx.init(PARAMS), PARAMS)
    moved = optax.apply_updates(PARAMS, updates)
    np.testing.assert_allclose(jnp.linalg.norm(moved["kernel"]), 2.0, rtol=1e-6)


@pytest.mark.parametrize("number", [np.float64, np.float32, jnp.float32])
@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
@pytest.mark.parametrize(
    "call",
    [
        bnmask.hyperball,
        lambda x: bnmask.hyperball(0.1, radius=x),
        lambda x: bnmask.hyperball(0.1, radius={"kernel": x}),
        lambda x: bnmask.corrected_weight_decay(x, 0.1, 0.1, **CORRECTED),
        lambda x: bnmask.corrected_weight_decay(0.1, 0.1, x, **CORRECTED),
    ],
)
def test_numbers_of_numpy_and_jax_are_sizes_too(call, value, number):
    with pytest.raises(ValueError, match="must be"):
        call(number(value))


def test_a_number_that_is_traced_is_not_looked_at():
    def radius(r):
        return bnmask.hyperball(r, radius=r).init(PARAMS).radius["kernel"]

    assert jax.jit(radius)(2.0).item() == 2.0


@pytest.mark.parametrize(
    "treatment", [bnmask.keep_norm, lambda *a, **k: bnmask.hyperball(0.1, *a, **k)]
)
@pytest.mark.parametrize("before", [(), (1,)])
def test_a_state_of_other_axes_is_refused(treatment, before):
    weights = {"k": jnp.ones((3, 2))}
    state = treatment(None, axes={"k": before}).init(weights)
    with pytest.raises(bnmask.StructureError, match="Was it made with another mask, or with"):
        treatment(None, axes={"k": (0,)}).update(weights, state, weights)


@pytest.mark.parametrize(
    "treatment",
    [
        bnmask.keep_norm,
        lambda mask: bnmask.hyperball(0.1, mask),
        lambda mask: bnmask.corrected_weight_decay(0.1, 0.1, 0.1, mask=mask, corrected=mask),
    ],
)
def test_updates_of_other_leaves_or_shapes_and_a_state_in_their_place_are_refused(treatment):
    tx, weights = treatment(None), {"a": jnp.ones(3), "b": jnp.ones(2)}
    state = tx.init(weights)
    with pytest.raises(bnmask.StructureError, match="`params` has not"):
        tx.update(weights, state, {"a": weights["a"]})
    with pytest.raises(bnmask.StructureError, match=r"\(4,\) for 'a', and `params` has \(3,\)"):
        tx.update(weights | {"a": jnp.ones(4)}, state, weights)
    with pytest.raises(TypeError, match=r"Found a dict\. Call `tx\.update"):
        tx.update(weights, weights, state)
