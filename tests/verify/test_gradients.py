"""Gradients are orthogonal to what may be scaled, and a false claim shows in them."""

import dataclasses
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_bnmask as bnmask
from optax_bnmask import Scale


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def net(p, x):
    z = x @ p["w"] + p["b"][None]
    z = (z - z.mean(0, keepdims=True)) / jnp.sqrt(z.var(0, keepdims=True) + 1e-8)
    h = jnp.tanh(z * p["gain"][None])
    y = h @ p["left"] + x @ p["right"]
    return y / jnp.sqrt(jnp.square(y).mean(1, keepdims=True) + 1e-8) * p["scale"][None]


PARAMS = {"w": normal(1, 3, 8), "b": normal(2, 8), "gain": normal(3, 8), "left": normal(4, 8, 4),
          "right": normal(5, 3, 4), "scale": normal(6, 4)}  # fmt: skip
X, Y = normal(7, 16, 3), normal(8, 16, 4)


@pytest.fixture(scope="module")
def analysis():
    return bnmask.analyze(net, PARAMS, X)


@pytest.fixture(scope="module")
def grads():
    return jax.grad(lambda p: jnp.mean(jnp.square(net(p, X) - Y)))(PARAMS)


def test_every_claim_is_looked_at_and_holds(analysis, grads):
    found = bnmask.gradient_certificate(analysis, PARAMS, grads)
    assert {"w", "w[axis 1]", "group 0", "b[dead]"} <= found.violations.keys()
    assert "b" not in found.violations
    groups = [n for n in found.violations if n.startswith("group")]
    assert len(groups) == len(analysis.groups)
    assert found.violation == max(found.violations.values()) < 1e-5


def test_it_runs_inside_a_compiled_step(analysis):
    @jax.jit
    def step(params):
        grads = jax.grad(lambda p: jnp.mean(jnp.square(net(p, X) - Y)))(params)
        return bnmask.gradient_certificate(analysis, params, grads)

    assert step(PARAMS).violation < 1e-5


def test_a_sensitive_leaf_called_invariant_shows(analysis, grads):
    leaves = (
        dataclasses.replace(x, scale=Scale.INVARIANT) if x.path == "scale" else x
        for x in analysis.leaves
    )
    false = dataclasses.replace(analysis, leaves=tuple(leaves))
    found = bnmask.gradient_certificate(false, PARAMS, grads)
    assert found.violations["scale"] > 1e-2
    assert found.violations["w"] < 1e-5


def test_a_wrong_axis_shows(analysis, grads):
    leaves = (
        dataclasses.replace(x, invariant_axes=(0, 1)) if x.path == "w" else x
        for x in analysis.leaves
    )
    false = dataclasses.replace(analysis, leaves=tuple(leaves))
    found = bnmask.gradient_certificate(false, PARAMS, grads)
    assert found.violations["w[axis 0]"] > 1e-2
    assert found.violations["w[axis 1]"] < 1e-5


def test_a_wrong_group_and_a_wrong_symmetry_show(analysis, grads):
    false = dataclasses.replace(
        analysis,
        groups=(*analysis.groups, frozenset({"left", "gain"})),
        symmetries=(*analysis.symmetries, {"scale": Fraction(1), "left": Fraction(1)}),
    )
    found = bnmask.gradient_certificate(false, PARAMS, grads)
    assert found.violations[f"group {len(analysis.groups)}"] > 1e-3
    assert found.violations[f"symmetry {len(analysis.symmetries)}"] > 1e-3


def test_an_index_that_no_gradient_reaches_is_no_violation():
    def rectified(p, x):
        z = x @ p["w"]
        z = z / jnp.sqrt(jnp.square(z).mean(0, keepdims=True) + 1e-8)
        return jax.nn.relu(z + jnp.where(jnp.arange(8) == 3, -100.0, 0.0)[None])

    params = {"w": PARAMS["w"]}
    grads = jax.grad(lambda p: jnp.mean(jnp.square(rectified(p, X))))(params)
    assert not np.any(grads["w"][:, 3])
    found = bnmask.gradient_certificate(bnmask.analyze(rectified, params, X), params, grads)
    assert found.violation < 1e-5


def test_a_gradient_of_zeros_and_an_analysis_without_claims_give_0(analysis):
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    assert bnmask.gradient_certificate(analysis, PARAMS, zeros).violation == 0
    plain = bnmask.analyze(lambda p, x: jnp.tanh(x @ p["w"]), {"w": PARAMS["w"]}, X)
    found = bnmask.gradient_certificate(plain, {"w": PARAMS["w"]}, {"w": PARAMS["w"]})
    assert found == (0, {})


def test_a_gradient_without_some_leaves_is_refused_in_words(analysis, grads):
    fewer = {k: v for k, v in grads.items() if k != "w"}
    with pytest.raises(bnmask.StructureError, match=r"`grads` must have every leaf.*lacks 'w'"):
        bnmask.gradient_certificate(analysis, PARAMS, fewer)


def test_structure_alone_claims_nothing(grads):
    with pytest.raises(bnmask.StructureError, match="proved from a program"):
        bnmask.gradient_certificate(bnmask.analyze_structure(PARAMS), PARAMS, grads)
