"""The seconds that `verify` takes on networks of four frameworks, and what it says of each.

The Flax transformer ties its output to its table, in each of three dtypes: a symmetry that scales
the table up scales the gain before it down. Its exponents are not all at least 0, so that moving
along it does not make epsilons negligible by itself.
"""

import time

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
from flax import nnx

import optax_bnmask as bnmask
from benchmarks.networks import ResNet
from benchmarks.record import Row
from optax_bnmask.errors import VerificationError

WHOLE, GIVEN = "analysis and `verify`", "`analyze` alone"
FAILED = "claims found false"
"""`verify` raises at the first: there is one or none."""


class Tied(nn.Module):
    """A pre-LayerNorm decoder whose logits are products with its own table."""

    dtype: jnp.dtype
    layers: int = 4
    width: int = 128
    heads: int = 4

    @nn.compact
    def __call__(self, tokens):
        table = nn.Embed(1_000, self.width, dtype=self.dtype)
        x = table(tokens)
        mask = nn.make_causal_mask(tokens)
        for _ in range(self.layers):
            y = nn.LayerNorm(dtype=self.dtype)(x)
            x = x + nn.MultiHeadDotProductAttention(self.heads, dtype=self.dtype)(y, y, mask=mask)
            y = nn.Dense(4 * self.width, dtype=self.dtype)(nn.LayerNorm(dtype=self.dtype)(x))
            x = x + nn.Dense(self.width, dtype=self.dtype)(nn.gelu(y))
        return table.attend(nn.RMSNorm(dtype=self.dtype)(x))


class Block(nnx.Module):
    """A block of the vision transformer: attention, then two dense layers."""

    def __init__(self, width, rngs):
        self.norms = nnx.List([nnx.LayerNorm(width, rngs=rngs) for _ in range(2)])
        self.attention = nnx.MultiHeadAttention(4, width, decode=False, rngs=rngs)
        self.up = nnx.Linear(width, 4 * width, rngs=rngs)
        self.down = nnx.Linear(4 * width, width, rngs=rngs)

    def __call__(self, x):
        x = x + self.attention(self.norms[0](x))
        return x + self.down(nnx.gelu(self.up(self.norms[1](x))))


class ViT(nnx.Module):
    """A vision transformer: patches, learned positions, the mean over the tokens."""

    def __init__(self, rngs, *, layers=4, width=64):
        self.patches = nnx.Conv(3, width, (4, 4), (4, 4), padding="VALID", rngs=rngs)
        self.positions = nnx.Param(0.02 * jax.random.normal(rngs.params(), (64, width)))
        self.blocks = nnx.List([Block(width, rngs) for _ in range(layers)])
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.head = nnx.Linear(width, 10, rngs=rngs)

    def __call__(self, images):
        x = self.patches(images).reshape(len(images), 64, -1) + self.positions[...]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


class Convolutions(eqx.Module):
    """Two convolutions with a GroupNorm after each, and a dense layer."""

    layers: eqx.nn.Sequential
    head: eqx.nn.Linear

    def __init__(self, key):
        first, second, last = jax.random.split(key, 3)
        relu = eqx.nn.Lambda(jax.nn.relu)
        self.layers = eqx.nn.Sequential(
            [
                *(eqx.nn.Conv2d(3, 32, 3, padding=1, key=first), eqx.nn.GroupNorm(4, 32), relu),
                *(eqx.nn.Conv2d(32, 64, 3, 2, 1, key=second), eqx.nn.GroupNorm(4, 64), relu),
            ]
        )
        self.head = eqx.nn.Linear(64, 10, key=last)

    def __call__(self, image):
        return self.head(self.layers(image).mean((1, 2)))


def linen(module, x):
    """`analyze` and `verify` of a Linen module."""
    variables = jax.jit(module.init)(jax.random.key(0), x)
    return (
        lambda: bnmask.analyze_linen(module, variables, x),
        lambda key: bnmask.verify_linen(module, variables, x, key=key),
    )


def in_nnx(images):
    """`analyze` and `verify` of an NNX module."""
    module = ViT(nnx.Rngs(0))
    return (
        lambda: bnmask.analyze_nnx(module, images),
        lambda key: bnmask.verify_nnx(module, images, key=key),
    )


def in_haiku(images):
    """`analyze` and `verify` of a transformed function with state."""
    net = hk.transform_with_state(lambda x: hk.nets.ResNet18(10)(x, is_training=True))
    params, state = net.init(jax.random.key(0), images)
    return (
        lambda: bnmask.analyze_haiku(net, params, images, state=state),
        lambda key: bnmask.verify_haiku(net, params, images, key=key, state=state),
    )


def in_equinox(images):
    """`analyze` and `verify` of a function of an Equinox model."""
    net, x = Convolutions(jax.random.key(0)), jnp.moveaxis(images, -1, 1)

    def fn(net, x):
        return jax.vmap(net)(x)

    return (
        lambda: bnmask.analyze_equinox(fn, net, x),
        lambda key: bnmask.verify_equinox(fn, net, x, key=key),
    )


def networks(*, quick):
    """Calls that analyse and that verify, by the name of the network."""
    tokens = jax.random.randint(jax.random.key(1), (8, 32), 0, 1_000)
    images = jax.random.normal(jax.random.key(2), (8, 32, 32, 3))
    if quick:
        return {"Equinox, convolutions": lambda: in_equinox(images)}
    found = {
        f"Flax, tied transformer, {dtype.__name__}": lambda dtype=dtype: linen(Tied(dtype), tokens)
        for dtype in (jnp.float32, jnp.bfloat16, jnp.float16)
    }
    return found | {
        "Flax, ResNet-50": lambda: linen(ResNet((3, 4, 6, 3)), images),
        "NNX, vision transformer": lambda: in_nnx(images),
        "Haiku, ResNet-18": lambda: in_haiku(images),
        "Equinox, convolutions": lambda: in_equinox(images),
    }


def rows(*, quick):
    """Seconds on the wall, since compiled evaluations run in threads, and what was found."""
    for on, made in networks(quick=quick).items():
        analyze, verify = made()
        start = time.perf_counter()
        analyze()
        analyzed = time.perf_counter() - start
        false, said = 0, ""
        try:
            said = str(verify(jax.random.key(3))).splitlines()[0]
        except VerificationError as error:
            false, said = 1, str(error)
        yield Row("verify", on, GIVEN, analyzed, "s")
        taken = time.perf_counter() - start - analyzed
        yield Row("verify", on, WHOLE, taken, "s", GIVEN, note=said)
        yield Row("verify", on, FAILED, false, "", limit=0)
