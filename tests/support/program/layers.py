"""The layers that random networks are made of, most of them in several spellings."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from tests.support.program.building import EPS, Builder, Layer, plus_bias

Shape = tuple[int, ...]
Built = tuple[Layer, Shape]


# Linear layers.


def dense(b: Builder, shape: Shape, features: int | None = None) -> Built:
    way = b.pick(["dot", "einsum", "heads", "transposed", "scaled", "chained"])
    n, m = shape[-1], features or b.pick([4, 6])
    way = "dot" if way == "heads" and m % 2 else way
    name = b.layer(f"dense:{way}")
    if way == "heads":
        kernel, bias = b.weights(name, (n, 2, m // 2), (2, m // 2))

        def heads(p: Any, x: Any) -> Any:
            y = plus_bias(jnp.einsum("...c,chd->...hd", x, p[kernel]), p, bias)
            return y.reshape(*y.shape[:-2], m)

        return heads, (*shape[:-1], m)
    kernel, bias = b.weights(name, (m, n) if way == "transposed" else (n, m), (m,))

    def apply(p: Any, x: Any) -> Any:
        w = p[kernel]
        if way == "einsum":
            return plus_bias(jnp.einsum("...c,cd->...d", x, w), p, bias)
        if way == "transposed":
            return plus_bias(x @ w.T, p, bias)
        if way == "scaled":
            return plus_bias(x @ (w * (1 / math.sqrt(n))), p, bias)
        if way == "chained":
            return plus_bias(lax.dot_general(x, w, (((x.ndim - 1,), (0,)), ((), ()))), p, bias)
        return plus_bias(x @ w, p, bias)

    return apply, (*shape[:-1], m)


def weight_normed(b: Builder, shape: Shape) -> Built:
    way = b.pick(["norm", "rsqrt", "all", "guarded", "no_gain"])
    n, m = shape[-1], b.pick([4, 6])
    name = b.layer(f"weightnorm:{way}")
    kernel, bias = b.weights(name, (n, m), (m,))
    gain = b.param(name, "scale", (m,), "gain")
    if bias:
        b.own[gain] = [bias]
        del b.own[kernel]

    def apply(p: Any, x: Any) -> Any:
        v = p[kernel]
        if way == "norm":
            w = p[gain] * v / jnp.linalg.norm(v, axis=0)
        elif way == "rsqrt":
            w = v * lax.rsqrt(jnp.sum(jnp.square(v), axis=0, keepdims=True) + EPS) * p[gain]
        elif way == "guarded":
            length = jnp.sqrt(jnp.sum(v * v, axis=0))
            w = v / jnp.where(length != 0, length, 1.0) * p[gain]
        else:
            w = v / jnp.sqrt(jnp.sum(v * v) + EPS)
            w = w if way == "no_gain" else w * p[gain]
        return plus_bias(x @ w, p, bias)

    if way == "no_gain":
        del b.params[gain]
        b.own.pop(gain, None)
    return apply, (*shape[:-1], m)


def spectral_normed(b: Builder, shape: Shape) -> Built:
    way = b.pick(["guarded", "plain", "softened"])
    n, m = shape[-1], b.pick([4, 6])
    name = b.layer(f"spectralnorm:{way}")
    kernel, bias = b.weights(name, (n, m), (m,))
    b.own.pop(kernel, None)

    def unit(v: Any) -> Any:
        return v * lax.rsqrt(jnp.sum(v * v) + EPS)

    def apply(p: Any, x: Any) -> Any:
        w = p[kernel]
        u = jnp.cos(jnp.arange(1.0, m + 1, dtype=w.dtype))[None]
        for _ in range(2):
            v = unit(u @ w.T)
            u = unit(v @ w)
        u, v = lax.stop_gradient(u), lax.stop_gradient(v)
        sigma = (v @ w @ u.T)[0, 0]
        if way == "guarded":
            w = w / jnp.where(sigma != 0, sigma, jnp.ones_like(sigma))
        elif way == "plain":
            w = w / sigma
        else:
            w = w / (sigma + EPS)
        return plus_bias(x @ w, p, bias)

    return apply, (*shape[:-1], m)


def conv(b: Builder, shape: Shape) -> Built:
    way = b.pick(["same", "valid", "strided", "grouped", "depthwise", "multiplier", "1x1", "oihw"])
    standardised = b.chance(20)
    n = shape[-1]
    way = "same" if way == "grouped" and n % 2 else way
    m = {"depthwise": n, "multiplier": 2 * n}.get(way) or b.pick([4, 6])
    groups = {"grouped": 2, "depthwise": n, "multiplier": n}.get(way, 1)
    k = 1 if way == "1x1" else b.pick([2, 3])
    if shape[1] < 3 and way == "valid":
        way = "same"
    name = b.layer(f"conv:{way}{':standardised' if standardised else ''}")
    kernel_shape = (m, n // groups, k, k) if way == "oihw" else (k, k, n // groups, m)
    kernel, bias = b.weights(name, kernel_shape, (m,))
    gain = b.param(name, "gain", (m,), "gain") if standardised and b.chance(50) else None
    if standardised:
        b.own.pop(kernel, None)
        if gain and bias:
            b.own[gain] = [bias]
    numbers = ("NHWC", "OIHW" if way == "oihw" else "HWIO", "NHWC")
    stride = 2 if way == "strided" else 1
    padding = "VALID" if way == "valid" else "SAME"
    axes = (1, 2, 3) if way == "oihw" else (0, 1, 2)
    low = k - 1 if way == "valid" else 0
    side = -(-(shape[1] - low) // stride)

    def apply(p: Any, x: Any) -> Any:
        w = p[kernel]
        if standardised:
            w = w - w.mean(axes, keepdims=True)
            fan_in = math.prod(w.shape[a] for a in axes)
            w = w * lax.rsqrt(jnp.maximum(jnp.var(w, axes, keepdims=True) * fan_in, EPS))
            if gain is not None:
                w = w * p[gain].reshape([m if a not in axes else 1 for a in range(4)])
        y = lax.conv_general_dilated(
            x, w, (stride, stride), padding, dimension_numbers=numbers, feature_group_count=groups
        )
        return plus_bias(y, p, bias)

    return apply, (shape[0], side, side, m)


def demodulated(b: Builder, shape: Shape) -> Built:
    n, m = shape[-1], b.pick([4, 6])
    name = b.layer("demodulated")
    kernel, _ = b.weights(name, (n, m), None)
    style, bias = b.weights(name, (n, n), (n,), "style_kernel")

    def apply(p: Any, x: Any) -> Any:
        s = plus_bias(x.mean(tuple(range(1, x.ndim - 1))) @ p[style], p, bias)
        w = p[kernel][None] * s[:, :, None]
        w = w * lax.rsqrt(jnp.sum(jnp.square(w), axis=1, keepdims=True) + EPS)
        return jnp.einsum("b...i,bio->b...o", x, w)

    return apply, (*shape[:-1], m)


# Normalisers.


def _statistics(b: Builder, axes: tuple[int, ...]) -> tuple[str, Any]:  # noqa: C901 - one layer in many spellings
    """A way to standardise: ``standardise(x, gain, bias)``."""
    way = b.pick(
        ["two_pass", "fast", "folded", "affine", "std", "stacked", "floored", "centred", "packed"]
    )

    def two_pass(x: Any, g: Any, c: Any) -> Any:
        return (x - x.mean(axes, keepdims=True)) / jnp.sqrt(
            x.var(axes, keepdims=True) + EPS
        ) * g + c

    def fast(x: Any, g: Any, c: Any) -> Any:
        mean = x.mean(axes, keepdims=True)
        var = jnp.maximum(0.0, lax.square(x).mean(axes, keepdims=True) - lax.square(mean))
        return (x - mean) * (lax.rsqrt(var + EPS) * g) + c

    def folded(x: Any, g: Any, c: Any) -> Any:
        mean = x.mean(axes, keepdims=True)
        var = jnp.square(jnp.abs(x)).mean(axes, keepdims=True) - jnp.square(mean)
        y = x - mean
        mul = lax.rsqrt(var + EPS)
        mul = mul * g
        return y * mul + c

    def affine(x: Any, g: Any, c: Any) -> Any:
        mean, var = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
        scale = g / jnp.sqrt(var + EPS)
        return x * scale + (c - mean * scale)

    def std(x: Any, g: Any, c: Any) -> Any:
        return (x - x.mean(axes, keepdims=True)) / (x.std(axes, keepdims=True) + EPS) * g + c

    def stacked(x: Any, g: Any, c: Any) -> Any:
        both = jnp.stack([x.mean(axes, keepdims=True), jnp.square(x).mean(axes, keepdims=True)])
        both = both * 1.0
        mean, square = both
        return (x - mean) * lax.rsqrt(jnp.maximum(0.0, square - mean * mean) + EPS) * g + c

    def packed(x: Any, g: Any, c: Any) -> Any:
        mean, square = x.mean(axes, keepdims=True), jnp.square(x).mean(axes, keepdims=True)
        both = jnp.concatenate([mean, square], axis=-1)
        mean, square = jnp.split(both, 2, axis=-1)
        return (x - mean) * lax.rsqrt(square - mean * mean + EPS) * g + c

    def floored(x: Any, g: Any, c: Any) -> Any:
        y = x - x.mean(axes, keepdims=True)
        return y / jnp.sqrt(jnp.maximum((y * y).mean(axes, keepdims=True), EPS)) * g + c

    def centred(x: Any, g: Any, c: Any) -> Any:
        y = x - x.mean(axes, keepdims=True)
        return g * y * (jnp.mean(y**2, axes, keepdims=True) + EPS) ** -0.5 + c

    table = [two_pass, fast, folded, affine, std, stacked, floored, centred, packed]
    return way, {f.__name__: f for f in table}[way]


def _affine(b: Builder, name: str, n: int) -> tuple[str, Any]:
    """A gain and a bias, or one, or neither: ``read(params) -> gain, bias``."""
    way = b.pick(["both", "both", "gain", "neither", "centred", "scalar", "kept_axes", "bias"])
    shape = {"scalar": (), "kept_axes": (1, n)}.get(way, (n,))
    gain = bias = None
    if way not in ("neither", "bias"):
        gain = b.param(name, "scale", shape, "bias" if way == "centred" else "gain")
    if way not in ("neither", "gain", "scalar"):
        bias = b.param(name, "bias", (n,), "bias")
    if gain and bias and way != "centred":
        b.own[gain] = [bias]

    def read(p: Any) -> tuple[Any, Any]:
        g = 1.0 if gain is None else p[gain]
        return 1.0 + g if way == "centred" else g, 0.0 if bias is None else p[bias]

    return way, read


def batch_norm(b: Builder, shape: Shape) -> Built:
    axes = tuple(range(len(shape) - 1))
    replicas = b.chance(15)
    way, standardise = ("replicas", None) if replicas else _statistics(b, axes)
    name = b.layer(f"batchnorm:{way}")
    _, read = _affine(b, name, shape[-1])

    def replica(p: Any, x: Any) -> Any:
        g, c = read(p)

        def one(row: Any) -> Any:
            inner = tuple(range(row.ndim - 1))
            both = jnp.stack([row.mean(inner), jnp.square(row).mean(inner)])
            mean, square = lax.pmean(both, "batch")
            var = jnp.maximum(0.0, square - jnp.square(mean))
            return ((row - mean) * (lax.rsqrt(var + EPS) * g) + c).reshape(row.shape)

        return jax.vmap(one, axis_name="batch")(x)

    def apply(p: Any, x: Any) -> Any:
        return standardise(x, *read(p))

    return replica if replicas else apply, shape


def layer_norm(b: Builder, shape: Shape) -> Built:
    rank = len(shape)
    axes = tuple(range(1, rank)) if rank > 2 and b.chance(20) else (rank - 1,)
    way, standardise = _statistics(b, axes)
    name = b.layer(f"layernorm:{way}")
    _, read = _affine(b, name, shape[-1])
    return (lambda p, x: standardise(x, *read(p))), shape


def instance_norm(b: Builder, shape: Shape) -> Built:
    if len(shape) == 2:
        return layer_norm(b, shape)
    way, standardise = _statistics(b, tuple(range(1, len(shape) - 1)))
    name = b.layer(f"instancenorm:{way}")
    _, read = _affine(b, name, shape[-1])
    return (lambda p, x: standardise(x, *read(p))), shape


def group_norm(b: Builder, shape: Shape) -> Built:
    n = shape[-1]
    groups = 1 if n % 2 else 2
    over_space = len(shape) > 2
    axes = (*range(1, len(shape) - 1), len(shape)) if over_space else (2,)
    way, standardise = _statistics(b, axes)
    name = b.layer(f"groupnorm:{way}")
    _, read = _affine(b, name, n)

    def apply(p: Any, x: Any) -> Any:
        g, c = read(p)
        y = standardise(x.reshape(*x.shape[:-1], groups, n // groups), 1.0, 0.0)
        return y.reshape(x.shape) * g + c

    return apply, shape


def rms_norm(b: Builder, shape: Shape) -> Built:
    way = b.pick(["rms", "l2", "l2_guarded", "l1", "max", "softened", "global"])
    name = b.layer(f"rmsnorm:{way}")
    _, read = _affine(b, name, shape[-1])

    def apply(p: Any, x: Any) -> Any:
        g, c = read(p)
        if way == "rms":
            y = x * lax.rsqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + EPS)
        elif way == "l2":
            y = x / jnp.linalg.norm(x, axis=-1, keepdims=True)
        elif way == "l2_guarded":
            length = jnp.sqrt(jnp.sum(x * x, -1, keepdims=True))
            y = x / jnp.where(length > 0, length, 1.0)
        elif way == "l1":
            y = x / (jnp.abs(x).sum(-1, keepdims=True) + EPS)
        elif way == "max":
            y = x / jnp.maximum(jnp.abs(x).max(-1, keepdims=True), EPS)
        elif way == "softened":
            y = x / (jnp.linalg.norm(x, axis=-1, keepdims=True) + EPS)
        else:
            y = x / jnp.sqrt(jnp.mean(x**2) + EPS)
        return y * g + c

    return apply, shape


# Entry by entry, and pooling.

_POINTWISE: dict[str, Any] = {
    "relu": jax.nn.relu,
    "gelu": jax.nn.gelu,
    "tanh": jnp.tanh,
    "leaky": jax.nn.leaky_relu,
    "silu": jax.nn.silu,
    "abs": jnp.abs,
    "softplus": jax.nn.softplus,
    "square": jnp.square,
    "relu_squared": lambda x: jnp.square(jax.nn.relu(x)),
    "where": lambda x: jnp.where(x > 0, x, 0.1 * x),
    "relu6": jax.nn.relu6,
    "signed_root": lambda x: jnp.sign(x) * jnp.sqrt(jnp.abs(x)),
    "negated": lambda x: -x,
    "halved": lambda x: 0.5 * x,
    "shifted": lambda x: x + 1.0,
    "clipped": lambda x: jnp.clip(x, -1.0, 1.0),
    "cubed": lambda x: x**3,
    "elu": jax.nn.elu,
    "sin": jnp.sin,
    "softmax": lambda x: jax.nn.softmax(x, axis=-1),
    "log_softmax": lambda x: jax.nn.log_softmax(x, axis=-1),
    "centred": lambda x: x - x.mean(-1, keepdims=True),
    "batch_centred": lambda x: x - x.mean(0, keepdims=True),
    "detached": lax.stop_gradient,
    "sorted": lambda x: jnp.sort(x, axis=-1),
    "cumulated": lambda x: jnp.cumsum(x, axis=1),
    "rolled": lambda x: jnp.roll(x, 1, axis=-1),
    "reversed": lambda x: x[..., ::-1],
    "every_other": lambda x: jnp.concatenate([x[..., ::2], x[..., 1::2]], axis=-1),
    "half": lambda x: x.astype(jnp.float32).astype(x.dtype),
    "masked": lambda x: jnp.where(jnp.arange(x.shape[-1]) % 3 == 0, 0.0, x),
    "first_kept": lambda x: x.at[..., 0].set(0.0),
    "first_doubled": lambda x: x.at[..., 0].mul(2.0),
    "added_at": lambda x: x.at[..., 1].add(x[..., 0]),
    "crelu_half": lambda x: jnp.concatenate([jax.nn.relu(x), jax.nn.relu(-x)], axis=-1)[
        ..., : x.shape[-1]
    ],
}


def pointwise(b: Builder, shape: Shape) -> Built:
    names = [n for n in _POINTWISE if n != "half"]
    kind = "relu" if b.chance(35) else b.pick(names)
    b.layer(f"pointwise:{kind}")
    return (lambda _, x: _POINTWISE[kind](x)), shape


def prelu(b: Builder, shape: Shape) -> Built:
    name = b.layer("prelu")
    slope = b.param(name, "slope", b.pick([(), (shape[-1],)]), "slope")
    return (lambda p, x: jnp.where(x >= 0, x, p[slope] * x)), shape


def layer_scale(b: Builder, shape: Shape) -> Built:
    way = b.pick(["gain", "scalar", "bias", "exp", "softplus", "both"])
    name = b.layer(f"scale:{way}")
    n = shape[-1]
    gain = None if way == "bias" else b.param(name, "gain", () if way == "scalar" else (n,), "gain")
    bias = b.param(name, "bias", (n,), "bias") if way in ("bias", "both") else None
    if gain and bias:
        b.own[gain] = [bias]

    def apply(p: Any, x: Any) -> Any:
        g = 1.0 if gain is None else p[gain]
        if way in ("exp", "softplus"):
            g = jnp.exp(g) if way == "exp" else jax.nn.softplus(g)
        return plus_bias(x * g, p, bias)

    return apply, shape


def pool(b: Builder, shape: Shape) -> Built:
    if len(shape) != 4:
        return pointwise(b, shape)
    way = b.pick(["max", "avg", "global", "max_padded"])
    b.layer(f"pool:{way}")
    if way == "global":
        return (lambda _, x: x.mean((1, 2))), (shape[0], shape[-1])
    window = (1, 2, 2, 1)
    if way == "avg":
        apply = lambda _, x: lax.reduce_window(x, 0.0, lax.add, window, (1, 1, 1, 1), "SAME") / 4  # noqa: E731
        return apply, shape
    if way == "max_padded":
        apply = lambda _, x: lax.reduce_window(  # noqa: E731
            x, float(jnp.finfo(x.dtype).min), lax.max, window, (1, 1, 1, 1), "SAME"
        )
        return apply, shape
    apply = lambda _, x: lax.reduce_window(x, -jnp.inf, lax.max, window, (1, 1, 1, 1), "SAME")  # noqa: E731
    return apply, shape


def gated(b: Builder, shape: Shape) -> Built:  # noqa: C901 - one layer in many spellings
    n = shape[-1]
    way = b.pick(["glu", "swiglu", "reglu", "se", "bilinear", "self", "fused_glu", "softmoe"])
    name = b.layer(f"gated:{way}")
    if way == "se":
        down, b1 = b.weights(name, (n, 2), (2,), "down_kernel")
        up, b2 = b.weights(name, (2, n), (n,), "up_kernel")

        def squeeze(p: Any, x: Any) -> Any:
            s = x.mean(tuple(range(1, x.ndim - 1)), keepdims=True)
            s = jax.nn.relu(plus_bias(s @ p[down], p, b1))
            return x * jax.nn.sigmoid(plus_bias(s @ p[up], p, b2))

        return squeeze, shape
    if way == "self":
        return (lambda _, x: x * jax.nn.sigmoid(x.mean(-1, keepdims=True))), shape
    if way == "softmoe":
        router, _ = b.weights(name, (n, 3), None, "router_kernel")
        experts, bias = b.weights(name, (3, n, n), (3, n), "expert_kernel")

        def mixture(p: Any, x: Any) -> Any:
            weight = jax.nn.softmax(x @ p[router], axis=-1)
            y = jnp.einsum("...c,ecd->...ed", x, p[experts])
            return jnp.einsum("...e,...ed->...d", weight, plus_bias(y, p, bias))

        return mixture, shape
    if way == "fused_glu":
        both, bias = b.weights(name, (n, 2 * n), (2 * n,), "both_kernel")

        def fused(p: Any, x: Any) -> Any:
            u, v = jnp.split(plus_bias(x @ p[both], p, bias), 2, axis=-1)
            return u * jax.nn.sigmoid(v)

        return fused, shape
    left, b1 = b.weights(name, (n, n), (n,), "left_kernel")
    right, b2 = b.weights(name, (n, n), (n,), "right_kernel")
    gate = {"glu": jax.nn.sigmoid, "swiglu": jax.nn.silu, "reglu": jax.nn.relu}.get(way)

    def apply(p: Any, x: Any) -> Any:
        u, v = plus_bias(x @ p[left], p, b1), plus_bias(x @ p[right], p, b2)
        return u * (gate(v) if gate else v)

    return apply, shape


def attention(b: Builder, shape: Shape) -> Built:  # noqa: C901 - one layer in many spellings
    if len(shape) != 3:
        return gated(b, shape)
    n, heads = shape[-1], 2
    d = n // heads
    layout = b.pick(
        ["separate", "fused", "fused_heads", "fused_last", "stacked_kv", "kv_last", "shared_kv"]
    )
    norm = b.pick(["none", "none", "rms", "l2", "layer", "flat", "bn"])
    kind = b.pick(["softmax", "softmax", "written", "masked", "linear", "relu"])
    name = b.layer(f"attention:{layout}:{norm}:{kind}")
    full = (n, heads, d)
    table: dict[str, list[tuple[str, Shape, Shape]]] = {
        "separate": [
            ("q_kernel", full, full[1:]),
            ("k_kernel", full, full[1:]),
            ("v_kernel", full, full[1:]),
        ],
        "fused": [("qkv_kernel", (n, 3 * heads * d), (3 * heads * d,))],
        "fused_heads": [("qkv_kernel", (n, 3, heads, d), (3, heads, d))],
        "fused_last": [("qkv_kernel", (n, heads, 3 * d), (heads, 3 * d))],
        "stacked_kv": [
            ("q_kernel", full, full[1:]),
            ("kv_kernel", (2, *full), (2, 1, 1, heads, d)),
        ],
        "kv_last": [("q_kernel", full, full[1:]), ("kv_kernel", (n, 2, heads, d), (2, heads, d))],
        "shared_kv": [
            ("q_kernel", full, full[1:]),
            ("kv_kernel", (n, d), (d,)),
            ("v_kernel", (n, d), (d,)),
        ],
    }
    made = [b.weights(name, s, c, kernel) for kernel, s, c in table[layout]]
    out, out_bias = b.weights(name, (*full[1:], n), (n,), "out_kernel")
    gains = (
        [b.param(name, f"{w}_norm", (d,), "gain") for w in "qk"]
        if norm != "none" and b.chance(50)
        else None
    )
    heat = b.param(name, "logit_scale", (), "gain") if b.chance(25) else None

    def project(p: Any, x: Any) -> tuple[Any, Any, Any]:
        if layout in ("separate", "shared_kv"):
            parts = []
            for kernel, bias in made:
                w = p[kernel]
                eq = "btc,chd->bthd" if w.ndim == 3 else "btc,cd->btd"
                y = plus_bias(jnp.einsum(eq, x, w), p, bias)
                parts.append(y if y.ndim == 4 else jnp.repeat(y[:, :, None], heads, axis=2))
            return tuple(parts)
        if layout in ("stacked_kv", "kv_last"):
            (q_kernel, q_bias), (kv, kv_bias) = made
            q = plus_bias(jnp.einsum("btc,chd->bthd", x, p[q_kernel]), p, q_bias)
            if layout == "kv_last":
                y = plus_bias(jnp.einsum("btc,cshd->btshd", x, p[kv]), p, kv_bias)
                return q, y[:, :, 0], y[:, :, 1]
            y = plus_bias(jnp.einsum("btc,schd->sbthd", x, p[kv]), p, kv_bias)
            return q, y[0], y[1]
        ((kernel, bias),) = made
        if layout == "fused":
            y = plus_bias(x @ p[kernel], p, bias)
            return tuple(z.reshape(*z.shape[:-1], heads, d) for z in jnp.split(y, 3, axis=-1))
        if layout == "fused_heads":
            y = plus_bias(jnp.einsum("btc,cshd->btshd", x, p[kernel]), p, bias)
            return y[:, :, 0], y[:, :, 1], y[:, :, 2]
        y = plus_bias(jnp.einsum("btc,chd->bthd", x, p[kernel]), p, bias)
        return tuple(jnp.split(y, 3, axis=-1))

    def normed(y: Any) -> Any:
        if norm == "rms":
            return y * lax.rsqrt(jnp.mean(y * y, -1, keepdims=True) + EPS)
        if norm == "l2":
            return y / (jnp.linalg.norm(y, axis=-1, keepdims=True) + EPS)
        if norm == "layer":
            return (y - y.mean(-1, keepdims=True)) * lax.rsqrt(y.var(-1, keepdims=True) + EPS)
        if norm == "flat":
            return y * lax.rsqrt(jnp.mean(y * y, (-1, -2), keepdims=True) + EPS)
        if norm == "bn":
            return (y - y.mean((0, 1))) * lax.rsqrt(y.var((0, 1)) + EPS)
        return y

    def apply(p: Any, x: Any) -> Any:
        q, k, v = project(p, x)
        q, k = normed(q), normed(k)
        if gains:
            q, k = q * p[gains[0]], k * p[gains[1]]
        if kind == "linear":
            q, k = jnp.abs(q), jnp.abs(k)
            mixed = jnp.einsum("bkhd,bkhe->bhde", k, v)
            y = jnp.einsum("bqhd,bhde->bqhe", q, mixed)
            y = y / (jnp.einsum("bqhd,bhd->bqh", q, k.sum(1))[..., None] + EPS)
        else:
            score = jnp.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(d)
            if heat:
                score = score * p[heat]
            if kind == "masked":
                causal = jnp.tril(jnp.ones(score.shape[-2:], bool))
                score = jnp.where(causal, score, jnp.finfo(score.dtype).min)
            if kind == "relu":
                weight = jax.nn.relu(score) / score.shape[-1]
            elif kind == "written":
                weight = jnp.exp(score - score.max(-1, keepdims=True))
                weight = weight / weight.sum(-1, keepdims=True)
            else:
                weight = jax.nn.softmax(score, axis=-1)
            y = jnp.einsum("bhqk,bkhd->bqhd", weight, v)
        return plus_bias(jnp.einsum("bqhd,hdc->bqc", y, p[out]), p, out_bias)

    if heat and kind == "linear":
        del b.params[heat]
    return apply, shape


def recurrent(b: Builder, shape: Shape) -> Built:
    if len(shape) != 3:
        return dense(b, shape)
    way = b.pick(["tanh", "gru", "normed", "linear", "relu"])
    name = b.layer(f"recurrent:{way}")
    n, m = shape[-1], 4
    inner, bias = b.weights(name, (n, m), (m,), "in_kernel")
    state, _ = b.weights(name, (m, m), None, "state_kernel")
    gate = b.weights(name, (n + m, m), (m,), "gate_kernel") if way == "gru" else None

    def apply(p: Any, x: Any) -> Any:
        def step(h: Any, row: Any) -> tuple[Any, Any]:
            new = plus_bias(row @ p[inner], p, bias) + h @ p[state]
            if way == "normed":
                new = jnp.tanh(new * lax.rsqrt(jnp.mean(new * new, -1, keepdims=True) + EPS))
            elif way == "relu":
                new = jax.nn.relu(new)
            elif way != "linear":
                new = jnp.tanh(new)
            if gate:
                joined = jnp.concatenate([row, h], axis=-1)
                z = jax.nn.sigmoid(plus_bias(joined @ p[gate[0]], p, gate[1]))
                new = z * h + (1 - z) * new
            return new, new

        start = jnp.zeros((x.shape[0], m), x.dtype)
        return jnp.moveaxis(lax.scan(step, start, jnp.moveaxis(x, 1, 0))[1], 0, 1)

    return apply, (*shape[:-1], m)
