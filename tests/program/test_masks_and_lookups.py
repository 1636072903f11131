"""What is masked is not looked up; kernels that are flipped, scattered, chosen; solved systems."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import optax_bnmask as bnmask

nn = jax.nn
DENSE = ((0,), (1,), ())
WEIGHT, EXPERTS = ("weight", DENSE), ("weight", ((1,), (2,), (0,)))
LOOKUP = ("embedding", None)


def f32(*sizes):
    return jax.ShapeDtypeStruct(sizes, "float32")


def i32(*sizes):
    return jax.ShapeDtypeStruct(sizes, "int32")


@pytest.fixture(autouse=True)
def _promotion_as_users_have_it():
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


def of(analysis, path):
    leaf = analysis[path]
    return str(leaf.role), leaf.dimensions and tuple(leaf.dimensions)


def by_switch(p, x, which):
    def branch(k):
        return lambda x: nn.relu(x @ p["w"][k])

    return jax.vmap(lambda x, i: lax.switch(i, [branch(k) for k in range(3)], x))(x, which) @ p["h"]


X, XS, ONE, TOKENS = f32(2, 12), f32(2, 5, 12), i32(2), i32(2, 5)
W, H, E = f32(12, 20), f32(20, 17), f32(10, 12)
PLACES = np.random.default_rng(0).permutation(12)
CASES = {
    "a kernel, a gain and a bias in another order": (
        lambda p, x: jnp.tanh((x @ p["w"][PLACES])[:, PLACES] * p["g"][PLACES] + p["b"][PLACES])
        @ p["h"][:12],
        ({"w": f32(12, 20), "g": f32(12), "b": f32(12), "h": H}, X),
        {"w": WEIGHT, "g": ("gain", None), "b": ("bias", None), "h": WEIGHT},
    ),
    "the output of a kernel in another order": (
        lambda p, x: jnp.tanh(x @ p["w"][:, PLACES]) @ p["h"][:12],
        ({"w": W, "h": H}, X),
        {"w": WEIGHT, "h": WEIGHT},
    ),
    "a table of positions at places that are spelt out": (
        lambda p, x: jnp.tanh(x @ p["w"] + p["e"][jnp.arange(5)]) @ p["h"],
        ({"w": W, "e": f32(9, 20), "h": H}, XS),
        {"w": WEIGHT, "e": LOOKUP, "h": WEIGHT},
    ),
    "relative positions": (
        lambda p, x: nn.softmax(
            jnp.einsum("bqc,bkc->bqk", x @ p["w"], x) + p["e"][jnp.arange(25) % 9].reshape(5, 5)
        )
        @ (x @ p["v"])
        @ p["h"],
        ({"w": f32(12, 12), "e": f32(9), "v": W, "h": H}, XS),
        {"w": WEIGHT, "e": LOOKUP, "v": WEIGHT, "h": WEIGHT},
    ),
    "padding": (
        lambda p, t: jnp.where((t == 0)[..., None], 0.0, jnp.tanh(p["e"][t] @ p["w"])) @ p["h"],
        ({"e": E, "w": W, "h": H}, TOKENS),
        {"e": LOOKUP, "w": WEIGHT, "h": WEIGHT},
    ),
    "a mask token": (
        lambda p, x, c: jnp.tanh(jnp.where((c == 0)[..., None], p["m"], x) @ p["w"]) @ p["h"],
        ({"m": f32(12), "w": W, "h": H}, X, ONE),
        {"m": LOOKUP, "w": WEIGHT, "h": WEIGHT},
    ),
    "a factor of a test": (
        lambda p, t: ((t == 1)[..., None] * jnp.tanh(p["e"][t] @ p["w"])) @ p["h"],
        ({"e": E, "w": W, "h": H}, TOKENS),
        {"w": WEIGHT, "h": WEIGHT},
    ),
    "a class beside the data": (
        lambda p, x, y: nn.relu(jnp.concatenate([nn.one_hot(y, 5), x], -1) @ p["w"]) @ p["h"],
        ({"w": f32(17, 20), "h": H}, X, ONE),
        {"w": WEIGHT, "h": WEIGHT},
    ),
    "a capsule chosen by its class": (
        lambda p, x, y: (
            (nn.relu(x @ p["w"]).reshape(2, 4, 5) * nn.one_hot(y, 4)[..., None]).reshape(2, 20)
            @ p["h"]
        ),
        ({"w": W, "h": H}, X, ONE),
        {"w": WEIGHT, "h": WEIGHT},
    ),
    "numbers for what is none": (
        lambda p, x: jnp.tanh(jnp.nan_to_num(x @ p["w"])) @ p["h"],
        ({"w": W, "h": H}, X),
        {"w": WEIGHT, "h": WEIGHT},
    ),
    "a layer left out by chance": (
        lambda p, x, k: jnp.where(k == 0, x, x + nn.relu(x @ p["w"]) @ p["v"]) @ p["h"],
        ({"w": W, "v": f32(20, 12), "h": f32(12, 3)}, X, i32()),
        {"w": WEIGHT, "v": WEIGHT, "h": WEIGHT},
    ),
    "the largest entry": (
        lambda p, z: ((z == z.max(-1, keepdims=True)) * z) @ p["h"],
        ({"h": H}, f32(2, 20)),
        {"h": WEIGHT},
    ),
    "an expert by switch": (
        by_switch,
        ({"w": f32(3, 12, 20), "h": H}, X, ONE),
        {"w": EXPERTS, "h": WEIGHT},
    ),
    "an expert by its indicator": (
        lambda p, x, i: jnp.einsum("be,edf,bd->bf", nn.one_hot(i, 3), p["w"], x) @ p["h"],
        ({"w": f32(3, 12, 20), "h": H}, X, ONE),
        {"w": EXPERTS},
    ),
    "two experts, gathered": (
        lambda p, x, i: jnp.tanh(jnp.einsum("bkdf,bd->bkf", p["w"][i], x)).sum(1) @ p["h"],
        ({"w": f32(3, 12, 20), "h": H}, X, i32(2, 2)),
        {"w": EXPERTS},
    ),
    "candidates that are looked up": (
        lambda p, x, n: jnp.tanh(x @ p["w"]) @ p["o"][n].T,
        ({"w": W, "o": f32(100, 20)}, X, i32(7)),
        {"w": WEIGHT, "o": LOOKUP},
    ),
    "an indicator times a gate": (
        lambda p, z: jnp.tanh(
            (nn.one_hot(jnp.argmax(z, -1), 10) * z.max(-1)[:, None]) @ p["e"]
        ) @ p["w"],
        ({"e": E, "w": W}, f32(2, 10)),
        {"e": LOOKUP, "w": WEIGHT},
    ),
    "a kernel turned round": (
        lambda p, x: jnp.tanh(x @ p["w"][::-1, ::-1]) @ p["h"],
        ({"w": W, "h": H}, X),
        {"w": WEIGHT},
    ),
    "a convolution, not a correlation": (
        lambda p, x: jnp.tanh(
            lax.conv_general_dilated(
                x, jnp.flip(p["k"], 0), (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
            )
        ) @ p["h"],
        ({"k": f32(3, 12, 20), "h": f32(20, 3)}, XS),
        {"k": ("weight", ((0, 1), (2,), ()))},
    ),
    "a transposed convolution": (
        lambda p, x: jnp.tanh(
            lax.conv_transpose(
                x, p["k"], (2,), "SAME", transpose_kernel=True,
                dimension_numbers=("NWC", "WIO", "NWC"),
            )
        ) @ p["h"],
        ({"k": f32(3, 20, 12), "h": f32(20, 3)}, XS),
        {"k": ("weight", ((0, 2), (1,), ()))},
    ),
    "a row set to 0": (
        lambda p, x: jnp.tanh(x @ p["w"].at[0].set(0.0)) @ p["h"],
        ({"w": W, "h": H}, X),
        {"w": WEIGHT},
    ),
    "a triangle from a vector": (
        lambda p, x: jnp.tanh(x @ jnp.zeros((12, 12)).at[jnp.tril_indices(12)].set(p["l"])),
        ({"l": f32(78)}, X),
        {"l": ("weight", None)},
    ),
    "blocks of a matrix": (
        lambda p, x: jnp.tanh(
            x @ jnp.zeros((12, 20)).at[:6, :10].set(p["a"]).at[6:, 10:].set(p["b"])
        ),
        ({"a": f32(6, 10), "b": f32(6, 10)}, X),
        {"a": ("weight", None), "b": ("weight", None)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_roles_and_dimensions(name):
    fn, args, expected = CASES[name]
    analysis = bnmask.analyze(fn, *args)
    assert {path: of(analysis, path) for path in expected} == expected


def test_a_kernel_between_masks_is_hidden_and_the_last_is_the_head():
    fn, args, _ = CASES["padding"]
    position = {leaf.path: leaf.position for leaf in bnmask.analyze(fn, *args).leaves}
    assert position == {"e": "input", "w": "hidden", "h": "head"}


SOLVED = {
    "an inverse": lambda p, x: x @ jnp.linalg.inv(p["a"]),
    "a system": lambda p, x: jnp.linalg.solve(p["a"], x.T).T,
    "a positive one": lambda p, x: (
        jax.scipy.linalg.solve(p["a"] @ p["a"].T + jnp.eye(12), x.T, assume_a="pos").T
    ),
}


@pytest.mark.parametrize("name", SOLVED)
def test_a_gradient_reaches_the_matrix_of_a_system(name):
    def fn(p, x):
        return jnp.tanh(SOLVED[name](p, x)) @ p["h"]

    params, key = {"a": f32(12, 12), "h": f32(12, 3)}, jax.random.key(0)
    drawn = {path: jax.random.normal(key, leaf.shape) for path, leaf in params.items()}
    gradient = jax.grad(lambda p: fn(p, jnp.ones((2, 12))).sum())(drawn)
    assert jnp.abs(gradient["a"]).max() > 1e-3
    assert bnmask.analyze(fn, params, X)["a"].reached


def test_a_gradient_that_is_stopped_before_a_system_does_not():
    def fn(p, x):
        return x @ p["h"] + jnp.linalg.solve(jnp.eye(12), lax.stop_gradient(p["b"]))[:2]

    params = {"b": f32(12, 3), "h": f32(12, 3)}
    analysis = bnmask.analyze(fn, params, X)
    assert (analysis["b"].reached, analysis["h"].reached) == (False, True)
