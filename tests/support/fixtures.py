"""Small models on which rules by name or by shape go wrong, with what each leaf really is.

Parameters are abstract: nothing here allocates or computes.
"""

import dataclasses
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
from flax import nnx

IMAGES = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
TOKENS = jax.ShapeDtypeStruct((2, 5), jnp.int32)
SEQUENCE = jax.ShapeDtypeStruct((2, 5, 8), jnp.float32)


@dataclasses.dataclass(frozen=True)
class Fixture:
    """A model's trees and the truth about them.

    Attributes:
      name: What it shows.
      build: Gives the params and the statistics.
      spared: What weight decay should not touch, as globs with the reason: the normalisers'
        parameters ("norm"), the other biases ("bias"), single numbers ("scalar").
    """

    name: str
    build: Callable[[], tuple]
    spared: Mapping[str, str]

    def truth(self, path):
        """What the leaf is: ``"norm"``, ``"bias"``, ``"scalar"`` or ``"weight"``."""
        return next(
            (what for glob, what in self.spared.items() if fnmatchcase(path, glob)), "weight"
        )


def linen(module, *args):
    """The params and the statistics of a Linen module, without computing them."""
    # Third-party layers promote dtypes and ranks within themselves.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        variables = jax.eval_shape(module.init, jax.random.key(0), *args)
    return variables["params"], variables.get("batch_stats")


def haiku(network, *args):
    """The params and the state of a Haiku function, without computing them."""
    init = hk.transform_with_state(network).init
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return jax.eval_shape(init, jax.random.key(0), *args)


class OddNames(nn.Module):
    """BatchNorms that no list of names knows, among modules that such lists take for one."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (3, 3), name="model")(x)
        x = nn.BatchNorm(use_running_average=False, name="normalization")(x)
        x = nn.Conv(4, (3, 3), use_bias=False, name="net")(x)
        x = nn.BatchNorm(use_running_average=False, name="post")(x)
        return nn.BatchNorm(use_running_average=False, name="bn1")(x)


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, use_bias=False, name="net")(x)


class ModelNet(nn.Module):
    """``model/net/kernel``: joined without a separator, its name contains "ln"."""

    @nn.compact
    def __call__(self, x):
        return Net(name="model")(x)


class InlineConvBN(nn.Module):
    """A convolution and its BatchNorm in one scope."""

    features: int = 4

    @nn.compact
    def __call__(self, x):
        shape = (self.features,)
        kernel = self.param("kernel", nn.initializers.normal(), (3, 3, x.shape[-1], *shape))
        x = jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
        var = self.variable("batch_stats", "var", jnp.ones, shape)
        mean.value, var.value = x.mean((0, 1, 2)), x.var((0, 1, 2))
        scale = self.param("scale", nn.initializers.ones, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        return (x - mean.value) * jax.lax.rsqrt(var.value + 1e-5) * scale + bias


class HalfStatistics(nn.Module):
    """Keeps a running mean, without a variance, beside a trainable bias."""

    @nn.compact
    def __call__(self, x):
        mean = self.variable("batch_stats", "mean", jnp.zeros, x.shape[-1:])
        mean.value = x.mean(tuple(range(x.ndim - 1)))
        return x - mean.value + self.param("bias", nn.initializers.zeros, x.shape[-1:])


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return x + nn.Dense(8)(nn.LayerNorm(name="pre")(x)), None


class BatchNormBlock(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return nn.BatchNorm(use_running_average=False, name="post")(nn.Dense(8)(x)), None


class Stacked(nn.Module):
    """Three blocks under `nn.scan`, so that each leaf has one more axis."""

    block: type[nn.Module] = Block

    @nn.compact
    def __call__(self, x):
        blocks = nn.scan(
            self.block,
            variable_axes={"params": 0, "batch_stats": 0},
            split_rngs={"params": True},
            length=3,
        )
        return blocks(name="blocks")(x, None)[0]


class Attention(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.MultiHeadDotProductAttention(num_heads=2, name="attention")(x)


class Scalars(nn.Module):
    """A slope and a temperature: single numbers."""

    @nn.compact
    def __call__(self, x):
        return nn.PReLU()(nn.Dense(4)(x)) * self.param("logit_scale", nn.initializers.ones, ())


class Einsum(nn.Module):
    @nn.compact
    def __call__(self, x):
        w = self.param("w", nn.initializers.normal(), (2, 8, 4))
        return jnp.einsum("bsd,hdk->bshk", x, w)


class Sequences(nn.Module):
    """Weights that are not called kernel, and many that are."""

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(11, 8, name="tokens")(tokens)
        x = nn.RNN(nn.LSTMCell(8, name="cell"))(x)
        return Einsum(name="q_einsum")(x)


class Spectral(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.SpectralNorm(nn.Dense(4))(x, update_stats=True)


class Weighted(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.WeightNorm(nn.Dense(4))(x)


def haiku_batch_norm(x):
    x = hk.Conv2D(4, 3, with_bias=False, name="conv")(x)
    x = hk.BatchNorm(create_scale=True, create_offset=True, decay_rate=0.9, name="post")(x, True)
    return hk.Linear(2, name="head")(x)


class NNXNet(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List(
            [
                nnx.Conv(3, 4, (3, 3), rngs=rngs),
                nnx.BatchNorm(4, rngs=rngs),
                nnx.Linear(4, 2, rngs=rngs),
            ]
        )

    def __call__(self, x):
        conv, norm, head = self.layers
        return head(norm(conv(x)))


def nnx_trees():
    """What an NNX user hands over: one state with everything in it."""
    return nnx.state(nnx.eval_shape(lambda: NNXNet(nnx.Rngs(0)))), None


class EquinoxNet(eqx.Module):
    layer: eqx.nn.Linear
    post: eqx.nn.LayerNorm

    def __init__(self, key):
        self.layer = eqx.nn.Linear(8, 4, key=key)
        self.post = eqx.nn.LayerNorm((4,))


def equinox_trees():
    return eqx.filter(eqx.filter_eval_shape(EquinoxNet, jax.random.key(0)), is_inexact), None


def is_inexact(leaf):
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.inexact)


FIXTURES = (
    Fixture(
        "BatchNorms under names of the user's own",
        lambda: linen(OddNames(), IMAGES),
        {"normalization/*": "norm", "post/*": "norm", "bn1/*": "norm", "model/bias": "bias"},
    ),
    Fixture("a module path that contains `ln`", lambda: linen(ModelNet(), SEQUENCE), {}),
    Fixture(
        "a convolution and its BatchNorm in one scope",
        lambda: linen(InlineConvBN(), IMAGES),
        {"scale": "norm", "bias": "norm"},
    ),
    Fixture(
        "a running mean beside a bias", lambda: linen(HalfStatistics(), SEQUENCE), {"bias": "bias"}
    ),
    Fixture(
        "attention with biases `(H, D)`", lambda: linen(Attention(), SEQUENCE), {"*/bias": "bias"}
    ),
    Fixture(
        "blocks stacked by `nn.scan`",
        lambda: linen(Stacked(), SEQUENCE),
        {"*/pre/*": "norm", "*/Dense_0/bias": "bias"},
    ),
    Fixture(
        "a PReLU slope and a temperature",
        lambda: linen(Scalars(), SEQUENCE),
        {"PReLU_0/*": "scalar", "logit_scale": "scalar", "*/bias": "bias"},
    ),
    Fixture(
        "an embedding, LSTM gates, an einsum",
        lambda: linen(Sequences(), TOKENS),
        {"*/bias": "bias"},
    ),
    Fixture("SpectralNorm", lambda: linen(Spectral(), SEQUENCE), {"*/bias": "bias"}),
    Fixture(
        "Haiku's BatchNorm `(1, C)`",
        lambda: haiku(haiku_batch_norm, IMAGES),
        {"post/*": "norm", "head/b": "bias"},
    ),
    Fixture(
        "NNX layers in a list",
        nnx_trees,
        {"layers/1/*": "norm", "*/bias": "bias"},
    ),
    Fixture("Equinox's LayerNorm", equinox_trees, {"post/*": "norm", "layer/bias": "bias"}),
)
