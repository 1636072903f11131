"""Models for `optax-bnmask inspect`, and a few things that are none."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(8, use_bias=False, name="dense")(x)
        x = nn.BatchNorm(use_running_average=not train, name="norm")(x)
        return nn.Dense(2, name="head")(nn.relu(x))


linen_instance = Linen()


def linen():
    return Linen()


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.dense = nnx.Linear(4, 8, use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.head = nnx.Linear(8, 2, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.norm(self.dense(x))))


def nnx_model():
    return Nnx(nnx.Rngs(0))


def _normalised(params, x, power=1):
    z = (x @ params["kernel"]) ** power
    z = z * jax.lax.rsqrt(jnp.square(z).mean(-1, keepdims=True) + 1e-6)
    return z @ params["head"]


def pair():
    return _normalised, {"kernel": jnp.ones((4, 8)), "head": jnp.ones((8, 2))}


def four_tebibytes():
    side = 1 << 20
    return _normalised, {"kernel": jnp.ones((side, side)), "head": jnp.ones((side, 2))}


def lookup():
    return lambda params, tokens: params["table"][tokens], {"table": jnp.ones((10, 4))}


class Blocks(nn.Module):
    @nn.compact
    def __call__(self, x):
        for i in range(5):
            x = Block(name=f"a_block_with_a_long_name_{i}")(x)
        return x


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Dense(8, name="dense")(x)
        return nn.relu(nn.BatchNorm(use_running_average=False, name="norm")(x))


def blocks():
    return Blocks()


def nothing_known():
    return "a string"


def raises():
    raise KeyError("no weights")


def exits():
    raise SystemExit(3)


def talks():
    print("loading")  # noqa: T201 - what it must not do to JSON
    return pair()


def swapped():
    return {"kernel": jnp.ones((4, 8))}, _normalised


def module_and_variables():
    return Linen(), {"params": {"kernel": jnp.ones((4, 8))}}


def shapes_as_tuples():
    return _normalised, {"kernel": (4, 8), "head": (8, 2)}


def words_among_params():
    return _normalised, {"kernel": jnp.ones((4, 8)), "head": "head"}


def with_a_width(width):
    return nn.Dense(width)


number = 3
