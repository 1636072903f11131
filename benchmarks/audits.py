"""The seconds that `audit` takes on an optimizer of many leaves."""

import jax.numpy as jnp
import optax

import optax_bnmask as bnmask
from benchmarks.record import Growth, Row
from benchmarks.timing import fastest, in_turns

LIMITS = {1_000: 6.0, 5_000: 30.0}
"""Seconds that the audit of so many leaves may take on two cores."""
WIDTH = 64
_WHAT = "`audit` of AdamW"


def audited(leaves):
    """A call that audits AdamW, masked, on blocks of a dense layer and a norm."""
    vector = jnp.ones(WIDTH)
    block = {
        "dense": {"kernel": jnp.ones((WIDTH, WIDTH)), "bias": vector},
        "norm": {"scale": vector, "bias": vector},
    }
    params = {f"block_{i}": block for i in range(leaves // 4)}
    analysis = bnmask.analyze_structure(params)
    tx = optax.adamw(1e-3, weight_decay=0.1, mask=analysis.decay_mask())
    return lambda: bnmask.audit(tx, params, analysis)


def rows(*, quick):
    """Seconds, held to their limits; a short run shows only that it works."""
    for leaves, limit in {100: None}.items() if quick else LIMITS.items():
        seconds = fastest(in_turns({_WHAT: audited(leaves)}, 1))
        yield Row("audit", f"{leaves:,} leaves", _WHAT, seconds[_WHAT], "s", limit=limit)


def growth(sizes, rounds):
    """How the seconds grow with the number of leaves."""
    seconds = fastest(in_turns({n: audited(n) for n in sizes}, rounds))
    return Growth(_WHAT, "leaves", sizes, tuple(seconds[n] for n in sizes))
