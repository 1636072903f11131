"""Arguments of another kind are named in a sentence."""

import jax
import jax.numpy as jnp
import optax
import pytest

import optax_bnmask as bnmask

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


def test_a_number_is_no_key():
    with pytest.raises(TypeError, match=r"`key` must be a key of JAX's.* Found 0"):
        bnmask.verify(ANALYSIS, net, PARAMS, DATA, key=0)
