"""Divisors that are exactly 0 in some row while what they divide is not hide no scale there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_bnmask as bnmask

RNG = np.random.default_rng(0)
X, W = RNG.normal(size=(12, 4)), RNG.normal(size=(4, 3))
MASK = np.array([1.0, 1, 0, 1, 0, 1, 1, 1, 0, 1, 1, 1])[:, None]
EDGES = (RNG.random((12, 12)) < 0.3) * 1.0
EDGES[2] = 0  # a node without neighbours
GRAPHS = np.array([0, 0, 2, 3, 2, 3, 3, 3, 2, 5, 5, 5])  # 2 is masked whole, 1 and 4 have no nodes
TINY = 1e-14
NWC = ("NWC", "WIO", "NWC")
SWAPPED = np.array([1, 0, 2, 3, 4, 5, 7, 6, 8, 9, 10, 11])  # most rows stay where they are


def rms(z):
    return z * jax.lax.rsqrt((z * z).mean(-1, keepdims=True))


def norm(z):
    return jnp.linalg.norm(z, axis=-1, keepdims=True)


def guarded(s):
    return jnp.where(s > 0, s, 1.0)


def halves_by(z, divisor):
    return jnp.concatenate([jax.nn.relu(z) / divisor, jax.nn.relu(-z) / divisor])


def clipped_spread(y):
    """The root of the variance over a row as ``max(0, mean(y**2) - mean(y)**2)``."""
    mean = y.mean(-1, keepdims=True)
    return jnp.sqrt(jnp.maximum(0, (y * y).mean(-1, keepdims=True) - mean**2) + TINY)


def over_the_unmasked(z):
    """Standardised over the rows that a mask leaves."""
    n = MASK.sum()
    mean = (z * MASK).sum(0, keepdims=True) / n
    spread = jnp.maximum(0, (z * z * MASK).sum(0, keepdims=True) / n - mean**2)
    return (z - mean) / jnp.sqrt(spread + TINY)


def linear_attention(z):
    """Attention by products of rectified features, to the rows that a mask leaves."""
    keys = jax.nn.relu(z) * MASK
    values = z / norm(z)
    sums = jax.nn.relu(z) @ keys.sum(0)[:, None]
    return jax.nn.relu(z) @ (keys.T @ values) / (sums + TINY)


def of_graphs(y):
    """What is added up over each graph, for each of its nodes."""
    return jax.ops.segment_sum(y, GRAPHS, 6)[GRAPHS]


def of_means(y):
    """The mean over each graph, for each of its nodes."""
    count = jnp.maximum(jax.ops.segment_sum(jnp.ones((12, 1)), GRAPHS, 6), 1)
    return (jax.ops.segment_sum(y, GRAPHS, 6) / count)[GRAPHS]


def of_the_first(z, n):
    """Divided by the sums of the first nodes alone."""
    return z * jax.lax.rsqrt(jax.ops.segment_sum(z[:n] ** 2, GRAPHS[:n], 6) + TINY)[GRAPHS]


def of_its_norm(y):
    return y / (norm(y) + TINY)


def of_its_mean(s):
    return s / s.mean()


def of_its_windows(z, padding, holes=1):
    """Sums over windows of two rows, with rows of zeros around and between."""
    kernel = jnp.ones((2, 1, 1))
    y = jax.lax.conv_general_dilated(
        z.T[..., None], kernel, (1,), [padding], lhs_dilation=(holes,), dimension_numbers=NWC
    )
    return of_its_mean(guarded(norm(y)))


def of_its_pools(z, padding):
    y = jax.lax.reduce_window(z, 0.0, jax.lax.add, (2, 1), (1, 1), (padding, (0, 0)))
    return of_its_mean(guarded(norm(y)))


def of_its_imaginary_part(f):
    return f.real / jnp.where(f.imag == 0, 1.0, f.imag)


MOVING = {
    "a mask in the norm": lambda z: z / (norm(z * MASK) + TINY),
    "a mask in the mean": lambda z: (
        z * jax.lax.rsqrt((z * z * MASK).mean(-1, keepdims=True) + TINY)
    ),
    "a mask in the maximum": lambda z: (
        z / jnp.maximum(jnp.abs(z * MASK).max(-1, keepdims=True), TINY)
    ),
    "a choice in the mean": lambda z: (
        z / jnp.sqrt(jnp.where(MASK > 0, z * z, 0).mean(-1, keepdims=True) + TINY)
    ),
    "what a ReLU leaves": lambda z: (
        z * jax.lax.rsqrt((jax.nn.relu(z) ** 2).mean(-1, keepdims=True) + TINY)
    ),
    "a few rectified, guarded": lambda z: z / guarded(jax.nn.relu(z).sum(-1, keepdims=True)),
    "a mask by einsum": lambda z: of_its_mean(guarded(norm(jnp.einsum("t,td->td", MASK[:, 0], z)))),
    "neighbours, with an epsilon": lambda z: z / (norm(EDGES @ z) + TINY),
    "graphs of masked nodes": lambda z: z / jnp.sqrt(of_graphs(z * z * MASK) + TINY),
    "graphs of masked nodes, guarded": lambda z: z / guarded(of_graphs(jnp.abs(z * MASK))),
    "another order of graphs": lambda z: (
        z / jnp.sqrt(jax.ops.segment_sum(z * z, GRAPHS, 6)[(GRAPHS + 1) % 6] + TINY)
    ),
    "another order of graphs, last": lambda z: (
        z / jnp.sqrt(jax.ops.segment_sum(z * z, GRAPHS, 6) + TINY)[(GRAPHS + 1) % 6]
    ),
    "graphs of masked nodes, last": lambda z: (
        z / jnp.sqrt(jax.ops.segment_sum(z * z * MASK, GRAPHS, 6) + TINY)[GRAPHS]
    ),
    "no graph for masked nodes": lambda z: (
        z
        * jax.lax.rsqrt(jax.ops.segment_sum(z * z, GRAPHS, 6) + TINY)[
            jnp.where(MASK[:, 0] > 0, GRAPHS, 1)
        ]
    ),
    "another graph for masked nodes": lambda z: (
        z
        * jax.lax.rsqrt(jax.ops.segment_sum(z * z, GRAPHS, 6) + TINY)[
            jnp.where(MASK[:, 0] == 0, 1, GRAPHS)
        ]
    ),
    "a choice of graphs": lambda z: (
        z
        * jax.lax.rsqrt(jax.ops.segment_sum(z * z, GRAPHS, 6) + TINY)[
            jnp.where(GRAPHS < 3, 1, GRAPHS)
        ]
    ),
    "sums of the first nodes": lambda z: of_the_first(z, 3),
    "graphs of rectified nodes, in reverse": lambda z: (
        jax.nn.relu(z)[::-1] / jnp.sqrt(of_graphs(jax.nn.relu(z) ** 2) + TINY)
    ),
    "graphs, masked once more": lambda z: z / jnp.sqrt(of_graphs(z * z) * MASK + TINY),
    "the size of another row": lambda z: (
        jax.nn.relu(z) / (norm(jax.nn.relu(z)) + TINY)[(np.arange(12) + 1) % 12]
    ),
    "all graphs": lambda z: z.sum() / jnp.sqrt(jax.ops.segment_sum(z * z, GRAPHS, 6) + TINY),
    "neighbours, guarded": lambda z: z / guarded(EDGES @ jnp.abs(z)),
    "the other half of a ReLU": lambda z: jax.nn.relu(-z) / (norm(jax.nn.relu(z)) + TINY),
    "both halves of a ReLU": lambda z: (
        (jax.nn.relu(z) + jax.nn.relu(-z)) / (norm(jax.nn.relu(z)) + TINY)
    ),
    "both halves of a ReLU, one after the other": lambda z: halves_by(
        z, norm(jax.nn.relu(z)) + TINY
    ),
    "rectified, by a masked norm": lambda z: jax.nn.relu(z) / (norm(z * MASK) + TINY),
    "rectified, by its norm where masked": lambda z: (
        jax.nn.relu(z) / (norm(jax.nn.relu(z) * MASK) + TINY)
    ),
    "masked, by the norm under another mask": lambda z: z * MASK / (norm(z * MASK[::-1]) + TINY),
    "masked, by what a ReLU leaves of it": lambda z: (
        z * MASK / (norm(jax.nn.relu(z * MASK)) + TINY)
    ),
    "a choice by sign": lambda z: z / (norm(z * (z > 0)) + TINY),
    "rectified rows, in reverse": lambda z: jax.nn.relu(z)[::-1] / (norm(jax.nn.relu(z)) + TINY),
    "rectified rows, rolled": lambda z: (
        jnp.roll(jax.nn.relu(z), 1, 0) / (norm(jax.nn.relu(z)) + TINY)
    ),
    "rectified rows, sorted": lambda z: jnp.sort(jax.nn.relu(z), 0) / (norm(jax.nn.relu(z)) + TINY),
    "sums over rectified rows": lambda z: (
        jax.nn.relu(z).sum(0, keepdims=True) / (norm(jax.nn.relu(z)) + TINY)
    ),
    "neighbours of rectified rows": lambda z: (
        EDGES @ jax.nn.relu(z) / (norm(jax.nn.relu(z)) + TINY)
    ),
    "by the spread of what a ReLU leaves": lambda z: (
        (z - z.mean(-1, keepdims=True)) / clipped_spread(jax.nn.relu(z))
    ),
    "by the spread of what a ReLU leaves, in two passes": lambda z: (
        (z - z.mean(-1, keepdims=True)) / (jnp.std(jax.nn.relu(z), -1, keepdims=True) + TINY)
    ),
    "negatives of other rows": lambda z: of_its_mean(guarded(norm(z + -0.5 * z[SWAPPED] * 2))),
    "signs and a number": lambda z: of_its_mean(guarded(norm(z * (jnp.sign(z[:, :1]) + 1)))),
    "windows of padding": lambda z: of_its_windows(z, (3, 0)),
    "windows of holes": lambda z: of_its_windows(z, (0, 0), holes=3),
    "pools of padding": lambda z: of_its_pools(z, (3, 0)),
    "a part of a transform that is real": lambda z: of_its_imaginary_part(jnp.fft.rfft(z)),
}
COARSE = {
    "8 bits": lambda w: w.astype(jnp.float8_e4m3fn).astype(w.dtype),
    "4 bits": lambda w: w.astype(jnp.float4_e2m1fn).astype(w.dtype),
    "few bits": lambda w: jax.lax.reduce_precision(w, 8, 2),
}
DATA = {
    "masked": lambda x: x * MASK,
    "of neighbours": lambda x: EDGES @ x,
}
STILL = {
    "each half of a ReLU by its norm": lambda z: jnp.concatenate(
        [of_its_norm(jax.nn.relu(z)), of_its_norm(jax.nn.relu(-z))]
    ),
    "windows with a row each": lambda z: of_its_windows(z, (1, 1), holes=2),
    "pools with a row each": lambda z: of_its_pools(z, (1, 1)),
    "sums with other rows": lambda z: of_its_mean(guarded(norm(-z + -0.5 * z[SWAPPED]))),
    "a spread about a negative mean": lambda z: (
        (c := z + -z.mean(-1, keepdims=True)) / guarded(norm(c))
    ),
    "the masked itself": lambda z: z * MASK / (norm(z * MASK) + TINY),
    "rectified and normalised": lambda z: of_its_norm(jax.nn.relu(z)),
    "rectified and masked, in another order": lambda z: (
        MASK * (2 * jax.nn.relu(z)) / (norm(jax.nn.relu(z) * MASK) + TINY)
    ),
    "rectified features, in reverse": lambda z: (
        jax.nn.relu(z)[:, ::-1] / (norm(jax.nn.relu(z)) + TINY)
    ),
    "rectified and standardised": lambda z: (
        (jax.nn.relu(z) - jax.nn.relu(z).mean(-1, keepdims=True)) / clipped_spread(jax.nn.relu(z))
    ),
    "chosen by sign and normalised": lambda z: of_its_norm(z * (z > 0)),
    "over the unmasked": over_the_unmasked,
    "over the unmasked, by JAX": lambda z: (
        (z - z.mean(0, where=MASK > 0)) / jnp.sqrt(z.var(0, where=MASK > 0) + TINY)
    ),
    "linear attention": linear_attention,
    "neighbours, normalised": lambda z: of_its_norm(EDGES @ z),
    "graphs, standardised": lambda z: (c := z - of_means(z)) / jnp.sqrt(of_means(c * c) + TINY),
    "graphs, with a root of their own": lambda z: (
        z * jax.lax.rsqrt(jax.ops.segment_sum(z * z, GRAPHS, 6) + TINY)[GRAPHS]
    ),
    "graphs": lambda z: z / jnp.sqrt(of_graphs(z * z) + TINY),
    "graphs of masked nodes, masked": lambda z: (
        z * MASK / jnp.sqrt(of_graphs((z * MASK) ** 2) + TINY)
    ),
    "a spread about a mean": lambda z: (
        (z - z.mean(-1, keepdims=True)) / guarded(jnp.std(z, -1, keepdims=True))
    ),
    "8 bits of a share": lambda z: z / jnp.abs(z).max(),
}


def moved(fn, factor):
    """By how much of its largest entry the output moves with the scale of the kernel."""
    one, other = (np.asarray(fn({"w": c * W}, X)) for c in (1.0, factor))
    return np.abs(one - other).max() / np.abs(one).max()


def scale_of(fn):
    shapes = {"w": jax.ShapeDtypeStruct(W.shape, "float64")}
    return bnmask.analyze(fn, shapes, jax.ShapeDtypeStruct(X.shape, "float64"))["w"].scale


pytestmark = pytest.mark.usefixtures("double_precision")


@pytest.mark.parametrize("name", MOVING)
def test_a_divisor_that_is_0_by_itself_hides_nothing(name):
    def fn(p, x):
        return MOVING[name](x @ p["w"])

    assert moved(fn, 3.0) > 1e-2
    assert scale_of(fn) is bnmask.Scale.SENSITIVE


@pytest.mark.parametrize("name", DATA)
def test_a_kernel_leaves_rows_of_masked_data_0(name):
    def fn(p, x):
        return of_its_mean(guarded(norm(DATA[name](x) @ p["w"])))

    assert moved(fn, 3.0) > 1e-2
    assert scale_of(fn) is bnmask.Scale.SENSITIVE


@pytest.mark.parametrize("name", COARSE)
def test_few_bits_do_not_scale(name):
    def fn(p, x):
        return rms(x @ COARSE[name](p["w"]))

    assert moved(fn, 3.0) > 1e-2
    assert scale_of(fn) is bnmask.Scale.SENSITIVE


@pytest.mark.parametrize("name", STILL)
def test_what_is_0_where_its_divisor_is_may_be_scaled(name):
    def fn(p, x):
        return STILL[name](x @ p["w"])

    assert moved(fn, 3.0) < 1e-9
    assert scale_of(fn) is bnmask.Scale.INVARIANT
