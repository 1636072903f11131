"""Whether a decay is more than the dtype of its leaf can tell."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from optax_bnmask import compat
from optax_bnmask.audit.deeds import deeds_of
from optax_bnmask.audit.readings import Behaviour
from optax_bnmask.audit.update import Update


def lost(
    update: Update, dtypes: Mapping[str, Any], seen: Mapping[str, Behaviour]
) -> frozenset[str]:
    """The leaves whose decay is rounded away, whatever their values.

    Between two powers of 2 the numbers of a dtype are equally far apart: by ``eps`` of the lower
    power, half of that below it. So what is lost must be a quarter of ``eps`` of a number at least,
    or no number changes by it; for most it must be twice as much.

    A leaf of which the optimizer's state keeps a copy in a wider dtype loses it there instead.

    Args:
      update: The optimizer, traced.
      dtypes: The dtype of each leaf by path, in the order of the params.
      seen: What it does to them.

    Returns:
      The paths.
    """
    small = {
        path: place
        for place, (path, dtype) in enumerate(dtypes.items())
        if compat.is_inexact(dtype)
        and seen[path].steady  # a warm-up has yet to arrive at its rate
        and 0 < seen[path].rate < jnp.finfo(dtype).eps / 4
    }
    if not small:
        return frozenset()
    reads = deeds_of(update.start).reads
    return frozenset(
        path
        for path, place in small.items()
        if not any(
            made_from & (1 << place)
            and kept.shape == update.leaves[place].shape
            and compat.is_inexact(kept.dtype)
            and jnp.finfo(kept.dtype).bits > jnp.finfo(dtypes[path]).bits
            for kept, made_from in zip(update.state, reads, strict=True)
        )
    )
