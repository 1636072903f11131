"""Optimizers for `optax-bnmask audit`, and a few things that are none."""

import jax
import jax.numpy as jnp
import optax

import optax_bnmask as bnmask

PARAMS = {"head": {"kernel": jnp.ones((4, 2))}, "norm": {"bias": jnp.ones(4), "scale": jnp.ones(4)}}


def masked():
    return optax.adamw(1e-3, weight_decay=0.1, mask=bnmask.decay_mask(PARAMS)), PARAMS


def masked_with_analysis():
    return *masked(), bnmask.analyze_structure(PARAMS)


def masked_shapes():
    return masked()[0], jax.eval_shape(lambda: PARAMS)


def unmasked():
    return optax.adamw(1e-3, weight_decay=0.1), PARAMS


def unequal():
    """Two weights that decay at different rates: a warning, not an error."""
    params = PARAMS | {"tail": {"kernel": jnp.ones((4, 2))}}
    labels = bnmask.decay_mask(params)
    more = optax.masked(
        optax.add_decayed_weights(0.1), {"head": True, "norm": False, "tail": False}
    )
    tx = optax.chain(optax.add_decayed_weights(0.1, mask=labels), more, optax.sgd(1e-2))
    return tx, params


def broken_optimizer():
    def init(params):
        raise ValueError("no")

    return optax.GradientTransformation(init, lambda *arguments: arguments), PARAMS


def optimizer_alone():
    return optax.sgd(1e-2)


def params_first():
    return PARAMS, optax.sgd(1e-2)


def not_an_analysis():
    return optax.sgd(1e-2), PARAMS, "an analysis"


def other_analysis():
    return optax.sgd(1e-2), PARAMS, bnmask.analyze_structure({"w": jnp.ones(3)})


def raises():
    raise RuntimeError("no disk")
