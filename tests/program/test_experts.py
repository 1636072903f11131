"""Mixtures of experts: what each expert owns is a matrix or a bias, however tokens reach it."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

import optax_bnmask as bnmask
from optax_bnmask import Role

nn = jax.nn
EXPERTS, WIDTH, HIDDEN, TOKENS = 4, 8, 12, 16
PARAMS = {
    "router": jnp.ones((WIDTH, EXPERTS)),
    "up": jnp.ones((EXPERTS, WIDTH, HIDDEN)),
    "up_bias": jnp.ones((EXPERTS, HIDDEN)),
    "down": jnp.ones((EXPERTS, HIDDEN, WIDTH)),
    "down_bias": jnp.ones((EXPERTS, WIDTH)),
    "head": jnp.ones((WIDTH, 3)),
}
X = jnp.ones((TOKENS, WIDTH))
OF_EXPERT = ((1,), (2,), (0,))


@pytest.fixture(autouse=True)
def _promotion_as_users_have_it():
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


def sorted_by_expert(p, x):
    expert = jnp.argmax(x @ p["router"], -1)
    order, sizes = jnp.argsort(expert), jnp.bincount(expert, length=EXPERTS)
    spread = jnp.repeat(p["up_bias"], sizes, axis=0, total_repeat_length=TOKENS)
    h = nn.silu(lax.ragged_dot(x[order], p["up"], sizes) + spread)
    y = lax.ragged_dot(h, p["down"], sizes) + p["down_bias"][expert[order]]
    return (x + y[jnp.argsort(order)]) @ p["head"]


def looked_up(p, x):
    gates, expert = lax.top_k(x @ p["router"], 2)
    h = nn.silu(jnp.einsum("td,tkdf->tkf", x, p["up"][expert]) + p["up_bias"][expert])
    y = jnp.einsum("tkf,tkfd->tkd", h, p["down"][expert]) + p["down_bias"][expert]
    return (x + jnp.einsum("tkd,tk->td", y, nn.softmax(gates))) @ p["head"]


def one_hot(p, x):
    choice = nn.one_hot(jnp.argmax(x @ p["router"], -1), EXPERTS)
    h = nn.silu(jnp.einsum("te,td,edf->tf", choice, x, p["up"]) + choice @ p["up_bias"])
    y = jnp.einsum("te,tf,efd->td", choice, h, p["down"]) + choice @ p["down_bias"]
    return (x + y) @ p["head"]


def all_of_them(p, x):
    h = nn.silu(jnp.einsum("td,edf->tef", x, p["up"]) + p["up_bias"])
    y = jnp.einsum("tef,efd->ted", h, p["down"]) + p["down_bias"]
    gates = nn.softmax(x @ p["router"])
    return (x + jnp.einsum("ted,te->td", y, gates)) @ p["head"]


@pytest.mark.parametrize("net", [sorted_by_expert, looked_up, one_hot, all_of_them])
def test_experts_own_matrices_and_biases(net):
    analysis = bnmask.analyze(net, PARAMS, X)
    for path in ("up", "down"):
        assert (analysis[path].role, tuple(analysis[path].dimensions)) == (Role.WEIGHT, OF_EXPERT)
    assert {str(analysis[path].role) for path in ("up_bias", "down_bias")} == {"bias"}


def scaled(p, x):
    gates, expert = lax.top_k(x @ p["router"], 2)
    gates = nn.softmax(gates) * p["gate_scale"][expert]
    h = nn.silu(jnp.einsum("td,tkdf->tkf", x, p["up"][expert]) * p["up_scale"][expert])
    y = jnp.einsum("tkf,tkfd->tkd", h, p["down"][expert])
    return (x + jnp.einsum("tkd,tk->td", y, gates)) @ p["head"]


def test_experts_own_gains():
    own = {"gate_scale": jnp.ones(EXPERTS), "up_scale": jnp.ones((EXPERTS, HIDDEN))}
    used = {path: x for path, x in PARAMS.items() if not path.endswith("bias")}
    analysis = bnmask.analyze(scaled, used | own, X)
    assert {str(analysis[path].role) for path in own} == {"gain"}
    assert tuple(analysis["up"].dimensions) == OF_EXPERT


def nearest(z, codes):
    return codes[jnp.argmin(((z[:, None] - codes) ** 2).sum(-1), -1)]


def quantised(p, x):
    z = x @ p["encoder"]
    return (z + lax.stop_gradient(nearest(z, p["codes"]) - z)) @ p["head"]


def refined(p, x):
    z = x @ p["encoder"]
    return (z + nearest(z, p["codes"])) @ p["head"]


def positioned(p, x, places):
    return nn.relu(x @ p["encoder"] + p["codes"][places]) @ p["head"]


def gated(p, x):
    z = x @ p["encoder"]
    return (nn.sigmoid(z) * nearest(z, p["codes"])) @ p["head"]


@pytest.mark.parametrize(
    ("net", "args"),
    [(gated, ()), (quantised, ()), (refined, ()), (positioned, (jnp.arange(TOKENS) % 4,))],
)
def test_codebooks_and_positions_are_tables_though_they_are_added_to_an_output(net, args):
    params = {
        "encoder": jnp.ones((WIDTH, WIDTH)),
        "codes": jnp.ones((EXPERTS, WIDTH)),
        "head": jnp.ones((WIDTH, 3)),
    }
    analysis = bnmask.analyze(net, params, X, *args)
    assert analysis["codes"].role is Role.EMBEDDING
