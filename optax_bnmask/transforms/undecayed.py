"""An optimizer as it would be, from its present state, had some leaves never been decayed.

An update depends on its leaf's values through decay alone, or nearly: so these leaves are shown as
zeros, and what the state keeps for them (momentum, second moments) is kept a second time, apart.
Everything else in the state, and all other leaves, are those of the optimizer itself: counts, norms
over all leaves, rates that adapt, steps that are skipped.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_bnmask import compat
from optax_bnmask.paths import layout


def without(gains: frozenset[str], tree: Any) -> Any:  # noqa: ANN401 - any pytree
    """The tree with zeros in the place of the gains, which so have nothing to decay."""
    kept: Mapping[str, jax.Array] = layout(tree).leaves
    changed = (jnp.zeros_like(x) if path in gains else x for path, x in kept.items())
    return jax.tree.unflatten(jax.tree.structure(tree), changed)


def _places(
    state: Any,  # noqa: ANN401 - any pytree
    paths: Iterable[str],
    gains: frozenset[str],
) -> list[bool]:
    """Which leaves of an optimizer's state belong to gains.

    State that is kept by leaf has the path of its leaf at its end, as in ``"0/mu/norm/scale"``. Of
    several that fit, the longest is meant.
    """
    known, longest = frozenset(paths), max((path.count("/") for path in paths), default=0)

    def owner(path: str) -> str:
        keys = path.split("/")
        ends = (
            "/".join(keys[start:]) for start in range(max(0, len(keys) - longest - 1), len(keys))
        )
        return next((end for end in ends if end in known), "")

    return [owner(path) in gains for path in layout(state, "state").leaves]


def part_of(
    state: Any,  # noqa: ANN401 - any pytree
    paths: Collection[str],
    gains: frozenset[str],
) -> tuple[jax.Array, ...]:
    """The leaves of a state that belong to gains. A flat tuple does not answer `tree_get`."""
    flags = _places(state, paths, gains)
    return tuple(x for x, own in zip(jax.tree.leaves(state), flags, strict=True) if own)


def joined(
    state: Any,  # noqa: ANN401 - any pytree
    part: Iterable[jax.Array],
    paths: Collection[str],
    gains: frozenset[str],
) -> Any:  # noqa: ANN401 - as `state`
    """A state with other leaves in the place of those that belong to gains."""
    leaves, structure = jax.tree.flatten(state)
    others, flags = iter(part), _places(state, paths, gains)
    return jax.tree.unflatten(
        structure, [next(others) if own else x for x, own in zip(leaves, flags, strict=True)]
    )


def remembers(inner: optax.GradientTransformation, params: Any, gains: frozenset[str]) -> bool:  # noqa: ANN401 - any pytree
    """Whether the state at `init` holds values of gains, entry by entry, and not a norm of them."""
    jaxpr = compat.open_jaxpr(jax.make_jaxpr(inner.init)(params))
    paths = layout(params).leaves
    reached = {x for path, x in zip(paths, jaxpr.invars, strict=True) if path in gains}
    for eqn in jaxpr.eqns:
        if any(not hasattr(x, "val") and x in reached for x in eqn.invars):  # a literal has a `val`
            reached.update(eqn.outvars)
    held = (x for x in jaxpr.outvars if not hasattr(x, "val") and x in reached)
    shapes = {leaf.shape for path, leaf in paths.items() if path in gains}
    return any(x.aval.shape in shapes for x in held)
