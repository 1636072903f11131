"""What is dead before the normalisers of Flax, Haiku and Equinox, on one device and on several."""

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import pytest

import optax_bnmask as bnmask
from tests.support.program.dead import drawn
from tests.support.program.dead_leaves import IMAGE, ROWS, TOKENS, analysed, in_numbers

pytestmark = pytest.mark.usefixtures("optax_promotion")


class Linen(nn.Module):
    norm: nn.Module
    size: int = 3

    @nn.compact
    def __call__(self, x):
        return jnp.tanh(self.norm(nn.Conv(4, (self.size, self.size), name="conv")(x)))


def by_shards(fn, x):
    """Over a mesh of one device, which exchanges with itself."""
    auto = (jax.sharding.AxisType.Auto,)
    mesh, rows = jax.make_mesh((1,), ("data",), axis_types=auto), jax.P("data")
    return jax.shard_map(fn, mesh=mesh, in_specs=rows, out_specs=rows)(x)


def by_groups(fn, x):
    return jax.vmap(fn, axis_name="data")(x.reshape(2, -1, *x.shape[1:]))


@pytest.mark.parametrize("spread", [by_shards, by_groups])
@pytest.mark.parametrize("fast", [True, False])
def test_a_bias_before_a_batch_norm_over_devices_is_dead(spread, fast):
    alone, synced = (
        Linen(nn.BatchNorm(use_fast_variance=fast, axis_name=name, **batch_norm))
        for name in (None, "data")
    )
    x = drawn(IMAGE, 1)
    variables = alone.init(jax.random.key(0), x)
    stats = variables["batch_stats"]

    def fn(p, x):
        def one(x):
            given = {"params": p, "batch_stats": stats}
            return synced.apply(given, x, mutable=["batch_stats"])[0]

        return spread(one, x)

    assert bnmask.analyze(fn, variables["params"], x).dead == ("conv/bias",)


batch_norm = {"use_running_average": False}
LINEN = {
    "BatchNorm": (lambda: nn.BatchNorm(**batch_norm), ("conv/bias",)),
    "BatchNorm, slow": (
        lambda: nn.BatchNorm(**batch_norm, use_fast_variance=False),
        ("conv/bias",),
    ),
    "InstanceNorm": (nn.InstanceNorm, ("conv/bias",)),
    "GroupNorm of one channel": (lambda: nn.GroupNorm(4), ("conv/bias",)),
    "GroupNorm of two channels": (lambda: nn.GroupNorm(2), ()),
    "LayerNorm": (nn.LayerNorm, ()),
    "RMSNorm": (nn.RMSNorm, ()),
    "BatchNorm at rest": (lambda: nn.BatchNorm(use_running_average=True), ()),
}


@pytest.mark.parametrize("name", LINEN)
def test_flaxs_normalisers(name):
    make, expected = LINEN[name]
    module, x = Linen(make()), drawn(IMAGE, 1)
    variables = module.init(jax.random.key(0), jnp.asarray(x, jnp.float32))
    rest = {k: v for k, v in variables.items() if k != "params"}

    def fn(params, x):
        return module.apply({"params": params, **rest}, x, mutable=list(rest))[0]

    params = drawn(jax.tree.map(jnp.shape, variables["params"]))
    assert analysed(fn, params, x).dead == expected == in_numbers(fn, params, x)


def test_flaxs_attention():
    module = nn.MultiHeadDotProductAttention(2)
    x = drawn(TOKENS, 1)
    params = module.init(jax.random.key(0), jnp.asarray(x, jnp.float32))["params"]
    params = drawn(jax.tree.map(jnp.shape, params))
    fn = lambda p, x: module.apply({"params": p}, x)  # noqa: E731
    assert analysed(fn, params, x).dead == ("key/bias",) == in_numbers(fn, params, x)


HAIKU = {  # made only under `transform`
    "BatchNorm": (lambda x: hk.BatchNorm(True, True, 0.9)(x, is_training=True), True),
    "InstanceNorm": (lambda x: hk.InstanceNorm(True, True)(x), True),  # noqa: PLW0108
    "GroupNorm": (lambda x: hk.GroupNorm(2)(x), False),  # noqa: PLW0108
    "LayerNorm": (lambda x: hk.LayerNorm(-1, True, True)(x), False),  # noqa: PLW0108
}


@pytest.mark.parametrize("name", HAIKU)
def test_haikus_normalisers(name):
    norm, is_dead = HAIKU[name]
    both = hk.transform_with_state(lambda x: jnp.tanh(norm(hk.Conv2D(4, 3, name="conv")(x))))
    x = drawn(IMAGE, 1)
    params, state = both.init(jax.random.key(0), jnp.asarray(x, jnp.float32))
    analysis = analysed(lambda p, x: both.apply(p, state, None, x)[0], params, x)
    assert analysis.dead == (("conv/b",) if is_dead else ())


@pytest.mark.parametrize("mode", ["batch", "ema"])
def test_equinoxs_batch_norm_in_the_mode_that_subtracts_the_mean_of_the_batch(mode):
    norm, state = eqx.nn.make_with_state(eqx.nn.BatchNorm)(4, "batch", mode=mode)
    linear = eqx.nn.Linear(3, 4, key=jax.random.key(0))
    params, static = eqx.partition((linear, norm), eqx.is_inexact_array)

    def fn(params, x):
        linear, norm = eqx.combine(params, static)
        call = lambda x, s: norm(linear(x), s)  # noqa: E731
        return jax.vmap(call, (0, None), (0, None), axis_name="batch")(x, state)[0]

    # The state is closed over, and says that this is the first step, which a "ema" starts with.
    found = analysed(fn, params, drawn(ROWS, 1)).dead
    assert found == (("0/bias",) if mode == "batch" else ())


def test_equinoxs_attention_with_a_bias_of_the_keys():
    attention = eqx.nn.MultiheadAttention(2, 4, use_key_bias=True, key=jax.random.key(0))
    params, static = eqx.partition(attention, eqx.is_inexact_array)

    def fn(params, x):
        return jax.vmap(lambda x: eqx.combine(params, static)(x, x, x))(x)

    assert analysed(fn, params, drawn(TOKENS, 1)).dead == ("key_proj/bias",)
