"""What divides by a size of itself is a normaliser, however it is spelt, and nothing else is."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.ops import segment_sum

from tests.support.program.roles import (
    X,
    centred,
    check,
    column,
    deviation,
    layer_norm,
    root_mean_square,
    row,
    shape,
    spread,
)

SIZES = {"w": (4, 5), "gamma": (5,), "beta": (5,), "head": (5, 2)}


def around(norm, sizes, *args, **expected):
    def fn(p, *args):
        out = norm(p, *args)
        gain, shift = (jnp.broadcast_to(p[name], out.shape) for name in ("gamma", "beta"))
        return jnp.tanh(out * gain + shift) @ p["head"]

    check(fn, {k: shape(*s) for k, s in {**SIZES, **sizes}.items()}, *args, **expected)


def batch_renorm(p, x, mean, std):
    h = x @ p["w"]
    s, m = jnp.sqrt(h.var(0) + 1e-5), h.mean(0)
    r = lax.stop_gradient(jnp.clip(s / std, 1 / 3, 3))
    d = lax.stop_gradient(jnp.clip((m - mean) / std, -5, 5))
    return (h - row(m)) / row(s) * row(r) + row(d)


def with_a_learned_epsilon(p, x):
    h = x @ p["w"]
    return h * spread(lax.rsqrt((h * h).mean(-1) + jnp.abs(p["eps"])), -1, h)


def evo_norm(p, x):
    h = x @ p["w"]
    return h * jax.nn.sigmoid(h * row(p["v"])) / deviation(h)


def with_sums_in_a_loop(p, x):
    h = x @ p["w"]
    squares = lax.fori_loop(0, 5, lambda i, sums: sums + h[:, i] ** 2, jnp.zeros(6))
    return h * spread(lax.rsqrt(squares / 5 + 1e-6), -1, h)


def with_moments_from_a_scan(p, x):
    h = x @ p["w"]

    def step(sums, z):
        return ((sums[0] + z, sums[1] + z * z), None)

    (s, q), _ = lax.scan(step, (jnp.zeros(5), jnp.zeros(5)), h)
    return (h - row(s / 6)) / row(jnp.sqrt(q / 6 - (s / 6) ** 2 + 1e-5))


def global_response(p, x):
    h = (x @ p["w"]).reshape(2, 3, 5)
    size = jnp.sqrt((h * h).sum(1))
    return h * spread(size / (spread(size.mean(-1), -1, size) + 1e-6), 1, h)


def over_the_unmasked(p, x, mask):
    h, n = x @ p["w"], mask.sum()
    z = h - row((column(mask) * h).sum(0) / n)
    return z / row(jnp.sqrt((column(mask) * z**2).sum(0) / n + 1e-5))


def by_segments(p, x, of):
    """The nodes of each graph, normalised over the graph."""
    h = x @ p["w"]
    z = h - (segment_sum(h, of, 3) / column(segment_sum(jnp.ones(6), of, 3)))[of]
    return z * lax.rsqrt(segment_sum(z * z, of, 3) + 1e-5)[of]


NORMALISERS = {
    "by segments": (by_segments, {}, X, shape(6, dtype="int32")),
    "layer norm": (lambda p, x: layer_norm(x @ p["w"]), {}, X),
    "by size": (lambda p, x: (h := x @ p["w"]) / root_mean_square(h), {}, X),
    "by magnitudes": (lambda p, x: (h := x @ p["w"]) / spread(jnp.abs(h).sum(-1), -1, h), {}, X),
    "by the largest": (lambda p, x: (h := x @ p["w"]) / spread(jnp.abs(h).max(-1), -1, h), {}, X),
    "corrected towards running statistics": (batch_renorm, {}, X, shape(5), shape(5)),
    "with a learned epsilon": (with_a_learned_epsilon, {"eps": ()}, X),
    "gated": (evo_norm, {"v": (5,)}, X),
    "sums in a loop": (with_sums_in_a_loop, {}, X),
    "moments from a scan": (with_moments_from_a_scan, {}, X),
    "global response": (global_response, {}, X),
    "over the unmasked": (over_the_unmasked, {}, X, shape(6)),
}


@pytest.mark.parametrize("name", NORMALISERS)
def test_gain_and_bias_after_a_normaliser_are_its_own(name):
    around(*NORMALISERS[name], gamma="norm_scale", beta="norm_bias", w="weight")


def score(of):
    """How far data are from a prediction, in predicted deviations."""
    return lambda p, x, y: (y - jnp.tanh(x @ p["w"])) / of(x @ p["v"])


def pooled(weights):
    """A weighted mean."""

    def mean(p, h, m):
        m = weights(m)
        return (jnp.tanh(h @ p["w"]) * column(m)).sum(1) / column(m.sum(1))

    return mean


def linear_attention(p, x):
    q, k, v = jax.nn.elu(x @ p["w"]) + 1, jax.nn.elu(x @ p["k"]) + 1, x @ p["v"]
    return (q @ (k.T @ v)) / column(q @ k.sum(0))


Y, ROWS, MASK = shape(6, 5), shape(6, 7, 4), shape(6, 7)
V = {"v": (4, 5)}
NO_NORMALISERS = {
    "by its mean": (lambda p, x: (h := x @ p["w"]) / spread(h.mean(-1), -1, h), {}, X),
    "softmax": (lambda p, x: jax.nn.softmax(x @ p["w"]), {}, X),
    "softmax by hand": (lambda p, x: (h := jnp.exp(x @ p["w"])) / column(h.sum(-1)), {}, X),
    "a mean by a mask": (pooled(lambda m: m), {}, ROWS, MASK),
    "a mean by magnitudes": (pooled(jnp.abs), {}, ROWS, MASK),
    "in predicted deviations": (score(lambda v: jnp.sqrt(jax.nn.softplus(v))), V, X, Y),
    "in a prediction's magnitude": (score(lambda v: jnp.sqrt(v**2 + 1e-3)), V, X, Y),
    "each entry by itself": (lambda p, x: (h := x @ p["w"]) / jnp.sqrt(1 + h * h), {}, X),
    "linear attention": (linear_attention, {"k": (4, 5), "v": (4, 5)}, X),
}


@pytest.mark.parametrize("name", NO_NORMALISERS)
def test_gain_and_bias_after_what_is_no_normaliser_are_not_called_a_norms(name):
    around(*NO_NORMALISERS[name], gamma="gain|unknown", beta="bias|unknown")


def folded_shift(h, g, b):
    k = g * lax.rsqrt(h.var(0) + 1e-5)
    return h * row(k) + row(b - h.mean(0) * k)


def two_quotients(h, g, b):
    s = row(jnp.sqrt(h.var(0) + 1e-5))
    return row(g) * h / s - row(g) * row(h.mean(0)) / s + row(b)


SPELLINGS = {
    "plain": lambda h, g, b: centred(h, 0) / deviation(h, 0) * row(g) + row(b),
    "gain before": lambda h, g, b: centred(h, 0) * row(g) / deviation(h, 0) + row(b),
    "zero-centred": lambda h, g, b: centred(h, 0) * row(1 + g) / deviation(h, 0) + row(b),
    "in logarithms": lambda h, g, b: centred(h, 0) / deviation(h, 0) * row(jnp.exp(g)) + row(b),
    "divided by it": lambda h, g, b: centred(h, 0) / (deviation(h, 0) / row(g)) + row(b),
    "two quotients": two_quotients,
    "folded": folded_shift,
    "a power": lambda h, g, b: centred(h, 0) * row((h.var(0) + 1e-5) ** -0.5 * g) + row(b),
    "standard deviation": lambda h, g, b: row(g) * centred(h, 0) / row(h.std(0) + 1e-5) + row(b),
    "a dot product": lambda h, g, b: (
        h * column(lax.rsqrt(jnp.einsum("bd,bd->b", h, h) / 5 + 1e-6)) * row(g) + row(b)
    ),
    "a ceiling above a reciprocal": lambda h, g, b: (
        h * column(jnp.minimum(lax.rsqrt(jnp.square(h).sum(1)), 1e7)) * row(g) + row(b)
    ),
    "a diagonal": lambda h, g, b: (centred(h, 0) / deviation(h, 0)) @ jnp.diag(g) + row(b),
    "in another dtype": lambda h, g, b: (
        ((centred(h, 0) / deviation(h, 0)).astype("bfloat16") * row(g.astype("bfloat16"))).astype(
            "float32"
        )
        + row(b)
    ),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_a_normaliser_is_one_however_it_is_spelt(name):
    def fn(p, x):
        return jnp.tanh(SPELLINGS[name](x @ p["w"], p["gamma"], p["beta"])) @ p["head"]

    params = {k: shape(*s) for k, s in SIZES.items()}
    check(fn, params, X, gamma="norm_scale", beta="norm_bias", w="weight", head="weight")


def test_what_is_joined_before_a_normaliser_is_normalised_by_it():
    def fn(p, x):
        token = jnp.broadcast_to(p["token"], (2, 1, 5))
        h = jnp.concatenate([token, (x @ p["w"]).reshape(2, 3, 5)], 1)
        scale = spread(lax.rsqrt(h.var(-1) + 1e-6), -1, h) * jnp.broadcast_to(p["gamma"], h.shape)
        return jnp.tanh(centred(h) * scale + jnp.broadcast_to(p["beta"], h.shape)) @ p["head"]

    params = {k: shape(*s) for k, s in {**SIZES, "token": (5,)}.items()}
    check(fn, params, X, gamma="norm_scale", beta="norm_bias", token="embedding")


def by_fast_variance(h, gain):
    """As Flax computes it: squares are summed before values are."""
    squares = (h * h).mean(-1)
    mean = h.mean(-1)
    scale = spread(lax.rsqrt(squares - mean**2 + 1e-6), -1, h) * jnp.broadcast_to(gain, h.shape)
    return (h - spread(mean, -1, h)) * scale


def by_roots_of_squares(h, gain):
    return h * spread(lax.rsqrt((h * h).mean(-1) + 1e-6), -1, h) * jnp.broadcast_to(gain, h.shape)


@pytest.mark.parametrize("norm", [by_fast_variance, by_roots_of_squares])
@pytest.mark.parametrize(
    "joined",
    [
        lambda p, x: jnp.concatenate([x @ p["v"], x @ p["w"]], -1),
        lambda p, x: jnp.concatenate([x[:, :3], x @ p["w"]], -1),
        lambda p, x: jnp.concatenate([jnp.tanh(x @ p["v"]), x @ p["w"], x[:, :2]], -1)[:, 2:],
        lambda p, x: jnp.stack([x @ p["w"], jnp.tanh(x @ p["w"])], -1).reshape(6, 10),
    ],
    ids=["two kernels", "with the input", "and cut", "stacked"],
)
def test_a_normaliser_over_the_joint_is_one(norm, joined):
    def fn(p, x):
        h = joined(p, x)
        return jnp.tanh(norm(h, p["gamma"]) + row(p["beta"])).sum(-1)

    sizes = {"w": (4, 5), "v": (4, 3)}
    width = jax.eval_shape(joined, {k: shape(*s) for k, s in sizes.items()}, X).shape[-1]
    params = {k: shape(*s) for k, s in {**sizes, "gamma": (width,), "beta": (width,)}.items()}
    check(fn, params, X, gamma="norm_scale", beta="norm_bias", w="weight")


@pytest.mark.parametrize("joined", [True, False])
def test_values_divided_by_one_size_of_all_of_them_are_normalised_together(joined):
    def fn(p, x):
        a, b = x @ p["w"], x @ p["v"]
        sizes = [jnp.square(h).mean(-1, keepdims=True) for h in (a, b)]
        size = (
            jnp.concatenate(sizes, -1).sum(-1, keepdims=True)
            if joined
            else sum(sizes[1:], sizes[0])
        )
        scale = lax.rsqrt(size + 1e-5)
        a, b = (h * jnp.broadcast_to(scale, h.shape) for h in (a * row(p["gamma"]), b))
        return jnp.tanh(jnp.concatenate([a + row(p["beta"]), b * row(p["alpha"])], -1)) @ p["head"]

    sizes = {**SIZES, "v": (4, 3), "alpha": (3,), "head": (8, 2)}
    params = {k: shape(*s) for k, s in sizes.items()}
    check(fn, params, X, gamma="norm_scale", alpha="norm_scale", beta="norm_bias")


def test_a_value_divided_by_the_size_of_another_is_not_normalised():
    def fn(p, x):
        a, b = x @ p["w"], x @ p["v"]
        scale = lax.rsqrt(jnp.square(b).mean(-1, keepdims=True) + 1e-5)
        return jnp.tanh(a * jnp.broadcast_to(scale, a.shape) * row(p["gamma"])) @ p["head"]

    sizes = {k: shape(*s) for k, s in {**SIZES, "v": (4, 3)}.items() if k != "beta"}
    check(fn, sizes, X, gamma="gain")


@pytest.mark.parametrize("joined", [True, False])
def test_a_penalty_on_the_sizes_of_two_values_makes_neither_a_normaliser_of_the_other(joined):
    def fn(p, x):
        a = x @ p["w"]
        b = jnp.tanh(a @ p["v"])
        sizes = [jnp.square(h).mean() for h in (a, b)]
        penalty = jnp.stack(sizes).sum() if joined else sizes[0] + sizes[1]
        scale = lax.rsqrt(jnp.square(b).mean(-1, keepdims=True) + 1e-5)
        return jnp.tanh(a * scale * row(p["gamma"]) + row(p["beta"])) @ p["head"], penalty

    params = {k: shape(*s) for k, s in {**SIZES, "v": (5, 3)}.items()}
    check(fn, params, X, gamma="gain", beta="bias")


@pytest.mark.parametrize("queries", [1, 3])
def test_learned_queries_are_normalised_too(queries):
    def fn(p, x):
        q = jnp.broadcast_to(p["q"], (6, queries, 5))
        gain, shift = (jnp.broadcast_to(p[name], q.shape) for name in ("gamma", "beta"))
        q = (layer_norm(q) * gain + shift) @ p["v"]
        return jnp.einsum("bqd,bd->bq", q, jnp.tanh(x @ p["w"]))

    sizes = {**SIZES, "q": (queries, 5), "v": (5, 5)}
    params = {k: shape(*s) for k, s in sizes.items() if k != "head"}
    check(fn, params, X, gamma="norm_scale", beta="norm_bias", v="weight", w="weight")


def test_of_two_gains_in_a_row_the_first_is_the_norms():
    def fn(p, x):
        return jnp.tanh(layer_norm(x @ p["w"]) * row(p["a"]) * row(p["b"])) @ p["head"]

    params = {"w": shape(4, 5), "a": shape(5), "b": shape(5), "head": shape(5, 2)}
    check(fn, params, X, a="norm_scale", b="gain")


def test_a_sum_of_normalised_values_is_normalised():
    def fn(p, x):
        h = layer_norm(x @ p["w"]) + layer_norm(x @ p["v"]) * row(p["alpha"])
        return jnp.tanh(h * row(p["gamma"]) + row(p["beta"])) @ p["head"]

    params = {k: shape(*s) for k, s in {**SIZES, "v": (4, 5), "alpha": (5,)}.items()}
    check(fn, params, X, gamma="norm_scale", beta="norm_bias", alpha="norm_scale")


@pytest.mark.parametrize(
    "kernel",
    [
        lambda w, g: centred(w, 0) * row(g * lax.rsqrt(w.var(0) + 1e-5)),
        lambda w, g: w * row(g / w.std(0)) - row(w.mean(0) * g / w.std(0)),
        lambda w, g: w / row(jnp.linalg.norm(w, axis=0)) * row(g),
    ],
    ids=["centred first", "centred last", "by size"],
)
def test_the_gain_of_a_normalised_kernel_is_no_norms(kernel):
    def fn(p, x):
        return jnp.tanh(x @ kernel(p["w"], p["g"])) @ p["head"]

    check(fn, {"w": shape(4, 8), "g": shape(8), "head": shape(8, 2)}, X, w="weight", g="gain")
