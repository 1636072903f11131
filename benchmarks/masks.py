"""Building and calling a mask, beside the ways to build one by names or shapes."""

import re

import jax
import jax.numpy as jnp
from flax.traverse_util import ModelParamTraversal, path_aware_map

import optax_bnmask as bnmask
from benchmarks.record import Row
from benchmarks.timing import fastest, in_turns

OF_PATH_AWARE_MAP = 1.5
BLOCKS_IN_A_STAGE, LEAVES_IN_A_BLOCK = 250, 4
EXEMPT = [re.compile(pattern) for pattern in (r".*/norm\w*/scale", r".*/norm\w*/bias")]


def trees(leaves):
    """That many params, and the statistics beside half of them."""
    kernel, vector = jnp.zeros((1, 1, 4, 8)), jnp.zeros(8)
    block = {
        "conv": {"kernel": kernel, "bias": vector},
        "norm": {"scale": vector, "bias": vector},
    }
    kept = {"norm": {"mean": vector, "var": vector}}

    def model(of):
        stages = {}
        for b in range(leaves // LEAVES_IN_A_BLOCK):
            stage = stages.setdefault(f"stage{b // BLOCKS_IN_A_STAGE}", {})
            stage[f"block{b % BLOCKS_IN_A_STAGE}"] = {scope: dict(v) for scope, v in of.items()}
        return stages

    return model(block), model(kept)


def by_regexes(params):
    """The mask of a list of regexes on joined paths, as training code that is published has it."""

    def decays(path, _):
        name = "/".join(key.key for key in path)
        return not any(pattern.fullmatch(name) for pattern in EXEMPT)

    return jax.tree_util.tree_map_with_path(decays, params)


def by_traversal(params):
    """The mask of Flax's traversal, which gives what it selects a new value: all else is exempt."""
    decays = ModelParamTraversal(lambda path, _: "/norm/" not in path)
    return decays.update(lambda _: True, jax.tree.map(lambda _: False, params))


def rows(*, quick):
    """Seconds for a mask on many leaves, against those for Flax's walk over a tree."""
    leaves = 10_000 if quick else 100_000
    params, stats = trees(leaves)
    mask = bnmask.decay_mask(params, stats)
    ours = {
        "`decay_mask(params, batch_stats)`": lambda: bnmask.decay_mask(params, stats),
        "`decay_mask(params)`": lambda: bnmask.decay_mask(params),
        "`mask(params)`": lambda: mask(params),
    }
    baseline = "`path_aware_map`, the walk alone"
    others = {
        baseline: lambda: path_aware_map(lambda *_: True, params),
        "`ModelParamTraversal`": lambda: by_traversal(params),
        "regexes on paths": lambda: by_regexes(params),
        "`ndim != 1`": lambda: jax.tree.map(lambda p: p.ndim != 1, params),
    }
    seconds = fastest(in_turns(ours | others, 12 if quick else 7, shortest=0.05))
    on = f"{leaves:,} leaves"
    for name, least in seconds.items():
        against = "" if name == baseline else baseline
        limit = OF_PATH_AWARE_MAP if name in ours else None
        yield Row("mask", on, name, 1e3 * least, "ms", against, limit=limit)
    pairs = zip(jax.tree.leaves(mask(params)), jax.tree.leaves(by_regexes(params)), strict=True)
    wrong = float(sum(a is not b for a, b in pairs))
    yield Row("mask", on, "differs from regexes for these names", wrong, "leaves", limit=0)
