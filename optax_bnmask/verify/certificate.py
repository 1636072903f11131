"""`verify`: a numeric certificate for what an analysis claims."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from optax_bnmask.analysis import Analysis, Scale
from optax_bnmask.verify.verification import Verification


def verify(
    analysis: Analysis,
    fn: Callable[..., Any],
    params: Any,  # noqa: ANN401 - any pytree
    *args: Any,  # noqa: ANN401 - any pytrees
    key: Any,  # noqa: ANN401 - a key of either kind
    factor: float = 256.0,
    **kwargs: Any,  # noqa: ANN401 - any pytrees
) -> Verification:
    """Checks in numbers that what an analysis claims is so, and whether it is so at `params`.

    Two questions are kept apart. *Is the claim right?* Parameters that hide nothing are drawn (no
    zero bias, no zero gain) and moved along the claimed symmetries, ``2**(k*s) * p`` for k = 1, 2,
    ..., until every epsilon is negligible. From there up to `factor` times farther the outputs must
    not change, and they must have come to rest at the pace of an epsilon, not of a nonlinearity
    that saturates. A random combination of the symmetries checks the whole space in one pass; where
    it fails, halving finds the claim that does. *Does it hold here?* At the given parameters each
    invariant leaf is doubled: an invariance is weak where that moves the outputs by more than 1 %.

    Args:
      analysis: What `optax_bnmask.analyze` found of `fn`.
      fn: The function, as it was analysed.
      params: Its parameters: any pytree of arrays or `jax.ShapeDtypeStruct`s. Drawn values keep the
        magnitudes of arrays. Where any is known by shape only, or is divided between processes so
        that none can read it, nothing is said of weakness.
      *args: The other arguments. Those known so are drawn as well: floats normally, integers
        from {0, 1}. Normalisers over the batch need more than one example.
      key: A JAX key: same key, same answer.
      factor: How far to go where epsilons are negligible. A power of 2 is free of rounding.
      **kwargs: The same by name.

    Returns:
      The `Verification`.

    Raises:
      VerificationError: A claim fails; the message names the leaf or the symmetry, and by how much.
        Or the outputs are not finite, so that nothing can be said.
      StructureError: `params` are not those of the analysis, or it proved nothing from a program.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import optax_bnmask as bnmask
      >>> def f(p, x):
      ...     z = x @ p["w"] + p["b"][None]
      ...     z = z - z.mean(0, keepdims=True)
      ...     z = z / jnp.sqrt((z * z).mean(0, keepdims=True) + 1e-5)
      ...     return jnp.tanh(z * p["gamma"][None])
      >>> params = {"w": jnp.ones((3, 8)), "b": jnp.ones(8), "gamma": jnp.ones(8)}
      >>> x = jax.random.normal(jax.random.key(0), (32, 3))
      >>> found = bnmask.verify(bnmask.analyze(f, params, x), f, params, x, key=jax.random.key(1))
      >>> found.ok, found.dead_biases
      (True, ('b',))
    """
    from optax_bnmask.verify.claims import (  # noqa: PLC0415 - what `import` need not wait for
        axes,
        combined,
        far,
    )
    from optax_bnmask.verify.findings import sensitive, weak  # noqa: PLC0415
    from optax_bnmask.verify.trial import Trial  # noqa: PLC0415

    trial = Trial(analysis, fn, params, args, kwargs, rng=_generator(key), factor=factor)
    errors = [*far(trial, Scale.INVARIANT), *far(trial, Scale.JOINT), combined(trial)]
    n_axes, worst = axes(trial)
    missed, dead = sensitive(trial)
    scales = [leaf.scale for leaf in analysis.leaves]
    return Verification(
        symmetries=len(analysis.symmetries),
        invariant=scales.count(Scale.INVARIANT),
        joint=scales.count(Scale.JOINT),
        axes=n_axes,
        error=max([0.0, *errors, worst]),
        tolerance=trial.measured.tolerance,
        dtype=str(np.dtype(trial.measured.dtype)),
        weak=weak(trial),
        possibly_missed=missed,
        dead_biases=dead,
        notes=tuple(trial.notes),
    )


def _generator(key: Any) -> np.random.Generator:  # noqa: ANN401 - a key of either kind
    typed = jax.numpy.issubdtype(key.dtype, jax.dtypes.prng_key)
    data = jax.random.key_data(key) if typed else key
    return np.random.default_rng(np.asarray(data, np.uint32).ravel().tolist())
