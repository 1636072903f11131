"""`audit`: finds what an optimizer really decays, step by step."""

from collections.abc import Collection
from typing import Any

from optax_bnmask.analysis import Analysis, analyze_structure
from optax_bnmask.audit.cases import Case
from optax_bnmask.audit.findings import findings, undetermined
from optax_bnmask.audit.outcome import Audit, wanted_mask
from optax_bnmask.audit.probe import probe
from optax_bnmask.audit.rounding import leaves_rounded_away
from optax_bnmask.audit.stand_in import dtypes_of, stand_in
from optax_bnmask.audit.update import optimizer_of
from optax_bnmask.errors import PathError, first_line
from optax_bnmask.paths import nearest, tree_index
from optax_bnmask.record import require_analysis
from optax_bnmask.running_statistics import parted


def audit(
    tx: Any,  # noqa: ANN401 - an optimizer
    params: Any,  # noqa: ANN401 - any pytree
    analysis: Analysis | None = None,
    *,
    exempt: Collection[str] = ("norm",),
) -> Audit:
    """What any Optax optimizer decays, found by running it, beside what the analysis advises.

    It is asked from outside: given no gradient at all, by how much does a step shrink each leaf? So
    it finds what a mask, labels, groups, schedules and wrappers come to in the end, whoever wrote
    them. It takes 64 steps, or as many as it needs until gradients have moved every leaf (a warm-up
    may start at 0, `optax.MultiSteps` waits), on a state of its own: nothing of the user's is
    touched. Large params are stood in for by small ones of the same paths and ranks, if the program
    of the update shows that the optimizer does the same to them; otherwise a finding says that it
    could not be told.

    Not seen are a decay whose own schedule keeps it at 0 for more than 64 steps, and anything that
    the learning rate keeps at 0 for more than 512. Line searches and optimizers that must be run
    outside `jax.jit` cannot be told.

    Args:
      tx: An `optax.GradientTransformation`, complete: what it returns is added to the params.
      params: The params that it is initialised with, or their shapes. From an `nnx.Module` or
        `nnx.State`, the variables that are trained are taken.
      analysis: What is known of these params; by default what their structure tells. That of a
        model with statistics is ``analyze_structure(params, batch_stats)``.
      exempt: The categories that should not decay, as in `Analysis.decay_mask`: what the rates are
        held against.

    Returns:
      An `Audit`.

    Raises:
      TypeError: `tx` is no optimizer, or `analysis` no `Analysis`.
      PathError: The params have a leaf that the analysis does not know.
      CategoryError: As `Analysis.decay_mask`.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> import optax_bnmask as bnmask
      >>> params = {"dense": {"kernel": jnp.ones((2, 3))}, "norm": {"scale": jnp.ones(3)}}
      >>> analysis = bnmask.analyze_structure(params)
      >>> bare = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.5))
      >>> found = bnmask.audit(bare, params, analysis)
      >>> found.ok, found.findings[0].kind
      (False, 'everything_decayed')
      >>> masked = optax.add_decayed_weights(0.1, analysis.decay_mask())
      >>> found = bnmask.audit(optax.chain(masked, optax.sgd(0.5)), params, analysis)
      >>> found.ok, {path: round(rate, 3) for path, rate in found.rates.items()}
      (True, {'dense/kernel': 0.05, 'norm/scale': 0.0})
    """
    tx, (params, _) = optimizer_of(tx), parted(params, ())
    analysis = analyze_structure(params) if analysis is None else analysis
    require_analysis(analysis)
    wanted = wanted_mask(analysis, exempt)
    exempt = (exempt,) if isinstance(exempt, str) else tuple(exempt)
    paths = tuple(tree_index(params).leaves)
    for path in paths:
        if path not in analysis:
            known = [leaf.path for leaf in analysis.leaves]
            raise PathError(
                f"`params` must be those that `analysis` is of. It does not know {path!r}"
                f"{nearest(path, known)}."
            )
    try:
        small = stand_in(tx, params)
        behaviours = probe(small.update, paths)
    except Exception as error:  # anything may come out of a user's optimizer
        said = first_line(error)
        why = f"The optimizer raised {type(error).__name__}: {said.rstrip('.')}."
        nothing = (undetermined(paths, why),)
        return Audit(dict.fromkeys(paths, 0.0), nothing, analysis, exempt=exempt)
    gone = leaves_rounded_away(small.update, dtypes_of(params), behaviours)
    cases = [
        Case(analysis[path], does, wanted[path], path in gone) for path, does in behaviours.items()
    ]
    if small.faithful:
        found = findings(analysis, cases)
    else:  # rates of other params prove nothing, neither good nor bad
        why = (
            "What the optimizer does hangs on the sizes of the leaves, and these are too large to "
            "run it on; the rates are those of smaller ones."
        )
        found = (undetermined(paths, why),)
    frozen = frozenset(case.path for case in cases if case.frozen)
    return Audit(
        {case.path: case.behaviour.rate for case in cases}, found, analysis, frozen, exempt
    )
