"""The frameworks' own normalisation layers, in roles: exact, and without a look at their names."""

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import pytest

import optax_bnmask as bnmask

KEY = jax.random.key(0)
X = jax.ShapeDtypeStruct((6, 5), jnp.float32)
SCALE, BIAS = bnmask.Role.NORM_SCALE, bnmask.Role.NORM_BIAS


@pytest.fixture(autouse=True)
def _frameworks_promote():
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


def roles(analysis, scope):
    inside = (leaf for leaf in analysis.leaves if scope in leaf.path)
    return {leaf.path.rpartition("/")[2]: leaf.role for leaf in inside}


HAIKU = {
    "batch_norm": lambda x: hk.BatchNorm(True, True, 0.9)(x, is_training=True),
    "layer_norm": lambda x: hk.LayerNorm(-1, create_scale=True, create_offset=True)(x),  # noqa: PLW0108
    "group_norm": lambda x: hk.GroupNorm(2)(x[:, None, None])[:, 0, 0],
    "instance_norm": lambda x: hk.InstanceNorm(True, True)(jnp.stack([x, x * x], 1))[:, 0],
    "rms_norm": lambda x: hk.RMSNorm(-1)(x),  # noqa: PLW0108 - made only under `transform`
}


@pytest.mark.parametrize("name", HAIKU)
def test_haikus_normalisers(name):
    def net(x):
        return hk.Linear(2)(jnp.tanh(HAIKU[name](hk.Linear(8)(x))))

    both = hk.transform_with_state(net)
    params, state = jax.eval_shape(both.init, KEY, X)
    analysis = bnmask.analyze(lambda p, s, x: both.apply(p, s, None, x)[0], params, state, X)
    expected = {"scale": SCALE} if name == "rms_norm" else {"scale": SCALE, "offset": BIAS}
    assert roles(analysis, name) == expected


EQUINOX = {
    "LayerNorm": lambda: eqx.nn.LayerNorm(8),
    "RMSNorm": lambda: eqx.nn.RMSNorm(8),
    "GroupNorm": lambda: eqx.nn.GroupNorm(2, 8),
}


class Net(eqx.Module):
    first: eqx.nn.Linear
    middle: eqx.Module
    last: eqx.nn.Linear

    def __init__(self, middle):
        self.first, self.last = eqx.nn.Linear(5, 8, key=KEY), eqx.nn.Linear(8, 2, key=KEY)
        self.middle = middle

    def __call__(self, x):
        return self.last(jnp.tanh(self.middle(self.first(x))))


@pytest.mark.parametrize("name", EQUINOX)
def test_equinoxs_normalisers(name):
    params, static = eqx.partition(Net(EQUINOX[name]()), eqx.is_inexact_array)
    analysis = bnmask.analyze(lambda p, x: jax.vmap(eqx.combine(p, static))(x), params, X)
    assert roles(analysis, "middle") == {"weight": SCALE, "bias": BIAS}


def test_equinoxs_weight_norm_keeps_its_magnitude_as_a_gain():
    inner = eqx.nn.WeightNorm(eqx.nn.Linear(8, 8, key=KEY))
    params, static = eqx.partition(Net(inner), eqx.is_inexact_array)
    analysis = bnmask.analyze(lambda p, x: jax.vmap(eqx.combine(p, static))(x), params, X)
    found = roles(analysis, "middle")
    assert found == {"weight": bnmask.Role.WEIGHT, "bias": bnmask.Role.BIAS, "g": bnmask.Role.GAIN}


@pytest.mark.parametrize("mode", ["batch", "ema"])
def test_equinoxs_batch_norm_also_where_running_statistics_are_mixed_in(mode):
    class WithState(eqx.Module):
        first: eqx.nn.Linear
        middle: eqx.nn.BatchNorm

        def __init__(self):
            self.first = eqx.nn.Linear(5, 8, key=KEY)
            self.middle = eqx.nn.BatchNorm(8, "batch", mode=mode)

        def __call__(self, x, state):
            return self.middle(self.first(x), state)

    model, state = eqx.nn.make_with_state(WithState)()
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def fn(params, state, x):
        model = eqx.combine(params, static)
        over = {"axis_name": "batch", "in_axes": (0, None), "out_axes": (0, None)}
        return jax.vmap(model, **over)(x, state)[0]

    analysis = bnmask.analyze(fn, params, state, X)
    assert roles(analysis, "middle") == {"weight": SCALE, "bias": BIAS}
    assert (analysis["first/weight"].scale == "invariant") == (mode == "batch")
