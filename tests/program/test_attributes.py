"""What the parameters and dtypes of a primitive say is heard: cases once claimed falsely."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import optax_bnmask as bnmask

pytestmark = pytest.mark.usefixtures("optax_promotion")


def shape(*n, dtype="float32"):
    return jax.ShapeDtypeStruct(n, dtype)


X = shape(6, 4)
LEAVES = {"w": shape(4, 5), "v": shape(4, 5), "b": shape(5), "m": shape(4, 4)}


def unit(y, axis=0):
    return y / jnp.sqrt((y * y).sum(axis, keepdims=True))


def centred(y):
    return unit(y - y.mean(0))


def dot(x, w, dtype):
    numbers = (((1,), (0,)), ((), ()))
    return lax.dot_general(x, w, numbers, preferred_element_type=dtype).astype("float32")


def solved(a, b):
    return lax.linalg.triangular_solve(a, b, left_side=True, lower=True, unit_diagonal=True)


def cast(z, dtype):
    return z.astype(dtype).astype("float32")


def in_a_reference(p, x):
    ref = jax.new_ref(x @ p["v"])
    ref[...] = x @ p["w"]
    return jnp.tanh(ref[...])


def added_in_a_loop(p, x):
    ref = jax.new_ref(jnp.zeros((6, 5)))

    def step(i, carry):
        jax.ref.addupdate(ref, ..., x @ p["w"])
        return carry + i

    n = lax.fori_loop(0, 3, step, 0)
    return ref[...] + n + (x @ p["v"]).sum()


def statistics_in_a_reference(p, x):
    stats, z = jax.new_ref(jnp.zeros(5)), x @ p["w"]
    stats[...] = z.mean(0)
    return unit(z), stats[...]


MATTER = {
    "a reference": (in_a_reference, "w"),
    "a reference in a loop": (added_in_a_loop, "w"),
    "a reference beside a norm": (statistics_in_a_reference, "w"),
    "a unit diagonal": (lambda p, x: solved(jnp.zeros((4, 4)), p["m"]) + x[:4], "m"),
    "a unit diagonal beside infinities": (
        lambda p, x: solved(jnp.full((4, 4), jnp.inf), p["m"]) + x[:4],
        "m",
    ),
    "a tiny power": (lambda p, x: (jnp.abs(x @ p["w"]) ** 1e-7) ** 1e7, "w"),
    "few bits of exponent": (lambda p, x: unit(lax.reduce_precision(x @ p["w"], 3, 10)), "w"),
    "8 bits, and a mean": (lambda p, x: centred(cast(x @ p["w"] + p["b"], "float8_e4m3fn")), "b"),
    "few bits of mantissa, and a mean": (
        lambda p, x: centred(lax.reduce_precision(x @ p["w"] + p["b"], 8, 2)),
        "b",
    ),
    "a product in integers": (lambda p, x: centred(dot(x, p["w"], "int32")), "w"),
    "a product in 8 bits": (lambda p, x: centred(dot(x, p["w"], "float8_e4m3fn")), "w"),
    "places of the largest": (
        lambda p, x: p["b"] * lax.top_k(jnp.asarray(np.zeros((3, 5))), 5)[1][0].astype(x.dtype),
        "b",
    ),
    "integers over zeros": (
        lambda p, x: (
            p["b"] * (jnp.arange(1, 6) // jnp.asarray(np.zeros(5, np.int32))).astype(x.dtype)
        ),
        "b",
    ),
}


@pytest.mark.parametrize("name", MATTER)
def test_nothing_is_claimed_of_what_matters(name):
    fn, path = MATTER[name]
    params = LEAVES if name.startswith("a reference") else {path: LEAVES[path], "w": LEAVES["w"]}
    analysis = bnmask.analyze(fn, params, X)
    leaf = analysis[path]
    assert (leaf.scale, leaf.dead) == (bnmask.Scale.SENSITIVE, None)
    assert path not in analysis.shift_axes


@pytest.mark.filterwarnings("ignore::numpy.exceptions.ComplexWarning")
def test_a_part_of_a_complex_number_does_not_change_with_all_of_it():
    def fn(p):
        return p["b"] - lax.convert_element_type(p["b"], jnp.float32)

    leaf = bnmask.analyze(fn, {"b": shape(5, dtype="complex64")})["b"]
    assert leaf.dead is None


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_products_in_other_floats_are_rounded_by_accident(dtype):
    fn = lambda p, x: centred(dot(x, p["w"], dtype))  # noqa: E731 - one expression
    assert bnmask.analyze(fn, {"w": LEAVES["w"]}, X)["w"].invariant_axes == (1,)


def test_an_array_is_compared_with_a_number():
    def fn(p, n):
        def step(carry, i):
            return carry + jnp.where(jnp.arange(5) == i, carry, 0), None

        return lax.scan(step, p["w"] * (jnp.arange(5) == n), jnp.arange(3))[0]

    leaf = bnmask.analyze(fn, {"w": shape(4, 5)}, shape(dtype="int32"))["w"]
    assert leaf.scale is bnmask.Scale.SENSITIVE
