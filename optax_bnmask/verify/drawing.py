"""Parameters and inputs that hide nothing: no zero bias, no zero gain, no constant input."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optax_bnmask.analysis import Leaf, Role
from optax_bnmask.program.constants import is_here

Array = Any

_GAINS = (Role.GAIN, Role.NORM_SCALE)
_BIASES = (Role.BIAS, Role.NORM_BIAS)


def is_abstract(value: Any) -> bool:  # noqa: ANN401 - any value
    """Whether only the shape and dtype of an array are known, or can be in this process."""
    return isinstance(value, jax.ShapeDtypeStruct) or not is_here(value)


def is_array(value: object) -> bool:
    """Whether a value is an array, or known by its shape and dtype."""
    return hasattr(value, "shape") and hasattr(value, "dtype")


def is_float(value: Any) -> bool:  # noqa: ANN401 - any array
    """Whether an array holds real or complex numbers."""
    return bool(jnp.issubdtype(jnp.result_type(value), np.inexact))


def drawn_leaf(leaf: Leaf, value: Array, rng: np.random.Generator) -> np.ndarray:
    """A value for a leaf, of the magnitude of its own where that is not 0.

    Args:
      leaf: What is known of the leaf.
      value: Its own value, or its shape and dtype.
      rng: Where the numbers come from.

    Returns:
      The value in double precision. A gain is positive around 1, or around its own values; a bias
      is never 0; anything else is normally distributed.
    """
    noise = rng.normal(size=leaf.shape)
    own = None if is_abstract(value) else np.asarray(value, np.float64)
    size = 0.0 if own is None or not own.size else float(np.sqrt(np.mean(np.square(own))))
    if leaf.role in _GAINS and "zero-centred" in leaf.reason:
        return noise * (size or 0.3)
    if leaf.role in _GAINS or (leaf.role not in (Role.WEIGHT, Role.EMBEDDING, *_BIASES)):
        spread = np.exp(0.3 * noise)
        return spread * (1.0 if own is None else np.where(own == 0, size or 1.0, own))
    return noise * (size or _magnitude(leaf))


def _magnitude(leaf: Leaf) -> float:
    """The magnitude of a leaf of which nothing is known but its role and shape."""
    if leaf.role is Role.WEIGHT:
        return 1 / math.sqrt(max(1, leaf.size // leaf.shape[-1])) if leaf.shape else 1.0
    return 1.0 if leaf.role is Role.EMBEDDING else 0.5


def drawn_input(value: Array, rng: np.random.Generator) -> Array:
    """The value itself, or a random one where only its shape and dtype are known."""
    if not is_abstract(value):
        return value
    if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        seeds = rng.integers(0, 1 << 31, size=value.shape)
        return jax.vmap(jax.random.key)(seeds.ravel()).reshape(value.shape)
    if jnp.issubdtype(value.dtype, np.inexact):
        return jnp.asarray(rng.normal(size=value.shape), value.dtype)
    return jnp.asarray(rng.integers(0, 2, size=value.shape), value.dtype)  # valid as any index
