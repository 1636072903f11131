"""Parts of fused kernels as leaves: the same steps as without the fusion."""

import chex
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


def turned(z, *, way):
    """Queries or keys turned by their position, in one of the ways in use."""
    angle = jnp.arange(5)[:, None, None] * 0.5 ** jnp.arange(K // 2)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    if way == "pairs":
        a, b = z[..., ::2], z[..., 1::2]
        return jnp.stack([a * cos - b * sin, b * cos + a * sin], -1).reshape(z.shape)
    a, b = jnp.split(z, 2, -1)
    if way == "halves":
        return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)
    if way == "halves of another":
        cos, sin = (jnp.concatenate([y, y], -1) for y in (cos, sin))
        return z * cos + jnp.concatenate([-b, a], -1) * sin
    if way == "one half":
        return jnp.concatenate([turned(a, way="halves") if K > 4 else a * cos, b], -1)
    return z


def one_after_the_other(y):
    return [z.reshape(-1, H, K) for z in jnp.split(y, 3, -1)]


def by_head(y):
    return jnp.split(y.reshape(-1, H, 3 * K), 3, -1)


def by_entry(y):
    y = y.reshape(-1, H, K, 3)
    return [y[..., 0], y[..., 1], y[..., 2]]


@pytest.mark.usefixtures("optax_promotion")
@pytest.mark.parametrize("way", ["none", "pairs", "halves", "halves of another", "one half"])
@pytest.mark.parametrize("apart", [one_after_the_other, by_head, by_entry])
def test_heads_stay_together_however_they_are_fused_and_turned(apart, way):
    def attention(p, q, k, v):
        q, k = (turned(z, way=way) for z in (q, k))
        h = jax.nn.softmax(jnp.einsum("qhd,khd->hqk", q, k))
        return jnp.tanh(jnp.einsum("hqk,khd->qhd", h, v).reshape(5, D) @ p["out"]) @ p["head"]

    def fused(p, x):
        return attention(p, *apart(jnp.tanh(x @ p["stem"]) @ p["qkv"] + p["bias"]))

    def separate(p, x):
        h = jnp.tanh(x @ p["stem"])
        own = ((h @ p[name] + p[f"{name}_bias"]).reshape(5, H, K) for name in "qkv")
        return attention(p, *own)

    sizes = {"stem": (D, D), "out": (D, D), "head": (D, 3), "qkv": (D, 3 * D), "bias": (3 * D,)}
    one = params_of(sizes)
    two = {name: one[name] for name in ("stem", "out", "head")}
    for name, kernel, bias in zip("qkv", apart(one["qkv"]), apart(one["bias"]), strict=True):
        two |= {name: kernel.reshape(D, D), f"{name}_bias": bias.reshape(D)}
    whole, parts = (bnmask.analyze(f, p, X) for f, p in ((fused, one), (separate, two)))
    after = stepped(fused, one, bnmask.by_blocks(muon(whole), whole))
    expected = stepped(separate, two, bnmask.by_blocks(muon(parts), parts))
    assert not any(leaf.parts and len({*leaf.parts.get(1, ())}) > 1 for leaf in parts.leaves)
    for name, kernel in zip("qkv", apart(after["qkv"]), strict=True):
        np.testing.assert_allclose(kernel.reshape(D, D), expected[name], rtol=2e-4, atol=2e-5)
    np.testing.assert_allclose(after["out"], expected["out"], rtol=2e-4, atol=2e-5)
    assert whole["bias"].parts[0] == whole["qkv"].parts[1]


@pytest.mark.parametrize("way", ["one after the other", "by entry"])
def test_gate_and_up_are_two_matrices_and_what_shifts_and_scales_data_too(way):
    def fn(p, x, c):
        y = jnp.tanh(x @ p["stem"]) @ p["gate_up"]
        gate, up = jnp.split(y, 2, -1) if way == "one after the other" else entries(y)
        scale, shift = jnp.split(c @ p["style"], 2, -1)
        return (jax.nn.silu(gate) * up * (1 + scale) + shift) @ p["head"]

    def entries(y):
        y = y.reshape(-1, F, 2)
        return y[..., 0], y[..., 1]

    sizes = {"stem": (D, D), "gate_up": (D, 2 * F), "style": (4, 2 * F), "head": (F, 3)}
    analysis = bnmask.analyze(fn, params_of(sizes), X, jnp.ones((1, 4)))
    assert {*analysis["gate_up"].parts[1]} == {*analysis["style"].parts[1]} == {0, 1}
    sizes = [block.stop - block.start for block in analysis["gate_up"].blocks[1]]
    halves = [
        sum(n for n, p in zip(sizes, analysis["gate_up"].parts[1], strict=True) if p == part)
        for part in (0, 1)
    ]
    assert halves == [F, F]


def test_a_line_search_sees_gradients_and_loss_in_parts():
    def fn(p, x):
        gate, up = jnp.split(x @ p["fused"], 2, -1)
        return (jax.nn.silu(gate) * up) @ p["down"]

    keys = jax.random.split(jax.random.key(0), 3)
    params = {"fused": jax.random.normal(keys[0], (4, 12)), "down": jnp.ones((6, 3))}
    x = jax.random.normal(keys[1], (5, 4))
    tx = optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(8))

    def loss(p):
        return jnp.square(fn(p, x)).mean()

    def step(tx):
        value, grads = jax.value_and_grad(loss)(params)
        further = {"value": value, "grad": grads, "value_fn": loss}
        return tx.update(grads, tx.init(params), params, **further)[0]

    analysis = bnmask.analyze(fn, params, x)
    assert analysis["fused"].parts
    with jax.numpy_dtype_promotion("standard"):
        chex.assert_trees_all_close(step(bnmask.by_blocks(tx, analysis)), step(tx), rtol=1e-6)
