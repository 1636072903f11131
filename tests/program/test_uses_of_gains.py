"""Gains that look like matrices, and matrices that look like gains or tables."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_bnmask as bnmask
from tests.support.program.roles import layer_norm, shape

EMBEDDING, GAIN, WEIGHT = bnmask.Role.EMBEDDING, bnmask.Role.GAIN, bnmask.Role.WEIGHT
N = 16
X, W = shape(3, N), {"w": (N, N), "o": (N, 4)}


pytestmark = pytest.mark.usefixtures("optax_promotion")


def analysed(fn, shapes, *args):
    return bnmask.analyze(fn, {path: shape(*sizes) for path, sizes in shapes.items()}, *args)


def hidden(p, x):
    return jax.nn.relu(x @ p["w"])


def coupled(p, x):
    """RealNVP's coupling with a learned scale, whose sum is the log-determinant."""
    s = jnp.tanh(x @ p["w"]) * p["g"]
    return jnp.exp(s) * x @ p["o"], s.sum(-1)


def attended(p, x):
    y = hidden(p, x) * p["g"]
    return (y * jax.nn.sigmoid(y.mean(-1, keepdims=True))) @ p["o"]


@pytest.mark.parametrize(
    "fn",
    [
        lambda p, x: layer_norm(hidden(p, x) * p["g"]) @ p["o"],
        lambda p, x: layer_norm((x @ p["w"]) * p["g"]) @ p["o"],
        coupled,
        attended,
    ],
    ids=["before a LayerNorm", "after a product", "in a coupling layer", "before its own mean"],
)
def test_a_gain_whose_product_is_summed_too_and_not_only_is_a_gain(fn):
    assert analysed(fn, W | {"g": (N,)}, X)["g"].role is GAIN


def ensemble(p, x):
    return jax.nn.relu((hidden(p, x)[None] * p["r"][:, None]) @ p["k"]) @ p["o"]


def mapped(p, x):
    h = hidden(p, x)
    return jax.vmap(lambda r: jax.nn.relu((h * r) @ p["k"]) @ p["o"])(p["r"])


@pytest.mark.parametrize("fn", [ensemble, mapped])
def test_gains_of_the_members_of_an_ensemble_before_a_kernel_that_they_share_are_gains(fn):
    found = analysed(fn, {"w": (N, N), "r": (4, N), "k": (N, 8), "o": (8, 2)}, X)
    assert found["r"].role is GAIN
    assert found.muon_dimension_numbers().labels["r"] == "adam"


PERMUTATION, PLACES = jnp.eye(N)[::-1], (np.arange(N)[:, None] - np.arange(N)) % N


@pytest.mark.parametrize(
    ("kernel", "sizes", "dimensions"),
    [
        (lambda p: PERMUTATION @ p["l"] @ p["u"], (N, N), ((1,), (0,), ())),
        (lambda p: (PERMUTATION @ jnp.tril(p["l"])) @ jnp.triu(p["u"]), (N, N), ((1,), (0,), ())),
        (lambda p: p["l"][PLACES] @ p["u"], (N,), None),
    ],
    ids=["permuted", "Glow", "circulant"],
)
def test_a_kernel_whose_entries_a_constant_puts_in_order_is_no_table(kernel, sizes, dimensions):
    def fn(p, x):
        return jnp.tanh(hidden(p, x) @ kernel(p)) @ p["o"]

    leaf = analysed(fn, W | {"l": sizes, "u": (N, N)}, X)["l"]
    assert leaf.role is WEIGHT
    assert leaf.dimensions == (dimensions and bnmask.Dimensions(*dimensions))


def test_rows_that_the_pivots_of_a_leafs_own_factors_put_in_order_are_not_looked_up():
    def cayley(p, x):
        a = p["a"] - p["a"].T
        q = jnp.linalg.solve(jnp.eye(N) + a, jnp.eye(N) - a)
        return jnp.tanh(hidden(p, x) @ q) @ p["o"]

    assert analysed(cayley, W | {"a": (N, N)}, X)["a"].role is not EMBEDDING


def test_a_choice_that_data_make_is_a_lookup_and_one_that_leaves_make_is_none():
    def fn(p, x, t):
        best = jax.lax.top_k(p["scores"], 4)[1]
        return jnp.tanh(p["table"][t] + x @ p["w"]) @ p["o"] + x[:, :4] @ p["kernel"][best]

    shapes = W | {"table": (9, N), "scores": (9,), "kernel": (9, 4)}
    found = analysed(fn, shapes, X, shape(3, dtype="int32"))
    assert found["table"].role is EMBEDDING
    assert found["kernel"].role is WEIGHT


def unit(v):
    return v / jnp.linalg.norm(v, axis=0, keepdims=True)


@pytest.mark.parametrize(
    "kernel",
    [
        lambda p: p["m"] * unit(p["v"]),
        lambda p: p["m"] * unit(p["v"] + p["a"] @ p["b"]),
        lambda p: p["m"] * unit(p["a"] @ p["b"]),
    ],
    ids=["weight norm", "DoRA", "a product"],
)
def test_the_magnitude_of_a_kernels_columns_is_no_normalisers_scale(kernel):
    shapes = W | {"v": (N, N), "a": (N, 2), "b": (2, N), "m": (N,)}
    found = analysed(lambda p, x: jnp.tanh(hidden(p, x) @ kernel(p)) @ p["o"], shapes, X)
    assert found["m"].role is GAIN


@pytest.mark.parametrize(
    ("kernel", "is_matrix"),
    [
        (lambda a: a, True),
        (lambda a: 2 * a.T, True),
        (lambda a: a + a.T, False),
        (lambda a: a - a.T - 0.1 * jnp.eye(N), False),
        (lambda a: a @ a.T, False),
        (lambda a: a @ a, False),
    ],
    ids=["itself", "transposed", "symmetric", "skew", "Gram", "square"],
)
def test_a_kernel_beside_its_own_transpose_is_no_matrix(kernel, is_matrix):
    def fn(p, x):
        return (jnp.tanh(hidden(p, x) @ kernel(p["a"])) @ p["o"]).sum()

    params = {path: shape(*sizes) for path, sizes in (W | {"a": (N, N)}).items()}
    found = bnmask.analyze(fn, params, X)["a"]
    assert found.role is WEIGHT
    assert (found.dimensions is not None) == is_matrix
    keys = iter(jax.random.split(jax.random.key(0), 9))
    drawn = jax.tree.map(lambda s: 0.3 * jax.random.normal(next(keys), s.shape), params)
    gradient = jax.grad(fn)(drawn, jax.random.normal(next(keys), (1, N)))["a"]
    sizes = jnp.linalg.svd(gradient, compute_uv=False)
    assert (int((sizes > 1e-4 * sizes[0]).sum()) == 1) == is_matrix


def test_power_iterations_do_not_count_beside_the_use_that_trains_a_kernel():
    def unit_row(v):
        return v * jax.lax.rsqrt(jnp.square(v).sum() + 1e-12)

    def spectral(p, x, u):
        v = unit_row(u @ p["w"].T)
        u, v = map(jax.lax.stop_gradient, (unit_row(v @ p["w"]), v))
        return jax.nn.relu(x @ (p["w"] / (v @ p["w"] @ u.T))) @ p["o"]

    found = analysed(spectral, W, X, shape(1, N))["w"]
    assert found.dimensions == bnmask.Dimensions((0,), (1,), ())

    def normed_head(p, x, u):
        return jax.nn.relu(x @ p["o"]) @ (p["w"] / (u @ p["w"]).sum())

    found = analysed(normed_head, {"o": (N, 4), "w": (4, 2)}, X, shape(1, 4))
    assert found["w"].position is bnmask.Position.HEAD
    assert found["w"].dimensions == bnmask.Dimensions((0,), (1,), ())
    assert found["o"].position is bnmask.Position.INPUT


@pytest.mark.parametrize("before", [False, True], ids=["of inputs", "of hidden values"])
def test_a_product_that_is_written_out_and_summed_has_dimensions_and_a_position(before):
    def fn(p, x):
        z = hidden(p, x) if before else x
        return jax.nn.relu((z[..., None] * p["k"]).sum(-2) + p["b"]) @ p["o"]

    found = analysed(fn, W | {"k": (N, 8), "b": (8,), "o": (8, 4)}, X)
    assert found["k"].dimensions == bnmask.Dimensions((0,), (1,), ())
    assert found["k"].position is bnmask.Position("hidden" if before else "input")
    assert found["b"].role is bnmask.Role.BIAS


def test_what_is_added_along_an_axis_that_the_data_lack_is_a_bias():
    def fn(p, x):
        waves = jnp.sin((x @ p["w"])[..., None] * p["frequency"] + p["phase"])
        return (
            waves.reshape(len(x), -1) @ p["h"]
            + jnp.tanh(x[..., None] + p["shift"]).sum((1, 2))[:, None]
        )

    shapes = {"w": (N, 8), "frequency": (5,), "phase": (5,), "shift": (5,), "h": (40, 3)}
    found = analysed(fn, shapes, X)
    assert found["frequency"].role is GAIN
    assert {found[path].role for path in ("phase", "shift")} == {bnmask.Role.BIAS}
