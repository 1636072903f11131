"""Parts of fused kernels as leaves: the same steps as without the fusion."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_bnmask as bnmask

D, H, K, F = 8, 2, 4, 6
X = jax.random.normal(jax.random.key(1), (5, D))


def body(p, x, q, k, v, gate_up):
    q, k, v = (x @ w for w in (q, k, v))
    q, k, v = (z.reshape(5, H, K) for z in (q, k, v))
    h = jax.nn.softmax(jnp.einsum("qhd,khd->hqk", q, k))
    h = jnp.einsum("hqk,khd->qhd", h, v).reshape(5, D) @ p["out"]
    gate, up = gate_up(h)
    return (jax.nn.silu(gate) * up) @ p["down"] @ p["head"]


def fused(p, x):
    h = x @ p["stem"]
    q, k, v = jnp.split(p["qkv"], 3, -1)
    return body(p, h, q, k, v, lambda z: jnp.split(z @ p["gate_up"], 2, -1))


def separate(p, x):
    h = x @ p["stem"]
    return body(p, h, p["q"], p["k"], p["v"], lambda z: (z @ p["gate"], z @ p["up"]))


SHARED = {"stem": (D, D), "out": (D, D), "down": (F, D), "head": (D, 3)}


def params_of(sizes):
    keys = jax.random.split(jax.random.key(0), len(sizes))
    return {name: jax.random.normal(k, sizes[name]) for name, k in zip(sizes, keys, strict=True)}


def twins():
    one = params_of({**SHARED, "qkv": (D, 3 * D), "gate_up": (D, 2 * F)})
    q, k, v = jnp.split(one["qkv"], 3, -1)
    gate, up = jnp.split(one["gate_up"], 2, -1)
    rest = {name: one[name] for name in SHARED}
    return one, {**rest, "q": q, "k": k, "v": v, "gate": gate, "up": up}


def stepped(fn, params, tx, steps=3):
    state = tx.init(params)

    @jax.jit
    def step(params, state):
        gradients = jax.grad(lambda p: jnp.square(fn(p, X)).sum())(params)
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(steps):
        params, state = step(params, state)
    return params


def muon(analysis):
    specs = analysis.muon_dimension_numbers(positions=("input", "hidden", "head"))
    return optax.partition(
        {
            "muon": optax.contrib.muon(0.02, muon_weight_dimension_numbers=specs),
            "adam": optax.adamw(1e-3, weight_decay=0.1, mask=analysis.decay_mask()),
        },
        specs.labels,
    )


@pytest.mark.usefixtures("optax_promotion")
@pytest.mark.parametrize(
    "make", [muon, lambda analysis: optax.lamb(0.01, mask=analysis.decay_mask())]
)
def test_a_fused_network_and_its_twin_take_the_same_steps(make):
    one, two = twins()
    whole, parts = (bnmask.analyze(f, p, X) for f, p in ((fused, one), (separate, two)))
    after = stepped(fused, one, bnmask.by_blocks(make(whole), whole))
    expected = stepped(separate, two, make(parts))
    joined = {
        **{name: expected[name] for name in SHARED},
        "qkv": jnp.concatenate([expected[name] for name in "qkv"], -1),
        "gate_up": jnp.concatenate([expected["gate"], expected["up"]], -1),
    }
    for name, value in joined.items():
        np.testing.assert_allclose(after[name], value, rtol=2e-4, atol=2e-5, err_msg=name)
    without = stepped(fused, one, make(whole))
    assert np.abs(np.asarray(without["qkv"] - joined["qkv"])).max() > 1e-3


def test_what_the_analysis_does_not_know_is_refused_by_name():
    one, _ = twins()
    tx = bnmask.by_blocks(optax.sgd(0.1), bnmask.analyze(fused, one, X))
    with pytest.raises(bnmask.PathError, match="met 'gate_upp', which is none of its leaves"):
        tx.init({**one, "gate_upp": one["gate_up"]})
