"""Axes along which the same may be added to a leaf: claims in numbers, and what is missed."""

import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_bnmask as bnmask
from tests.support.program.dead import SAME, change, drawn, gradients
from tests.support.program.evaluating import traced
from tests.support.verify.false_claims import with_shift_axes

ROWS, TOKENS = (8, 3), (2, 5, 4)
LABELS = np.array([0, 1, 4, 2, 2, 3, 1, 0], np.int32)


pytestmark = pytest.mark.usefixtures("optax_promotion")


def found(fn, shapes, *args):
    """The axes found, all of which hold in numbers, and the gradient sums to 0 along them."""
    params = drawn(shapes)
    given = {path: jax.ShapeDtypeStruct(v.shape, jnp.float32) for path, v in params.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        analysis = bnmask.analyze(fn, given, *args)
    axes = analysis.shift_axes
    apply = traced(fn, params, *args)
    for path, own in axes.items():
        for axis in own:
            assert change(lambda p: apply(p, *args), params, [(path, axis)]) < SAME, path
            gradient = gradients(fn, params, *args)[path]
            assert np.max(np.abs(gradient.sum(axis))) < 1e-10 * np.max(np.abs(gradient))
    return axes


def logits(p, x):
    return jnp.tanh(x @ p["u"]) @ p["w"] + p["b"]


LOGITS = {"u": (3, 6), "w": (6, 5), "b": (5,)}
X = np.random.default_rng(1).normal(size=ROWS)
X32 = jax.ShapeDtypeStruct(ROWS, jnp.float32)


def by_integers(p, x):
    return optax.softmax_cross_entropy_with_integer_labels(logits(p, x), LABELS).mean()


def by_one_hot(p, x):
    return optax.softmax_cross_entropy(logits(p, x), jax.nn.one_hot(LABELS, 5)).mean()


def by_log_softmax(p, x):
    return -jax.nn.log_softmax(logits(p, x))[np.arange(8, dtype=np.int32), LABELS].mean()


def by_softmax(p, x):
    return jax.nn.softmax(logits(p, x))


def by_logsumexp(p, x):
    z = logits(p, x)
    return (jax.nn.logsumexp(z, axis=1) - jnp.take_along_axis(z, LABELS[:, None], 1)[:, 0]).mean()


def by_argmax(p, x):
    return jnp.argmax(logits(p, x), 1).astype(jnp.float32)


def tempered(p, x):
    return jax.nn.softmax(logits(p, x) / 3.0 + X.sum(1, keepdims=True))


@pytest.mark.parametrize(
    "loss", [by_integers, by_one_hot, by_log_softmax, by_softmax, by_logsumexp, tempered]
)
def test_of_logits_that_a_softmax_reads_the_same_may_be_added_to_all(loss):
    assert found(loss, LOGITS, X) == {"b": (0,), "w": (1,)}


def test_of_logits_whose_order_is_all_that_is_read():
    given = {path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in LOGITS.items()}
    analysis = bnmask.analyze(by_argmax, given, X32)
    assert analysis.shift_axes == {"b": (0,), "w": (1,)}


@pytest.mark.parametrize(
    "loss",
    [
        lambda p, x: jax.nn.sigmoid(logits(p, x)),
        lambda p, x: (logits(p, x), by_softmax(p, x)),
        lambda p, x: jax.nn.softmax(logits(p, x) * jnp.arange(1.0, 6)),
        lambda p, x: jax.nn.softmax(logits(p, x), axis=0),
        lambda p, x: jax.nn.softmax(jax.nn.relu(logits(p, x))),
        lambda p, x: by_softmax(p, x) + 1e-3 * jnp.square(jax.nn.logsumexp(logits(p, x))),
    ],
    ids=["sigmoids", "logits put out", "tempered apart", "over the batch", "a ReLU", "z loss"],
)
def test_where_something_else_is_read_of_the_logits_it_is_not_said(loss):
    axes = found(loss, LOGITS, X)
    assert axes.get("b", ()) == ()
    assert 1 not in axes.get("w", ())


def two_pass(h, axis, g):
    return (h - h.mean(axis, keepdims=True)) / jnp.sqrt(h.var(axis, keepdims=True) + 1e-5) * g


def by_moments(h, axis, g):
    mean = h.mean(axis, keepdims=True)
    return (h - mean) * jax.lax.rsqrt((h**2).mean(axis, keepdims=True) - mean**2 + 1e-5) * g


def folded(h, axis, g):
    scale = g * jax.lax.rsqrt(h.var(axis, keepdims=True) + 1e-5)
    return h * scale - h.mean(axis, keepdims=True) * scale


@pytest.mark.parametrize("norm", [two_pass, by_moments, folded])
def test_what_writes_to_a_stream_that_layer_norms_read(norm):
    def fn(p, x):
        h = x @ p["in"] + p["bias"]
        h = h + jnp.tanh(norm(h, -1, p["g"]) @ p["up"]) @ p["down"]
        return norm(h, -1, p["last"]) @ p["head"]

    shapes = {"in": (3, 6), "bias": (6,), "g": (6,), "up": (6, 8), "down": (8, 6)}
    shapes |= {"last": (6,), "head": (6, 2)}
    assert found(fn, shapes, X) == {"in": (1,), "bias": (0,), "down": (1,)}


def test_a_stream_that_rms_norms_read_has_no_shift():
    def fn(p, x):
        h = x @ p["in"]
        return h / jnp.sqrt((h * h).mean(-1, keepdims=True) + 1e-5) @ p["head"]

    assert found(fn, {"in": (3, 6), "head": (6, 2)}, X) == {}


def test_heads_of_a_kernel_are_shifted_together_or_not_at_all():
    """An attention's output kernel (head, feature, width) in front of a LayerNorm."""

    def fn(p, x):
        h = jnp.einsum("nhk,hkd->nd", jnp.tanh(jnp.einsum("nd,dhk->nhk", x, p["v"])), p["out"])
        return two_pass(h, -1, 1.0) @ p["head"]

    shapes = {"v": (3, 2, 4), "out": (2, 4, 6), "head": (6, 2)}
    assert found(fn, shapes, X) == {"out": (2,)}


def test_queries_and_keys_that_are_normalised_feature_by_feature():
    """What is the same for all heads is no symmetry, and does not hide that within a head."""

    class Attention(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.MultiHeadDotProductAttention(2, normalize_qk=True)(x, x)

    x = jax.ShapeDtypeStruct(TOKENS, jnp.float32)
    variables = jax.eval_shape(Attention().init, jax.random.key(0), x)
    analysis = bnmask.analyze_linen(Attention(), variables, x)
    axes = {path.split("/", 1)[1]: own for path, own in analysis.shift_axes.items()}
    assert axes == {
        "query/kernel": (2,), "query/bias": (1,), "key/kernel": (2,), "key/bias": (1,),
    }  # fmt: skip


def test_through_loops():
    def fn(p, x):
        def body(h, layer):
            return h + jnp.tanh(two_pass(h, -1, layer["g"]) @ layer["up"]) @ layer["down"], None

        layers = {name: p[name] for name in ("g", "up", "down")}
        h, _ = jax.lax.scan(body, x @ p["in"], layers)
        return two_pass(h, -1, 1.0)

    shapes = {"in": (3, 6), "g": (4, 6), "up": (4, 6, 8), "down": (4, 8, 6)}
    assert found(fn, shapes, X) == {"in": (1,), "down": (2,)}


def test_gathered_for_each_example_its_own():
    """A table looked up at the labels of its own rows varies along these rows still."""

    def fn(p, x):
        scores = x @ p["w"] + p["b"]
        own = jnp.take_along_axis(scores, LABELS[:, None], axis=1)
        return jnp.tanh(scores - own)

    assert found(fn, {"w": (3, 5), "b": (5,)}, X) == {"w": (1,), "b": (0,)}


PLACES = np.array([[0, 1, 2, 3], [1, 2, 3, 0], [3, 3, 1, 0], [2, 0, 0, 1]], np.int32)
LAST = np.array([0, 2, 4, 1, 3, 2, 0, 4], np.int32)


def standardised(z):
    return (z - z.mean(0)) / jnp.sqrt(z.var(0) + 1e-5)


def by_own_places(p, x):
    return jax.nn.softmax(jnp.take_along_axis(x[:4, :1] + p["b"][:, None], PLACES, axis=0), axis=1)


def pooled_at_the_end(p, x):
    h = x[:, None] + p["b"][None]
    return standardised(jax.vmap(lambda row, i: row[i])(h, LAST) @ jnp.ones((3, 2)))


def cropped(p, x):
    rows = x.sum(1, keepdims=True) + p["b"]
    crops = jax.vmap(lambda row, i: jax.lax.dynamic_slice(row, (i,), (2,)))(rows, LAST)
    return crops - crops.mean(0)


def reshaped_otherwise(p, x):
    b = p["b"][None, :, None]
    one = jnp.broadcast_to(b, (2, 6, 4)).reshape(8, 6)
    return one - jnp.broadcast_to(b, (4, 6, 2)).reshape(8, 6) + x.sum()


@pytest.mark.parametrize(
    ("fn", "shape"),
    [
        (by_own_places, (4,)),
        (pooled_at_the_end, (5, 3)),
        (cropped, (6,)),
        (reshaped_otherwise, (6,)),
    ],
)
def test_rows_at_places_of_their_own_do_not_change_alike(fn, shape):
    analysis = bnmask.analyze(fn, {"b": jax.ShapeDtypeStruct(shape, jnp.float32)}, X32)
    assert analysis.dead == ()
    found(fn, {"b": shape}, X)


def where_finite(p, x):
    s = jnp.where(x[:, :1] > 0, x @ p["w"] + p["b"], -jnp.inf)
    s = jnp.where(jnp.isfinite(s), s, 0.0)
    return s - s.mean(-1, keepdims=True)


def out_of_bounds(p, x):
    z = x @ p["w"] + p["b"]
    found = jnp.take_along_axis(z, LABELS[:, None] + 3, 1, mode="fill")
    return z - jnp.where(jnp.isfinite(found), found, 0.0)


def a_maximum_beside(p, x):
    z = x @ p["w"] + p["b"]
    return jnp.where(x[:, :1] > 0, z, -1e5).max(-1) - z.max(-1)


@pytest.mark.parametrize("fn", [where_finite, out_of_bounds, a_maximum_beside])
def test_what_a_mask_fills_is_no_number_that_shifts(fn):
    shapes = {"w": (3, 5), "b": (5,)}
    given = {path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in shapes.items()}
    analysis = bnmask.analyze(fn, given, X32)
    assert analysis.shift_axes == {}


@pytest.mark.parametrize("fill", [-jnp.inf, -1e9])
def test_a_masked_softmax_does_not_hear_a_shift(fill):
    def fn(p, x):
        z = jnp.tanh(x) @ p["w"] + p["b"]
        return jax.nn.softmax(jnp.where(jnp.arange(5) < 4, z, fill))

    assert found(fn, {"w": (3, 5), "b": (5,)}, X) == {"w": (1,), "b": (0,)}


def test_a_dead_leaf_has_no_shift_axes():
    def fn(p, x):
        return two_pass(x @ p["w"] + p["b"], 0, p["g"])

    given = {"w": (3, 6), "b": (6,), "g": (6,)}
    shapes = {path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in given.items()}
    analysis = bnmask.analyze(fn, shapes, X32)
    assert analysis.dead == ("b",)
    assert "b" not in analysis.shift_axes


class _Transformer(nn.Module):
    """Two pre-LayerNorm blocks and a softmax."""

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(16)(x)
        for _ in range(2):
            h = nn.LayerNorm()(x)
            x = x + nn.MultiHeadDotProductAttention(num_heads=4)(h, h)
            x = x + nn.Dense(16)(nn.gelu(nn.Dense(32)(nn.LayerNorm()(x))))
        return nn.log_softmax(nn.Dense(12)(nn.LayerNorm()(x)))


@pytest.fixture(scope="module")
def transformer():
    """It, its variables, data, and the analysis."""
    with jax.numpy_rank_promotion("allow"):
        x = jax.random.normal(jax.random.key(0), TOKENS)
        variables = _Transformer().init(jax.random.key(1), x)
        return variables, x, bnmask.analyze_linen(_Transformer(), variables, x)


def test_a_transformer_of_flax(transformer):
    _, _, analysis = transformer
    axes = analysis.shift_axes
    writing = ("Dense_0", "Dense_1", "Dense_3", "Dense_5")
    assert axes == {
        **{f"{name}/kernel": (1,) for name in writing},
        **{f"{name}/bias": (0,) for name in writing},
        **{f"MultiHeadDotProductAttention_{n}/out/kernel": (2,) for n in (0, 1)},
        **{f"MultiHeadDotProductAttention_{n}/out/bias": (0,) for n in (0, 1)},
    }
    assert analysis.explain("Dense_5/kernel").endswith("along axis 1, the same may be added to all")


def test_verify_shifts_along_them(transformer):
    variables, x, analysis = transformer
    certificate = bnmask.verify_linen(analysis, _Transformer(), variables, x, key=jax.random.key(2))
    assert certificate.shifts == 12
    assert "12 shifts along axes: all hold" in str(certificate)


@pytest.mark.parametrize(("path", "axis"), [("Dense_5/kernel", 0), ("Dense_2/bias", 0)])
def test_verify_catches_a_false_one(transformer, path, axis):
    variables, x, analysis = transformer
    false = with_shift_axes(analysis, path, (axis,))
    with pytest.raises(bnmask.VerificationError, match=f"along axis {axis} of '{path}' changes"):
        bnmask.verify_linen(false, _Transformer(), variables, x, key=jax.random.key(2))


def test_certificate_of_a_gradient(transformer):
    variables, x, analysis = transformer

    @jax.jit
    def violations(params, penalty):
        def loss(params):
            sizes = sum(jnp.square(w).sum() for w in jax.tree.leaves(params))
            out = _Transformer().apply({"params": params}, x)
            return -out[..., 3].mean() + penalty * sizes

        return bnmask.gradient_certificate(analysis, params, jax.grad(loss)(params)).violations

    found = violations(variables["params"], 0.0)
    own = {name: float(v) for name, v in found.items() if "[shift along" in name}
    assert len(own) == 12
    assert max(own.values()) < 1e-5
    wrong = violations(variables["params"], 1.0)
    assert float(wrong["Dense_5/kernel[shift along axis 1]"]) > 1e-2


def test_without_the_program_there_are_none(transformer):
    _, _, analysis = transformer
    assert bnmask.Analysis.from_json(analysis.to_json()).shift_axes == {}
