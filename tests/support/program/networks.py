"""Random networks as plain JAX functions, from a seed or from Hypothesis."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st
from jax import lax

from tests.support.program import layers
from tests.support.program.building import Builder, Choices, Layer, Seeded

Shape = tuple[int, ...]
Built = tuple[Layer, Shape]


@dataclasses.dataclass(frozen=True)
class Network:
    """A function, its parameters and its input.

    Attributes:
      fn: ``fn(params, x)``.
      params: Values that hide nothing, by path.
      x: The input: tokens or features.
      own: For each weight or gain, the biases added to its own output.
      said: What it is built of.
    """

    fn: Callable[[Mapping[str, Any], Any], Any]
    params: dict[str, np.ndarray]
    x: np.ndarray
    own: dict[str, list[str]]
    said: tuple[str, ...]

    def __repr__(self) -> str:
        return f"Network({' > '.join(self.said)})"


_SIMPLE = [
    (layers.dense, 12),
    (layers.conv, 14),
    (layers.batch_norm, 14),
    (layers.layer_norm, 6),
    (layers.group_norm, 5),
    (layers.instance_norm, 4),
    (layers.rms_norm, 6),
    (layers.pointwise, 18),
    (layers.prelu, 3),
    (layers.layer_scale, 5),
    (layers.pool, 4),
    (layers.gated, 6),
    (layers.attention, 8),
    (layers.weight_normed, 4),
    (layers.spectral_normed, 3),
    (layers.demodulated, 2),
    (layers.recurrent, 2),
]


def simple(b: Builder, shape: Shape) -> Built:
    """One layer."""
    make = b.pick([f for f, n in _SIMPLE for _ in range(n)])
    if make is layers.conv and len(shape) != 4:
        make = layers.dense
    return make(b, shape)


def chain(b: Builder, shape: Shape, least: int, most: int) -> Built:
    """Layers one after the other."""
    parts = []
    for _ in range(b.choices.integer(least, most)):
        apply, shape = layer(b, shape)
        parts.append(apply)

    def run(p: Any, x: Any) -> Any:
        for apply in parts:
            x = apply(p, x)
        return x

    return run, shape


def classic(b: Builder, shape: Shape) -> Built:
    """A weight, a normaliser, a nonlinearity: what most networks repeat."""
    order = b.pick(["wna", "naw", "wan", "wn", "wa"])
    parts = []
    for kind in order:
        if kind == "w":
            make = layers.conv if len(shape) == 4 else layers.dense
        elif kind == "n":
            make = b.pick(
                [layers.batch_norm, layers.batch_norm, layers.group_norm, layers.rms_norm]
            )
        else:
            make = layers.pointwise
        apply, shape = make(b, shape)
        parts.append(apply)

    def run(p: Any, x: Any) -> Any:
        for apply in parts:
            x = apply(p, x)
        return x

    return run, shape


def fitting(b: Builder, shape: Shape, least: int = 1, most: int = 3) -> Layer:
    """Layers whose output has the shape of their input."""
    apply, got = chain(b, shape, least, most)
    if got == shape:
        return apply
    if len(got) != len(shape) or got[1:-1] != shape[1:-1]:
        parts, _ = layers.dense(b, (shape[0], got[-1]), shape[-1])

        def pooled(p: Any, x: Any) -> Any:
            y = apply(p, x)
            y = parts(p, y.mean(tuple(range(1, y.ndim - 1))))
            return jnp.broadcast_to(y.reshape(y.shape[0], *[1] * (len(shape) - 2), -1), shape)

        return pooled
    last, _ = layers.dense(b, got, shape[-1])
    return lambda p, x: last(p, apply(p, x))


def residual(b: Builder, shape: Shape) -> Built:
    way = b.pick(["plain", "plain", "post", "gain", "halved", "product", "max", "subtracted"])
    b.layer(f"residual:{way}(")
    inner = fitting(b, shape)
    gain = b.param(b.layer("skip"), "gain", (shape[-1],), "gain") if way == "gain" else None
    post = layers.layer_norm(b, shape)[0] if way == "post" else None
    b.said.append(")")

    def apply(p: Any, x: Any) -> Any:
        y = inner(p, x)
        if way == "product":
            return x * y
        if way == "max":
            return jnp.maximum(x, y)
        if way == "subtracted":
            return x - y
        if way == "halved":
            return 0.5 * x + y
        out = x + (y * p[gain] if gain else y)
        return post(p, out) if post else out

    return apply, shape


def joined(b: Builder, shape: Shape) -> Built:
    way = b.pick(["dense", "dense", "split", "inception", "raw", "halves"])
    b.layer(f"joined:{way}(")
    n = shape[-1]
    if way == "split" and n % 2 == 0:
        left = fitting(b, (*shape[:-1], n // 2), 1, 2) if n % 4 == 0 else None
        b.said.append(")")

        def split(p: Any, x: Any) -> Any:
            u, v = jnp.split(x, 2, axis=-1)
            return jnp.concatenate([u if left is None else left(p, u), v], axis=-1)

        return split, shape
    if way == "raw" and b.raw is not None and b.raw[0][:-1] == shape[:-1]:
        b.said.append(")")
        size, read = b.raw
        return (lambda p, x: jnp.concatenate([x, read(p)], axis=-1)), (*shape[:-1], n + size[-1])
    inner = fitting(b, shape, 1, 2)
    other = fitting(b, shape, 1, 2) if way == "inception" else None
    b.said.append(")")

    def apply(p: Any, x: Any) -> Any:
        return jnp.concatenate([other(p, x) if other else x, inner(p, x)], axis=-1)

    return apply, (*shape[:-1], 2 * n)


def summed(b: Builder, shape: Shape) -> Built:
    b.layer("summed(")
    left = fitting(b, shape, 1, 2)
    b.said.append("+")
    right = fitting(b, shape, 1, 2)
    b.said.append(")")
    return (lambda p, x: left(p, x) + right(p, x)), shape


def scanned(b: Builder, shape: Shape) -> Built:
    """Stacked layers under `lax.scan`, as a Python loop over slices, or as `fori_loop`."""
    if b.prefix:
        return simple(b, shape)
    way = b.pick(["scan", "scan", "unrolled", "reversed", "residual"])
    b.layer(f"scan:{way}(")
    before = set(b.params)
    b.prefix, b.depth = (b.pick([2, 3]),), b.depth + 1
    inner = fitting(b, shape, 1, 2)
    length, b.prefix = b.prefix[0], ()
    b.depth -= 1
    names = [path for path in b.params if path not in before]
    b.said.append(")")

    def body(p: Any, x: Any) -> Any:
        y = inner(p, x)
        return x + y if way == "residual" else y

    def apply(p: Any, x: Any) -> Any:
        own = {path: p[path] for path in names}
        if way == "unrolled":
            for i in range(length):
                x = body({path: v[i] for path, v in own.items()}, x)
            return x
        step = lambda carry, rows: (body(rows, carry), None)  # noqa: E731
        return lax.scan(step, x, own, length=length, reverse=way == "reversed")[0]

    return apply, shape


def shared(b: Builder, shape: Shape) -> Built:
    way = b.pick(["twice", "loop", "branches"])
    b.layer(f"shared:{way}(")
    inner = fitting(b, shape, 1, 2)
    b.said.append(")")

    def apply(p: Any, x: Any) -> Any:
        if way == "loop":
            return lax.fori_loop(0, 2, lambda _, y: inner(p, y), x)
        if way == "branches":
            return inner(p, x) + inner(p, jnp.flip(x, axis=-1))
        return inner(p, inner(p, x))

    return apply, shape


def conditional(b: Builder, shape: Shape) -> Built:
    way = b.pick(["data", "constant", "switch", "skip"])
    b.layer(f"cond:{way}(")
    left = fitting(b, shape, 1, 2)
    right = fitting(b, shape, 1, 2) if way != "skip" else (lambda _, x: x)
    b.said.append(")")

    def apply(p: Any, x: Any) -> Any:
        if way == "switch":
            return lax.switch(jnp.asarray(1), [left, right], p, x)
        flag = jnp.asarray(True) if way == "constant" else x.ravel()[0] > 0
        return lax.cond(flag, left, right, p, x)

    return apply, shape


def wrapped(b: Builder, shape: Shape) -> Built:  # noqa: C901 - one case a wrapper
    way = b.pick(
        ["jit", "checkpoint", "custom_jvp", "custom_vjp", "vmap", "reshaped", "transposed", "map"]
    )
    b.layer(f"{way}(")
    if way in ("vmap", "map"):
        inner = fitting(b, (1, *shape[1:]))
    elif way == "reshaped" and len(shape) == 4:
        inner = fitting(b, (shape[0], shape[1] * shape[2], shape[3]))
    else:
        inner = fitting(b, shape)
    b.said.append(")")

    def apply(p: Any, x: Any) -> Any:  # noqa: C901 - as above
        if way == "jit":
            return jax.jit(inner)(p, x)
        if way == "checkpoint":
            return jax.checkpoint(inner)(p, x)
        if way == "custom_jvp":
            return _custom_jvp(inner)(p, x)
        if way == "custom_vjp":
            return _custom_vjp(inner)(p, x)
        if way == "vmap":
            return jax.vmap(lambda row: inner(p, row[None])[0])(x)
        if way == "map":
            return lax.map(lambda row: inner(p, row[None])[0], x)
        if way == "reshaped" and x.ndim == 4:
            y = x.reshape(x.shape[0], -1, x.shape[-1])
            return inner(p, y).reshape(x.shape)
        if way == "transposed" and x.ndim > 2:
            y = inner(p, jnp.swapaxes(x, 1, x.ndim - 2))
            return jnp.swapaxes(y, 1, x.ndim - 2)
        return inner(p, x)

    return apply, shape


def _custom_jvp(fn: Layer) -> Any:
    wrapped_fn = jax.custom_jvp(fn)
    wrapped_fn.defjvp(lambda primals, tangents: jax.jvp(fn, primals, tangents))
    return wrapped_fn


def _custom_vjp(fn: Layer) -> Any:
    wrapped_fn = jax.custom_vjp(fn)
    wrapped_fn.defvjp(lambda p, x: jax.vjp(fn, p, x), lambda pull, g: pull(g))
    return wrapped_fn


_NESTED = [residual, residual, joined, summed, scanned, shared, conditional, wrapped, wrapped]


def layer(b: Builder, shape: Shape) -> Built:
    """A layer, or layers within layers."""
    if b.depth < 2 and b.chance(30):
        b.depth += 1
        built = b.pick(_NESTED)(b, shape)
        b.depth -= 1
        return built
    return classic(b, shape) if b.depth < 1 and b.chance(40) else simple(b, shape)


def network(choices: Choices) -> Network:
    """A network from the choices."""
    b = Builder(choices)
    batch, n = 4, b.pick([4, 6])
    rng = np.random.default_rng(choices.integer(0, 3))
    start = b.pick(["vector", "image", "tokens", "lookup"])
    shape: Shape = {
        "vector": (batch, n),
        "image": (batch, 4, 4, b.pick([3, n])),
        "tokens": (batch, 5, n),
        "lookup": (batch, 5, n),
    }[start]
    b.said.append(start)
    x = rng.normal(size=shape)
    table = None
    if start == "lookup":
        x = rng.integers(0, 7, size=shape[:-1])
        table = b.param(b.layer("embed"), "embedding", (7, n), "kernel")
    stem: Built | None = None
    if start != "lookup" and (start == "image" or b.chance(60)):
        stem = (layers.conv if start == "image" else layers.dense)(b, shape)
    holder: dict[str, Any] = {}
    after = stem[1] if stem else shape
    b.raw = (after, lambda _: holder["raw"])
    body, end = chain(b, after, 1, 5)
    head, _ = _head(b, end, table)
    if not b.params:
        return network(choices)
    b.said.append("end")

    def fn(p: Any, x: Any) -> Any:
        h = x if table is None else p[table][x]
        h = stem[0](p, h) if stem else h
        holder["raw"] = h
        return head(p, body(p, h))

    return Network(fn, b.params, x, b.own, tuple(b.said))


def _head(b: Builder, shape: Shape, table: str | None) -> Built:
    way = b.pick(["dense", "dense", "none", "loss", "cosine", "tied", "normed", "scalar", "two"])
    n = shape[-1]
    if way in ("none", "normed"):
        return (lambda _, h: h) if way == "none" else layers.layer_norm(b, shape)[0], shape
    if way == "scalar":
        b.layer("head:scalar")
        return (lambda _, h: jnp.mean(h**2)), ()
    if way == "tied" and table is not None and b.params[table].shape[1] == n:
        b.layer("head:tied")
        return (lambda p, h: h @ p[table].T), shape
    name = b.layer(f"head:{way}")
    kernel, bias = b.weights(name, (n, 3), (3,))
    if way == "cosine":
        b.own.pop(kernel, None)

    def apply(p: Any, h: Any) -> Any:
        h = h.mean(tuple(range(1, h.ndim - 1)))
        w = p[kernel]
        if way == "cosine":
            h = h / (jnp.linalg.norm(h, axis=-1, keepdims=True) + 1e-12)
            w = w / jnp.linalg.norm(w, axis=0)
        y = h @ w if bias is None else h @ w + p[bias]
        if way == "loss":
            return -jnp.mean(jax.nn.log_softmax(y)[..., 0])
        return (y, h.sum(-1)) if way == "two" else y

    return apply, (shape[0], 3)


def seeded_network(seed: int) -> Network:
    """The network of that seed."""
    return network(Seeded(np.random.default_rng(seed)))


@st.composite
def networks(draw: Any) -> Network:
    """Networks that Hypothesis can shrink."""

    class Drawn:
        def integer(self, low: int, high: int) -> int:
            return draw(st.integers(low, high))

    return network(Drawn())
