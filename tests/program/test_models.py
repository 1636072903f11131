"""Models whose invariances are known, in the frameworks' own layers, against the numbers."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh, PartitionSpec

import optax_bnmask as bnmask
from tests.support.program.slices import disagreements

BatchNorm = functools.partial(nn.BatchNorm, use_running_average=False)
IMAGES = np.random.default_rng(0).normal(size=(4, 8, 8, 6))
TOKENS = np.random.default_rng(0).normal(size=(3, 5, 8))


pytestmark = pytest.mark.usefixtures("double_precision")


def linen(module, x, **kwargs):
    variables = jax.eval_shape(functools.partial(module.init, **kwargs), jax.random.key(0), x)
    variables = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, jnp.float64), variables)
    params, others = variables["params"], {k: v for k, v in variables.items() if k != "params"}
    others = jax.tree.map(lambda s: jnp.ones(s.shape, s.dtype), others)

    def fn(p):
        return module.apply({"params": p, **others}, x, mutable=[*others], **kwargs)[0]

    return bnmask.analyze_linen(module, variables, x, **kwargs), fn, params


def table(analysis, *paths):
    return {path: (str(analysis[path].scale), analysis[path].invariant_axes) for path in paths}


class Normed(nn.Module):
    """A convolution, a normaliser, and a head whose sine pins every scale, and never saturates."""

    norm: object
    groups: int = 1
    bias: bool = False

    @nn.compact
    def __call__(self, x):
        conv = nn.Conv(12, (3, 3), feature_group_count=self.groups, use_bias=self.bias, name="conv")
        x = nn.relu(self.norm(name="norm")(conv(x)))
        return nn.Dense(2, name="head")(jnp.sin(nn.Conv(3, (1, 1))(x)).mean((1, 2)))


@pytest.mark.parametrize(
    ("norm", "groups", "axes"),
    [
        (BatchNorm, 1, (3,)),
        (BatchNorm, 6, (3,)),  # depthwise, two filters a channel
        (BatchNorm, 3, (3,)),
        (functools.partial(BatchNorm, use_fast_variance=False), 1, (3,)),
        (functools.partial(BatchNorm, use_scale=False, use_bias=False), 1, (3,)),
        (nn.InstanceNorm, 1, (3,)),
        (functools.partial(nn.GroupNorm, 4), 1, ()),
        (functools.partial(nn.GroupNorm, 12), 1, (3,)),
        (nn.LayerNorm, 1, ()),
        (functools.partial(nn.LayerNorm, reduction_axes=(1, 2, 3)), 1, ()),
        (nn.RMSNorm, 1, ()),
    ],
)
def test_axes_agree_with_the_numbers_for_each_normaliser(norm, groups, axes):
    analysis, fn, params = linen(Normed(norm, groups), IMAGES)
    assert table(analysis, "conv/kernel") == {"conv/kernel": ("invariant", axes)}
    assert disagreements(analysis, fn, params) == []
    for name in set(params.get("norm", {})):
        expected = {"scale": "norm_scale", "bias": "norm_bias"}[name]
        assert analysis[f"norm/{name}"].role == expected


def test_a_bias_of_its_own_goes_with_the_weight():
    analysis, fn, params = linen(Normed(BatchNorm, bias=True), IMAGES)
    assert analysis["conv/kernel"].scale == "invariant"
    assert analysis["conv/kernel"].invariant_axes == (3,)
    assert analysis["conv/bias"].dead
    assert disagreements(analysis, fn, params, axes=False) == []


class Attention(nn.Module):
    """One pre-norm block with normalised queries and keys."""

    bias: bool = False

    @nn.compact
    def __call__(self, x):
        y = nn.LayerNorm()(x)
        heads = nn.MultiHeadDotProductAttention(
            2, normalize_qk=True, use_bias=self.bias, name="mha"
        )
        x = x + heads(y, y)
        return nn.Dense(3)(nn.LayerNorm()(x))


def test_query_and_key_kernels_before_their_norm_are_invariant_head_by_head():
    analysis, fn, params = linen(Attention(), TOKENS)
    for name in ("query", "key"):
        assert table(analysis, f"mha/{name}/kernel") == {f"mha/{name}/kernel": ("invariant", (1,))}
    assert analysis["mha/value/kernel"].scale == "sensitive"
    assert disagreements(analysis, fn, params) == []


class DenseNet(nn.Module):
    """Features are concatenated, the raw input among them, and normalised channel by channel."""

    @nn.compact
    def __call__(self, x):
        features = [x]
        for _ in range(3):
            y = nn.relu(BatchNorm()(jnp.concatenate(features, -1)))
            y = nn.Conv(4, (1, 1), use_bias=False)(y)
            features.append(nn.Conv(2, (3, 3), use_bias=False)(nn.relu(BatchNorm()(y))))
        x = nn.relu(BatchNorm()(jnp.concatenate(features, -1)))
        return nn.Dense(2)(jnp.sin(nn.Dense(3)(x.mean((1, 2)))))


def test_every_convolution_of_a_densenet_block_is_invariant():
    analysis, fn, params = linen(DenseNet(), IMAGES)
    kernels = [leaf for leaf in analysis.leaves if leaf.path.startswith("Conv_")]
    assert {(str(leaf.scale), leaf.invariant_axes) for leaf in kernels} == {("invariant", (3,))}
    assert disagreements(analysis, fn, params) == []


class Reparametrised(nn.Module):
    """Spectral and weight normalisation."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.SpectralNorm(nn.Dense(8))(x, update_stats=True))
        x = nn.relu(nn.WeightNorm(nn.Dense(8))(x))
        return nn.Dense(2)(x)


def test_spectral_and_weight_normalised_kernels_are_invariant_and_the_magnitude_is_a_gain():
    analysis, fn, params = linen(Reparametrised(), TOKENS)
    assert table(analysis, "Dense_0/kernel", "Dense_1/kernel") == {
        "Dense_0/kernel": ("invariant", ()),
        "Dense_1/kernel": ("invariant", (1,)),
    }
    assert analysis["WeightNorm_0/Dense_1/kernel/scale"].role == "gain"
    assert {a.kind for a in analysis.assumptions} == {"guard", "epsilon"}
    assert disagreements(analysis, fn, params) == []


class Layer(nn.Module):
    """What is scanned over."""

    @nn.compact
    def __call__(self, x, _):
        y = BatchNorm()(nn.Dense(8, use_bias=False, name="in")(nn.LayerNorm()(x)))
        return x + nn.Dense(8, use_bias=False, name="out")(jnp.sin(y)), None


class Stacked(nn.Module):
    """Three layers, their parameters stacked."""

    @nn.compact
    def __call__(self, x):
        axes = {"params": 0, "batch_stats": 0}
        layers = nn.scan(nn.remat(Layer), axes, split_rngs={"params": True}, length=3)
        x, _ = layers(name="layers")(nn.Dense(8, name="stem")(x), None)
        return nn.Dense(2)(nn.LayerNorm()(x))


def test_stacked_layers_are_invariant_layer_by_layer():
    analysis, fn, params = linen(Stacked(), TOKENS)
    assert table(analysis, "layers/in/kernel") == {"layers/in/kernel": ("invariant", (0, 2))}
    assert table(analysis, "layers/out/kernel") == {"layers/out/kernel": ("joint", ())}
    assert analysis["layers/BatchNorm_0/scale"].role == "norm_scale"
    assert disagreements(analysis, fn, params) == []


class CrossReplica(nn.Module):
    """BatchNorm whose statistics are averaged over an axis of devices."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(6, (3, 3), use_bias=False)(x)
        x = jnp.sin(BatchNorm(axis_name="devices")(x))
        return nn.Dense(3)(x.mean((1, 2)))


def _cross_replica(kind, module):
    """The per-device function spread over devices, and its images."""
    if kind == "vmap":
        spread = jax.vmap(module, axis_name="devices", in_axes=(None, 0))
    elif kind == "pmap":
        spread = jax.pmap(module, axis_name="devices", in_axes=(None, 0))
    else:
        mesh = Mesh(np.array(jax.devices()[:2]), ("devices",))
        over = PartitionSpec("devices")
        inside = lambda p, x: module(p, x[0])[None]  # noqa: E731
        specs = {"in_specs": (PartitionSpec(), over), "out_specs": over}
        spread = jax.shard_map(inside, mesh=mesh, **specs)
    return spread, IMAGES.reshape(2, 2, 8, 8, 6)


@pytest.mark.parametrize("kind", ["vmap", "shard_map", "pmap"])
def test_cross_replica_batch_norm_is_seen_through(kind):
    module = CrossReplica()
    stats = {"BatchNorm_0": {"mean": jnp.zeros(6), "var": jnp.ones(6)}}
    shapes = {
        "BatchNorm_0": {"bias": (6,), "scale": (6,)},
        "Conv_0": {"kernel": (3, 3, 6, 6)},
        "Dense_0": {"bias": (3,), "kernel": (6, 3)},
    }
    is_shape = lambda s: isinstance(s, tuple)  # noqa: E731
    params = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s, jnp.float64), shapes, is_leaf=is_shape)

    def on_one(p, x):
        variables = {"params": p, "batch_stats": stats}
        return module.apply(variables, x, mutable=["batch_stats"])[0]

    spread, images = _cross_replica(kind, on_one)
    analysis = bnmask.analyze(spread, params, images)
    assert table(analysis, "Conv_0/kernel") == {"Conv_0/kernel": ("invariant", (3,))}
    assert analysis["BatchNorm_0/scale"].role == "norm_scale"
    assert analysis["BatchNorm_0/bias"].role == "norm_bias"
    assert disagreements(analysis, lambda p: spread(p, images), params) == []


def test_a_stacked_key_value_kernel_before_norms_is_invariant():
    def normed(t):
        return t * jax.lax.rsqrt((t * t).mean(-1, keepdims=True) + 1e-6)

    def fn(p):
        k, v = jnp.einsum("btd,cdhe->cbthe", TOKENS, p["kv"])
        q = normed(jnp.einsum("btd,dhe->bthe", TOKENS, p["q"])) * p["q_scale"]
        weights = jax.nn.softmax(jnp.einsum("bthd,bshd->bhts", q, normed(k)))
        out = jnp.einsum("bhts,bshd,hde->bte", weights, v, p["out"])
        return jnp.sin(normed(out) * p["post"])

    shapes = {"kv": (2, 8, 2, 4), "q": (8, 2, 4), "q_scale": (4,), "out": (2, 4, 8), "post": (8,)}
    params = {k: jax.ShapeDtypeStruct(s, jnp.float64) for k, s in shapes.items()}
    analysis = bnmask.analyze(fn, params)
    assert table(analysis, "kv", "q", "out") == {
        "kv": ("invariant", (0,)),
        "q": ("invariant", (1,)),
        "out": ("invariant", ()),
    }
    assert analysis["post"].role == analysis["q_scale"].role == "norm_scale"
    assert disagreements(analysis, fn, params) == []


def test_weight_standardised_kernels_are_invariant_filter_by_filter():
    def fn(p):
        w = p["w"]
        w = (w - w.mean((0, 1, 2))) / jnp.sqrt(w.var((0, 1, 2)) + 1e-10) * p["gain"]
        y = jax.lax.conv_general_dilated(
            IMAGES, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jnp.sin(y + p["b"]).mean((1, 2))

    shapes = {"w": (3, 3, 6, 4), "gain": (4,), "b": (4,)}
    params = {k: jax.ShapeDtypeStruct(s, jnp.float64) for k, s in shapes.items()}
    analysis = bnmask.analyze(fn, params)
    assert table(analysis, "w") == {"w": ("invariant", (3,))}
    assert [str(analysis[name].role) for name in ("w", "gain", "b")] == ["weight", "gain", "bias"]
    assert disagreements(analysis, fn, params) == []


def test_linen_reports_a_batch_norm_that_the_trace_does_not_confirm():
    class Frozen(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Conv(4, (3, 3))(x)
            return nn.BatchNorm(use_running_average=True, name="frozen")(x).mean((1, 2))

    variables = jax.eval_shape(Frozen().init, jax.random.key(0), IMAGES)
    with pytest.warns(UserWarning, match=r"the normaliser at 'frozen' runs on its running"):
        analysis = bnmask.analyze_linen(Frozen(), variables, IMAGES)
    assert analysis["frozen/scale"].role == "norm_scale"
    assert analysis["Conv_0/kernel"].scale == "sensitive"


def test_nnx_names_each_normaliser_that_was_left_in_eval_mode():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.linear = nnx.Linear(4, 8, rngs=rngs)
            self.post = nnx.BatchNorm(8, rngs=rngs)

        def __call__(self, x):
            return self.post(self.linear(x))

    model = Net(nnx.Rngs(0))
    model.eval()
    with pytest.warns(UserWarning, match=r"the normaliser at 'post' runs on its running"):
        bnmask.analyze_nnx(model, jnp.ones((3, 4)))
