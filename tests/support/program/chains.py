"""Random chains of operations on small arrays, the same under NumPy and under JAX."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

SHAPES = (
    *((2,), (3,), (4,), (6,), (12,)),
    *((1, 6), (2, 3), (3, 2), (2, 6), (4, 3)),
    *((2, 2, 3), (2, 3, 2)),
)
_LARGEST = 150

Step = tuple[str, int, int, int]
OPERATIONS: dict[str, Callable[..., Any]] = {}


class Inapplicable(Exception):
    """The step makes no sense for the values at hand."""


def operation(f):
    OPERATIONS[f.__name__] = f
    return f


def need(condition) -> None:
    if not condition:
        raise Inapplicable


def one_of(values, i):
    need(values)
    return values[i % len(values)]


def like(pool, x, i):
    return one_of([y for y in pool if y.shape == x.shape], i)


def axis_of(x, i):
    return i % x.ndim


def factorisations(n):
    pairs = [(a, n // a) for a in range(1, n + 1) if n % a == 0]
    return [
        (n,),
        *pairs,
        *((a, b, m // b) for a, m in pairs for b in range(1, m + 1) if m % b == 0),
    ]


@operation
def reshape(xp, pool, x, i, j):
    return x.reshape(one_of(factorisations(x.size), i))


@operation
def reshape_in_another_order(xp, pool, x, i, j):
    order, shape = np.random.default_rng(i).permutation(x.ndim), one_of(factorisations(x.size), j)
    if xp is jnp:
        return jax.lax.reshape(x, shape, dimensions=order.tolist())
    return x.transpose(order).reshape(shape)


@operation
def flat(xp, pool, x, i, j):
    return x.reshape(-1)


@operation
def transpose(xp, pool, x, i, j):
    return x.transpose(np.random.default_rng(i).permutation(x.ndim))


@operation
def cut(xp, pool, x, i, j):
    axis = axis_of(x, i)
    n = x.shape[axis]
    low = j % n
    high = low + 1 + (i // 7) % (n - low)
    return x[(slice(None),) * axis + (slice(low, high),)]


@operation
def strided(xp, pool, x, i, j):
    return x[(slice(None),) * axis_of(x, i) + (slice(None, None, 2),)]


@operation
def halved(xp, pool, x, i, j):
    axis = axis_of(x, i)
    need(x.shape[axis] % 2 == 0)
    return xp.split(x, 2, axis)[j % 2]


@operation
def concatenate(xp, pool, x, i, j):
    axis = axis_of(x, i)

    def rest(y):
        return y.shape[:axis] + y.shape[axis + 1 :]

    return xp.concatenate(
        [x, one_of([y for y in pool if y.ndim == x.ndim and rest(y) == rest(x)], j)], axis
    )


@operation
def concatenate_zeros(xp, pool, x, i, j):
    zeros = np.zeros(x.shape)
    return xp.concatenate([x, zeros] if j % 2 else [zeros, x], axis_of(x, i))


@operation
def stack(xp, pool, x, i, j):
    return xp.stack([x, like(pool, x, j)], i % (x.ndim + 1))


@operation
def pad(xp, pool, x, i, j):
    widths = [(0, 0)] * x.ndim
    widths[axis_of(x, i)] = (j % 2, (j // 2) % 3)
    return xp.pad(x, widths)


@operation
def expand(xp, pool, x, i, j):
    axis = i % (x.ndim + 1)
    shape = (*x.shape[:axis], 2 + j % 2, *x.shape[axis:])
    return xp.broadcast_to(xp.expand_dims(x, axis), shape)


@operation
def tile(xp, pool, x, i, j):
    copies = [1] * x.ndim
    copies[axis_of(x, i)] = 2
    return xp.tile(x, copies)


@operation
def repeat(xp, pool, x, i, j):
    return xp.repeat(x, 2, axis=axis_of(x, i))


@operation
def flip(xp, pool, x, i, j):
    return xp.flip(x, axis_of(x, i))


@operation
def gather(xp, pool, x, i, j):
    axis = axis_of(x, i)
    return xp.take(x, np.random.default_rng(j).integers(0, x.shape[axis], 3), axis=axis)


@operation
def set_row(xp, pool, x, i, j):
    row = one_of([y for y in pool if y.shape == x.shape[1:]], i)
    if xp is jnp:
        return x.at[j % x.shape[0]].set(row)
    out = x.copy()
    out[j % x.shape[0]] = row
    return out


@operation
def add(xp, pool, x, i, j):
    return x + like(pool, x, i)


@operation
def subtract(xp, pool, x, i, j):
    return x - like(pool, x, i)


@operation
def multiply(xp, pool, x, i, j):
    return x * like(pool, x, i)


@operation
def divide(xp, pool, x, i, j):
    return x / like(pool, x, i)


@operation
def maximum(xp, pool, x, i, j):
    return xp.maximum(x, like(pool, x, i))


@operation
def broadcast_meet(xp, pool, x, i, j):
    def fits(y):
        sizes = zip(x.shape[::-1], y.shape[::-1], strict=False)
        return y.ndim <= x.ndim and all(n in (m, 1) for m, n in sizes)

    y = xp.broadcast_to(one_of([y for y in pool if fits(y)], i), x.shape)
    return (x * y, x + y, xp.maximum(x, y))[j % 3]


@operation
def outer(xp, pool, x, i, j):
    y = one_of(pool, i)
    return xp.expand_dims(x, tuple(range(x.ndim, x.ndim + y.ndim))) * y


@operation
def contract(xp, pool, x, i, j):
    pairs = [(y, a, y.shape.index(n)) for y in pool for a, n in enumerate(x.shape) if n in y.shape]
    y, a, b = one_of(pairs, j)
    return xp.tensordot(x, y, ((a,), (b,)))


@operation
def batched_outer(xp, pool, x, i, j):
    need(x.ndim >= 2)
    y = one_of([y for y in pool if y.ndim == 2 and y.shape[0] == x.shape[0]], i)
    return xp.einsum("ab,ac->abc", x.reshape(x.shape[0], -1), y)


@operation
def batched_contract(xp, pool, x, i, j):
    need(x.ndim == 3)
    y = one_of([y for y in pool if y.ndim == 2 and y.shape == (x.shape[0], x.shape[2])], i)
    return xp.einsum("abc,ac->ba" if j % 2 else "abc,ac->ab", x, y)


@operation
def add_up(xp, pool, x, i, j):
    return x.sum(axis_of(x, i))


@operation
def cumulate(xp, pool, x, i, j):
    return xp.cumsum(x, axis_of(x, i))


@operation
def sort(xp, pool, x, i, j):
    return xp.sort(x, axis_of(x, i))


@operation
def relu(xp, pool, x, i, j):
    return xp.maximum(x, 0.0)


@operation
def square(xp, pool, x, i, j):
    return x * x


@operation
def root(xp, pool, x, i, j):
    return xp.sqrt(xp.abs(x))


@operation
def select(xp, pool, x, i, j):
    return xp.where(like(pool, x, i) > 0, x, like(pool, x, j))


@operation
def mask(xp, pool, x, i, j):
    return xp.where(np.random.default_rng(i).random(x.shape) > 0.5, x, 0.0)


@operation
def times_data(xp, pool, x, i, j):
    return x * np.random.default_rng(i).normal(size=x.shape)


@operation
def normalise(xp, pool, x, i, j):
    axes = tuple(a for a in range(x.ndim) if (i >> a) & 1) or (0,)
    return x / xp.sqrt((x * x).sum(axes, keepdims=True))


@operation
def normalise_groups(xp, pool, x, i, j):
    axis = axis_of(x, i)
    n = x.shape[axis]
    need(n % 2 == 0)
    split = (*x.shape[:axis], *((2, n // 2) if j % 2 else (n // 2, 2)), *x.shape[axis + 1 :])
    return normalise(xp, pool, x.reshape(split), 1 << (axis + 1), j).reshape(x.shape)


@operation
def centre(xp, pool, x, i, j):
    return x - x.mean(axis_of(x, i), keepdims=True)


@operation
def cumulate_maximum(xp, pool, x, i, j):
    axis = axis_of(x, i)
    return jax.lax.cummax(x, axis) if xp is jnp else np.maximum.accumulate(x, axis)


@operation
def top(xp, pool, x, i, j):
    k = 1 + i % x.shape[-1]
    return jax.lax.top_k(x, k)[0] if xp is jnp else np.flip(np.sort(x, -1), -1)[..., :k]


@operation
def take_along(xp, pool, x, i, j):
    axis = axis_of(x, i)
    order = xp.argsort(xp.abs(like(pool, x, j)), axis)
    if j % 3 == 0:
        order = np.random.default_rng(j).integers(0, x.shape[axis], x.shape)
    return xp.take_along_axis(x, order, axis)


@operation
def sorted_by(xp, pool, x, i, j):
    y, axis = like(pool, x, i), axis_of(x, j)
    if xp is jnp:
        return jax.lax.sort((y, x), dimension=axis, num_keys=1)[1]
    return np.take_along_axis(x, np.argsort(y, axis, kind="stable"), axis)


@operation
def clipped(xp, pool, x, i, j):
    low, high = xp.abs(like(pool, x, i)), -xp.abs(like(pool, x, j))
    low, high = (low, high) if i % 4 == 0 else (high, low)
    return jax.lax.clamp(low, x, high) if xp is jnp else np.minimum(np.maximum(x, low), high)


@operation
def guarded(xp, pool, x, i, j):
    axes = (axis_of(x, i),)
    n = xp.sqrt((x * x).sum(axes, keepdims=True))
    if j % 4 == 0:
        n = (x * x).sum(axes, keepdims=True)
    safe = xp.where(n != 0 if j % 2 else n > 0, n, 1.0) if i % 2 else xp.where(n == 0, 1.0, n)
    return x / safe


@operation
def gated(xp, pool, x, i, j):
    gate = (like(pool, x, i) > 0).astype(float)
    return (x * gate, x * gate.sum(), x - x * gate, gate)[j % 4]


@operation
def one_beside(xp, pool, x, i, j):
    y = like(pool, x, i)
    tests = (
        *(xp.maximum(y, 0.0), xp.sign(xp.maximum(y, 0.0)), xp.tanh(xp.maximum(y, 0.0))),
        *(xp.round(y), (y > 0).astype(float), (y > x).astype(int), xp.argmax(y, 0)),
        *(y, xp.cumprod(xp.maximum(y, 0.0), 0), xp.abs(y) - xp.abs(x)),
    )
    test = tests[j % len(tests)]
    return xp.where(test != 0, x, 1.0) if i % 2 else xp.where(test == 0, 1.0, x)


@operation
def guard_above(xp, pool, x, i, j):
    bounded = x if j % 2 else x + xp.abs(like(pool, x, i))
    return xp.where(bounded > 0, x, 1.0)


@operation
def one_hot(xp, pool, x, i, j):
    axis = axis_of(x, i)
    best = xp.expand_dims(xp.argmax(xp.abs(x), axis), axis)
    places = np.arange(x.shape[axis]).reshape([-1 if a == axis else 1 for a in range(x.ndim)])
    return xp.where(places == best, like(pool, x, j), 0.0)


@operation
def select_by_places(xp, pool, x, i, j):
    y, axis = like(pool, x, i), axis_of(x, j)
    best = xp.argmax(x, axis) == xp.argmax(y, axis)
    return xp.where(xp.expand_dims(best, axis), x, y)


@operation
def squash(xp, pool, x, i, j):
    need(j % 4 == 0)
    return xp.tanh(x)


def values_of(xp, steps: Sequence[Step], leaves: Sequence[Any]) -> list[Any]:
    """All values that a chain of steps computes from its leaves, in order."""
    pool = list(leaves)
    for name, place, i, j in steps:
        x = pool[-1 - place % len(pool)] if place % 3 else pool[-1]
        try:
            y = OPERATIONS[name](xp, pool, x, i, j)
        except Inapplicable:
            continue
        if y.size <= _LARGEST and y.ndim <= 5:
            pool.append(y.reshape(1) if y.ndim == 0 else y)
    return pool[len(leaves) :]
