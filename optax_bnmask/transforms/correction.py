"""Weight decay that leaves scale-invariant weights the learning-rate schedule they were given."""

import contextlib
import math
import warnings
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_bnmask import compat
from optax_bnmask.arguments import number_of, require_rate, require_size
from optax_bnmask.paths import tree_index
from optax_bnmask.transforms.resolved_arguments import (
    mask_tree,
    required_params,
    value_at,
    value_at_start,
)
from optax_bnmask.transforms.slices import has_holes, require_leaves, require_state
from optax_bnmask.transforms.sphere import wide

_STEPS: Final = (0, *(10**power for power in range(7)))
"""The steps in which a schedule is held against its peak: in one of them it is near it."""

_ROUNDING: Final = 1.01
"""A rate larger than its peak by less is rounded, in bfloat16 by up to 0.4 %."""


class CorrectedWeightDecayState(NamedTuple):
    """The state of `corrected_weight_decay`.

    Attributes:
      count: How many updates there were; ``()``, int32.
    """

    count: jax.Array


def corrected_weight_decay(
    weight_decay: optax.ScalarOrSchedule,
    learning_rate: optax.ScalarOrSchedule,
    peak_learning_rate: float,
    *,
    mask: Any,  # noqa: ANN401 - any mask
    corrected: Any,  # noqa: ANN401 - any mask
) -> optax.GradientTransformation:
    """Weight decay, scaled with the learning rate on the leaves whose scale does not matter.

    In the place of `optax.add_decayed_weights`: before the learning rate is applied, after the
    gradient is normalised by Adam and its kin. It adds ``lambda_t * w`` to the update of each leaf
    that decays, with::

        lambda_t = lambda                    in general
        lambda_t = lambda * eta_t / eta_max  on the corrected leaves

    Why: the gradient of a scale-invariant weight is orthogonal to it, so each step lengthens it by
    ``eta**2 * |u|**2`` in the square and decay shortens it by ``2 * eta * lambda * |w|**2``. Where
    these balance, ``|u| / |w| = sqrt(2 * lambda / eta)``: as the schedule lowers eta, this ratio
    rises, the angle turned in a step, ``eta * |u| / |w| = sqrt(2 * lambda * eta)``, falls only with
    the square root of the schedule, and the norm of the gradient grows toward the end of training.
    With the correction the ratio stays at ``sqrt(2 * lambda / eta_max)`` and the angle follows the
    schedule.

    Args:
      weight_decay: lambda: a number, or a schedule from the step's count to one.
      learning_rate: eta: the schedule, or the number, that the chain applies afterwards.
      peak_learning_rate: eta_max, the largest value of the schedule.
      mask: Which leaves decay at all: a `Mask`, or whatever Optax takes for a mask; None is all.
      corrected: Which of these decay in proportion to the learning rate: as a rule
        ``analysis.select("scale_invariant")``.

    Returns:
      An `optax.GradientTransformation`, whose state is a `CorrectedWeightDecayState`.

    Raises:
      TypeError: `weight_decay` or `learning_rate` is neither a number nor a schedule, or
        `peak_learning_rate` no number.
      ValueError: `peak_learning_rate` is not positive, or one of the others negative, or
        `learning_rate` larger than its peak: a number at once, a schedule in `init` if it is so
        in step 0, 1, 10, ..., or 1,000,000.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> import optax_bnmask as bnmask
      >>> schedule = optax.cosine_decay_schedule(1e-3, 1000)
      >>> tx = optax.chain(
      ...     optax.scale_by_adam(),
      ...     bnmask.corrected_weight_decay(
      ...         0.1, schedule, 1e-3, mask=None, corrected={"conv": True, "head": False}
      ...     ),
      ...     optax.scale_by_learning_rate(schedule),
      ... )
      >>> state = tx.init({"conv": jnp.ones(3), "head": jnp.ones(2)})

    References:
      Defazio, Why Gradients Rapidly Increase Near the End of Training, 2025, arXiv:2506.02285.
    """
    require_rate(weight_decay, "weight_decay")
    require_rate(learning_rate, "learning_rate")
    peak = number_of(peak_learning_rate)
    if peak is not None and not 0 < peak < math.inf:
        raise ValueError(
            f"`peak_learning_rate` must be the largest value of the schedule, and positive. Found "
            f"{peak_learning_rate!r}."
        )
    require_size(peak_learning_rate, "peak_learning_rate")
    if not callable(learning_rate):
        _require_peak(learning_rate, peak)

    def init_fn(params: optax.Params) -> CorrectedWeightDecayState:
        required_params(params, "corrected_weight_decay", "init")
        value_at_start(weight_decay, "weight_decay")
        _require_peak(learning_rate, peak)
        _warn_if_uncorrected(params, mask, corrected)
        return CorrectedWeightDecayState(jnp.zeros([], jnp.int32))

    def update_fn(
        updates: optax.Updates,
        state: Any,  # noqa: ANN401 - a `CorrectedWeightDecayState`
        params: optax.Params | None = None,
    ) -> tuple[optax.Updates, CorrectedWeightDecayState]:
        params = required_params(params, "corrected_weight_decay")
        require_state(state, CorrectedWeightDecayState, "corrected_weight_decay")
        require_leaves(updates, params)
        strength = value_at(weight_decay, state.count, "weight_decay")
        ratio = value_at(learning_rate, state.count, "learning_rate") / peak_learning_rate

        def decayed(update: Any, param: Any, decays: Any, corrects: Any) -> Any:  # noqa: ANN401
            if not decays:  # False, or None where there is no gradient
                return update
            rate = strength * ratio if corrects else strength
            if not hasattr(rate, "dtype") or not compat.is_inexact(param.dtype):
                return update + rate * param
            # Late in a schedule float16 holds the decay of a large weight, and not the rate of it.
            return update + (jnp.asarray(rate, wide(param).dtype) * wide(param)).astype(param.dtype)

        updates = jax.tree.map(
            decayed,
            updates,
            params,
            mask_tree(mask, updates),
            mask_tree(corrected, updates, "corrected"),
            is_leaf=lambda node: node is None,
        )
        return updates, CorrectedWeightDecayState(jnp.asarray(optax.safe_increment(state.count)))

    return optax.GradientTransformation(init_fn, update_fn)


def _warn_if_uncorrected(params: Any, mask: Any, corrected: Any) -> None:  # noqa: ANN401 - any pytrees
    """Warns if no leaf decays and is corrected, unless one of the masks is plain False."""
    leaves = tree_index(params).leaves  # none where `optax.tree_map_params` calls `init`
    if not leaves or mask is False or corrected is False or has_holes(params):
        return
    masks = mask_tree(mask, params), mask_tree(corrected, params, "corrected")
    if not any(map(all, zip(*map(jax.tree.leaves, masks), strict=True))):
        warnings.warn(
            f"`corrected_weight_decay` corrects nothing: none of the {len(leaves)} leaves is in "
            f"`mask` and in `corrected`. A model without normalisers has no scale-invariant leaf, "
            f"nor has one that was traced as in inference (see `Analysis.notes`). "
            f"`corrected=False` says that it is meant.",
            stacklevel=3,
        )


def _require_peak(learning_rate: optax.ScalarOrSchedule, peak: float | None) -> None:
    """Fails if the learning rate is larger than its peak in a step that is looked at."""
    highest = value_at_start(learning_rate, "learning_rate")
    for step in _STEPS[1:] if callable(learning_rate) else ():
        with contextlib.suppress(Exception):  # it may know no step after the last
            later = value_at_start(learning_rate, "learning_rate", step)
            highest = max(filter(None, (highest, later)), default=None)
    if highest is not None and peak is not None and highest > _ROUNDING * peak:
        raise ValueError(
            f"`peak_learning_rate` must be the largest value of `learning_rate`. Found {peak:.6g}, "
            f"and a learning rate of {highest:.6g}. The order is `weight_decay, learning_rate, "
            f"peak_learning_rate`."
        )
