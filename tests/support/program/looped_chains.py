"""More operations for random chains: loops, branches, and reading and writing at places.

`OPERATIONS` are those of `chains` and these.
"""

import jax
import jax.numpy as jnp
import numpy as np

from tests.support.program.chains import OPERATIONS, axis_of, like, need, one_of, operation

_PLAIN = set(OPERATIONS)


def rows_like(pool, x):
    return [y for y in pool if y.shape == x.shape[1:]]


def scan(xp, f, carry, xs, *, reverse=False):
    """`jax.lax.scan`."""
    if xp is jnp:
        return jax.lax.scan(f, carry, xs, reverse=reverse)
    n = len(jax.tree.leaves(xs)[0])
    ys = [None] * n
    for t in range(n)[:: -1 if reverse else 1]:
        carry, ys[t] = f(carry, jax.tree.map(lambda x, t=t: x[t], xs))
    return carry, jax.tree.map(lambda *y: np.stack(y), *ys)


def repeated(xp, n, f, carry):
    """`jax.lax.fori_loop` from 0."""
    if xp is jnp:
        return jax.lax.fori_loop(0, n, f, carry)
    for t in range(n):
        carry = f(t, carry)
    return carry


def while_true(xp, test, f, carry):
    """`jax.lax.while_loop`."""
    if xp is jnp:
        return jax.lax.while_loop(test, f, carry)
    while test(carry):
        carry = f(carry)
    return carry


def chosen(xp, which, branches, *operands):
    """`jax.lax.switch`."""
    if xp is jnp:
        return jax.lax.switch(which, branches, *operands)
    return branches[min(max(int(which), 0), len(branches) - 1)](*operands)


def mapped(xp, f, *xs, axes=0):
    """`jax.vmap`; `axes` is where each is mapped over."""
    if xp is jnp:
        return jax.vmap(f, axes)(*xs)
    axes = axes if isinstance(axes, tuple) else (axes,) * len(xs)
    rows = zip(*(np.moveaxis(x, a, 0) for x, a in zip(xs, axes, strict=True)), strict=True)
    return np.stack([f(*row) for row in rows])


def checkpointed(xp, f):
    return jax.checkpoint(f) if xp is jnp else f


def start_of(pool, x, i):
    """What a carry starts with: zeros, -infinity, or another value."""
    starts = [np.zeros(x.shape[1:]), *rows_like(pool, x), np.full(x.shape[1:], -np.inf)]
    return starts[i % len(starts)]


def unit(xp, x):
    return x / xp.sqrt((x * x).sum())


def meet(xp, x, y, j):
    return (x + y, xp.maximum(x, y), x * y, x - y)[j % 4]


def index_of(xp, y, n):
    """A place below `n` that depends on the value but not on its scale."""
    return xp.argmax(xp.abs(y).reshape(-1)) % n


@operation
def scan_reduced(xp, pool, x, i, j):
    return scan(xp, lambda c, r: (meet(xp, c, r, j), 0.0), start_of(pool, x, i), x)[0]


@operation
def scan_history(xp, pool, x, i, j):
    def f(c, r):
        c = meet(xp, c, r, j // 2)
        return c, c

    return scan(xp, f, start_of(pool, x, i), x, reverse=j % 2 == 1)[1]


@operation
def scan_previous(xp, pool, x, i, j):
    start = start_of(pool, x, i)
    return scan(xp, lambda c, r: (r, meet(xp, c, r, j)), start, x, reverse=i % 2 == 1)[1]


@operation
def scan_with_constant(xp, pool, x, i, j):
    y = one_of([y for y in pool if y.ndim == x.ndim], i)
    need(x.ndim > 1 and x.shape[1:] == y.shape[1:])

    def f(c, r):
        z = r * y
        return c + z if j % 2 else c + z.sum(0), (z, z[0], z + c)[j % 3] if j % 2 else z

    start = xp.zeros(y.shape if j % 2 else y.shape[1:])
    end, ys = scan(xp, f, start, x)
    return ys if i % 3 else end


@operation
def scan_rows(xp, pool, x, i, j):
    k = x.sum(0) if j % 2 else one_of(rows_like(pool, x), j)

    def f(c, r):
        return c, (r * k, r + k, unit(xp, r), r / (r * r).sum(), xp.maximum(r, k))[i % 5]

    return scan(xp, f, 0.0, x)[1]


@operation
def scan_pairs(xp, pool, x, i, j):
    y = one_of([y for y in pool if y.shape[0] == x.shape[0]], i)

    def f(c, rows):
        a, b = rows
        wide = xp.expand_dims(a, tuple(range(a.ndim, a.ndim + b.ndim)))
        return c + (a * a).sum() if j % 2 else c, wide * b

    end, ys = scan(xp, f, np.float64(0.0), (x, y), reverse=j % 3 == 1)
    return end if j % 4 == 3 else ys


@operation
def scan_nested(xp, pool, x, i, j):
    need(x.ndim > 1)

    def inner(c, e):
        c = meet(xp, c, e, i)
        return c, c

    def outer(c, r):
        end, ys = scan(xp, inner, c, r)
        return (c if j % 3 == 1 else end), (ys if j % 3 == 1 else end)

    start = start_of([y[0] if y.ndim == x.ndim else y for y in pool], x[0], j)
    end, ys = scan(xp, outer, start, x)
    return end if j % 3 == 2 else ys


@operation
def scan_nested_constant(xp, pool, x, i, j):
    y = one_of(pool, i)

    def outer(c, r):
        end, ys = scan(xp, lambda d, s: (d + s.sum(), r * s.sum()), c, y, reverse=j % 2 == 1)
        return end, ys

    end, ys = scan(xp, outer, np.float64(0.0), x)
    return end if j % 4 == 0 else ys


@operation
def scan_checkpointed(xp, pool, x, i, j):
    k = one_of(rows_like(pool, x), i)

    def f(carry, r):
        same, c = carry
        return (same, c + r * same if j % 2 else xp.maximum(c, r * same)), r * same

    start = np.zeros(x.shape[1:]) if j % 3 else one_of(rows_like(pool, x), j)
    (same, c), ys = scan(xp, checkpointed(xp, f), (k, start), x)
    return (c, ys, same)[i % 3]


@operation
def scan_swapped(xp, pool, x, i, j):
    a, b = one_of(rows_like(pool, x), i), start_of(pool, x, j)

    def f(carry, r):
        a, b = carry
        return ((b, a) if i % 2 else (b, xp.maximum(a, r))), meet(xp, a, r, j)

    (a, b), ys = scan(xp, f, (a, b), x, reverse=j % 5 == 0)
    return (a, b, ys)[j % 3]


@operation
def scan_layers(xp, pool, x, i, j):
    need(x.ndim == 3 and x.shape[1] == x.shape[2])
    h = one_of([y for y in pool if y.shape[-1] == x.shape[1] and y.ndim <= 2], i)

    def f(h, w):
        z = h @ w
        z = (z / xp.sqrt((z * z).sum(-1, keepdims=True)), unit(xp, z), z, xp.maximum(z, 0.0))[j % 4]
        return z, z if i % 2 else h

    end, ys = scan(xp, f, h, x)
    return ys if j % 3 == 0 else end


@operation
def square_matrices(xp, pool, x, i, j):
    return xp.stack([x.reshape(-1)[:4].reshape(2, 2)] * 2) if x.size >= 4 else x


@operation
def scan_residual(xp, pool, x, i, j):
    def f(h, r):
        return h + (unit(xp, r) if j % 2 else unit(xp, h * r)), unit(xp, h)

    end, ys = scan(xp, f, one_of(rows_like(pool, x), i), x)
    return ys if j % 3 else end


@operation
def scan_rsqrt(xp, pool, x, i, j):
    def f(c, r):
        s = (r * r).sum()
        n = jax.lax.rsqrt(s) if xp is jnp else 1 / np.sqrt(s)
        return c + r * n if j % 2 else c + s, r * n

    end, ys = scan(xp, f, xp.zeros(x.shape[1:]) if j % 2 else np.float64(0.0), x)
    return ys if i % 2 else end


@operation
def scan_updated(xp, pool, x, i, j):
    y = one_of([y for y in pool if y.shape[1:] == x.shape[1:]], i)

    def f(carry, r):
        t, c = carry
        if xp is jnp:
            c = c.at[t % y.shape[0]].set(r)
        else:
            c = c.astype(np.result_type(c, r))
            c[t % y.shape[0]] = r
        return (t + 1, c), 0.0

    return scan(xp, f, (0, np.zeros(y.shape) if j % 2 else y), x)[0][1]


@operation
def loop_repeated(xp, pool, x, i, j):
    y = like(pool, x, i)
    return repeated(xp, 2, lambda t, c: meet(xp, c, y, j), x)


@operation
def loop_indexed(xp, pool, x, i, j):
    def f(t, c):
        return meet(xp, c, x[t], j)

    return repeated(xp, x.shape[0], f, start_of(pool, x, i))


@operation
def loop_written(xp, pool, x, i, j):
    def f(t, c):
        row = x[t] * t if i % 3 == 0 else x[x.shape[0] - 1 - t]
        if xp is jnp:
            return c.at[t].set(row) if j % 2 else jax.lax.dynamic_update_index_in_dim(c, row, t, 0)
        c = c.astype(np.result_type(c, row))
        c[t] = row
        return c

    return repeated(xp, x.shape[0], f, np.zeros(x.shape))


@operation
def loop_while(xp, pool, x, i, j):
    y = like(pool, x, i)

    def f(carry):
        t, a, b = carry
        return t + 1, (b if j % 3 == 0 else meet(xp, a, b, i)), (a if j % 3 < 2 else b)

    return while_true(xp, lambda c: c[0] < 1 + j % 3, f, (0, x, y))[1 + j % 2]


@operation
def loop_while_larger(xp, pool, x, i, j):
    y = one_of(pool, i)

    def test(carry):
        t, c = carry
        return (xp.abs(c).sum() > xp.abs(y).sum()) & (t < 4)

    return while_true(xp, test, lambda c: (c[0] + 1, c[1] * 0.5), (0, x))[1]


@operation
def branch_known(xp, pool, x, i, j):
    y = like(pool, x, i)
    branches = [lambda a, b: a, lambda a, b: meet(xp, a, b, j), lambda a, b: b * 2.0]
    return chosen(xp, np.random.default_rng(j).integers(3), branches[: 2 + i % 2], x, y)


@operation
def branch_compared(xp, pool, x, i, j):
    y, z = like(pool, x, i), one_of(pool, j)
    which = (z.sum() > 0) if j % 2 else (x.sum() > y.sum())
    branches = [lambda a, b: a, lambda a, b: (b, -a, a * 2.0, xp.sort(a, 0))[i % 4]]
    return chosen(xp, which.astype(int), branches, x, y)


@operation
def branch_of_rows(xp, pool, x, i, j):
    k = one_of(rows_like(pool, x), i)

    def f(c, r):
        c = chosen(xp, (r.sum() > 0).astype(int), [lambda a, b: a, lambda a, b: a + b], c, r * k)
        return c, c

    end, ys = scan(xp, f, np.zeros(x.shape[1:]), x)
    return ys if j % 2 else end


@operation
def branch_to_zeros(xp, pool, x, i, j):
    y = one_of(pool, i)
    which = (y.sum() > 0).astype(int)
    zeros = np.zeros(x.shape, x.dtype)
    return chosen(xp, which, [lambda a: a, lambda a: a * 0.0 + zeros if j % 2 else zeros], x)


@operation
def map_unit(xp, pool, x, i, j):
    return mapped(xp, lambda r: unit(xp, r), x, axes=axis_of(x, i))


@operation
def map_with(xp, pool, x, i, j):
    axis = axis_of(x, i)
    y = one_of([y for y in pool if x.shape[axis] in y.shape], j)
    axes = (axis, y.shape.index(x.shape[axis]))
    return mapped(xp, lambda r, s: r * s.sum(), x, y, axes=axes)


@operation
def map_scan(xp, pool, x, i, j):
    need(x.ndim > 1)

    def f(r):
        return scan(xp, lambda c, e: (c + e, c + e), np.zeros(r.shape[1:]), r)[j % 2]

    return mapped(xp, f, x, axes=axis_of(x, i))


@operation
def map_branch(xp, pool, x, i, j):
    k = one_of(rows_like(pool, x), i)

    def f(r):
        which = ((r.sum() > 0) if j % 2 else (r.sum() > k.sum())).astype(int)
        return chosen(xp, which, [lambda a, b: a, lambda a, b: b], r, k)

    return mapped(xp, f, x)


@operation
def map_picked(xp, pool, x, i, j):
    need(x.ndim > 1)
    n = x.shape[1]
    y = one_of([y for y in pool if y.shape[0] == x.shape[0]], i)

    def f(r, s):
        at = index_of(xp, s, n)
        return jax.lax.dynamic_index_in_dim(r, at, 0, keepdims=False) if xp is jnp else r[at]

    return mapped(xp, f, x, y)


@operation
def dynamic_cut(xp, pool, x, i, j):
    axis = axis_of(x, i)
    n = x.shape[axis]
    size = 1 + (i // 4) % n
    at = j % (n - size + 1) if j % 3 else index_of(xp, one_of(pool, j), n - size + 1)
    if xp is jnp:
        return jax.lax.dynamic_slice_in_dim(x, at, size, axis)
    return x[(slice(None),) * axis + (slice(at, at + size),)]


@operation
def dynamic_row(xp, pool, x, i, j):
    return x[index_of(xp, one_of(pool, j), x.shape[0])]


@operation
def dynamic_update(xp, pool, x, i, j):
    def fits(y):
        return y.ndim == x.ndim and all(n <= m for n, m in zip(y.shape, x.shape, strict=True))

    y = one_of([y for y in pool if fits(y)], i)
    room = [m - n + 1 for n, m in zip(y.shape, x.shape, strict=True)]
    at = [j % n for n in room] if j % 3 else [index_of(xp, one_of(pool, j), n) for n in room]
    base = np.zeros(x.shape) if i % 4 == 0 else x
    if xp is jnp:
        return jax.lax.dynamic_update_slice(base, y, [jnp.asarray(a, int) for a in at])
    out = base.astype(np.result_type(base, y))
    out[tuple(slice(a, a + n) for a, n in zip(at, y.shape, strict=True))] = y
    return out


@operation
def scatter_rows(xp, pool, x, i, j):
    y = one_of([y for y in pool if y.shape[1:] == x.shape[1:]], i)
    base = np.zeros(x.shape) if j % 4 == 0 else x
    places = np.random.default_rng(j).integers(0, x.shape[0], y.shape[0])
    if j % 3 == 0:
        places = np.random.default_rng(j).permutation(x.shape[0])[: y.shape[0]]
        y = y[: x.shape[0]]
    if xp is jnp:
        at = jnp.asarray(base).at[places]
        return at.set(y) if j % 3 == 0 else at.add(y) if j % 3 == 1 else at.max(y)
    out = base.astype(np.result_type(base, y))
    if j % 3 == 0:
        out[places] = y
    else:
        (np.add, np.maximum)[j % 3 - 1].at(out, places, y)
    return out


@operation
def scatter_at_values(xp, pool, x, i, j):
    y = one_of(rows_like(pool, x), i)
    at = index_of(xp, one_of(pool, j), x.shape[0])
    if xp is jnp:
        return x.at[at].add(y) if j % 2 else x.at[at].set(y)
    out = x.copy()
    out[at] = out[at] + y if j % 2 else y
    return out


@operation
def look_up_rows(xp, pool, x, i, j):
    y = one_of(pool, i)
    need(y.ndim == 2)
    return x[xp.argmax(xp.abs(y), axis=j % 2) % x.shape[0]]


@operation
def pool_windows(xp, pool, x, i, j):
    axis = axis_of(x, i)
    n, step = x.shape[axis], 1 + j % 2
    need(n > 1)
    best = (j // 2) % 2
    if xp is jnp:
        window, steps = ([k if a == axis else 1 for a in range(x.ndim)] for k in (2, step))
        f, start = ((jax.lax.add, 0.0), (jax.lax.max, -np.inf))[best]
        return jax.lax.reduce_window(x, np.float64(start), f, window, steps, "VALID")
    rows = np.moveaxis(x, axis, 0)
    out = [rows[t : t + 2] for t in range(0, n - 1, step)]
    return np.moveaxis(np.stack([w.max(0) if best else w.sum(0) for w in out]), 0, axis)


@operation
def convolve_groups(xp, pool, x, i, j):
    """Channels last but one: x (N, C, L) or (C, L) with a kernel (O, C/G, K)."""
    need(x.ndim in (2, 3))
    x = x[None] if x.ndim == 2 else x
    channels, length = x.shape[1:]
    w = one_of([y for y in pool if y.ndim == 3 and channels % y.shape[1] == 0], i)
    groups = channels // w.shape[1]
    need(w.shape[0] % groups == 0 and w.shape[2] <= length)
    if xp is jnp:
        return jax.lax.conv_general_dilated(x, w, (1,), "VALID", feature_group_count=groups)
    k, each = w.shape[2], w.shape[0] // groups
    out = []
    for o in range(w.shape[0]):
        own = x[:, o // each * w.shape[1] :][:, : w.shape[1]]
        out.append([(own[:, :, t : t + k] * w[o]).sum((1, 2)) for t in range(length - k + 1)])
    return np.array(out).transpose(2, 0, 1)


@operation
def convolve_outer(xp, pool, x, i, j):
    """A kernel made of two values: (4, 1, 2), (2, 1, 1), ..."""
    y = one_of(pool, i)
    need(x.ndim <= 2 and x.size % 2 == 0)
    w = y.reshape(-1)[: y.size // 2 * 2]
    need(w.size >= 2)
    kernel = w.reshape(-1, 1, 2) if j % 2 else w.reshape(2, -1, 1)[:, :1]
    return convolve_groups(xp, [kernel], x.reshape(2, -1), 0, j)


@operation
def scatter_down(xp, pool, x, i, j):
    y, z = xp.abs(one_of(rows_like(pool, x), i)), xp.abs(x)
    if xp is jnp:
        return jax.lax.scatter_sub(
            z,
            np.full((1,), j % x.shape[0]),
            y,
            jax.lax.ScatterDimensionNumbers(tuple(range(y.ndim)), (0,), (0,)),
        )
    out = z.copy()
    out[j % x.shape[0]] -= y
    return out


@operation
def called(xp, pool, x, i, j):
    y = like(pool, x, i)

    def f(a, b):
        return meet(xp, a, b, j), unit(xp, a)

    f = (jax.jit(f) if i % 2 else jax.checkpoint(f)) if xp is jnp else f
    return f(x, y)[j % 3 == 0]


LOOPED = sorted(set(OPERATIONS) - _PLAIN)
"""The names of the operations here."""
