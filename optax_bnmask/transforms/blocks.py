"""`by_blocks`: shows the parts of fused leaves to a transformation as leaves of their own."""

from typing import Any

import jax
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
        serve for a part as for the leaf that it is a part of.
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
    known = {leaf.path: parts_of(leaf) for leaf in analysis.leaves}
    inner = optax.with_extra_args_support(inner)

    def apart(tree: Any) -> Any:  # noqa: ANN401 - any pytree in, one with parts out
        leaves = tree_index(tree, "params").leaves
        for path in leaves:
            if path not in known:
                raise PathError(
                    f"`by_blocks` must be given an analysis of the params that the optimizer "
                    f"updates. It met {path!r}, which is none of its leaves{nearest(path, known)}."
                )
        arrays = jax.tree.leaves(tree)
        cut = [_cut(x, known[path]) for path, x in zip(leaves, arrays, strict=True)]
        return jax.tree.unflatten(jax.tree.structure(tree), cut)

    def joined(tree: Any, like: Any) -> Any:  # noqa: ANN401 - any pytrees
        paths, structure = tree_index(like, "params").leaves, jax.tree.structure(like)
        parts = structure.flatten_up_to(tree)
        arrays = jax.tree.leaves(like)
        whole = [
            _joined(p, known[path], x) for path, p, x in zip(paths, parts, arrays, strict=True)
        ]
        return jax.tree.unflatten(structure, whole)

    def init(params: Any) -> Any:  # noqa: ANN401 - the state of `inner`
        return inner.init(apart(params))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:  # noqa: ANN401 - pytrees
        given = None if params is None else apart(params)
        out, state = inner.update(apart(updates), state, given, **extra)
        return joined(out, updates), state

    return optax.GradientTransformationExtraArgs(init, update)


def _cut(x: Any, parts: Parts) -> Any:  # noqa: ANN401 - an array, or a dict of its parts
    return {name: x[places(x.shape, part)] for name, part in parts.items()} if parts else x


def _joined(cut: Any, parts: Parts, like: Any) -> Any:  # noqa: ANN401 - an array
    if not parts:
        return cut
    out = jax.numpy.zeros(like.shape, next(iter(cut.values())).dtype)
    for name, part in parts.items():
        out = out.at[places(like.shape, part)].set(cut[name])
    return out
