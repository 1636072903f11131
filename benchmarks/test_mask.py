"""`decay_mask` on 100,000 leaves against Flax's own way of walking a tree.

Run with `python -m pytest benchmarks/test_mask.py -s`; it prints the ratios. Nothing here is
collected by default.
"""

import time

import jax.numpy as jnp
import pytest
from flax.traverse_util import path_aware_map

import optax_bnmask as bnmask

STAGES, BLOCKS = 100, 250
LIMIT = 1.5


@pytest.fixture(scope="module")
def trees():
    """100,000 params in 50,000 scopes, and the 50,000 statistics beside half of them."""
    kernel, vector = jnp.zeros((1, 1, 4, 8)), jnp.zeros(8)
    block = {
        "conv": {"kernel": kernel, "bias": vector},
        "norm": {"scale": vector, "bias": vector},
    }
    kept = {"norm": {"mean": vector, "var": vector}}

    def model(of):
        blocks = range(BLOCKS)
        return {
            f"stage{s}": {f"block{b}": {k: dict(v) for k, v in of.items()} for b in blocks}
            for s in range(STAGES)
        }

    return model(block), model(kept)


def fastest(function, rounds=7):
    """The least seconds of this process that a call took, whatever else the machine does."""
    taken = []
    for _ in range(rounds):
        start = time.process_time()
        function()
        taken.append(time.process_time() - start)
    return min(taken)


def test_path_aware_map(benchmark, trees):
    benchmark(lambda: path_aware_map(lambda *_: True, trees[0]))


def test_decay_mask(benchmark, trees):
    benchmark(lambda: bnmask.decay_mask(trees[0]))


def test_decay_mask_with_statistics(benchmark, trees):
    mask = benchmark(lambda: bnmask.decay_mask(*trees))
    assert len(mask.exempted) == len(mask.decayed) == 2 * STAGES * BLOCKS


def test_mask_called(benchmark, trees):
    mask = bnmask.decay_mask(*trees)
    benchmark(lambda: mask(trees[0]))


def test_decay_mask_takes_little_more_than_path_aware_map(trees):
    params, stats = trees
    mask = bnmask.decay_mask(params, stats)
    baseline = fastest(lambda: path_aware_map(lambda *_: True, params))
    calls = {
        "decay_mask(params)": lambda: bnmask.decay_mask(params),
        "decay_mask(params, batch_stats)": lambda: bnmask.decay_mask(params, stats),
        "mask(params)": lambda: mask(params),
    }
    ratios = {name: fastest(call) / baseline for name, call in calls.items()}
    print(f"\npath_aware_map on {len(mask)} leaves: {1e3 * baseline:.0f} ms")
    for name, ratio in ratios.items():
        print(f"{name}: {ratio:.2f} times that")
    assert max(ratios.values()) <= LIMIT
