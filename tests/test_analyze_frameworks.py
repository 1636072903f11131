"""What models are called with: `analyze_haiku`, `analyze_equinox`, `analyze_nnx`, `verify_...`."""

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from flax import nnx

import optax_bnmask as bnmask
from optax_bnmask import Role, Scale

KEY = jax.random.key(0)
X = jax.random.normal(KEY, (16, 3))
SHAPE = jax.ShapeDtypeStruct(X.shape, X.dtype)


@pytest.fixture(autouse=True)
def _promotion_as_frameworks_need_it():
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


def found(analysis):
    return {leaf.path: (str(leaf.role), str(leaf.scale)) for leaf in analysis.leaves}


# Haiku


def haiku_net(x):
    x = hk.Linear(8, name="dense")(x)
    x = hk.BatchNorm(True, True, 0.9, name="post")(x, is_training=True)
    x = hk.dropout(hk.next_rng_key(), 0.1, jax.nn.relu(x))
    return hk.Linear(2, name="head")(x)


OF_HAIKU = {
    "dense/b": ("bias", "invariant"),
    "dense/w": ("weight", "invariant"),
    "head/b": ("bias", "sensitive"),
    "head/w": ("weight", "sensitive"),
    "post/offset": ("norm_bias", "sensitive"),
    "post/scale": ("norm_scale", "sensitive"),
}


def test_haiku_with_state_and_a_key_of_its_own():
    net = hk.transform_with_state(haiku_net)
    params, state = jax.eval_shape(net.init, KEY, SHAPE)
    analysis = bnmask.analyze_haiku(net, params, SHAPE, state=state)
    assert found(analysis) == OF_HAIKU
    assert analysis.evidence == {bnmask.Evidence.PROGRAM, bnmask.Evidence.STRUCTURE}
    drawn, state = net.init(KEY, X)
    done = bnmask.verify_haiku(analysis, net, drawn, X, state=state, key=KEY)
    assert done.ok
    assert bnmask.verify_haiku(net, drawn, X, state=state, rng=KEY, key=KEY).ok


@pytest.mark.parametrize("with_rng", [True, False])
@pytest.mark.parametrize("with_state", [True, False])
def test_whatever_apply_takes(with_rng, with_state):
    def forward(x):
        return hk.Linear(2, name="head")(hk.LayerNorm(-1, True, True, name="norm")(x["image"]))

    net = (hk.transform_with_state if with_state else hk.transform)(forward)
    net = net if with_rng else hk.without_apply_rng(net)
    batch = {"image": SHAPE}  # a batch as a dict
    out = jax.eval_shape(net.init, KEY, batch)
    params, state = out if with_state else (out, None)
    analysis = bnmask.analyze_haiku(net, params, batch, state=state)
    assert analysis["norm/scale"].role is Role.NORM_SCALE


def test_haiku_sets_apart_what_is_returned_beside_the_output():
    def forward(x):
        h = hk.Linear(8, name="dense")(x)
        return jax.nn.standardize(h, 0), (h * h).mean()

    net = hk.without_apply_rng(hk.transform(forward))
    params = jax.eval_shape(net.init, KEY, SHAPE)
    scale = {
        aux: bnmask.analyze_haiku(net, params, SHAPE, has_aux=aux)["dense/w"].scale
        for aux in (False, True)
    }
    assert scale == {False: Scale.SENSITIVE, True: Scale.INVARIANT}


NET = hk.without_apply_rng(hk.transform(lambda x: hk.LayerNorm(-1, True, True)(hk.Linear(2)(x))))
PARAMS = NET.init(KEY, X)
STATEFUL = hk.transform_with_state(haiku_net)


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda: bnmask.analyze_haiku(NET.apply, PARAMS, X), TypeError, "what `hk.transform` or"),
        (lambda: bnmask.analyze_haiku(PARAMS, NET, X), TypeError, "The order is `transformed, par"),
        (lambda: bnmask.analyze_haiku(NET, PARAMS, X, state={}), bnmask.StructureError, "left out"),
        (
            lambda: bnmask.analyze_haiku(STATEFUL, PARAMS, X),
            bnmask.StructureError,
            "`state` must be the state beside the params for a `TransformedWithState`. Found None",
        ),
        (lambda: bnmask.verify_haiku(NET, key=KEY), TypeError, "`verify_haiku` must be given what"),
        (
            lambda: bnmask.analyze_equinox(LINEAR, X),
            TypeError,
            "`fn` must be a function of",
        ),
        (
            lambda: bnmask.analyze_equinox(jax.vmap, "net"),
            TypeError,
            "with arrays of floating",
        ),
        (lambda: bnmask.verify_equinox(jax.vmap, key=KEY), TypeError, "must be given a function"),
    ],
)
def test_a_mistake_is_answered_by_a_sentence(call, error, said):
    with pytest.raises(error, match=said):
        call()


# Equinox


LINEAR = eqx.nn.Linear(3, 2, key=KEY)


class Net(eqx.Module):
    dense: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    drop: eqx.nn.Dropout
    head: eqx.nn.Linear
    steps: jax.Array  # not of floating dtype: no parameter

    def __init__(self):
        self.dense = eqx.nn.Linear(3, 8, key=KEY)
        self.norm = eqx.nn.BatchNorm(8, axis_name="batch", mode="batch")
        self.drop = eqx.nn.Dropout(0.1)
        self.head = eqx.nn.Linear(8, 2, key=KEY)
        self.steps = jnp.zeros([], jnp.int32)

    def __call__(self, x, state, key):
        x, state = self.norm(self.dense(x), state)
        return self.head(self.drop(jax.nn.relu(x), key=key)), state


def forward(net, x, state, *, key):
    keys = jax.random.split(key, len(x))
    over = ((0, None, 0), (0, None))
    return jax.vmap(net, *over, axis_name="batch")(x, state, keys)


def test_equinox_with_a_state_a_key_and_arrays_that_are_no_parameters():
    net, state = eqx.nn.make_with_state(Net)()
    key = jax.eval_shape(lambda: KEY)
    analysis = bnmask.analyze_equinox(forward, net, SHAPE, state, key=key, has_aux=True)
    assert found(analysis) == {
        "dense/bias": ("bias", "invariant"),
        "dense/weight": ("weight", "invariant"),
        "head/bias": ("bias", "sensitive"),
        "head/weight": ("weight", "sensitive"),
        "norm/bias": ("norm_bias", "sensitive"),
        "norm/weight": ("norm_scale", "sensitive"),
    }
    assert analysis.notes == ()
    done = bnmask.verify_equinox(analysis, forward, net, X, state, key=KEY, has_aux=True)
    assert done.ok
    mask = analysis.decay_mask(exempt=bnmask.STANDARD)
    assert len(jax.tree.leaves(mask(eqx.filter(net, eqx.is_inexact_array)))) == 6


def test_an_abstract_equinox_model_and_a_stacked_ensemble():
    def make(key):
        first, last = jax.random.split(key)
        dense, head = eqx.nn.Linear(3, 8, key=first), eqx.nn.Linear(8, 2, key=last)
        return eqx.nn.Sequential([dense, eqx.nn.LayerNorm(8), head])

    def of_one(net, x):
        return jax.vmap(net)(x)

    def of_all(net, x):
        return eqx.filter_vmap(of_one, in_axes=(eqx.if_array(0), None))(net, x)

    one = eqx.filter_eval_shape(make, KEY)
    assert bnmask.analyze_equinox(of_one, one, SHAPE)["layers/0/weight"].role is Role.WEIGHT
    five = eqx.filter_vmap(make)(jax.random.split(KEY, 5))
    leaf = bnmask.analyze_equinox(of_all, five, SHAPE)["layers/2/weight"]
    assert leaf.dimensions == bnmask.Dimensions(reduction=(2,), output=(1,), batch=(0,))
    assert bnmask.verify_equinox(of_all, five, X, key=KEY).ok


# NNX and Linen


class Autoencoder(nnx.Module):
    def __init__(self, rngs):
        self.into = nnx.Linear(3, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.back = nnx.Linear(8, 3, rngs=rngs)

    def encode(self, x):
        return self.norm(self.into(x))

    def __call__(self, x):
        return self.back(nnx.relu(self.encode(x)))


def loss(module, x):
    out = module(x)
    return ((out - x) ** 2).mean(), out


def test_nnx_methods_and_losses():
    module = Autoencoder(nnx.Rngs(0))
    encoder = bnmask.analyze_nnx(module, SHAPE, method="encode")
    assert encoder["back/kernel"].role is Role.UNUSED
    whole = bnmask.analyze_nnx(module, SHAPE, method=loss, has_aux=True)
    assert found(whole) == found(bnmask.analyze_nnx(module, SHAPE))
    assert bnmask.verify_nnx(encoder, module, X, method="encode", key=KEY).ok
    assert bnmask.verify_nnx(whole, module, X, method=loss, has_aux=True, key=KEY).ok


class WithMetrics(nn.Module):
    @nn.compact
    def __call__(self, x):
        h = nn.Dense(8)(x)
        return nn.BatchNorm(use_running_average=False)(h), {"power": (h * h).mean()}


def test_linen_sets_apart_what_is_returned_beside_the_output():
    net = WithMetrics()
    variables = net.init(KEY, X)
    scale = {
        aux: bnmask.analyze_linen(net, variables, SHAPE, has_aux=aux)["Dense_0/kernel"].scale
        for aux in (False, True)
    }
    assert scale == {False: Scale.SENSITIVE, True: Scale.INVARIANT}
    assert bnmask.verify_linen(net, variables, X, has_aux=True, key=KEY).ok


def batch_normed(is_training):
    def net(x):
        x = hk.Linear(8, with_bias=False, name="dense")(x)
        x = hk.BatchNorm(True, True, 0.9, name="post")(x, is_training)
        return hk.Linear(2, name="head")(jax.nn.relu(x))

    return hk.transform_with_state(net)


AT_REST = r"the normaliser at .*test_analyze_frameworks.* runs on statistics that it is given here"


def test_haiku_at_rest_is_warned_of():
    x = jnp.ones((4, 3))
    params, state = batch_normed(is_training=True).init(jax.random.key(0), x)
    trained = bnmask.analyze_haiku(batch_normed(is_training=True), params, x, state=state)
    assert (trained.notes, trained["dense/w"].scale) == ((), Scale.INVARIANT)
    with pytest.warns(UserWarning, match=AT_REST):
        at_rest = bnmask.analyze_haiku(batch_normed(is_training=False), params, x, state=state)
    assert len(at_rest.notes) == 1


class EquinoxNet(eqx.Module):
    dense: eqx.nn.Linear
    post: eqx.nn.BatchNorm

    def __init__(self, key):
        self.dense = eqx.nn.Linear(3, 8, key=key)
        self.post = eqx.nn.BatchNorm(8, "batch", mode="batch")

    def __call__(self, x, state):
        y, state = self.post(self.dense(x), state)
        return jnp.tanh(y), state


def test_equinox_at_rest_is_warned_of():
    net, state = eqx.nn.make_with_state(EquinoxNet)(jax.random.key(0))

    def fn(net, x, state):
        return jax.vmap(net, (0, None), (0, None), axis_name="batch")(x, state)

    x = jnp.ones((4, 3))
    assert bnmask.analyze_equinox(fn, net, x, state, has_aux=True).notes == ()
    with pytest.warns(UserWarning, match=AT_REST):
        bnmask.analyze_equinox(fn, eqx.nn.inference_mode(net), x, state, has_aux=True)


@pytest.mark.parametrize("mean", [0.0, 0.5])
@pytest.mark.parametrize("var", [0.0, 1.0])
def test_statistics_that_a_function_is_closed_over_are_warned_of_whatever_they_are_now(mean, var):
    """Those of a model that was just made are 0 and 1, or both 0 as in Haiku."""
    mean, var = jnp.full(8, mean), jnp.full(8, var)

    def fn(p, x):
        return jnp.tanh((x @ p["w"] - mean) * (p["g"] * jax.lax.rsqrt(var + 1e-5))) @ p["head"]

    params = {"w": jnp.ones((3, 8)), "g": jnp.ones(8), "head": jnp.ones((8, 2))}
    with pytest.warns(UserWarning, match=AT_REST):
        analysis = bnmask.analyze(fn, params, jnp.ones((4, 3)))
    assert analysis["g"].role is Role.NORM_SCALE


def test_a_state_of_zeros_that_a_function_is_closed_over_is_no_normaliser_at_rest():
    carry = jnp.zeros((4, 8))

    def fn(p, x):
        hidden = jnp.tanh(x @ p["w"] - carry) * (p["g"] / jnp.sqrt(8.0))
        return (carry - hidden) @ p["head"]

    params = {"w": jnp.ones((3, 8)), "g": jnp.ones(8), "head": jnp.ones((8, 2))}
    analysis = bnmask.analyze(fn, params, jnp.ones((4, 3)))
    assert (analysis.notes, analysis["g"].role) == ((), Role.GAIN)


@pytest.mark.parametrize("closed_over", [True, False])
def test_inputs_that_are_standardised_by_given_numbers_are_no_normaliser_at_rest(closed_over):
    def fn(p, x, mean, var):
        return jnp.tanh((x - mean) * jax.lax.rsqrt(var + 1e-5) @ p["w"])

    given = (jnp.zeros(3), jnp.ones(3))
    called = (lambda p, x: fn(p, x, *given)) if closed_over else fn
    args = () if closed_over else given
    analysis = bnmask.analyze(called, {"w": jnp.ones((3, 2))}, jnp.ones((4, 3)), *args)
    assert analysis.notes == ()
