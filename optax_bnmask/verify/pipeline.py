"""`verify`: checks the claims of an analysis in numbers, step by step."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from optax_bnmask import compat
from optax_bnmask.analysis import Analysis
from optax_bnmask.arguments import wrong_kind
from optax_bnmask.record import require_analysis
from optax_bnmask.verify.outcome import Verification
from optax_bnmask.vocabulary import Scale


def verify(
    analysis: Analysis,
    fn: Callable[..., Any],
    params: Any,  # noqa: ANN401 - any pytree
    *args: Any,  # noqa: ANN401 - any pytrees
    key: Any,  # noqa: ANN401 - a key of either kind
    factor: float = 256.0,
    has_aux: bool | None = None,
    **kwargs: Any,  # noqa: ANN401 - any pytrees
) -> Verification:
    """Checks in numbers that what an analysis claims is so, and whether it is so at `params`.

    Two questions are kept apart. *Is the claim right?* Parameters that hide nothing are drawn (no
    zero bias, no zero gain), three times, and moved along the claimed symmetries, ``2**(k*s) * p``
    for random `k`. The function is computed in float64, with the epsilons that the proof lists made
    negligible (1e-12) and infinities larger: nothing else excuses a claim. No entry of an output
    may change by more than a tolerance, relative to how far it moves when the parameters are drawn
    anew. All claims are tried at once; where that fails, halving finds the one that does, down to
    the index of an axis. *Does it hold here?* At the given parameters, with epsilons as they are,
    each invariant leaf and each joint group is doubled: an invariance is weak where that moves the
    outputs by more than 1 %.

    Args:
      analysis: What `optax_bnmask.analyze` found of `fn`.
      fn: The function, as it was analysed.
      params: Its parameters: any pytree of arrays or `jax.ShapeDtypeStruct`s. Drawn values keep the
        magnitudes of arrays. Where any is known by shape only, or is divided between processes so
        that none can read it, nothing is said of weakness.
      *args: The other arguments. Those known by shape only are drawn as well: floats normally,
        integers from {0, 1}. Normalisers over the batch need more than one example.
      key: A JAX key: same key, same answer. If `fn` was analysed with a `key` of its own, it gets
        this one.
      factor: By how much a leaf is scaled at most.
      has_aux: As in `analyze`; by default, as `fn` was analysed.
      **kwargs: The other arguments by name.

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
    require_analysis(analysis)
    if any(isinstance(x, compat.Tracer) for x in jax.tree.leaves((params, args, kwargs, key))):
        raise wrong_kind(
            "params",
            "a tree of arrays, as must all other arguments",
            params,
            "`verify` compiles and runs programs of its own and cannot be a part of one: call it "
            "outside of `jax.jit`. `gradient_certificate` can be.",
        )
    own = keywords(analysis)  # a function that takes a `key` is given this one, too
    kwargs |= {"key": key} if "key" in own else {}
    if "factor" in own:
        kwargs["factor"], factor = factor, 256.0
    if not isinstance(factor, int | float) or not 0 < factor < math.inf:
        raise wrong_kind(
            "factor", "a positive number", factor, "It says how far to go: by default, 256 times."
        )
    return verification_of(
        analysis, fn, params, args, kwargs, key=key, factor=factor, has_aux=has_aux
    )


def verification_of(
    analysis: Analysis,
    fn: Callable[..., Any],
    params: Any,  # noqa: ANN401 - any pytree
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *,
    key: Any,  # noqa: ANN401 - a key of either kind
    factor: float,
    has_aux: bool | None = None,
    state: Any = (),  # noqa: ANN401 - any pytree
) -> Verification:
    """Implements `verify`; `args` start with the arrays of `state`, which hold no examples."""
    from optax_bnmask.verify import claims  # noqa: PLC0415 - what `import` need not wait for
    from optax_bnmask.verify.evaluation import inputs_of  # noqa: PLC0415
    from optax_bnmask.verify.search import added_error, largest_error, unseen, with_biases  # noqa: PLC0415
    from optax_bnmask.verify.sensitivity import unmoving, weak  # noqa: PLC0415
    from optax_bnmask.verify.trial import Trial  # noqa: PLC0415

    rng = _generator(key)
    n_state = len(inputs_of(state, {}))
    trial = Trial(analysis, fn, params, args, kwargs, has_aux=has_aux, n_state=n_state, rng=rng)
    proof, far = trial.proof, math.log2(factor)
    along_axes = [
        with_biases(trial, c, claims.witness(proof, c.leaf), far)
        for c in claims.axis_claims(analysis)
    ]
    kinds = (
        claims.leaf_claims(analysis, proof),
        claims.group_claims(analysis, proof),
        along_axes,
        claims.symmetry_claims(analysis),
    )
    error = max(*(largest_error(trial, some, far) for some in kinds), added_error(trial))
    missed, dead = unmoving(trial)
    scales = [leaf.scale for leaf in analysis.leaves]
    return Verification(
        symmetries=len(analysis.symmetries),
        invariant=scales.count(Scale.INVARIANT),
        joint=scales.count(Scale.JOINT),
        axes=len(along_axes),
        dead=len(analysis.dead),
        shifts=sum(map(len, analysis.shift_axes.values())),
        error=error,
        tolerance=trial.function.tolerance,
        dtype=str(np.dtype(trial.function.dtype)),
        weak=weak(trial),
        possibly_missed=missed,
        dead_biases=dead,
        unseen=unseen(trial),
        notes=tuple(trial.notes),
    )


_SALT = 0x7E51F1
"""Keeps the draws for ``key(0)`` from being those of ``default_rng(0)``, which may have made the
parameters."""


def keywords(analysis: Analysis) -> frozenset[str]:
    """The names of the arguments that a function was analysed with by name."""
    program = getattr(analysis.proof, "program", None)
    return program.keywords if program is not None else frozenset()


def _generator(key: Any) -> np.random.Generator:  # noqa: ANN401 - a key of either kind
    typed = hasattr(key, "dtype") and jax.numpy.issubdtype(key.dtype, jax.dtypes.prng_key)
    if not hasattr(key, "dtype") or key.ndim != (0 if typed else 1):
        raise wrong_kind(
            "key",
            "a key of JAX's, such as `jax.random.key(0)`",
            key,
            "Pass one key. If the function has a `key` of its own, analyse it with one: then it "
            "gets that of `verify`.",
        )
    data = jax.random.key_data(key) if typed else key
    return np.random.default_rng([*np.asarray(data, np.uint32).ravel().tolist(), _SALT])
