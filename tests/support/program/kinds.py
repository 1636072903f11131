"""Small functions of which it is known, in numbers, whether the scale of a parameter matters.

By kind: each kind is one way to mistake a constant for nothing, or nothing for a constant.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

FACTORS = 2.0, 256.0
"""What leaves are scaled by; a constant that hides behind the first shows behind the second."""


class Case(NamedTuple):
    """A function and what is so of it.

    Attributes:
      kind: What is mistaken for what.
      fn: ``fn(params, *args)``.
      params: Its parameters, by name.
      args: Its other arguments.
      moves: Parameters that scale the outputs.
      hides: Parameters whose scale moves nothing.
    """

    kind: str
    fn: Callable[..., Any]
    params: Mapping[str, Any]
    args: tuple[Any, ...]
    moves: tuple[str, ...]
    hides: tuple[str, ...]


CASES: dict[str, Case] = {}


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


X = normal(1, 6, 4)
W = {"w": normal(2, 4, 5)}


def case(kind, params=W, *args, moves="", hides=""):
    """Puts a function into the table, under its own name."""

    def add(fn):
        given = args or (X,)
        CASES[fn.__name__] = Case(kind, fn, params, given, (*moves.split(),), (*hides.split(),))
        return fn

    return add


def moved(fn, params, args, exponents):
    """By how much the outputs move, in double precision, when leaves are scaled.

    Args:
      fn: ``fn(params, *args)``.
      params: Arrays by name.
      args: The other arguments.
      exponents: Each leaf is scaled by the power of `FACTORS` that stands here, or by none.

    Returns:
      The largest difference relative to the largest entry of its output, over all `FACTORS`.
    """

    def wide(x):
        floating = jnp.issubdtype(jnp.result_type(x), jnp.floating)
        return jnp.asarray(x, jnp.float64) if floating else x

    with jax.enable_x64(True):
        params, args = jax.tree.map(wide, (dict(params), tuple(args)))
        before = jax.tree.leaves(fn(params, *args))
        scaled = (
            {k: v * by ** np.asarray(exponents.get(k, 0), float) for k, v in params.items()}
            for by in FACTORS
        )
        after = [jax.tree.leaves(fn(there, *args)) for there in scaled]
    return max(_error(x, y) for ys in after for x, y in zip(before, ys, strict=True))


def _error(x, y):
    x, y = np.asarray(x, float), np.asarray(y, float)
    assert np.all(np.isfinite(x))
    error = np.max(np.abs(x - y)) / (np.max(np.abs(x)) or 1.0)
    return error if np.isfinite(error) else np.inf


def rms_normed(z, eps=0.0, axis=-1):
    return z * lax.rsqrt((z * z).mean(axis, keepdims=True) + eps)


def norm(z):
    return jnp.linalg.norm(z, axis=-1, keepdims=True)
