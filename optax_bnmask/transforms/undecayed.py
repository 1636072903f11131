"""What an optimizer would do to gains, the scales of normalisers, had they never been decayed.

An update depends on the values of its leaf through decay alone, or nearly. So the optimizer is run
with zeros for the gains, and with a second copy of what its state keeps for them (momentum, second
moments). All other leaves, and the rest of the state, are its own: counts, norms over all leaves,
rates that adapt, steps that are skipped.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_bnmask import compat
from optax_bnmask.labels import whole
from optax_bnmask.paths import tree_index


def with_zero_gains(gains: frozenset[str], tree: Any) -> Any:  # noqa: ANN401 - any pytree
    """The tree with zeros in the place of the gains, which so have nothing to decay."""
    kept: Mapping[str, jax.Array] = tree_index(tree).leaves
    changed = (jnp.zeros_like(x) if path in gains else x for path, x in kept.items())
    return jax.tree.unflatten(jax.tree.structure(tree), changed)


def _are_of_gains(
    state: Any,  # noqa: ANN401 - any pytree
    paths: Iterable[str],
    gains: frozenset[str],
) -> list[bool]:
    """For each leaf of an optimizer's state, whether it belongs to a gain.

    The path of such a leaf ends in the path of the gain, as in ``"0/mu/norm/scale"``, or in that of
    a part of it, inside of `by_blocks`. If it ends in several paths of params, the longest counts.
    """
    known, longest = frozenset(paths), max((path.count("/") for path in paths), default=0)

    def end_of(keys: list[str]) -> str:
        """The longest end of a path that is the path of a leaf of the params."""
        starts = range(max(0, len(keys) - longest - 1), len(keys))
        return next((end for start in starts if (end := "/".join(keys[start:])) in known), "")

    def owner(path: str) -> str:
        keys = whole(path).split("/")
        found = end_of(keys)
        # SM3 keeps a list for each leaf: ``"0/mu/norm/scale/0"``, and ``"0/mu/0/1"`` of leaf "0".
        outer = end_of(keys[:-1]) if keys[-1].isdecimal() else ""
        return outer if outer and outer.count("/") >= found.count("/") else found

    return [owner(path) in gains for path in tree_index(state, "state").leaves]


def gain_state(
    state: Any,  # noqa: ANN401 - any pytree
    paths: Collection[str],
    gains: frozenset[str],
) -> tuple[jax.Array, ...]:
    """The leaves of a state that belong to gains; a tuple, as `tree_get` finds no names in it."""
    flags = _are_of_gains(state, paths, gains)
    return tuple(x for x, own in zip(jax.tree.leaves(state), flags, strict=True) if own)


def with_gain_state(
    state: Any,  # noqa: ANN401 - any pytree
    part: Iterable[jax.Array],
    paths: Collection[str],
    gains: frozenset[str],
) -> Any:  # noqa: ANN401 - as `state`
    """A state with other leaves in the place of those that belong to gains."""
    leaves, structure = jax.tree.flatten(state)
    others, flags = iter(part), _are_of_gains(state, paths, gains)
    return jax.tree.unflatten(
        structure, [next(others) if own else x for x, own in zip(leaves, flags, strict=True)]
    )


def holds_gains(
    inner: optax.GradientTransformationExtraArgs,
    params: Any,  # noqa: ANN401 - any pytree
    gains: frozenset[str],
) -> bool:
    """Whether an optimizer's state rules out a second copy for gains that were never decayed.

    That is so where the state holds values of gains, entry by entry and not as a norm: after
    `init`, as in schedule-free, or after an update, as in L-BFGS. It is also so where one array
    of the state holds entries of several leaves, as inside of `optax.flatten`, and taken to be so
    where `update` asks for more than the loss, its gradient and its function.
    """
    paths = tree_index(params).leaves
    own = [path in gains for path in paths]
    shapes = {leaf.shape for path, leaf in paths.items() if path in gains}
    jaxpr = compat.open_jaxpr(jax.make_jaxpr(inner.init)(params))
    held = _reached(jaxpr, jaxpr.invars, own)
    if any(x.aval.shape in shapes for x in jaxpr.outvars if _is_in(x, held)):
        return True
    state = jax.eval_shape(inner.init, params)

    def next_state(updates: Any, state: Any, params: Any) -> Any:  # noqa: ANN401 - any pytrees
        def loss(params: Any) -> jax.Array:  # noqa: ANN401 - as above
            return jnp.asarray(optax.tree_utils.tree_vdot(updates, params), value.dtype)

        value = jnp.zeros([])
        return inner.update(updates, state, params, value=value, grad=updates, value_fn=loss)[1]

    try:
        traced = jax.make_jaxpr(next_state)(params, state, params)
    except Exception:  # whatever it asks for, nobody knows here
        return True
    jaxpr = compat.open_jaxpr(traced)
    copies = _reached(jaxpr, jaxpr.invars[-len(own) :], own, only=_COPIES)
    mixed = _reached(jaxpr, jaxpr.invars[: len(own)], own)
    owned = _are_of_gains(state, paths, frozenset(paths))
    return any(
        _is_in(x, copies) or (_is_in(x, mixed) and not is_owned and _is_several(x.aval))
        for x, is_owned in zip(jaxpr.outvars, owned, strict=True)
    )


_COPIES = frozenset({"copy", "convert_element_type", "reshape", "broadcast_in_dim", "transpose"})


def _reached(
    jaxpr: Any,  # noqa: ANN401 - a jaxpr
    variables: Iterable[Any],
    flags: Iterable[bool],
    only: Collection[str] | None = None,
) -> set[Any]:
    """The variables of a jaxpr computed from the flagged ones, by any operations or `only` some."""
    reached = {x for x, flag in zip(variables, flags, strict=True) if flag}
    for eqn in jaxpr.eqns:
        if any(_is_in(x, reached) for x in eqn.invars) and (
            only is None or eqn.primitive.name in only
        ):
            reached.update(eqn.outvars)
    return reached


def _is_in(x: Any, variables: set[Any]) -> bool:  # noqa: ANN401 - a variable or a literal
    return not isinstance(x, compat.Literal) and x in variables


def _is_several(aval: Any) -> bool:  # noqa: ANN401 - of an array
    """Whether it is an array of several numbers, not of random keys or counts."""
    return compat.is_inexact(aval.dtype) and aval.size > 1
