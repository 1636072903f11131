"""A network's params, and optimizers of it to audit."""

import jax
import jax.numpy as jnp
import optax

import optax_bnmask as bnmask

RATE, DECAY = 1e-3, 0.1
PARAMS = {
    "head": {"kernel": jnp.ones((5, 4)), "bias": jnp.ones(4)},
    "tail": {"kernel": jnp.ones((4, 2))},
    "norm": {"scale": jnp.ones(4)},
}
ANALYSIS = bnmask.analyze_structure(PARAMS)
WEIGHTS = {"head/kernel", "tail/kernel"}
MASK = ANALYSIS.decay_mask(exempt=bnmask.STANDARD)


def audited(tx, params=PARAMS, analysis=ANALYSIS, **options):
    return bnmask.audit(tx, params, analysis, **options)


def adamw(mask=MASK, rate=RATE, decay=DECAY):
    return optax.adamw(rate, weight_decay=decay, mask=mask)


def summary(audit):
    return [(found.severity, found.kind, set(found.paths)) for found in audit.findings]


def added(pull):
    """A pull, as a function of the params, in front of plain gradient descent."""
    update = optax.stateless(lambda u, p: jax.tree.map(lambda u, p: u + pull(p), u, p))
    return optax.chain(update, optax.sgd(RATE))
