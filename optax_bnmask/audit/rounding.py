"""Which decays are so small that rounding to the dtype of their leaf undoes them."""

import math
from collections.abc import Mapping
from typing import Any, Final

import jax.numpy as jnp
import numpy as np

from optax_bnmask import compat
from optax_bnmask.audit.behaviour import Behaviour
from optax_bnmask.audit.compiled_optimizer import CompiledOptimizer
from optax_bnmask.audit.double_precision import as_traced
from optax_bnmask.audit.update import Update

_MAX_STEPS: Final = 2**14
"""The steps taken at most. A decay that needs more to show is lost unless the state keeps it."""

_WARM_UP: Final = 2.0**-26
"""Steps no larger than this part of the gradient are those of a rate that is still adapting."""

_STRIDE: Final = 64
"""The steps taken before the params are looked at again."""


def leaves_rounded_away(
    update: Update, dtypes: Mapping[str, Any], behaviours: Mapping[str, Behaviour]
) -> frozenset[str]:
    """The leaves whose decay is rounded away in every step, found by taking the steps.

    From a power of 2 up to the next, the numbers of a dtype are ``eps`` of the lower power apart,
    and half of that below it. So in a step a number changes only by a quarter of ``eps`` of itself
    or more. A smaller decay may still be kept, in a copy of the leaf in a wider dtype or in a
    running sum of what was rounded away. It shows once that sum is half of the distance to the next
    number: after ``eps / (3 * rate)`` steps from 1.5. (The start is the number above 1.5, whose
    last bit is 1, so that half way is rounded away from it.) Where that takes too many steps, a
    decay counts as kept if the update reads a part of the state that can be such a copy or sum: one
    of the leaf's shape that changes though there is no gradient.

    Args:
      update: The optimizer, traced.
      dtypes: The dtype of each leaf by path, in the order of the params.
      behaviours: What it does to each leaf, by path.

    Returns:
      The paths of leaves whose decay is lost, in all of their entries or in some.
    """
    needed = {
        path: math.ceil(float(jnp.finfo(dtype).eps) / behaviours[path].lowest_rate)
        for path, dtype in dtypes.items()
        if compat.is_inexact(dtype)
        and behaviours[path].steady  # and not in a warm-up, which has yet to reach its rate
        and behaviours[path].step_sizes[0] > _WARM_UP
        and 0 < behaviours[path].lowest_rate < jnp.finfo(dtype).eps / 4
    }
    if not needed:
        return frozenset()
    ways = [(behaviours[path], dtype) for path, dtype in dtypes.items()]
    numbers = {way: number for number, way in enumerate(dict.fromkeys(ways))}
    optimizer = CompiledOptimizer(update, [numbers[way] for way in ways], as_traced)
    kinds = dict(zip(dtypes, optimizer.kind_of, strict=True))
    left = {kinds[path]: (path, steps) for path, steps in needed.items()}
    starts = {path: _start_value(dtype) for path, dtype in dtypes.items()}
    for taken, params, keeps in optimizer.steps_without_gradient(
        [*starts.values()], [*dtypes.values()], _STRIDE
    ):
        for kind, (path, steps) in list(left.items()):
            if np.all(params[kind] != starts[path]) or (keeps[kind] and steps > _MAX_STEPS):
                del left[kind]
        if taken >= max((min(steps, _MAX_STEPS) for _, steps in left.values()), default=0):
            break
    return frozenset(path for path in needed if kinds[path] in left)


def _start_value(dtype: Any) -> float:  # noqa: ANN401 - a dtype
    """A number between two powers of 2, its neighbours equally far on both sides."""
    return 1.5 + float(jnp.finfo(dtype).eps) if compat.is_inexact(dtype) else 1.0
