"""Roles of the leaves of small programs, by hand, and normalisers spelt out."""

import jax
import jax.numpy as jnp

import optax_bnmask as bnmask


def shape(*sizes, dtype="float32"):
    return jax.ShapeDtypeStruct(sizes, dtype)


def check(fn, params, *args, **expected):
    """Each leaf named has one of the roles given, which ``|`` stands between."""
    analysis = bnmask.analyze(fn, params, *args)
    found = {path: str(analysis[path].role) for path in expected}
    assert all(found[path] in expected[path].split("|") for path in expected), found


def row(x):
    """A vector beside a matrix."""
    return jnp.expand_dims(x, 0)


def column(x):
    return jnp.expand_dims(x, -1)


def spread(x, axis, of):
    """A sum or a mean, as wide as what it is of."""
    return jnp.broadcast_to(jnp.expand_dims(x, axis), of.shape)


def root_mean_square(h):
    return spread(jnp.sqrt((h * h).mean(-1) + 1e-6), -1, h)


def centred(h, axis=-1):
    return h - spread(h.mean(axis), axis, h)


def deviation(h, axis=-1):
    return spread(jnp.sqrt(h.var(axis) + 1e-5), axis, h)


def layer_norm(h):
    return centred(h) / deviation(h)


# Around each: tanh(norm(x, ..) * gamma + beta) @ head, where x @ w is what may be normalised.

X = shape(6, 4)
