"""Steps of a scheduled angle on a sphere, in the place of a learning rate and weight decay."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_bnmask.arguments import number_of, require_flag, require_rate, require_size
from optax_bnmask.labels import whole
from optax_bnmask.paths import tree_index
from optax_bnmask.transforms.resolved_arguments import (
    required_params,
    value_at,
    value_at_start,
)
from optax_bnmask.transforms.slices import (
    axes_by_path,
    check_paths,
    check_some_known,
    chosen_leaves,
    require_leaves,
    require_path,
    require_state,
    summed_axes,
    warn_if_idle,
    weight_norm_and_axes,
)
from optax_bnmask.transforms.sphere import (
    LIFT,
    exponent,
    inner_product,
    max_abs,
    nonzero,
    norm,
    step_to,
    sum_of_squares,
    times_power_of_2,
    wide,
)


class HyperballState(NamedTuple):
    """The state of `hyperball`.

    Attributes:
      count: How many updates there were; ``()``, int32.
      radius: The norm that each chosen leaf, or each of its slices, is held at, by path; float32 or
        wider, of the leaf's shape with 1 in place of each axis that is summed over. The dict is one
        non-param to `optax.tree_map_params`: map over its leaves there.
    """

    count: jax.Array
    radius: Any


def hyperball(
    learning_rate: optax.ScalarOrSchedule,
    mask: Any = None,  # noqa: ANN401 - any mask
    *,
    axes: Mapping[str, tuple[int, ...]] | None = None,
    radius: float | Mapping[str, float] | None = None,
    exact_angle: bool = False,
    flip_sign: bool = True,
) -> optax.GradientTransformation:
    """Fixes the norm of the chosen leaves, and schedules how far each of them turns in a step.

    In the place of `optax.scale_by_learning_rate` and of weight decay, on the chosen leaves; all
    others pass as they are. Of the direction `u` that comes from before, only the direction counts:
    with ``R = |w|`` at `init`::

        w' = R * normalize(w - eta * R * normalize(u))        normalize(x) = x / |x|

    so that the base optimizer says where to, and `eta` how far: a step that is orthogonal to `w`
    turns it by ``arctan(eta)``. Weight decay reaches the same state by detours: norms settle where
    it balances growth, and the angle that is turned in a step follows from rate, decay and what
    came before. A decay among what comes before is harmless here, and of no use.

    With `exact_angle`, the part of `u` along `w` is removed first, and every leaf turns by exactly
    `eta` radians, ``w' = R * (cos(eta) * w/|w| - sin(eta) * u_t/|u_t|)``; what is left of an
    update that is radial but for its own rounding turns nothing.

    Each step ends on the sphere to one rounding of each entry, so that after any number of steps
    the norm is `R` to rounding. An update of zero leaves a leaf, or slice, where it is. NaN
    in a slice makes that slice NaN and nothing else; the state holds nothing of it. A leaf or slice
    that is zero at `init` has no radius, and stays zero; with a given `radius` its first step takes
    it to ``-R * normalize(u)``.

    Leaves that are scale-invariant only jointly turn each by itself. One sphere around several of
    them is not offered: their symmetry is a scaling of them all alike only where its exponents are
    equal, and even there the longest leaf would settle how far the others turn. Leaves of integers
    pass as they are.

    Args:
      learning_rate: eta: a number, or a schedule from the step's count to one, in radians.
      mask: True on the chosen leaves: the scale-invariant ones, or, as in the paper, all hidden
        matrices, ``analysis.select("hidden")``. A `Mask`, or whatever Optax takes for a mask; None
        is all.
      axes: The axes of a leaf along which every index has a norm of its own, by path, such as
        `Analysis.norm_axes`: each layer of a stack, each expert, each output channel. A leaf that
        is not named has one. Heads that are ranges of one axis have no norm of their own; inside of
        `by_blocks` the parts of a fused leaf have, with the axes that are given for the leaf.
      radius: R, where it is not that of `init`: a number for every norm, or one for each path.
      exact_angle: Whether every leaf turns by exactly `eta`.
      flip_sign: As in `optax.scale_by_learning_rate`: the step is against the direction that
        comes. False behind a whole optimizer, such as `optax.adamw`, which has turned it already.

    Returns:
      An `optax.GradientTransformation`, whose state is a `HyperballState`.

    Raises:
      TypeError: `learning_rate` is neither a number nor a schedule of numbers, `axes` no such
        mapping, or `exact_angle` or `flip_sign` no bool.
      ValueError: `learning_rate` (of a schedule, at its start), or a `radius`, is negative or not
        finite, or a `radius` is 0.
      PathError: `axes` or `radius` names a leaf that `mask`, being a `Mask`, does not know; on
        `init`: it names none of the leaves.
      StructureError: On `init`: an axis that the leaf does not have.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> import optax_bnmask as bnmask
      >>> tx = optax.chain(
      ...     optax.add_decayed_weights(0.1, mask={"w": False, "head": True}),
      ...     optax.sgd(0.1),
      ...     bnmask.hyperball(1.0, {"w": True, "head": False}, flip_sign=False),
      ... )
      >>> params = {"w": jnp.array([3.0, 4.0]), "head": jnp.ones(2)}
      >>> grads = {"w": jnp.array([4.0, -4.0]), "head": jnp.ones(2)}
      >>> updates, _ = tx.update(grads, tx.init(params), params)
      >>> optax.apply_updates(params, updates)["w"]  # of norm 5 as before; "head" is SGD's
      Array([-0.35444498,  4.987421  ], dtype=float32)

    References:
      Wen et al., Fantastic Pretraining Optimizers and Where to Find Them II: Hyperball
      Optimization, 2026, arXiv:2606.16899; Kosson et al., Rotational Equilibrium, 2023,
      arXiv:2305.17212 (what decay settles at).
    """
    require_rate(learning_rate, "learning_rate")
    for argument, flag in (("exact_angle", exact_angle), ("flip_sign", flip_sign)):
        require_flag(flag, argument)
    axes = axes_by_path(axes)
    given = _radii(radius)
    check_paths(axes, mask, "axes")
    check_paths(given, mask, "radius")
    rule = _exact_step if exact_angle else _published_step
    sign = 1 if flip_sign else -1

    def radius_of(path: str, leaf: jax.Array) -> jax.Array:
        at_init = norm(leaf, summed_axes(path, leaf, axes))
        of_path = given.get(path, given.get(whole(path)))
        wanted = of_path if isinstance(radius, Mapping) else radius
        return at_init if wanted is None else jnp.full_like(at_init, wanted)

    def init_fn(params: optax.Params) -> HyperballState:
        value_at_start(learning_rate, "learning_rate")
        count = jnp.zeros([], jnp.int32)
        if not tree_index(
            required_params(params, "hyperball", "init")
        ).leaves:  # so `optax.tree_map_params` calls `init`
            return HyperballState(count, jnp.zeros([]))
        check_some_known(axes, params, "axes")
        check_some_known(given, params, "radius")
        leaves = chosen_leaves(mask, params)
        warn_if_idle(leaves, mask, params, "hyperball")
        return HyperballState(count, {path: radius_of(path, x) for path, x in leaves.items()})

    def update_fn(
        updates: optax.Updates,
        state: Any,  # noqa: ANN401 - a `HyperballState`
        params: optax.Params | None = None,
    ) -> tuple[optax.Updates, HyperballState]:
        weights = tree_index(required_params(params, "hyperball")).leaves
        require_state(state, HyperballState, "hyperball")
        require_leaves(updates, params)
        tree = tree_index(updates, "updates").leaves
        angle = jnp.asarray(value_at(learning_rate, state.count, "learning_rate"))
        for path, update in chosen_leaves(mask, updates, "updates").items():
            weight, held, over = weight_norm_and_axes(
                path, update, weights, state.radius, axes=axes, transform="hyperball"
            )
            size, eta = max_abs(update, over), (sign * angle).astype(held.dtype)
            turned = rule(update, exponent(size), weight, held, eta, axes=over)
            still = (size == 0) | (held == 0)
            tree[path] = jnp.where(still, 0, turned).astype(update.dtype)
        count = jnp.asarray(optax.safe_increment(state.count))
        new = jax.tree.unflatten(jax.tree.structure(updates), tree.values())
        return new, HyperballState(count, state.radius)

    return optax.GradientTransformation(init_fn, update_fn)


def _radii(radius: float | Mapping[str, float] | None) -> dict[str, float]:
    """The radii by path, empty if `radius` is no mapping; fails unless each is a size."""
    given = dict(radius) if isinstance(radius, Mapping) else {}
    for path in given:
        require_path(path, "radius")
    for each in given.values() if isinstance(radius, Mapping) else [radius]:
        if each is not None:
            require_size(each, "radius")
            if number_of(each) == 0:
                raise ValueError(
                    "`radius` must be above 0: on a sphere of radius 0 every weight is 0. Found 0. "
                    "Leave it out to keep the norm of `init`."
                )
    return given


def _published_step(
    update: jax.Array,
    unit: jax.Array,
    weight: jax.Array,
    radius: jax.Array,
    angle: jax.Array,
    *,
    axes: tuple[int, ...],
) -> jax.Array:
    """The step of arXiv:2606.16899; the update's largest entry is about ``2**unit``."""
    at = exponent(radius)
    length = jnp.sqrt(sum_of_squares(times_power_of_2(update, -unit), axes))
    pace = -angle * times_power_of_2(radius, -at) / nonzero(length)

    def heading(k: int) -> jax.Array:
        return (pace / 2**k).astype(wide(weight).dtype) * times_power_of_2(update, 2 * k - unit)

    return step_to(radius, weight, jnp.ones_like(radius), heading, axes)


def _exact_step(
    update: jax.Array,
    unit: jax.Array,
    weight: jax.Array,
    radius: jax.Array,
    angle: jax.Array,
    *,
    axes: tuple[int, ...],
) -> jax.Array:
    """The step along the great circle by exactly `angle`; 0 for an update along `w`.

    Of an update along `w`, rounding leaves a part across it: half an eps of its dtype for each
    entry, and an eps or so from the sums. A part across `w` that is no larger turns nothing.
    """
    at = exponent(radius)
    squared_norm = sum_of_squares(times_power_of_2(weight, -at), axes)
    radial = (
        inner_product(times_power_of_2(update, 1 - unit), times_power_of_2(weight, 1 - at), axes)
        / 4
        / nonzero(squared_norm)
    )
    # A power of two above the largest would be infinite.
    room = jnp.clip(jnp.finfo(radius.dtype).maxexp - 2 + unit, 0, LIFT)
    lift = jnp.where((at > 0) & (unit > -at), room, 0)
    turn = times_power_of_2(update, lift - unit)
    turn -= times_power_of_2(radial, lift - at).astype(wide(weight).dtype) * wide(weight)
    # Rounding leaves something of a large radial part, which would falsify the angle: remove it.
    left = inner_product(turn, times_power_of_2(weight, 2 - at), axes) / 4 / nonzero(squared_norm)
    remains = sum_of_squares(turn, axes) - jnp.square(left) * squared_norm
    across = jnp.sqrt(jnp.maximum(remains, 0))
    pace = jnp.sin(angle) / nonzero(across)
    share = jnp.cos(angle) / nonzero(jnp.sqrt(squared_norm)) + pace * left

    def heading(k: int) -> jax.Array:
        return (-pace * 2**k).astype(turn.dtype) * turn

    step = step_to(radius, weight, share, heading, axes)
    along = jnp.abs(radial) * jnp.sqrt(squared_norm)
    rounding = float(jnp.finfo(update.dtype).eps) / 2 + 1.5 * float(jnp.finfo(radius.dtype).eps)
    return jnp.where(times_power_of_2(across, -lift) <= rounding * along, 0, step)
