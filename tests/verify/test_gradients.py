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


def gained(p, x):
    """Each entry of the gain may be scaled by itself, and so may a temperature."""
    z = x @ p["w"] * p["gain"][None] * p["temperature"][None]
    z = (z - z.mean(0, keepdims=True)) / jnp.sqrt(z.var(0, keepdims=True) + 1e-8)
    return jnp.tanh(z) @ p["head"]


GAINED = {"w": normal(1, 3, 8), "gain": normal(2, 8), "temperature": normal(3, 1),
          "head": normal(4, 8, 2)}  # fmt: skip


def test_a_gradient_that_should_be_0_entry_by_entry_has_no_angle_but_a_size():
    analysis = bnmask.analyze(gained, GAINED, X)
    grads = jax.grad(lambda p: jnp.mean(jnp.square(gained(p, X) - 1)))(GAINED)
    found = bnmask.gradient_certificate(analysis, GAINED, grads)
    assert {"gain", "gain[axis 0]", "temperature"} <= found.violations.keys()
    assert found.violation < 1e-5
    for path in ("gain", "temperature"):
        wrong = {**grads, path: grads[path] + 0.01}
        assert bnmask.gradient_certificate(analysis, GAINED, wrong).violations[path] > 1e-4


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_a_gradient_that_is_no_number_gets_no_certificate(analysis, grads, bad):
    spoilt = {**grads, "w": grads["w"].at[0, 0].set(bad)}
    assert not bnmask.gradient_certificate(analysis, PARAMS, spoilt).violation < 1


@pytest.mark.parametrize("factor", [1e20, 1e-25])
def test_neither_large_nor_small_gradients_hide_anything(analysis, grads, factor):
    wrong = {**grads, "w": PARAMS["w"]}
    right, wrong = (jax.tree.map(lambda x: x * factor, tree) for tree in (grads, wrong))
    assert bnmask.gradient_certificate(analysis, PARAMS, right).violation < 1e-5
    assert bnmask.gradient_certificate(analysis, PARAMS, wrong).violations["w"] > 0.9


def test_gradients_of_other_shapes_are_refused(analysis, grads):
    with pytest.raises(bnmask.StructureError, match=r"'w' has \(8, 3\) for \(3, 8\)"):
        bnmask.gradient_certificate(analysis, PARAMS, {**grads, "w": grads["w"].T})
