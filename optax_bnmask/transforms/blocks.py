"""`by_blocks`: shows the parts of fused leaves to a transformation as leaves of their own."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_bnmask.analysis import Analysis
from optax_bnmask.arguments import require_optimizer
from optax_bnmask.errors import PathError
from optax_bnmask.labels import Parts, parts_of, places
from optax_bnmask.paths import nearest, tree_index
from optax_bnmask.record import require_analysis, require_program


def by_blocks(
    inner: optax.GradientTransformation, analysis: Analysis
) -> optax.GradientTransformationExtraArgs:
    """Shows a transformation the parts of fused leaves as separate leaves.

    Muon orthogonalises a fused kernel ``(D, 3 * H * K)`` of queries, keys and values as one matrix,
    and LAMB or an update clipped by leaf takes one norm for all three. Wrapped, they see three
    kernels, and take the step that they would take on a network whose kernels are not fused. Parts
    are those of `Leaf.parts`: heads stay together, also where they are interleaved, and so do the
    halves of a head that a rotation mixes.

    Args:
      inner: Any transformation. A `Mask`, `Labels` and the specs of `muon_dimension_numbers` in it
        serve for a part as for the leaf that it is a part of. Of further arguments to `update` it
        gets those of the shapes of the updates in parts, too, and functions of params as functions
        of parts.
      analysis: By program, of the params that the optimizer updates.

    Returns:
      A `optax.GradientTransformation` on whole leaves; its state is that of `inner` on parts.

    Raises:
      PathError: At `init`, a leaf that `analysis` does not know.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> import optax_bnmask as bnmask
      >>> def fn(p, x):
      ...     gate, up = jnp.split(x @ p["fused"], 2, -1)
      ...     return (jax.nn.silu(gate) * up) @ p["down"]
      >>> params = {"fused": jnp.ones((4, 12)), "down": jnp.ones((6, 3))}
      >>> analysis = bnmask.analyze(fn, params, jax.ShapeDtypeStruct((5, 4), "float32"))
      >>> tx = by_blocks(optax.scale_by_trust_ratio(), analysis)
      >>> updates, _ = tx.update(params, tx.init(params), params)
      >>> jax.tree.map(jnp.shape, updates)
      {'down': (6, 3), 'fused': (4, 12)}
    """
    require_analysis(analysis)
    require_program(analysis, "Blocks")
    require_optimizer(inner, "inner", "inner, analysis")
    parts_by_path = {leaf.path: parts_of(leaf) for leaf in analysis.leaves}
    inner = optax.with_extra_args_support(inner)

    def init(params: Any) -> Any:  # noqa: ANN401 - the state of `inner`
        return inner.init(_in_parts(params, parts_by_path))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:  # noqa: ANN401 - pytrees
        def of_parts(function: Any) -> Any:  # noqa: ANN401 - such as the loss of a line search
            def called(cut: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as it is
                return function(_rejoined(cut, params, parts_by_path), *args, **kwargs)

            return called

        def shown(value: Any) -> Any:  # noqa: ANN401 - a gradient, a loss, or anything else
            if callable(value):
                return of_parts(value)
            return _in_parts(value, parts_by_path) if _are_alike(value, updates) else value

        given = None if params is None else _in_parts(params, parts_by_path)
        further = {name: shown(value) for name, value in extra.items()}
        out, state = inner.update(_in_parts(updates, parts_by_path), state, given, **further)
        return _rejoined(out, updates, parts_by_path), state

    return optax.GradientTransformationExtraArgs(init, update)


def _in_parts(tree: Any, parts_by_path: Mapping[str, Parts]) -> Any:  # noqa: ANN401 - any pytree
    """A tree with a dict of its parts in the place of each fused leaf."""
    leaves = tree_index(tree, "params").leaves
    for path in leaves:
        if path not in parts_by_path:
            raise PathError(
                f"`by_blocks` must be given an analysis of the params that the optimizer updates. "
                f"It met {path!r}, which is none of its leaves{nearest(path, parts_by_path)}."
            )
    arrays = jax.tree.leaves(tree)
    cut = [_parts(x, parts_by_path[path]) for path, x in zip(leaves, arrays, strict=True)]
    return jax.tree.unflatten(jax.tree.structure(tree), cut)


def _rejoined(tree: Any, like: Any, parts_by_path: Mapping[str, Parts]) -> Any:  # noqa: ANN401 - any pytrees
    """The tree of which `tree` has the parts, with the structure and shapes of `like`."""
    paths, structure = tree_index(like, "params").leaves, jax.tree.structure(like)
    parts, arrays = structure.flatten_up_to(tree), jax.tree.leaves(like)
    leaves = (
        _leaf_of(p, parts_by_path[path], x) for path, p, x in zip(paths, parts, arrays, strict=True)
    )
    return jax.tree.unflatten(structure, leaves)


def _are_alike(one: Any, other: Any) -> bool:  # noqa: ANN401 - any pytrees
    """Whether two trees have one structure, with leaves of the same shapes."""
    leaves, structure = jax.tree.flatten(one)
    others, wanted = jax.tree.flatten(other)
    same = (jnp.shape(x) == jnp.shape(y) for x, y in zip(leaves, others, strict=False))
    return structure == wanted and all(same)


def _parts(x: Any, parts: Parts) -> Any:  # noqa: ANN401 - an array, or a dict of its parts
    return {name: x[places(x.shape, part)] for name, part in parts.items()} if parts else x


def _leaf_of(cut: Any, parts: Parts, like: Any) -> Any:  # noqa: ANN401 - an array
    if not parts:
        return cut
    out = jax.numpy.zeros(like.shape, next(iter(cut.values())).dtype)
    for name, part in parts.items():
        out = out.at[places(like.shape, part)].set(cut[name])
    return out
