"""What a leaf is called follows from what the program does with it, however that is written.

Each table is of one kind: entries are functions of the parameters and other arguments.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import optax_bnmask as bnmask


def shape(*sizes, dtype="float32"):
    return jax.ShapeDtypeStruct(sizes, dtype)


def check(fn, params, *args, **expected):
    """Each leaf named has one of the roles given, which ``|`` stands between."""
    analysis = bnmask.analyze(fn, params, *args)
    found = {path: str(analysis[path].role) for path in expected}
    assert all(found[path] in expected[path].split("|") for path in expected), found


def row(x):
    """A vector beside a matrix."""
    return jnp.expand_dims(x, 0)


def column(x):
    return jnp.expand_dims(x, -1)


def spread(x, axis, of):
    """A sum or a mean, as wide as what it is of."""
    return jnp.broadcast_to(jnp.expand_dims(x, axis), of.shape)


def root_mean_square(h):
    return spread(jnp.sqrt((h * h).mean(-1) + 1e-6), -1, h)


def centred(h, axis=-1):
    return h - spread(h.mean(axis), axis, h)


def deviation(h, axis=-1):
    return spread(jnp.sqrt(h.var(axis) + 1e-5), axis, h)


def layer_norm(h):
    return centred(h) / deviation(h)


# Around each: tanh(norm(x, ..) * gamma + beta) @ head, where x @ w is what may be normalised.

SIZES = {"w": (4, 5), "gamma": (5,), "beta": (5,), "head": (5, 2)}


def around(norm, sizes, *args, **expected):
    def fn(p, *args):
        out = norm(p, *args)
        gain, shift = (jnp.broadcast_to(p[name], out.shape) for name in ("gamma", "beta"))
        return jnp.tanh(out * gain + shift) @ p["head"]

    check(fn, {k: shape(*s) for k, s in {**SIZES, **sizes}.items()}, *args, **expected)


X = shape(6, 4)


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


NORMALISERS = {
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


def modulated(p, x, style):
    w = jnp.broadcast_to(p["w"], (6, 4, 8)) * jnp.broadcast_to(column(style), (6, 4, 8))
    return jnp.einsum("bi,bio->bo", x, w * spread(lax.rsqrt((w * w).sum(1) + 1e-8), 1, w))


def quantised(p, x):
    scale = jnp.abs(p["w"]).max() / 127
    return x @ (p["w"] + lax.stop_gradient(jnp.round(p["w"] / scale) * scale - p["w"]))


def straight_through(p, x, scale):
    return x @ (jnp.round(jnp.clip(p["w"] / scale, -127, 127)) * scale)


def decomposed(p, x, base):
    w = base + p["w"]
    return x @ (w / row(jnp.linalg.norm(w, axis=0)) * row(p["m"]))


KERNEL, KEY = shape(4, 8), jax.eval_shape(lambda: jax.random.key(0))
WEIGHTS = {
    "noise": (lambda p, x, n: x @ (p["w"] + n), KERNEL),
    "drawn": (lambda p, x, k: x @ (p["w"] + jax.random.normal(k, (4, 8))), KEY),
    "relative noise": (lambda p, x, n: x @ (p["w"] * (1 + 0.1 * n)), KERNEL),
    "a mask": (lambda p, x, m: x @ (p["w"] * m), KERNEL),
    "a mask by a choice": (lambda p, x, m: x @ jnp.where(m > 0, p["w"], 0.0), KERNEL),
    "a mask of rows": (lambda p, x, m: x @ (p["w"] * column(m)), shape(4)),
    "scales of columns": (lambda p, x, s: x @ (p["w"] * row(s)), shape(8)),
    "a delta": (lambda p, x, base: x @ (base + p["w"]), KERNEL),
    "a step uphill": (lambda p, x, g: x @ (p["w"] + 0.05 * g / jnp.linalg.norm(g)), KERNEL),
    "rounded": (quantised,),
    "rounded by a given scale": (straight_through, shape()),
    "modulated": (modulated, shape(6, 4)),
    "normalised by what is given": (lambda p, x, u: x @ (p["w"] / (u @ p["w"]).sum()), shape(4)),
    "a sum of products": (lambda p, x: (column(x) * row(p["w"])).sum(1),),
    "chosen by index": (
        lambda p, x, i: jnp.einsum("bi,bio->bo", x, p["ws"][i]),
        shape(6, dtype="int32"),
    ),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_what_is_contracted_after_it_met_an_argument_is_a_weight(name):
    make, *args = WEIGHTS[name]

    def fn(p, x, *args):
        return jnp.tanh(make(p, x, *args)) @ p["head"]

    params = {"w": KERNEL, "ws": shape(3, 4, 8), "head": shape(8, 2)}
    used = "ws" if name == "chosen by index" else "w"
    check(fn, params, X, *args, **{used: "weight", "head": "weight"})


def test_low_rank_deltas_and_magnitudes():
    params = {"w": KERNEL, "m": shape(8), "head": shape(8, 2)}

    def fn(p, x, base):
        return jnp.tanh(decomposed(p, x, base)) @ p["head"]

    check(fn, params, X, KERNEL, w="weight", m="gain|norm_scale")
    params = {"a": shape(4, 2), "b": shape(2, 8), "head": shape(8, 2)}

    def fn(p, x, base):
        return jnp.tanh(x @ (base + p["a"] @ p["b"])) @ p["head"]

    check(fn, params, X, KERNEL, a="weight", b="weight")


def test_gains_before_a_contraction_with_data_are_gains():
    def fn(p, x):
        q, k = (layer_norm(x @ p[name]) for name in ("q", "k"))
        return jax.nn.softmax((q * row(p["g"])) @ (k * row(p["h"])).T) @ (x * row(p["v"]))

    params = {"q": shape(4, 8), "k": shape(4, 8), "g": shape(8), "h": shape(8), "v": shape(4)}
    check(fn, params, X, g="norm_scale", h="norm_scale", v="gain", q="weight")


def padded(x, n):
    return jnp.pad(x, ((0, 0), (n, 0), (0, 0)))


TAPS = {
    "shifted": lambda k, x: sum(padded(x, 3)[:, i : i + 5] * k[i][None, None] for i in range(4)),
    "rolled": lambda k, x: sum(jnp.roll(x, i, 1) * k[i][None, None] for i in range(4)),
    "stacked": lambda k, x: (
        jnp.stack([padded(x, 3)[:, i : i + 5] for i in range(4)], 2) * k[None, None]
    ).sum(2),
}


@pytest.mark.parametrize("name", TAPS)
def test_a_convolution_of_each_channel_by_itself_has_a_kernel(name):
    def fn(p, x):
        return jnp.tanh(TAPS[name](p["k"], x)) @ p["head"]

    check(fn, {"k": shape(4, 6), "head": shape(6, 2)}, shape(2, 5, 6), k="weight")


def test_mixing_coefficients_of_one_value_and_its_past_are_gains():
    def fn(p, x):
        past = padded(x, 1)[:, :-1]
        return jnp.tanh(x * p["mu"][None, None] + past * (1 - p["mu"])[None, None]) @ p["head"]

    check(fn, {"mu": shape(6), "head": shape(6, 2)}, shape(2, 5, 6), mu="gain")


INDICATORS = {
    "compared": lambda t: (column(t) == jnp.arange(11)[None, None]).astype("float32"),
    "one_hot": lambda t: jax.nn.one_hot(t, 11),
    "rows of an identity": lambda t: jnp.eye(11)[t],
    "rows of a given identity": lambda t: jnp.take(np.eye(11, dtype="float32"), t, axis=0),
    "chosen": lambda t: jnp.where(column(t) == jnp.arange(11)[None, None], 1.0, 0.0),
    "scattered": jax.vmap(jax.vmap(lambda i: jnp.zeros(11).at[i].set(1.0))),
    "masked": lambda t: jax.nn.one_hot(t, 11) * column(t > 0).astype("float32"),
    "counted": lambda t: jax.nn.one_hot(t, 11).sum(1),
}


@pytest.mark.parametrize("name", INDICATORS)
def test_an_indicator_times_a_table_is_a_lookup(name):
    def fn(p, t):
        return jnp.tanh(INDICATORS[name](t) @ p["table"]) @ p["head"]

    params = {"table": shape(11, 8), "head": shape(8, 3)}
    check(fn, params, shape(2, 5, dtype="int32"), table="embedding", head="weight")


POSITIONS = {
    "sliced": lambda pos: pos[:5],
    "sliced by number": lambda pos: lax.dynamic_slice(pos, (0, 0), (5, 8)),
    "by indices": lambda pos: pos[jnp.arange(5)],
}


@pytest.mark.parametrize("name", POSITIONS)
@pytest.mark.parametrize("stem", [lambda p, x: x, lambda p, x: jax.nn.gelu(x @ p["stem"])])
def test_a_table_of_positions_is_an_embedding_however_it_is_read(name, stem):
    def fn(p, x):
        return jnp.tanh(stem(p, x) + POSITIONS[name](p["pos"])[None]) @ p["head"]

    params = {"pos": shape(6, 8), "stem": shape(8, 8), "head": shape(8, 3)}
    analysis = bnmask.analyze(fn, params, shape(2, 5, 8))
    assert analysis["pos"].role == "embedding"
    assert analysis["pos"].position == "learned"


def test_biases_of_heads_and_norms_of_images_are_no_tables_of_positions():
    def fn(p, x):
        h = jnp.einsum("btd,dhk->bthk", x, p["q"]) + p["b"][None, None]
        h = jnp.tanh(layer_norm(h.reshape(2, 5, 8))).reshape(2, 40)
        z = (h - row(h.mean(0))) / row(jnp.sqrt(h.var(0) + 1e-5))
        z = z.reshape(2, 5, 8) * p["gamma"][None] + p["beta"][None]
        return jnp.tanh(z) @ p["head"]

    sizes = {"q": (8, 2, 4), "b": (2, 4), "gamma": (5, 8), "beta": (5, 8), "head": (8, 3)}
    params = {k: shape(*s) for k, s in sizes.items()}
    check(fn, params, shape(2, 5, 8), b="bias", gamma="norm_scale", beta="norm_bias")


def attention(q, p, x):
    return jax.nn.softmax(q @ (x @ p["wk"]).T) @ x @ p["head"]


def test_roles_before_any_data_have_arrived():
    def fn(p, x):
        q = layer_norm(p["query"]) * row(p["gamma"]) + row(p["beta"])
        q = jax.nn.gelu(q @ p["w1"] + row(p["b1"])) @ p["w2"] + row(p["b2"])
        return attention(q / root_mean_square(q) * row(p["g"]), p, x)

    sizes = {"query": (3, 8), "gamma": (8,), "beta": (8,), "w1": (8, 6), "b1": (6,)}
    sizes |= {"w2": (6, 8), "b2": (8,), "g": (8,), "wk": (8, 8), "head": (8, 2)}
    expected = {"gamma": "norm_scale", "beta": "norm_bias", "g": "norm_scale", "wk": "weight"}
    expected |= {"w1": "weight", "b1": "bias", "w2": "weight", "b2": "bias"}
    check(fn, {k: shape(*s) for k, s in sizes.items()}, shape(5, 8), **expected)


def state_space(p, x):
    dt = jax.nn.softplus(x @ p["wdt"] + p["dt_bias"][None, None])
    rate, b, c = -jnp.exp(p["A_log"]), x @ p["B"], x @ p["C"]

    def step(h, now):
        dt, x, b, c = now
        decay = jnp.exp(jnp.expand_dims(dt, -1) * rate[None])
        h = decay * h + jnp.expand_dims(dt * x, -1) * jnp.expand_dims(b, 1)
        return h, jnp.einsum("bdn,bn->bd", h, c)

    rows = tuple(jnp.swapaxes(v, 0, 1) for v in (dt, x, b, c))
    _, y = lax.scan(step, jnp.zeros((2, 8, 4)), rows)
    return (jnp.swapaxes(y, 0, 1) + x * p["D"][None, None]) @ p["head"]


STATE_SPACE = {"A_log": (8, 4), "B": (8, 4), "C": (8, 4), "D": (8,), "wdt": (8, 8)}
STATE_SPACE |= {"dt_bias": (8,), "head": (8, 3)}


def test_a_state_space_layer_and_what_wide_recipes_exempt():
    params = {k: shape(*s) for k, s in STATE_SPACE.items()}
    analysis = bnmask.analyze(state_space, params, shape(2, 5, 8))
    found = {leaf.path: str(leaf.role) for leaf in analysis.leaves}
    expected = dict.fromkeys(STATE_SPACE, "weight") | {"A_log": "gain", "D": "gain"}
    assert found == expected | {"dt_bias": "bias"}
    exempted = analysis.decay_mask(exempt=bnmask.WIDE).exempted
    assert set(exempted) == {"A_log", "D", "dt_bias"}


def test_wide_takes_tokens_and_single_numbers_but_no_kernels_and_no_lookups():
    def fn(p, t):
        x = p["table"][t] + p["pos"][None]
        x = jnp.concatenate([jnp.broadcast_to(p["token"], (2, 1, 8)), x], 1)
        x = TAPS["shifted"](p["taps"], x[:, :5]) * p["temperature"]
        return jnp.tanh(x) @ p["head"]

    sizes = {"table": (11, 8), "pos": (5, 8), "token": (1, 1, 8), "taps": (4, 8)}
    params = {k: shape(*s) for k, s in {**sizes, "temperature": (), "head": (8, 3)}.items()}
    mask = bnmask.analyze(fn, params, shape(2, 5, dtype="int32")).decay_mask(exempt=bnmask.WIDE)
    assert set(mask.decayed) == {"table", "taps", "head"}


def test_leaves_that_no_gradient_reaches_do_not_decay():
    def fn(p, x):
        teacher = lax.stop_gradient(jnp.tanh(x @ p["teacher"]))
        places = jnp.argmax(x @ p["router"], -1)
        h = jnp.tanh(x @ p["w"]) + lax.stop_gradient(x @ p["w"]) - teacher + p["table"][places]
        return h @ p["head"]

    sizes = {"teacher": (4, 8), "router": (4, 3), "w": (4, 8), "table": (3, 8), "head": (8, 2)}
    params = {k: shape(*s) for k, s in {**sizes, "spare": (5,)}.items()}
    analysis = bnmask.analyze(fn, params, X)
    unreached = {leaf.path for leaf in analysis.leaves if not leaf.reached}
    assert unreached == {"teacher", "router", "spare"}
    assert set(analysis.decay_mask().exempted) == unreached
    assert set(analysis.select("unreached").decayed) == unreached
    assert analysis.decay_mask(always=["spare"])["spare"]


def test_a_rounding_with_a_derivative_of_its_own_lets_gradients_through():
    @jax.custom_vjp
    def rounded(x):
        return jnp.round(x)

    rounded.defvjp(lambda x: (jnp.round(x), None), lambda _, g: (g,))
    params = {"a": shape(4, 8), "b": shape(4, 8), "head": shape(8, 2)}

    def fn(p, x):
        return jnp.tanh(x @ rounded(p["a"]) + x @ jnp.round(p["b"])) @ p["head"]

    analysis = bnmask.analyze(fn, params, X)
    assert analysis["a"].reached
    assert not analysis["b"].reached


def test_heads_inputs_and_hidden_weights_are_told_by_the_flow_of_the_data():
    def fn(p, x):
        h = jnp.tanh(x @ p["zz"] + p["table"][jnp.zeros(6, int)])
        h = h + jnp.tanh(h @ p["middle"])
        return h @ p["aa"], jnp.tanh(h) @ p["value"]

    sizes = {"zz": (4, 8), "middle": (8, 8), "aa": (8, 2), "value": (8, 1), "table": (3, 8)}
    analysis = bnmask.analyze(fn, {k: shape(*s) for k, s in sizes.items()}, X)
    found = {leaf.path: str(leaf.position) for leaf in analysis.leaves}
    expected = {"zz": "input", "middle": "hidden", "aa": "head", "value": "head"}
    assert found == expected | {"table": "learned"}
    labels = analysis.labels(categories=("head", "input", "hidden"), default="rest")
    assert labels["aa"] == "head"
    assert labels["table"] == "rest"


def test_a_recurrent_kernel_is_hidden_and_a_tied_table_is_a_head():
    def recurrent(p, x):
        def step(h, row):
            return (jnp.tanh(h @ p["w"] + row @ p["u"]),) * 2

        return lax.scan(step, jnp.zeros((3, 8)), x)[1] @ p["head"]

    params = {"w": shape(8, 8), "u": shape(4, 8), "head": shape(8, 2)}
    analysis = bnmask.analyze(recurrent, params, shape(5, 3, 4))
    assert [str(analysis[k].position) for k in ("w", "u", "head")] == ["hidden", "input", "head"]

    def tied(p, t):
        return jnp.tanh(p["table"][t] @ p["w"]) @ p["table"].T

    params = {"table": shape(11, 8), "w": shape(8, 8)}
    analysis = bnmask.analyze(tied, params, shape(2, 5, dtype="int32"))
    assert analysis["table"].role == "embedding"
    assert analysis["table"].position == "head"
