"""Degrees index by index: whatever the operations do to the axes, every entry scales as claimed."""

import chains
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from entrywise import BASE, Assignment, check, read, settled
from hypothesis import given, settings

from optax_bnmask.program.unknowns import Unknowns


@pytest.fixture(autouse=True)
def _double_precision():
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        with jax.numpy_rank_promotion("allow"):
            yield


NUMBER = st.integers(0, 63)
STEP = st.tuples(st.sampled_from(sorted(chains.OPERATIONS)), NUMBER, NUMBER, NUMBER)


def trusted(steps, leaves) -> list[tuple[np.ndarray, np.ndarray]]:
    """The values, and which entries are well-conditioned: no sums that cancel."""
    narrow = chains.values_of(np, steps, leaves)
    wide = chains.values_of(np, steps, [x.astype(np.longdouble) for x in leaves])
    return [
        (x, np.isfinite(x) & (np.abs(x - y) <= 1e-10 * np.abs(x)))
        for x, y in zip(narrow, wide, strict=True)
    ]


@settings(max_examples=400, deadline=None, derandomize=True)
@given(
    shapes=st.lists(st.sampled_from(chains.SHAPES), min_size=1, max_size=3),
    steps=st.lists(STEP, min_size=1, max_size=10),
    pinned=st.integers(0, 3),
)
def test_every_entry_of_a_random_chain_scales_as_claimed(shapes, steps, pinned):
    rng = np.random.default_rng(1)
    leaves = [rng.normal(size=shape) for shape in shapes]
    reading, ins, outs, _ = read(lambda *xs: chains.values_of(jnp, steps, xs), *leaves)
    reading.pin(None, outs[len(outs) - pinned :] if pinned < len(outs) else [])
    degrees = settled(reading, [*ins, *outs])
    with np.errstate(all="ignore"):
        before = trusted(steps, leaves)
        for draw in range(2):
            drawn = Assignment(reading.unknowns, np.random.default_rng(draw))
            powers = [drawn.degree(d, x.shape) for d, x in zip(degrees, leaves, strict=False)]
            moved = [x * BASE**p for x, p in zip(leaves, powers, strict=True)]
            claims = zip(degrees[len(leaves) :], before, trusted(steps, moved), strict=True)
            for d, (x, fine), (y, fine_too) in claims:
                power = drawn.degree(d, x.shape)
                every = np.isnan(power)
                assert np.all(((x == 0) | ~np.isfinite(x))[every]), (
                    f"not a constant of any degree: {d}"
                )
                error = np.abs(x * BASE ** np.nan_to_num(power) - y)
                ok = fine & fine_too & ~every
                assert np.all(error[ok] <= 1e-7 * np.abs(y)[ok]), f"{d} claims {power}"


def _concatenated(*xs):
    return jnp.concatenate(xs)


REGRESSIONS = {
    "a vector tiled and cut within a copy": (
        lambda v: jnp.broadcast_to(v, (3, 2)).reshape(6)[1:],
        [(2,)],
        1,
    ),
    "zeros beside values, joined along another axis": (
        lambda x, y: jnp.concatenate([_concatenated(x, jnp.zeros((2, 3))), y], 1),
        [(3, 3), (5, 2)],
        5,
    ),
    "a product of two views of one vector, regrouped": (
        lambda v: (v[:, None] * v[None]).reshape(4, 9).T.reshape(36),
        [(6,)],
        1,
    ),
    "a slice of a joint profile beside one along its other axis": (
        lambda x: (lambda y: (y / jnp.sqrt((y.reshape(2, 1, 6) ** 2).sum(1)), y[1:]))(
            (lambda z: z / jnp.sqrt((z * z).sum(0, keepdims=True)))(x.reshape(2, 6))
        ),
        [(4, 3)],
        None,
    ),
    "segments of which one solves what the next holds": (
        lambda w, u, t: (lambda z, y: (z + _concatenated(w, w), y + _concatenated(u, t), z + y))(
            jnp.ones(6) * _concatenated(w, w), jnp.ones(6) * _concatenated(u, t)
        ),
        [(3,), (3,), (3,)],
        3,
    ),
    "an empty slice": (lambda v: (v[:0], _concatenated(v[:0], v)), [(4,)], 4),
    "an empty array, regrouped": (lambda v: v.reshape(2, 0, 3), [(0, 6)], 0),
    "a dense block: raw input and features, then a norm per channel": (
        lambda x, w: (lambda h: h / jnp.sqrt((h * h).sum(0)))(
            jnp.concatenate([jnp.ones((5, 3)), x @ w], 1)
        ),
        [(5, 4), (4, 2)],
        3,
    ),
    "statistics of two degrees in one stack": (
        lambda x: (lambda s: (x - s[0]) / jnp.sqrt(s[1] - s[0] ** 2))(
            jnp.stack([x.mean(0), (x * x).mean(0)]) * 0.5 * 2.0
        ),
        [(4, 3)],
        3,
    ),
}


@pytest.mark.parametrize("case", sorted(REGRESSIONS))
def test_the_cases_that_once_went_wrong(case):
    fn, shapes, free = REGRESSIONS[case]
    rng = np.random.default_rng(0)
    found = check(fn, *[rng.normal(size=shape) for shape in shapes])
    assert free is None or found == free


def test_resolving_a_tiled_cut_names_every_copy():
    unknowns = Unknowns()
    v = unknowns.vector(2)
    parts = unknowns.cut([(6, {v: 1})], [1, 6])
    assert sum(n for n, _ in parts) == 6
    drawn = Assignment(unknowns, np.random.default_rng(0))
    whole, pieces = drawn.profile([(6, {v: 1})]), drawn.profile(parts)
    np.testing.assert_allclose(pieces, whole)
