"""Published models, read without any use of names; their names serve as the ground truth here.

`dm-haiku`'s own nets, `equimo` (Equinox) and `jax-image-models` (Flax NNX): the normalisers' leaves
are found exactly, and no claim fails in numbers.
"""

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import optax_bnmask as bnmask
from tests.support.program.slices import disagreements

equimo = pytest.importorskip("equimo.models", reason="the test extra brings equimo")
jimm = pytest.importorskip("jimm.models", reason="the test extra brings jax-image-models")

RNG = np.random.default_rng(0)
NORM = {bnmask.Role.NORM_SCALE, bnmask.Role.NORM_BIAS}


@pytest.fixture(autouse=True)
def _published_models_promote():
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


def norms(analysis):
    return {leaf.path for leaf in analysis.leaves if leaf.role in NORM}


def images(size, channels_first=False):
    shape = (2, 3, size, size) if channels_first else (2, size, size, 3)
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def haiku_net(make, x):
    net = hk.transform_with_state(lambda x: make()(x, is_training=True))
    params, state = jax.eval_shape(net.init, jax.random.key(0), x)
    state = jax.tree.map(lambda s: jnp.ones(s.shape, s.dtype), state)
    return lambda p, x: net.apply(p, state, None, x)[0], params


HAIKU = {
    "ResNet50": lambda: hk.nets.ResNet50(10),
    "ResNet18, pre-activation": lambda: hk.nets.ResNet18(10, resnet_v2=True),
    "MobileNetV1": lambda: hk.nets.MobileNetV1((1, 2, 2, 2, 2), (8, 16, 16, 16, 16), 10),
}


@pytest.mark.parametrize("name", HAIKU)
def test_haikus_batch_norms_are_found_exactly(name):
    x = images(32)
    fn, params = haiku_net(HAIKU[name], x)
    analysis = bnmask.analyze(fn, params, x)
    named = {p for p in (leaf.path for leaf in analysis.leaves) if p.endswith(("scale", "offset"))}
    assert norms(analysis) == named
    assert analysis.unhandled == {}
    before_norm = [
        leaf for leaf in analysis.leaves if leaf.path.endswith("/w") and "logits" not in leaf.path
    ]
    assert {str(leaf.role) for leaf in before_norm} == {"weight"}
    if name != "ResNet18, pre-activation":
        assert {str(leaf.scale) for leaf in before_norm} == {"invariant"}


def test_haikus_mobilenet_agrees_with_the_numbers():
    with jax.enable_x64(True):
        x = jnp.asarray(RNG.normal(size=(2, 16, 16, 3)))
        make = lambda: hk.nets.MobileNetV1((1, 2, 1, 1, 1), (4, 8, 8, 8, 8), 3)  # noqa: E731
        fn, params = haiku_net(make, x)
        params = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, jnp.float64), params)
        analysis = bnmask.analyze(fn, params, x)
        assert disagreements(analysis, lambda p: jnp.sin(fn(p, x)), params, axes=False) == []


KEY = jax.random.key(0)
EQUIMO = {
    "ViT": (
        lambda: equimo.VisionTransformer(
            img_size=32, in_channels=3, dim=16, patch_size=8, num_heads=[2], depths=[2],
            num_classes=5, qk_norm=True, key=KEY,
        ),
        32,
    ),
    "ConvNeXt": (
        lambda: equimo.ConvNeXt(
            3, depths=[1, 1, 1, 1], dims=[8, 8, 16, 16], num_classes=5, key=KEY
        ),
        64,
    ),
    "MobileNetV3": (
        lambda: equimo.MobileNetv3(
            3, [(3, 16, 16, 1, True, "relu"), (5, 24, 24, 2, True, "hard_swish")],
            num_classes=5, key=KEY,
        ),
        32,
    ),
    "VSSD": (
        lambda: equimo.Vssd(
            32, 3, dim=16, d_state=8, depths=[1, 1], num_heads=[2, 2],
            attentions_layers=("mamba2mixer", "attention"), num_classes=5, key=KEY,
        ),
        32,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", EQUIMO)
def test_equimos_normalisers_are_found_exactly(name):
    make, size = EQUIMO[name]
    params, static = eqx.partition(make(), eqx.is_inexact_array)
    x = images(size, channels_first=True)

    def fn(params, x):
        model = eqx.combine(params, static)
        return jax.vmap(lambda x: model(x, key=KEY))(x)

    analysis = bnmask.analyze(fn, params, x)
    used = [leaf.path for leaf in analysis.leaves if leaf.role is not bnmask.Role.UNUSED]
    assert norms(analysis) == {path for path in used if "norm" in path}
    assert analysis.unhandled == {}


JIMM = {
    "ViT": lambda: jimm.VisionTransformer(
        num_classes=5, img_size=32, patch_size=8, num_layers=2, num_heads=2, mlp_dim=32,
        hidden_size=16, dropout_rate=0.0,
    ),
    "DINOv3": lambda: jimm.DINOv3Model(
        img_size=32, patch_size=8, hidden_size=16, num_layers=2, num_heads=2, mlp_dim=32
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", JIMM)
def test_jimms_normalisers_are_found_exactly(name):
    explicit = (jax.sharding.AxisType.Explicit,) * 2
    mesh = jax.make_mesh((1, 1), ("fsdp", "tensor"), axis_types=explicit)
    with nnx.use_eager_sharding(False), jax.set_mesh(mesh):
        analysis = bnmask.analyze_nnx(JIMM[name](), images(32))
    used = [leaf.path for leaf in analysis.leaves if leaf.role is not bnmask.Role.UNUSED]
    assert norms(analysis) == {path for path in used if "norm" in path or "ln_" in path}
    tables = {leaf.path for leaf in analysis.leaves if leaf.role is bnmask.Role.EMBEDDING}
    assert "encoder/cls_token" in tables
    assert analysis.unhandled == {}
