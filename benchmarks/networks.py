"""The networks whose programs are analysed, at sizes in use, and chains of any length."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from optax_bnmask import compat


class Bottleneck(nn.Module):
    """Three convolutions, each before a BatchNorm, beside a shortcut."""

    width: int
    stride: int = 1

    @nn.compact
    def __call__(self, x):
        def normed(y, **options):
            return nn.BatchNorm(use_running_average=False, **options)(y)

        def conv(y, features, size, stride=1):
            return nn.Conv(features, (size, size), (stride, stride), use_bias=False)(y)

        y = nn.relu(normed(conv(x, self.width, 1)))
        y = nn.relu(normed(conv(y, self.width, 3, self.stride)))
        y = normed(conv(y, 4 * self.width, 1), scale_init=nn.initializers.zeros)
        if x.shape != y.shape:
            x = normed(conv(x, 4 * self.width, 1, self.stride))
        return nn.relu(x + y)


class ResNet(nn.Module):
    """A residual network for images, in training mode."""

    depths: tuple

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(64, (7, 7), (2, 2), use_bias=False)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=False)(x))
        x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
        for stage, depth in enumerate(self.depths):
            for block in range(depth):
                x = Bottleneck(64 * 2**stage, 2 if stage and not block else 1)(x)
        return nn.Dense(1000)(x.mean((1, 2)))


class Transformer(nn.Module):
    """A pre-LayerNorm encoder with normalised queries and keys."""

    layers: int
    width: int = 512
    heads: int = 8

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(32_000, self.width)(tokens)
        x = x + self.param("position", nn.initializers.normal(), (tokens.shape[1], self.width))
        for _ in range(self.layers):
            y = nn.LayerNorm()(x)
            x = x + nn.MultiHeadDotProductAttention(self.heads, normalize_qk=True)(y, y)
            y = nn.gelu(nn.Dense(4 * self.width)(nn.LayerNorm()(x)))
            x = x + nn.Dense(self.width)(y)
        return nn.Dense(32_000)(nn.LayerNorm()(x))


class DenseNet(nn.Module):
    """A convolutional network whose layers read all that came before, side by side."""

    blocks: tuple
    growth: int = 32

    @nn.compact
    def __call__(self, x):
        def normed(y):
            return nn.relu(nn.BatchNorm(use_running_average=False)(y))

        def conv(y, features, size):
            return nn.Conv(features, (size, size), use_bias=False)(y)

        x = normed(nn.Conv(64, (7, 7), (2, 2), use_bias=False)(x))
        x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
        for place, layers in enumerate(self.blocks):
            for _ in range(layers):
                y = conv(normed(conv(normed(x), 4 * self.growth, 1)), self.growth, 3)
                x = jnp.concatenate([x, y], -1)
            if place < len(self.blocks) - 1:
                x = nn.avg_pool(conv(normed(x), x.shape[-1] // 2, 1), (2, 2), (2, 2))
        return nn.Dense(1000)(normed(x).mean((1, 2)))


IMAGES = jax.ShapeDtypeStruct((8, 224, 224, 3), jnp.float32)
TOKENS = jax.ShapeDtypeStruct((8, 128), jnp.int32)
NETWORKS = {
    "ResNet-50": (ResNet((3, 4, 6, 3)), IMAGES),
    "ResNet-152": (ResNet((3, 8, 36, 3)), IMAGES),
    "DenseNet-201": (DenseNet((6, 12, 48, 32)), IMAGES),
    "transformer, 64 layers": (Transformer(64), TOKENS),
}
SMALL_NETWORKS = {
    "ResNet-50": NETWORKS["ResNet-50"],
    "transformer, 8 layers": (Transformer(8), TOKENS),
}


def of_linen(module, x):
    """The module as it is trained, as a function, with the shapes it is called with."""
    variables = jax.eval_shape(module.init, jax.random.key(0), x)

    def fn(params, stats, x):
        out, _ = module.apply({"params": params, "batch_stats": stats}, x, mutable=["batch_stats"])
        return out

    return fn, variables["params"], (variables.get("batch_stats", {}), x)


def chain(blocks, *, normalised):
    """A function of residual blocks with normalisers, or of plain layers, and its shapes."""

    def norm(z):
        return (z - z.mean(0)) * jax.lax.rsqrt(z.var(0) + 1e-5)

    def fn(params, x):
        for p in params:
            if normalised:
                x = x + jax.nn.relu(norm(x @ p["into"]) * p["gain"] + p["bias"]) @ p["out"]
            else:
                x = jax.nn.relu(x @ p["into"] + p["bias"])
        return x

    square, vector = (jax.ShapeDtypeStruct(s, jnp.float32) for s in ((64, 64), (64,)))
    block = {"into": square, "bias": vector}
    if normalised:
        block |= {"gain": vector, "out": square}
    params = [dict(block) for _ in range(blocks)]
    return fn, params, (jax.ShapeDtypeStruct((32, 64), jnp.float32),)


def equations(jaxpr):
    """How many equations a jaxpr has, those of the jaxprs in it included."""
    total = 0
    for eqn in jaxpr.eqns:
        total += 1
        for value in eqn.params.values():
            for part in value if isinstance(value, tuple | list) else (value,):
                if hasattr(part, "eqns") or hasattr(part, "jaxpr"):
                    total += equations(compat.open_jaxpr(part))
    return total
