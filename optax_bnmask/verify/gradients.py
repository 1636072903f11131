"""`gradient_certificate`: checks claims on a gradient that training has computed anyway."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optax_bnmask.analysis import Analysis
from optax_bnmask.arguments import wrong_kind
from optax_bnmask.errors import StructureError
from optax_bnmask.paths import tree_index
from optax_bnmask.record import require_analysis

Array = Any


class Certificate(NamedTuple):
    """How well a gradient fits what an analysis claims: a pytree, to be returned from ``jax.jit``.

    Attributes:
      violation: The largest of `violations`; 0 where nothing is claimed.
      violations: By claim (``"conv/kernel"``, ``"conv/kernel[axis 3]"``, ``"group 0"``,
        ``"symmetry 2"``): ``|sum_i s_i <p_i, g_i>|`` relative to ``sum_i |s_i| |p_i| |g_i|``, or to
        the largest ``|p_j| |g_j|`` of all leaves where a gradient should be 0 entry by entry; of a
        dead leaf (``"conv/bias[dead]"``) ``|g|`` relative to the largest there is; of an axis along
        which the same may be added (``"head/kernel[shift along axis 1]"``) ``|sum g|`` along it
        relative to ``sum |g|``. NaN where the gradient is.
    """

    violation: Array
    violations: Mapping[str, Array]


def gradient_certificate(
    analysis: Analysis,
    params: Any,  # noqa: ANN401 - any pytree
    grads: Any,  # noqa: ANN401 - a pytree like `params`
) -> Certificate:
    """The largest violation of what an analysis claims, in a gradient that was computed anyway.

    It is cheap enough for each training step, and one line in a test suite. A function that
    does not change along ``c**s * p`` has a gradient with ``sum_i s_i <p_i, g_i> = 0``. Rounding
    and epsilons are what is left: about 1e-6 where the gradient is in float32 and epsilons small.
    A claim that is false shows as 1e-3 to 1.

    Args:
      analysis: What `optax_bnmask.analyze` found of the function that the loss is computed from.
      params: The parameters.
      grads: The gradient of a loss by them, at these parameters: as `jax.grad` gives it, before any
        clipping of single entries, any decay, any momentum.

    Returns:
      The `Certificate`.

    Raises:
      StructureError: `analysis` was not proved from a program, or `params` or `grads` lack leaves.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import optax_bnmask as bnmask
      >>> def net(p, x):
      ...     z = x @ p["w"]
      ...     return jnp.tanh(z / jnp.sqrt((z * z).mean(0, keepdims=True))) @ p["head"]
      >>> keys = jax.random.split(jax.random.key(0), 3)
      >>> params = {"w": jax.random.normal(keys[0], (3, 8)),
      ...           "head": jax.random.normal(keys[1], (8, 2))}
      >>> x = jax.random.normal(keys[2], (32, 3))
      >>> analysis = bnmask.analyze(net, params, x)
      >>> @jax.jit
      ... def step(params):
      ...     grads = jax.grad(lambda p: jnp.mean(net(p, x) ** 2))(params)
      ...     return bnmask.gradient_certificate(analysis, params, grads)
      >>> found = step(params)
      >>> sorted(found.violations)
      ['symmetry 0', 'w', 'w[axis 1]']
      >>> bool(found.violation < 1e-5)
      True
    """
    from optax_bnmask.verify.orthogonality import (  # noqa: PLC0415 - what `import` need not wait for
        violations,
    )

    require_analysis(analysis)
    leaves = _leaves(analysis, params, "params"), _leaves(analysis, grads, "grads")
    found = violations(analysis, *leaves)
    worst = jnp.max(jnp.stack(list(found.values()))) if found else jnp.zeros(())
    return Certificate(worst, found)


def _leaves(analysis: Analysis, tree: Any, name: str) -> list[Array]:  # noqa: ANN401
    """The leaves of a tree in the order of the analysis."""
    leaves = tree_index(tree, name).leaves
    missing = [leaf.path for leaf in analysis.leaves if leaf.path not in leaves]
    if missing:
        raise StructureError(
            f"`{name}` must have every leaf of `analysis`. It lacks {missing[0]!r}"
            f"{f' and {len(missing) - 1} more' if len(missing) > 1 else ''}. Pass the gradient by "
            f"all parameters, before leaves are masked or set apart."
        )
    found = [leaves[leaf.path] for leaf in analysis.leaves]
    if shapes := [x for x in found if isinstance(x, jax.ShapeDtypeStruct)]:
        raise wrong_kind(name, "a tree of arrays", shapes[0], "A gradient is judged by its values.")
    for leaf, x in zip(analysis.leaves, found, strict=True):
        if jnp.shape(x) != leaf.shape:
            raise StructureError(
                f"The leaves of `{name}` must have the shapes that `analysis` knows. {leaf.path!r} "
                f"has {jnp.shape(x)} for {leaf.shape}. Of gradients on several devices, pass their "
                f"mean."
            )
    return found
