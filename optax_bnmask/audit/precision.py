"""Which decays are so small that the dtype of their leaf rounds them away."""

import math
from collections.abc import Mapping
from typing import Any, Final

import jax.numpy as jnp
import numpy as np

from optax_bnmask import compat
from optax_bnmask.audit.double_precision import as_traced
from optax_bnmask.audit.machine import Machine
from optax_bnmask.audit.observations import Behaviour
from optax_bnmask.audit.update import Update

_AT_MOST: Final = 2**14
"""Steps to take. A decay that needs more to be seen is lost unless something else keeps it."""

_STARTED: Final = 2.0**-26
"""Steps that are no larger beside the gradient are those of an optimizer that has yet to find its
learning rate."""

_STRIDE: Final = 64
"""Steps to take before looking at what has become of the params."""


def lost(
    update: Update, dtypes: Mapping[str, Any], seen: Mapping[str, Behaviour]
) -> frozenset[str]:
    """The leaves whose decay is rounded away in every step, found by taking the steps.

    Between two powers of 2 the numbers of a dtype are equally far apart: by ``eps`` of the lower
    power, half of that below it. So what is lost must be a quarter of ``eps`` of a number at least,
    or no number changes by it in one step. It may be kept all the same, in a copy of the leaf in a
    wider dtype or in a running sum of what was rounded away. Then it shows once it has come to half
    of the distance to the next number, after ``eps / (3 * rate)`` steps from 1.5, or from the next
    number above it, whose last bit is 1: from there on, what is half way is rounded away. Where
    that takes too many steps, what counts is whether the update reads such an array at all: a part
    of the state of the leaf's shape that changes though there is no gradient.

    Args:
      update: The optimizer, traced.
      dtypes: The dtype of each leaf by path, in the order of the params.
      seen: What it does to them.

    Returns:
      The paths of leaves whose decay is lost, in all of their entries or in some.
    """
    needed = {
        path: math.ceil(float(jnp.finfo(dtype).eps) / seen[path].least)
        for path, dtype in dtypes.items()
        if compat.is_inexact(dtype)
        and seen[path].steady  # a warm-up has yet to arrive at its rate
        and seen[path].steps[0] > _STARTED
        and 0 < seen[path].least < jnp.finfo(dtype).eps / 4
    }
    if not needed:
        return frozenset()
    ways = [(seen[path], dtype) for path, dtype in dtypes.items()]
    numbers = {way: number for number, way in enumerate(dict.fromkeys(ways))}
    machine = Machine(update, [numbers[way] for way in ways], as_traced)
    kinds = dict(zip(dtypes, machine.kind_of, strict=True))
    left = {kinds[path]: (path, steps) for path, steps in needed.items()}
    starts = {path: _start(dtype) for path, dtype in dtypes.items()}
    for taken, params, keeps in machine.walk([*starts.values()], [*dtypes.values()], _STRIDE):
        for kind, (path, steps) in list(left.items()):
            if np.all(params[kind] != starts[path]) or (keeps[kind] and steps > _AT_MOST):
                del left[kind]
        if taken >= max((min(steps, _AT_MOST) for _, steps in left.values()), default=0):
            break
    return frozenset(path for path in needed if kinds[path] in left)


def _start(dtype: Any) -> float:  # noqa: ANN401 - a dtype
    """A number between two powers of 2, its neighbours equally far on both sides."""
    return 1.5 + float(jnp.finfo(dtype).eps) if compat.is_inexact(dtype) else 1.0
