"""Updates that turn a weight and leave its norm alone."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_bnmask.paths import tree_index
from optax_bnmask.transforms.resolved_arguments import required_params
from optax_bnmask.transforms.slices import (
    axes_by_path,
    check_paths,
    check_some_known,
    chosen_leaves,
    require_leaves,
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
    max_ratio_exponent,
    nonzero,
    norm,
    step_to,
    sum_of_squares,
    times_power_of_2,
    wide,
)


class KeepNormState(NamedTuple):
    """The state of `keep_norm`.

    Attributes:
      kept_norm: The norm that each chosen leaf, or each of its slices, had at `init`, by path;
        float32 or wider, of the leaf's shape with 1 in place of each axis that is summed over. The
        dict is one non-param to `optax.tree_map_params`: map over its leaves there.
    """

    kept_norm: Any


def keep_norm(
    mask: Any,  # noqa: ANN401 - any mask
    *,
    axes: Mapping[str, tuple[int, ...]] | None = None,
) -> optax.GradientTransformation:
    """Turns each update into one that leaves the norm of the chosen leaves where it was.

    The last link of a chain, for weights that feed a normaliser and do not decay: without decay
    every step lengthens them, and their effective learning rate, ``eta / |w|**2``, falls. Of the
    update `u` of a leaf `w` it takes the part that turns `w` and follows it along the sphere::

        u_t = u - (<u, w> / <w, w>) * w
        w'  = (w + u_t) * r / |w + u_t|        r = |w| at `init`

    so a step turns `w` by ``arctan(|u_t| / |w|)``: with Adam, in proportion to the schedule. `r` is
    kept in the state, so that rounding does not add up: after any number of steps the norm is `r`
    to one rounding of the leaf, or of its update where that is coarser. Sums are taken in float32
    or wider, whatever the leaf's dtype. Leaves of integers pass as they are.

    Updates may have any size: a huge one turns `w` by a right angle. Around `optax.lookahead`
    the norm is kept exactly, inside of `optax.contrib.schedule_free` nearly; docs/treatments.md
    has the figures.

    A leaf, or slice, that is zero at `init` has no direction: its updates pass as they are.

    On a mesh nothing is gathered: each norm is summed up from the devices' parts, four numbers for
    each norm and step. Inside `jax.shard_map` a device's part is all that there is: there each part
    of a leaf that is divided keeps a norm of its own, and the whole thereby keeps its norm as well.

    Args:
      mask: True on the leaves whose norm is kept: as a rule ``analysis.select("scale_invariant")``,
        and they should be exempt from weight decay, which acts on the norm alone. A `Mask`, or
        whatever Optax takes for a mask.
      axes: The axes of a leaf along which every index keeps a norm of its own, by path, such as
        `Analysis.invariant_axes`: ``(3,)`` for an HWIO kernel that keeps the norm of each output
        channel. A leaf that is not named keeps one norm.

    Returns:
      An `optax.GradientTransformation`, whose state is a `KeepNormState`.

    Raises:
      PathError: `axes` names a leaf that `mask`, being a `Mask`, does not know; on `init`: it names
        none of the leaves.
      StructureError: On `init`: an axis that the leaf does not have.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> import optax_bnmask as bnmask
      >>> tx = optax.chain(optax.sgd(0.1), bnmask.keep_norm({"w": True, "head": False}))
      >>> params = {"w": jnp.array([3.0, 4.0]), "head": jnp.ones(2)}
      >>> grads = {"w": jnp.array([-40.0, 30.0]), "head": jnp.ones(2)}
      >>> updates, _ = tx.update(grads, tx.init(params), params)
      >>> optax.apply_updates(params, updates)["w"]  # turned by 45 degrees, still of norm 5
      Array([4.949747 , 0.7071068], dtype=float32)

    References:
      Heo et al., AdamP, 2020, arXiv:2006.08217 (removes the radial part, and lets the rest lengthen
      the weight); Kodryan et al., Training Scale-Invariant Neural Networks on the Sphere, 2022,
      arXiv:2209.03695 (the sphere, at a fixed radius).
    """
    axes = axes_by_path(axes)
    check_paths(axes, mask, "axes")

    def init_fn(params: optax.Params) -> KeepNormState:
        if not tree_index(
            required_params(params, "keep_norm", "init")
        ).leaves:  # so `optax.tree_map_params` calls `init`
            return KeepNormState(jnp.zeros([]))
        check_some_known(axes, params, "axes")
        leaves = chosen_leaves(mask, params)
        warn_if_idle(leaves, mask, params, "keep_norm")
        return KeepNormState(
            {path: norm(leaf, summed_axes(path, leaf, axes)) for path, leaf in leaves.items()}
        )

    def update_fn(
        updates: optax.Updates,
        state: Any,  # noqa: ANN401 - a `KeepNormState`
        params: optax.Params | None = None,
    ) -> tuple[optax.Updates, KeepNormState]:
        weights = tree_index(required_params(params, "keep_norm")).leaves
        require_state(state, KeepNormState, "keep_norm")
        require_leaves(updates, params)
        tree = tree_index(updates, "updates").leaves
        for path, update in chosen_leaves(mask, updates, "updates").items():
            weight, kept_norm, over = weight_norm_and_axes(
                path, update, weights, state.kept_norm, axes=axes, transform="keep_norm"
            )
            tree[path] = _step(update, weight, kept_norm, over)
        return jax.tree.unflatten(jax.tree.structure(updates), tree.values()), state

    return optax.GradientTransformation(init_fn, update_fn)


def _step(
    update: jax.Array, weight: jax.Array, kept_norm: jax.Array, axes: tuple[int, ...]
) -> jax.Array:
    """The update that takes `weight` along the sphere of radius `kept_norm`.

    An update of zero stays zero; where the norm is 0, the update passes as it is.
    """
    size = max_abs(update, axes)
    at, of = exponent(kept_norm), exponent(size)
    squared_norm = sum_of_squares(times_power_of_2(weight, -at), axes)
    along = inner_product(times_power_of_2(update, -of), times_power_of_2(weight, 1 - at), axes) / 2
    radial = along / nonzero(squared_norm)
    # ``w + u_t`` in units of the larger of both, so that its square neither overflows nor vanishes.
    far = max_ratio_exponent(kept_norm.dtype)
    ratio = jnp.clip(of - at, -3 * far, far)
    larger = jnp.maximum(ratio, 0)
    moves = (size > 0) & (kept_norm > 0) & (squared_norm > 0)
    lift = jnp.where(moves & (at > 0), LIFT, 0)
    share = times_power_of_2(jnp.ones_like(kept_norm), lift - larger)
    # Where nothing moves, `turn` is the update itself, so that the two can share one buffer.
    pull = jnp.where(moves, times_power_of_2(radial, ratio - larger - at + lift), 0)
    turn = times_power_of_2(update, jnp.where(moves, ratio - larger - of + lift, 0))
    turn -= pull.astype(wide(weight).dtype) * wide(weight)
    turned = step_to(kept_norm, weight, share, lambda k: turn * 2**k, axes)
    return jnp.where(moves, turned, turn).astype(update.dtype)
