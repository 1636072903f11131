"""`verify` for models of frameworks takes what `analyze` for them takes."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import optax_bnmask as bnmask

KEY = jax.random.key(0)


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, *, train, key=None):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(8)(x))
        if key is not None:
            x = x * jax.random.normal(key, (1, 8))
        x = nn.Dropout(0.3, deterministic=not train)(nn.tanh(x))
        return nn.Dense(2)(x)

    def head(self, x):
        return self(x, train=True)[:, :1]


@pytest.fixture
def x():
    return jax.random.normal(jax.random.key(1), (16, 3))


@pytest.fixture
def variables(x):
    return Net().init({"params": KEY, "dropout": KEY}, x, train=True)


def test_a_linen_module_is_verified_in_one_line(variables, x):
    found = bnmask.verify_linen(Net(), variables, x, train=True, key=KEY)
    assert found.ok
    assert (found.invariant, found.axes) == (2, 2)  # the kernel, and the dead bias
    assert found.dead_biases == ("Dense_0/bias",)


def test_an_analysis_of_a_linen_module_is_verified_with_the_same_arguments(variables, x):
    analysis = bnmask.analyze_linen(Net(), variables, x, train=True)
    found = bnmask.verify_linen(analysis, Net(), variables, x, train=True, key=KEY)
    assert found.ok
    assert (found.invariant, found.dead_biases) == (2, ("Dense_0/bias",))


def test_an_analysis_of_another_mode_of_a_linen_module_is_refused(variables, x):
    analysis = bnmask.analyze_linen(Net(), variables, x, train=True)
    with pytest.raises(bnmask.VerificationError, match=r"Scaling 'Dense_0/(kernel|bias)'"):
        bnmask.verify_linen(analysis, Net(), variables, x, train=False, key=KEY)


def test_a_linen_module_known_by_shape_is_verified(variables):
    x = jax.ShapeDtypeStruct((16, 3), jnp.float32)
    abstract = jax.eval_shape(lambda: variables)
    found = bnmask.verify_linen(Net(), abstract, x, train=True, key=KEY)
    assert "known by shape only" in found.notes[-1]
    assert found.invariant == 2  # the kernel, and the dead bias


def test_another_method_and_a_key_of_the_modules_own_are_passed_on(variables, x):
    assert bnmask.verify_linen(Net(), variables, x, method="head", key=KEY).invariant == 2
    analysis = bnmask.analyze_linen(Net(), variables, x, train=True, key=KEY)
    assert bnmask.verify_linen(analysis, Net(), variables, x, train=True, key=KEY).invariant == 2


class NNXNet(nnx.Module):
    def __init__(self, rngs):
        self.dense = nnx.Linear(3, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.drop = nnx.Dropout(0.3, rngs=rngs)

    def __call__(self, x):
        return self.drop(nnx.tanh(self.norm(self.dense(x))))


def test_an_nnx_module_is_verified_and_left_as_it_is(x):
    net = NNXNet(nnx.Rngs(0))
    before = [np.asarray(v) for v in jax.tree.leaves(nnx.state(net, nnx.Not(nnx.RngKey)))]
    found = bnmask.verify_nnx(net, x, key=KEY)
    assert (found.invariant, found.axes, found.dead_biases) == (2, 2, ("dense/bias",))
    assert found.dtype == "float64"
    after = jax.tree.leaves(nnx.state(net, nnx.Not(nnx.RngKey)))
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def test_an_analysis_of_an_nnx_module_is_verified_with_the_same_arguments(x):
    net = NNXNet(nnx.Rngs(0))
    analysis = bnmask.analyze_nnx(net, x)
    assert bnmask.verify_nnx(analysis, net, x, key=KEY).invariant == 2
    shapes = nnx.eval_shape(lambda: NNXNet(nnx.Rngs(0)))
    assert bnmask.verify_nnx(shapes, x, key=KEY).invariant == 2


def test_too_few_arguments_are_refused_in_words(variables):
    with pytest.raises(TypeError, match="must be given a module, its variables"):
        bnmask.verify_linen(Net(), key=KEY)
    with pytest.raises(TypeError, match="must be given a module"):
        bnmask.verify_nnx(key=KEY)
