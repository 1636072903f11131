"""Leaves whose value does not matter: claims in numbers, and what is missed, with the reason."""

import dataclasses
import json
import math
import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import optax_bnmask as bnmask
from tests.support.program.dead import drawn, examine
from tests.support.program.dead_leaves import (
    EPS,
    IMAGE,
    ROWS,
    TOKENS,
    agrees,
    analysed,
    conv,
    in_numbers,
)
from tests.support.program.networks import Network, seeded_network

pytestmark = pytest.mark.usefixtures("optax_promotion")


def two_pass(h, axes):
    return (h - h.mean(axes, keepdims=True)) / jnp.sqrt(h.var(axes, keepdims=True) + EPS)


def by_moments(h, axes):
    mean = h.mean(axes, keepdims=True)
    var = jnp.maximum(0, lax.square(h).mean(axes, keepdims=True) - lax.square(mean))
    return (h - mean) * lax.rsqrt(var + EPS)


def by_sums(h, axes):
    n = math.prod(h.shape[a] for a in axes)
    mean = h.sum(axes, keepdims=True) * (1 / n)
    return (h - mean) * lax.rsqrt((h**2).sum(axes, keepdims=True) / n - mean * mean + EPS)


def folded(h, axes):
    scale = lax.rsqrt(h.var(axes, keepdims=True) + EPS)
    return h * scale - h.mean(axes, keepdims=True) * scale


def in_two_steps(h, axes):
    mean = h
    for axis in axes:
        mean = mean.mean(axis, keepdims=True)
    y = h - mean
    return y / jnp.sqrt((y * y).mean(axes, keepdims=True) + EPS)


def stacked(h, axes):
    """Both moments in one array, as they are exchanged between devices at once."""
    sums = jnp.stack([h.sum(axes, keepdims=True), (h * h).sum(axes, keepdims=True)])
    mean, square = sums / math.prod(h.shape[a] for a in axes)
    return (h - mean) * lax.rsqrt(square - mean * mean + EPS)


SPELLINGS = [two_pass, by_moments, by_sums, folded, in_two_steps, stacked]


@pytest.mark.parametrize("norm", SPELLINGS)
def test_a_bias_before_a_batch_norm_is_dead(norm):
    dead = agrees(
        lambda p, x: jnp.tanh(norm(x @ p["w"] + p["b"], (0,)) * p["g"] + p["beta"]) @ p["v"],
        {"w": (3, 6), "b": (6,), "g": (6,), "beta": (6,), "v": (6, 2)},
        drawn(ROWS, 1),
    )
    assert dead == ("b",)


@pytest.mark.parametrize("keepdims", [True, False])
@pytest.mark.parametrize("negated", [True, False])
def test_a_bias_is_dead_before_a_batch_norm_as_one_product_and_one_sum(keepdims, negated):
    def fn(p, x):
        h = x @ p["w"] + p["b"]
        mean, var = h.mean(0, keepdims=keepdims), h.var(0, keepdims=keepdims)
        scale = lax.rsqrt(var + EPS) * p["g"]
        shift = -mean * scale + p["beta"] if negated else p["beta"] - mean * scale
        return jnp.tanh(h * scale + shift) @ p["v"]

    shapes = {"w": (3, 6), "b": (6,), "g": (6,), "beta": (6,), "v": (6, 2)}
    assert agrees(fn, shapes, drawn(ROWS, 1)) == ("b",)


@pytest.mark.parametrize("norm", SPELLINGS)
@pytest.mark.parametrize(("axes", "expected"), [((1, 2), ("b",)), ((1, 2, 3), ()), ((3,), ())])
def test_a_bias_is_dead_before_a_norm_of_single_channels_and_not_of_several(norm, axes, expected):
    dead = agrees(
        lambda p, x: jnp.tanh(norm(x @ p["w"] + p["b"], axes)),
        {"w": (3, 6), "b": (6,)},
        drawn(IMAGE, 1),
    )
    assert dead == expected


@pytest.mark.parametrize(
    ("size", "padding", "expected"),
    [(1, "SAME", ("beta",)), (1, "VALID", ("beta",)), (3, "VALID", ("beta",)), (3, "SAME", ())],
)
def test_beta_is_dead_before_a_convolution_without_padding_and_a_norm(size, padding, expected):
    def fn(p, x):
        h = by_moments(x, (0, 1, 2)) * p["g"] + p["beta"]
        return jnp.sin(by_moments(conv(h, p["w"], padding), (0, 1, 2)))

    shapes = {"g": (3,), "beta": (3,), "w": (size, size, 3, 4)}
    assert agrees(fn, shapes, drawn(IMAGE, 1)) == expected


def test_biases_are_dead_through_residual_streams_that_only_norms_read():
    def fn(p, x):
        h = x @ p["stem"] + p["b0"]
        for i in "12":
            y = jnp.tanh(two_pass(h, (0,))) @ p[f"w{i}"]
            h = h + 0.5 * y + p[f"b{i}"]
        return two_pass(h, (0,)) @ p["head"] + p["b3"]

    shapes = {"stem": (3, 6), "w1": (6, 6), "w2": (6, 6), "head": (6, 2)}
    shapes |= {"b0": (6,), "b1": (6,), "b2": (6,), "b3": (2,)}
    assert agrees(fn, shapes, drawn(ROWS, 1)) == ("b0", "b1", "b2")


def rotated(z, angle):
    x, y = z[..., :1], z[..., 1:]
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return jnp.concatenate([x * cos - y * sin, x * sin + y * cos], -1)


def attention(mask=None, *, rotary=False, cap=None):
    def fn(p, x):
        q, k, v = (jnp.einsum("btc,chd->bthd", x, p[w]) + p[f"{w}_bias"] for w in "qkv")
        if rotary:
            angle = jnp.arange(x.shape[1])[:, None, None] * jnp.ones(1)
            q, k = (rotated(z, angle) for z in (q, k))
        score = jnp.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(2)
        score = score if cap is None else cap * jnp.tanh(score / cap)
        if mask is not None:
            low = jnp.finfo(score.dtype).min if mask == "finfo" else mask
            score = jnp.where(jnp.tril(jnp.ones(score.shape[-2:], bool)), score, low)
        return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(score), v)

    return fn


QKV = dict.fromkeys("qkv", (4, 2, 2)) | {f"{w}_bias": (2, 2) for w in "qkv"}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ("k_bias",)),
        ({"mask": -math.inf}, ("k_bias",)),
        ({"mask": "finfo"}, ("k_bias",)),
        ({"mask": -1e9}, ("k_bias",)),
        ({"mask": -1e4}, ("k_bias",)),
        ({"mask": -10.0}, ()),
        ({"rotary": True}, ()),
        ({"cap": 5.0}, ()),
    ],
)
def test_the_bias_of_keys_is_dead_before_a_softmax(options, expected):
    assert agrees(attention(**options), QKV, drawn(TOKENS, 1)) == expected


def filled_and_averaged(p, x):
    z = x @ p["w"] + p["b"]
    z = jnp.where(x[..., :1] > 0, z, -1e9)
    return jnp.tanh(z - z.mean(0))


def filled_and_told(p, x):
    z = jnp.where(jnp.arange(3) > 0, x @ p["w"] + p["b"], -1e9)
    return jax.nn.log_softmax(z)


@pytest.mark.parametrize("fn", [filled_and_averaged, filled_and_told])
def test_what_masks_are_filled_with_is_infinite_before_a_softmax_alone(fn):
    assert analysed(fn, drawn({"w": (4, 3), "b": (1,)}), drawn((5, 4), 1)).dead == ()


@pytest.mark.parametrize("fill", ["finfo", -1e9])
def test_what_a_mask_is_filled_with_is_an_assumption(fill):
    params = drawn(QKV)
    found = analysed(attention(fill), params, drawn(TOKENS, 1)).assumptions
    assert {(a.kind, a.primitive) for a in found} == {("infinity", "select_n")}


def layers(p, x):
    """A scan over layers that each begin with a norm."""

    def layer(h, own):
        return h + jnp.tanh(two_pass(h, (0,)) @ own["w"]) @ own["v"] + own["b"], None

    h, _ = lax.scan(layer, x @ p["in"] + p["a"], {k: p[k] for k in "wvb"})
    return two_pass(h, (0,))


def while_loop(p, x):
    def step(state):
        i, h = state
        return i + 1, jnp.sin(two_pass(h @ p["w"] + p["b"], (0,)))

    return lax.while_loop(lambda s: s[0] < 3, step, (0, x))[1]


def for_loop(p, x):
    return lax.fori_loop(0, 3, lambda _, h: jnp.sin(two_pass(h @ p["w"] + p["b"], (0,))), x)


def accumulated(p, x):
    """Of what is carried, each iteration adds one more bias, and the output reads it."""
    return lax.scan(lambda h, b: (h + b, None), x, p["b"])[0]


def either(p, x):
    h = x @ p["w"]
    biased = lax.cond(x[0, 0] > 0, lambda: h + p["b"], lambda: 2 * h + p["c"])
    return jnp.tanh(two_pass(biased, (0,)))


def pooled(p, x):
    h = x + p["b"]
    h = nn.max_pool(h, (2, 2), (1, 1), "SAME") + nn.avg_pool(h, (2, 2), (1, 1), "SAME")
    return jnp.sin(two_pass(h, (0, 1, 2)))


def pooled_within(p, x):
    h = nn.avg_pool(nn.max_pool(x + p["b"], (2, 2), (1, 1), "SAME"), (2, 2), (1, 1), "VALID")
    return jnp.sin(two_pass(h, (0, 1, 2)))


def joined(p, x):
    """As in a dense block: biases side by side, then one norm."""
    h = x @ p["w"] + p["b"]
    h = jnp.concatenate([h, jnp.tanh(two_pass(h, (0,))) @ p["v"] + p["c"]], axis=1)
    return jnp.sin(two_pass(h, (0,)))


def in_heads(p, x):
    h = (x @ p["w"] + p["b"]).reshape(8, 2, 3)
    return jnp.sin(two_pass(h, (0,)).transpose(1, 0, 2))


def turned_and_cut(p, x):
    """Rows in the reverse order, of which some are taken, from a place that data decide."""
    per_row = p["a"][:, None]
    one, other = (lax.rev(z, (0,)) for z in (x + per_row + p["b"], x * x + per_row))
    some = lax.dynamic_slice(one - other, (jnp.argmax(x[:, 0]) // 2, 0), (4, 3))
    return some - some.mean(0)


def positive(p, x):
    return jnp.sin(two_pass(x @ p["w"] + jax.nn.softplus(p["b"]), (0,)))


def shifted_logits(p, x):
    """One number added to all logits."""
    return jax.nn.log_softmax(x @ p["w"] + p["c"])


def test_a_while_loop_whose_length_is_computed():
    shapes = {"w": (3, 3), "b": (3,)}
    params, x = drawn(shapes), drawn(ROWS, 1)
    assert analysed(while_loop, params, x).dead == ("b",) == in_numbers(while_loop, params, x)


def ranked(p, x):
    h = x @ p["w"] + p["b"]
    return h.argmax(1), (h > h[:, :1]), lax.top_k(h, 2)[1], jnp.sort(h, 1) - h.max(1, keepdims=True)


PROGRAMS = {
    "scanned layers": (
        layers,
        {"in": (3, 4), "a": (4,), "w": (3, 4, 4), "v": (3, 4, 4), "b": (3, 4)},
        ("a", "b"),
    ),
    "a loop": (for_loop, {"w": (3, 3), "b": (3,)}, ("b",)),
    "accumulated in a loop": (accumulated, {"b": (3, 3)}, ()),
    "two branches": (either, {"w": (3, 4), "b": (4,), "c": (4,)}, ("b", "c")),
    "joined": (joined, {"w": (3, 4), "b": (4,), "v": (4, 2), "c": (2,)}, ("b", "c")),
    "turned and cut": (turned_and_cut, {"a": (8,), "b": (3,)}, ("a", "b")),
    "heads": (in_heads, {"w": (3, 6), "b": (6,)}, ("b",)),
    "a bias through a softplus": (positive, {"w": (3, 4), "b": (4,)}, ("b",)),
    "one number for all logits": (shifted_logits, {"w": (3, 4), "c": ()}, ("c",)),
    "places and orders": (ranked, {"w": (3, 4), "b": ()}, ("b",)),
    "times zero": (lambda p, x: x @ p["w"] + 0 * p["b"], {"w": (3, 4), "b": (4,)}, ("b",)),
    "half of a difference": (
        lambda p, x: x + p["b"] - 0.5 * (x + p["b"]).mean(0),
        {"b": (3,)},
        (),
    ),
    "rounded": (lambda p, x: x + jnp.round(p["b"]) + p["a"], {"a": (3,), "b": (3,)}, ()),
    "differences of neighbours": (lambda p, x: jnp.diff(x + p["b"], axis=0), {"b": (3,)}, ("b",)),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_dead_in_programs_of_all_kinds(name):
    fn, shapes, expected = PROGRAMS[name]
    assert agrees(fn, shapes, drawn(ROWS, 1)) == expected


@pytest.mark.parametrize(("fn", "expected"), [(pooled, ()), (pooled_within, ("b",))])
def test_zeros_beside_an_image_end_what_is_constant_and_minus_infinity_does_not(fn, expected):
    assert agrees(fn, {"b": (3,)}, drawn(IMAGE, 1)) == expected


def masked(p, x):
    h, some = x @ p["w"] + p["b"], jnp.arange(8)[:, None] < 6
    return h - h.mean(0, where=some, keepdims=True)


def of_magnitudes(p, x):
    h = x @ p["w"] + p["b"]
    mean = h.mean(0)
    return (h - mean) * lax.rsqrt((jnp.abs(h) ** 2).mean(0) - mean**2 + EPS)


def by_a_matrix(p, x):
    h = x @ p["w"] + p["b"]
    return (jnp.eye(8) - 1 / 8) @ h


def of_examples(p, x):
    """What depends on the example, and not on the position."""
    h = jnp.einsum("btc,cd->btd", x, p["w"]) + (x[:, 0] @ p["emb"])[:, None]
    return jnp.sin(two_pass(h, (1,)))


MISSED = {
    "a mean over some rows, as in a masked norm": (masked, ROWS, "b"),
    "a mean of squared magnitudes": (of_magnitudes, ROWS, "b"),
    "a mean that is a contraction": (by_a_matrix, ROWS, "b"),
    "a kernel whose output is constant only once it is broadcast": (of_examples, TOKENS, "emb"),
}


@pytest.mark.parametrize("reason", MISSED)
def test_what_is_missed(reason):
    fn, shape, path = MISSED[reason]
    n = shape[-1]
    params = drawn({"w": (n, 4), "b": (4,), "emb": (n, 4)})
    args = drawn(shape, 1)
    assert path in in_numbers(fn, params, args)
    assert analysed(fn, params, args)[path].dead is None


@pytest.mark.once
@pytest.mark.parametrize("first", range(0, 150, 25))
def test_no_leaf_of_a_network_by_seed_is_called_dead_that_moves_an_output(first):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for seed in range(first, first + 25):
            assert examine(seeded_network(seed)).wrong == ()


def test_a_false_claim_is_noticed():
    network = Network(
        lambda p, x: jnp.tanh(x @ p["w"] + p["b"][None]),
        {"w": np.ones((3, 2)), "b": np.ones(2)},
        np.ones((4, 3)),
        {},
        ("tanh",),
    )
    params = {"w": network.params["w"], "b": network.params["b"]}
    honest = analysed(network.fn, params, network.x)
    assert examine(network, honest).wrong == ()
    leaves = [
        dataclasses.replace(leaf, dead=bnmask.vocabulary.Cancellation("mean", ""))
        for leaf in honest.leaves
    ]
    wrong = examine(network, dataclasses.replace(honest, leaves=tuple(leaves))).wrong
    assert [line.split(":")[0] for line in wrong] == ["b", "w", "all at once"]


def normed(p, x):
    return jnp.tanh(two_pass(x @ p["w"] + p["b"], (0,)) * p["g"]) @ p["v"]


NORMED = {"w": (3, 6), "b": (6,), "g": (6,), "v": (6, 2), "spare": (2,)}


def test_a_kernel_is_invariant_alone_where_its_bias_is_dead():
    analysis = analysed(normed, drawn(NORMED), drawn(ROWS, 1))
    assert analysis.dead == ("b", "spare")
    assert analysis["w"].scale is bnmask.Scale.INVARIANT
    assert analysis.proof.witness("w") == {"w": 1}
    assert analysis["b"].role is bnmask.Role.BIAS
    assert analysis["b"].invariant_axes == (0,)
    assert analysis.groups == ()
    assert {"b": 1} in analysis.symmetries
    assert "spare" not in {path for s in analysis.symmetries for path in s}


def test_a_gain_is_invariant_alone_whose_bias_is_dead():
    def fn(p, x):
        h = two_pass(x @ p["w"], (0,)) * p["g"] + p["b"]
        return jnp.tanh(two_pass(h @ p["v"], (0,)))

    analysis = analysed(fn, drawn({"w": (3, 6), "g": (6,), "b": (6,), "v": (6, 2)}), drawn(ROWS, 1))
    assert {leaf.path: str(leaf.scale) for leaf in analysis.leaves} == dict.fromkeys(
        "bgvw", "invariant"
    )
    assert analysis.groups == ()


def test_what_is_dead_is_a_category_and_survives_json():
    analysis = analysed(normed, drawn(NORMED), drawn(ROWS, 1))
    assert set(analysis.decay_mask(exempt=("dead",)).exempted) == {"b", "spare"}
    again = bnmask.Analysis.from_json(analysis.to_json())
    assert again == analysis
    assert again.dead == ("b", "spare")
    text = json.loads(analysis.to_json())
    text["leaves"][0]["dead"]["kind"] = "magic"
    with pytest.raises(bnmask.StructureError, match="'mean', 'maximum', 'comparison'"):
        bnmask.Analysis.from_json(json.dumps(text))


def test_structure_cannot_tell_what_is_dead():
    analysis = bnmask.analyze_structure({"dense": {"kernel": jnp.ones((2, 3))}})
    assert analysis.dead == ()
    with pytest.raises(bnmask.CategoryError, match="'dead' cannot be told from structure alone"):
        analysis.select("dead")


def test_reports_say_where_it_goes_and_what_saves_it():
    analysis = analysed(normed, drawn(NORMED), drawn(ROWS, 1))
    b, spare = analysis["b"], analysis["spare"]
    assert (b.dead.kind, spare.dead.kind) == ("mean", "unread")
    assert b.dead.where.endswith("(two_pass)")
    text = analysis.to_text()
    assert "Dead, as their value does not matter: 2 leaves, 18.2 % of the parameters." in text
    said = f"- b never reaches an output: the mean subtracted at {b.dead.where} takes it away; "
    assert f"{said}`use_bias=False` saves it" in text
    assert "- spare never reaches an output: no output depends on it" in text
    chain = "b plus anything:\n  no output changes: the mean subtracted at"
    assert analysis.explain("b").startswith(chain)


def test_the_maximum_of_a_softmax_is_named():
    found = analysed(attention(), drawn(QKV), drawn(TOKENS, 1))["k_bias"].dead
    assert found.kind == "maximum"
