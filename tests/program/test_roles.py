"""What a leaf is called follows from what the program does with it, however that is written.

Each table is of one kind: entries are functions of the parameters and other arguments.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import optax_bnmask as bnmask
from tests.support.program.roles import (
    X,
    check,
    column,
    layer_norm,
    root_mean_square,
    row,
    shape,
    spread,
)


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
    "normalised by what is given, if it is not 0": (
        lambda p, x, u: (
            x @ jnp.where((p["w"] == 0).all(), p["w"], p["w"] / jnp.linalg.norm(u @ p["w"]))
        ),
        shape(4),
    ),
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


def test_a_learned_input_in_a_choice_is_one_beside_data_times_itself():
    def fn(p, x, seen):
        return jnp.tanh(jnp.where(seen, x * p["token"], p["token"]) @ p["w"])

    params = {"token": shape(6, 4), "w": shape(4, 3)}
    check(fn, params, X, shape(6, 1, dtype="bool"), token="embedding", w="weight")


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


@pytest.mark.parametrize("rule", ["jvp", "vjp"])
def test_a_surrogate_gradient_comes_through_a_spike(rule):
    def spike(x):
        return (x > 0).astype(x.dtype)

    if rule == "jvp":
        spike = jax.custom_jvp(spike)
        spike.defjvp(lambda x, t: (spike(*x), t[0] / (1 + x[0] ** 2)))
    else:
        spike = jax.custom_vjp(spike)
        spike.defvjp(lambda x: (spike(x), x), lambda x, g: (g / (1 + x**2),))
    params = {"w": shape(4, 8), "head": shape(8, 2)}
    analysis = bnmask.analyze(lambda p, x: spike(x @ p["w"]) @ p["head"], params, X)
    assert analysis["w"].reached
    assert set(analysis.decay_mask().decayed) == {"w", "head"}


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


def test_a_weight_behind_gains_and_biases_of_the_input_alone_is_at_the_input():
    def fn(p, x, tokens):
        x = layer_norm(x) * row(p["gain"]) + row(p["bias"])
        return jnp.tanh(x @ p["into"]) @ p["head"] + p["table"][tokens] @ p["on"]

    sizes = {"gain": (4,), "bias": (4,), "into": (4, 5), "head": (5, 2), "table": (9, 5)}
    params = {path: shape(*n) for path, n in (sizes | {"on": (5, 2)}).items()}
    found = bnmask.analyze(fn, params, X, shape(6, dtype="int32"))
    assert found["into"].position is bnmask.Position.INPUT
    assert found["on"].position is bnmask.Position.HEAD


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
