"""Trees of zeros such as models have, and the roles that their structure tells."""

import jax.numpy as jnp

import optax_bnmask as bnmask


def zeros(*shape):
    return jnp.zeros(shape)


def norm(*shape, gain="scale", bias="bias"):
    return {gain: zeros(*shape), bias: zeros(*shape)}


def kept(*shape):
    return {"mean": zeros(*shape), "var": zeros(*shape)}


def roles(params, stats=None):
    return {leaf.path: leaf.role for leaf in bnmask.analyze_structure(params, stats).leaves}
