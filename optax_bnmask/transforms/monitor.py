"""Watching, inside the training step, what decay and growing norms do to learning rates."""

import warnings
from collections.abc import Mapping
from numbers import Integral
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_bnmask.analysis import Analysis
from optax_bnmask.arguments import require_optimizer
from optax_bnmask.paths import tree_index
from optax_bnmask.record import require_analysis
from optax_bnmask.transforms.resolved_arguments import required_params
from optax_bnmask.transforms.slices import array_at, require_leaves, require_state
from optax_bnmask.transforms.sphere import norm, split, sum_of_squares, wide
from optax_bnmask.transforms.undecayed import (
    gain_state,
    holds_gains,
    with_gain_state,
    with_zero_gains,
)
from optax_bnmask.vocabulary import Role, Scale


class MonitorScaleState(NamedTuple):
    """The state of `monitor_scale`; from `gain_rate` on, dicts of scalars, float32 or wider.

    Each dict, by path, is one non-param to `optax.tree_map_params`: map over its leaves there.

    Attributes:
      inner_state: The state of the watched transformation.
      decay_state: What it takes to know the decay's share of the updates: the leaves that the
        watched transformation's state would have for the normalisers' scales, had these never
        decayed.
      step_count: How many updates there were; ``()``, int32.
      gain_rate: For each normaliser's scale, the mean of ``g / (g + lambda * gamma)`` in the last
        step; 1 before the first.
      weight_norm: For each scale-invariant leaf, ``|w|`` after the last step.
      effective_learning_rate: For each scale-invariant leaf, ``eta / |w|**2`` of the last step; 0
        before the first.
      angle: For each scale-invariant leaf, the angle turned in the last step, in radians.
    """

    inner_state: Any
    decay_state: Any
    step_count: Any
    gain_rate: Any
    weight_norm: Any
    effective_learning_rate: Any
    angle: Any


def monitor_scale(
    inner: optax.GradientTransformation, analysis: Analysis, *, every: int = 1
) -> optax.GradientTransformationExtraArgs:
    """Watches a whole optimizer: what decay takes from gains, how fast weights turn.

    Updates and inner state are those of `inner`. Besides, the state holds what `MonitorScaleState`
    lists, each a dict by path that `optax.tree_utils.tree_get(state, "angle")` finds:

    - ``gain_rate``: the share of a gain's learning rate that decay leaves it. A gradient ``g``
      moves gamma as if at the rate ``eta_eff = eta * g / (g + lambda * gamma)``. The two are taken
      from the update itself, ``u = u_data + u_decay``: ``u_data`` is what `inner` does, from the
      same state and with the same gradients, to gains that are 0 and so never decay (momentum and
      other moments of theirs are kept apart), and no lambda needs to be told. The ratio is the mean
      of ``|u_data| / (|u_data| + |u_decay|)`` over the channels (1 where nothing moves). With plain
      SGD that is the formula. With momentum both are what momentum has gathered; with AdamW, Lion
      and their kin ``u_data`` is the normalised gradient, as decay is added after it; clipping by
      global norm takes all leaves' norm. An optimizer that normalises the decay too (`optax.adam`
      after `optax.add_decayed_weights`) or looks at the params for more than their decay (trust
      ratios, as in LAMB) does not split into such a sum, and the ratio is a comparison only. One
      whose state remembers the params themselves (schedule-free, DoG, Prodigy, lookahead, L-BFGS),
      or holds several leaves in one array (`optax.flatten`), cannot be asked: `init` warns, and
      ``gain_rate`` is empty.
    - ``weight_norm``, ``angle``: of each scale-invariant leaf as a whole; the angle is
      ``atan2(|u_t|, |w| + <u, w> / |w|)``, with the update's part across `w`, before the sum is
      rounded to the leaf's dtype. Squares are not guarded, which would take more sums: in float32,
      gradients and weights below 1e-19 or above 1e19 read as 0 or infinite.
    - ``effective_learning_rate``: the rate at which the direction follows the gradient *on the unit
      sphere*, which is ``|w|`` times the gradient at `w`: ``(|u_t| / |w|) / (|w| * |g_t|)``. With
      SGD that is ``eta / |w|**2``; with momentum or Adam, eta is the length of the step for each
      unit of gradient.

    With ``every=k`` the values are those of every k-th step, from the first on. Between these they
    stay, and nothing is computed for the weights; the state has the same structure. A due step
    computes the update of `inner` twice, so that no other step has to keep it.

    The params that are not watched are not looked at, and structure and dtypes of the state never
    change. With an analysis from structure alone, only the gains are watched. Inside
    `optax.MultiSteps` each value is of a step that is taken; around it, also of those that only
    accumulate. An optimizer that calls the model itself, for a line search, cannot be watched.

    On a mesh nothing is gathered: five numbers for each weight, and one for each gain, are summed
    up from the devices' parts. Inside `jax.shard_map` a device's part is all that there is: the
    values of a leaf that is divided are its part's.

    Args:
      inner: The whole optimizer, with its learning rate: what an update leaves here must be what
        is added to the params, since it is the step that is measured. So `monitor_scale` goes
        around a chain, and not into it before the learning rate.
      analysis: What is known of the params that the optimizer gets: all of them, or those that
        `optax.partition` or `optax.masked` leave.
      every: How many steps lie between two that are measured, at least 1.

    Returns:
      An `optax.GradientTransformationExtraArgs`, whose state is a `MonitorScaleState`.

    Raises:
      ValueError: `every` is below 1, or more than an int32 can count.
      PathError: On `init` and `update`: the analysis does not know a leaf of the params.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> import optax_bnmask as bnmask
      >>> params = {"dense": {"kernel": jnp.ones((2, 3))}, "norm": {"scale": jnp.full(3, 2.0)}}
      >>> sgd = optax.chain(optax.add_decayed_weights(0.5), optax.sgd(0.1))
      >>> tx = bnmask.monitor_scale(sgd, bnmask.analyze_structure(params))
      >>> _, state = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)
      >>> optax.tree_utils.tree_get(state, "gain_rate")  # 1 / (1 + 0.5 * 2)
      {'norm/scale': Array(0.5, dtype=float32)}

    References:
      van Laarhoven, L2 Regularization versus Batch and Weight Normalization, 2017, arXiv:1706.05350
      (``eta / |w|**2``); Wan et al., Spherical Motion Dynamics, 2021, arXiv:2006.08419 (the angle).
    """
    if not isinstance(every, Integral) or isinstance(every, bool) or not 0 < every < 2**31:
        raise ValueError(
            f"`every` must be a number of steps, from 1 to below 2**31. Found {every!r}. With "
            f"`optax.inject_hyperparams` it is one of the `static_args`."
        )
    require_analysis(analysis)
    require_optimizer(inner, "inner", "inner, analysis")
    inner = optax.with_extra_args_support(inner)
    gains = frozenset(leaf.path for leaf in analysis.leaves if leaf.role is Role.NORM_SCALE)
    weights = frozenset(
        leaf.path for leaf in analysis.leaves if leaf.scale is Scale.INVARIANT and not leaf.dead
    )

    def init_fn(params: optax.Params) -> MonitorScaleState:
        required_params(params, "monitor_scale", "init")
        return _initial(inner, params, _known_leaves(params, analysis), gains, weights)

    def update_fn(
        updates: optax.Updates,
        state: Any,  # noqa: ANN401 - a `MonitorScaleState`
        params: optax.Params | None = None,
        **extra_args: Any,  # noqa: ANN401 - whatever `inner` asks for
    ) -> tuple[optax.Updates, MonitorScaleState]:
        params = required_params(params, "monitor_scale")
        require_state(state, MonitorScaleState, "monitor_scale")
        gradients = _known_leaves(updates, analysis)
        require_leaves(updates, params)
        if not gradients:
            steps, inner_state = inner.update(updates, state.inner_state, params, **extra_args)
            return steps, state._replace(inner_state=inner_state)
        before = tree_index(params).leaves
        split_off = frozenset(state.gain_rate)
        # What this computes for the other leaves alone is unused, and the compiler drops it.
        undecayed, decay_state = inner.update(
            updates,
            with_gain_state(state.inner_state, state.decay_state, before, split_off),
            with_zero_gains(split_off, params),
            **extra_args,
        )
        data = tree_index(undecayed).leaves

        def measured(steps: optax.Updates) -> tuple[Any, ...]:
            return _measured(state, before, gradients, tree_index(steps).leaves, data)

        def again() -> tuple[Any, ...]:
            # As an operand of the branch, the update would be stored in each step, due or not.
            return measured(inner.update(updates, state.inner_state, params, **extra_args)[0])

        kept = state[3:]  # the measured values, from `gain_rate` on
        if every > 1:
            kept = jax.lax.cond(state.step_count % every == 0, again, lambda: kept)
            updates = _computed_after(kept, updates)
        steps, inner_state = inner.update(updates, state.inner_state, params, **extra_args)
        values = kept if every > 1 else measured(steps)
        count = jnp.asarray(optax.safe_increment(state.step_count))
        undecayed_part = gain_state(decay_state, before, split_off)
        return steps, MonitorScaleState(inner_state, undecayed_part, count, *values)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _initial(
    inner: optax.GradientTransformationExtraArgs,
    params: optax.Params,
    leaves: Mapping[str, jax.Array],
    gains: frozenset[str],
    weights: frozenset[str],
) -> MonitorScaleState:
    """The state before the first step."""
    if not leaves:  # so `optax.tree_map_params` calls `init`
        return MonitorScaleState(inner.init(params), *(jnp.zeros([]) for _ in range(6)))
    apart = gains.intersection(leaves)
    if apart and holds_gains(inner, params, apart):
        warnings.warn(
            "`monitor_scale` cannot tell what decay takes from gains: the state of the watched "
            "optimizer holds their values, or several leaves in one array. `gain_rate` stays "
            "empty.",
            stacklevel=3,
        )
        apart = frozenset()
    inner_state = inner.init(params)
    watched = apart | weights
    values = {p: wide(array_at(p, x, "params")) for p, x in leaves.items() if p in watched}
    norms = {
        path: jnp.reshape(norm(leaf, tuple(range(leaf.ndim))), ())
        for path, leaf in values.items()
        if path in weights
    }
    return MonitorScaleState(
        inner_state=inner_state,
        # Arrays of their own each: a buffer that is in the state twice cannot be donated.
        decay_state=tuple(map(jnp.copy, gain_state(inner_state, leaves, apart))),
        step_count=jnp.zeros([], jnp.int32),
        gain_rate={
            # Made of the leaf: inside of `jax.shard_map` it varies, as what is measured does.
            path: jnp.ones_like(jnp.sum(jnp.real(leaf)))
            for path, leaf in values.items()
            if path in apart
        },
        weight_norm=norms,
        effective_learning_rate=jax.tree.map(jnp.zeros_like, norms),
        angle=jax.tree.map(jnp.zeros_like, norms),
    )


def _measured(
    state: MonitorScaleState,
    weights: Mapping[str, jax.Array],
    gradients: Mapping[str, jax.Array],
    moved: Mapping[str, jax.Array],
    data: Mapping[str, jax.Array],
) -> tuple[Any, ...]:
    """The watched values of a step. What gets no gradient, None in its place, stays as it was."""
    motions = {
        path: _motion(weights[path], moved[path], gradient)
        for path, gradient in gradients.items()
        if path in state.angle
    }
    rates = {p: _gain_rate(moved[p], data[p]) for p in gradients if p in state.gain_rate}
    return (
        _updated(state.gain_rate, rates),
        _updated(state.weight_norm, {p: m.norm for p, m in motions.items()}),
        _updated(state.effective_learning_rate, {p: m.rate for p, m in motions.items()}),
        _updated(state.angle, {p: m.angle for p, m in motions.items()}),
    )


def _updated(old: dict[str, jax.Array], new: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """New values in the dtypes of the old ones, which a state must keep."""
    return old | {path: value.astype(old[path].dtype) for path, value in new.items()}


def _computed_after(values: Any, updates: optax.Updates) -> optax.Updates:  # noqa: ANN401 - any pytree
    """The updates unchanged, but so that XLA must compute `values`, none of them negative, first.

    Otherwise all that the optimizer overwrites, and the measuring branch might still have to read,
    would be copied in each step. XLA drops optimization barriers before it looks for such copies.
    """
    if not (leaves := jax.tree.leaves(values)):
        return updates
    known = jnp.logical_not(leaves[0] < 0)  # true of NaN, too

    def then(update: jax.Array) -> jax.Array:
        return jnp.where(known, update, jnp.zeros_like(update))

    return jax.tree.map(then, updates)


class _Motion(NamedTuple):
    """How a step moved a weight."""

    norm: jax.Array
    rate: jax.Array
    angle: jax.Array


def _motion(weight: jax.Array, update: jax.Array, gradient: jax.Array) -> _Motion:
    """The norm after the step, the effective learning rate of it, and the angle turned."""
    axes = tuple(range(weight.ndim))
    squared_norm = sum_of_squares(weight, axes)
    step, slope = (split(x, weight, squared_norm, axes) for x in (update, gradient))
    norm, turn = jnp.sqrt(squared_norm), jnp.sqrt(step.squared_tangent)
    along = norm * (1 + step.radial)
    fall = jnp.sqrt(slope.squared_tangent) * squared_norm
    rate = jnp.where(fall > 0, turn / jnp.where(fall > 0, fall, 1), 0)
    values = jnp.hypot(along, turn), rate, jnp.arctan2(turn, along)
    return _Motion(*(jnp.reshape(value, ()) for value in values))


def _gain_rate(update: jax.Array, data: jax.Array) -> jax.Array:
    """The mean of ``|u_data| / (|u_data| + |u - u_data|)``, 1 where both are 0."""
    push = jnp.abs(wide(data))
    both = push + jnp.abs(wide(update) - wide(data))
    return jnp.mean(jnp.where(both > 0, push / jnp.where(both > 0, both, 1), 1))


def _known_leaves(tree: Any, analysis: Analysis) -> dict[str, jax.Array]:  # noqa: ANN401 - any pytree
    """The leaves by path, each of which the analysis must know."""
    leaves = tree_index(tree).leaves
    for path in leaves:
        analysis[path]  # raises a `PathError` that names the nearest
    return leaves
