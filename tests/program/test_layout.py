"""Degrees index by index: whatever the operations do to the axes, every entry scales as claimed."""

import os

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from tests.support.program import chains
from tests.support.program.entrywise import BASE, Assignment, Reading, check, powers_of
from tests.support.program.looped_chains import OPERATIONS

pytestmark = pytest.mark.usefixtures("double_precision")


NUMBER = st.integers(0, 63)
STEP = st.tuples(st.sampled_from(sorted(OPERATIONS)), NUMBER, NUMBER, NUMBER)


JITTERS = 8
"""How often the rounding is drawn anew: where a value is ±1 but for it, it orders equal values."""


def trusted(values_of, leaves) -> list[tuple[np.ndarray, np.ndarray]]:
    """The values, and which entries rounding leaves alone: no sums that cancel, no ties."""
    rng = np.random.default_rng(0)
    wide = [x.astype(np.longdouble) for x in leaves]
    jittered = [
        [x * (1 + 1e-14 * rng.normal(size=x.shape)) for x in leaves] for _ in range(JITTERS)
    ]
    tries = zip(*map(values_of, [wide, *jittered]), strict=True)
    return [
        (x, np.isfinite(x) & np.all([np.abs(x - y) <= 1e-10 * np.abs(x) for y in ys], 0))
        for x, ys in zip(values_of(leaves), tries, strict=True)
    ]


def assert_entries_scale_as_claimed(fn, values_of, leaves, pinned):
    """Every entry of every value, by two draws of what remains free once the last are pinned."""
    reading = Reading(fn, *leaves)
    n = len(reading.outs)
    reading.solution.pin(reading.outs[n - pinned :] if pinned < n else [])
    reading.solution.finish()
    with np.errstate(all="ignore"):
        before = trusted(values_of, leaves)
        for draw in range(2):
            drawn = Assignment(reading.solution.system, np.random.default_rng(draw))
            powers = [
                powers_of(reading, drawn, v, x.shape)
                for v, x in zip(reading.ins, leaves, strict=True)
            ]
            moved = [x * BASE**p for x, p in zip(leaves, powers, strict=True)]
            claims = zip(reading.outs, before, trusted(values_of, moved), strict=True)
            for place, (v, (x, fine), (y, fine_too)) in enumerate(claims):
                power = powers_of(reading, drawn, v, x.shape)
                every = np.isnan(power)
                assert np.all(((x == 0) | ~np.isfinite(x))[every]), (
                    f"not a constant of any degree: {place}"
                )
                error = np.abs(x * BASE ** np.nan_to_num(power) - y)
                ok = fine & fine_too & ~every
                assert np.all(error[ok] <= 1e-7 * np.abs(y)[ok]), f"value {place} claims {power}"


CHAINS = int(os.environ.get("CHAINS", "400"))
"""How many chains are drawn, and half as many on two devices; at night, 20,000."""
LEAVES = st.lists(st.sampled_from(chains.SHAPES), min_size=1, max_size=3)
CHAIN = st.lists(STEP, min_size=1, max_size=10)


def drawn_leaves(shapes):
    rng = np.random.default_rng(1)
    return [rng.normal(size=shape) for shape in shapes]


@settings(max_examples=CHAINS, deadline=None, derandomize=True)
@given(shapes=LEAVES, steps=CHAIN, pinned=st.integers(0, 3))
@example(  # sorted by what is ±1 but for rounding
    shapes=[(6,), (6,), (2,)],
    steps=[("scan_rsqrt", 1, 1, 0), ("add", 0, 0, 0), ("add", 0, 0, 0), ("sorted_by", 4, 12, 0)],
    pinned=0,
)
def test_every_entry_of_a_random_chain_scales_as_claimed(shapes, steps, pinned):
    assert_entries_scale_as_claimed(
        lambda *xs: chains.values_of(jnp, steps, xs),
        lambda xs: chains.values_of(np, steps, xs),
        drawn_leaves(shapes),
        pinned,
    )


COLLECTIVES = {
    "sum": (lambda x: jax.lax.psum(x, "i"), lambda a, b: (a + b, a + b)),
    "maximum": (lambda x: jax.lax.pmax(x, "i"), lambda a, b: (np.maximum(a, b),) * 2),
    "swap": (lambda x: jax.lax.ppermute(x, "i", [(0, 1), (1, 0)]), lambda a, b: (b, a)),
    "gather": (
        lambda x: jax.lax.all_gather(x, "i", axis=x.ndim - 1, tiled=True),
        lambda a, b: (np.concatenate([a, b], a.ndim - 1),) * 2,
    ),
    "gather apart": (
        lambda x: jax.lax.all_gather(x, "i", axis=min(1, x.ndim)),
        lambda a, b: (np.stack([a, b], min(1, a.ndim)),) * 2,
    ),
}
"""What two devices make of a value, and NumPy of both values."""


@settings(max_examples=CHAINS // 2, deadline=None, derandomize=True)
@given(
    shapes=LEAVES,
    places=st.lists(st.integers(0, 3), min_size=3, max_size=3),
    alone=CHAIN,
    together=st.sampled_from(sorted(COLLECTIVES)),
    after=CHAIN,
    pinned=st.integers(0, 3),
)
def test_every_entry_of_a_random_chain_on_two_devices_scales_as_claimed(
    shapes, places, alone, together, after, pinned
):
    mesh = jax.make_mesh((2,), ("i",), axis_types=(AxisType.Auto,))
    axes = [  # along which each leaf is split, if it is
        place if place < len(shape) and shape[place] % 2 == 0 else None
        for place, shape in zip(places, shapes, strict=False)
    ]
    in_jax, in_numpy = COLLECTIVES[together]

    def on_one(*leaves):
        pool = [*leaves, *chains.values_of(jnp, alone, leaves)]
        pool.append(in_jax(pool[-1]))
        return [x[None] for x in [*pool, *chains.values_of(jnp, after, pool)]]

    def on_both(leaves):
        parts = [
            [x, x] if axis is None else np.split(x, 2, axis)
            for x, axis in zip(leaves, axes, strict=True)
        ]
        pools = [[*own, *chains.values_of(np, alone, own)] for own in zip(*parts, strict=True)]
        for pool, x in zip(pools, in_numpy(*(pool[-1] for pool in pools)), strict=True):
            pool.append(x)
        ends = [[*pool, *chains.values_of(np, after, pool)] for pool in pools]
        return [np.stack(both) for both in zip(*ends, strict=True)]

    specs = tuple(P() if axis is None else P(*[None] * axis, "i") for axis in axes)
    spread = jax.shard_map(on_one, mesh=mesh, in_specs=specs, out_specs=P("i"), check_vma=False)
    assert_entries_scale_as_claimed(spread, on_both, drawn_leaves(shapes), pinned)


def joined(*xs):
    return jnp.concatenate(xs)


def tiled_and_cut(v):
    return jnp.broadcast_to(v, (3, 2)).reshape(6)[1:]


def beside_zeros(x, y):
    return jnp.concatenate([joined(x, jnp.zeros((2, 3))), y], 1)


def outer_regrouped(v):
    return (v[:, None] * v[None]).reshape(4, 9).T.reshape(36)


def joint_and_single(x):
    x = x.reshape(2, 6)
    x = x / jnp.sqrt((x * x).sum(0, keepdims=True))
    return x / jnp.sqrt((x.reshape(2, 1, 6) ** 2).sum(1)), x[1:]


def segments_in_turn(w, u, t):
    z, y = jnp.ones(6) * joined(w, w), jnp.ones(6) * joined(u, t)
    return z + joined(w, w), y + joined(u, t), z + y


def empty_slice(v):
    return v[:0], joined(v[:0], v)


def dense_block(x, w):
    h = jnp.concatenate([jnp.ones((5, 3)), x @ w], 1)
    return h / jnp.sqrt((h * h).sum(0))


def stacked_statistics(x):
    mean, square = jnp.stack([x.mean(0), (x * x).mean(0)]) * 0.5 * 2.0
    return (x - mean) / jnp.sqrt(square - mean**2)


def reshaped_in_another_order(x):
    return jax.lax.reshape(x, (12,), dimensions=(1, 0))[:5]


def convolved_with_a_kernel_each(x, w):
    def one(x, w):
        spec = ("NHC", "HIO", "NHC")
        return jax.lax.conv_general_dilated(x[None], w, (1,), "VALID", dimension_numbers=spec)[0]

    y = jax.vmap(one)(x, w)  # which reshapes the kernels with their first axis before their last
    return y / jnp.sqrt((y * y).sum((1, 2), keepdims=True))


REGRESSIONS = [
    (tiled_and_cut, [(2,)], 2),
    (beside_zeros, [(3, 3), (5, 2)], 11),
    (outer_regrouped, [(6,)], 6),
    (joint_and_single, [(4, 3)], 4),
    (segments_in_turn, [(3,), (3,), (3,)], 3),
    (empty_slice, [(4,)], 4),
    (lambda v: v.reshape(2, 0, 3), [(0, 6)], 0),
    (dense_block, [(5, 4), (4, 2)], 3),
    (stacked_statistics, [(4, 3)], 3),
    (reshaped_in_another_order, [(3, 4)], 6),
    (convolved_with_a_kernel_each, [(2, 4, 3), (2, 2, 3, 3)], 4),
]
"""Cases that once went wrong: the program, its operands' shapes, how many exponents stay free."""


@pytest.mark.parametrize(("fn", "shapes", "free"), REGRESSIONS)
def test_what_once_went_wrong_stays_right(fn, shapes, free):
    rng = np.random.default_rng(0)
    assert check(fn, *[rng.normal(size=shape) for shape in shapes]) == free
