"""`assert_decays`: an audit as one line of a test suite."""

from collections.abc import Collection
from typing import Any, Final

from optax_bnmask.analysis import Analysis
from optax_bnmask.audit.outcome import wanted_mask
from optax_bnmask.audit.pipeline import audit
from optax_bnmask.errors import VerificationError

_LISTED: Final = 20
"""The number of leaves listed in the message."""


def assert_decays(
    tx: Any,  # noqa: ANN401 - an optimizer
    params: Any,  # noqa: ANN401 - any pytree
    analysis: Analysis | None = None,
    *,
    exempt: Collection[str] = ("norm",),
) -> None:
    """Fails unless an optimizer decays exactly what ``analysis.decay_mask(exempt=exempt)`` says.

    For a test of one's own, so that no refactoring changes what decays without a word. Leaves that
    no gradient moves either, as under `optax.set_to_zero`, are left out.

    Args:
      tx: The optimizer, as for `audit`.
      params: The params that it is initialised with, or their shapes.
      analysis: What is known of these params, as for `audit`.
      exempt: The categories that must not decay, as in `Analysis.decay_mask`.

    Raises:
      VerificationError: Some leaves decay that should not, or the other way round; an
        `AssertionError` whose message lists them. Also if it cannot be told.
      CategoryError: As `Analysis.decay_mask`.
      PathError: The params have a leaf that the analysis does not know.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> import optax_bnmask as bnmask
      >>> params = {"dense": {"kernel": jnp.ones((2, 3))}, "norm": {"scale": jnp.ones(3)}}
      >>> analysis = bnmask.analyze_structure(params)
      >>> decay = optax.add_decayed_weights(0.1, analysis.decay_mask())
      >>> tx = optax.chain(decay, optax.sgd(1e-3))
      >>> bnmask.assert_decays(tx, params, analysis)
    """
    found = audit(tx, params, analysis, exempt=exempt)
    wanted = wanted_mask(found.analysis, exempt)
    for finding in found.findings:
        if finding.kind == "undetermined":
            raise VerificationError(f"`tx` must decay what `exempt` says. {finding.message}")
    lines = [
        _difference(path, rate)
        for path, rate in found.rates.items()
        if rate < 0 or ((rate > 0) != wanted[path] and path not in found.frozen)
    ]
    if lines:
        more = [f"  and {len(lines) - _LISTED} more"] if len(lines) > _LISTED else []
        raise VerificationError(
            "\n".join(
                [
                    f"`tx` must decay exactly what {found.exempt!r} does not exempt. "
                    f"{len(lines)} of {len(found.rates)} leaves differ:",
                    *lines[:_LISTED],
                    *more,
                    "If that is meant, say so in `exempt`: `bnmask.STANDARD` is norms and biases.",
                ]
            )
        )


def _difference(path: str, rate: float) -> str:
    """One line on a leaf that is not treated as it should be."""
    if rate < 0:
        return f"  {path!r} grows (by {-rate:.3g} of itself in a step)"
    if rate > 0:
        return f"  {path!r} decays ({rate:.3g} of itself in a step) and should not"
    return f"  {path!r} does not decay and should"
