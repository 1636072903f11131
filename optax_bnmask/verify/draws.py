"""Draws parameters and inputs that hide nothing: no zero bias, no zero gain, no constant input."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optax_bnmask import compat
from optax_bnmask.arguments import is_array
from optax_bnmask.program.constants import is_readable
from optax_bnmask.vocabulary import BIASES, GAINS, Leaf, Role

Array = Any


def is_abstract(value: Any) -> bool:  # noqa: ANN401 - any value
    """Whether a value is a shape and dtype, or an array that this process cannot read."""
    return isinstance(value, jax.ShapeDtypeStruct) or not is_readable(value)


def is_float(value: Any) -> bool:  # noqa: ANN401 - any array
    """Whether an array holds real or complex numbers."""
    return compat.is_inexact(jnp.result_type(value))


def drawn_leaf(
    leaf: Leaf, value: Array, rng: np.random.Generator, *, zero_centred: bool, keep_signs: bool
) -> np.ndarray:
    """A random value for a leaf, of the magnitude of its own value where that is not small.

    Args:
      leaf: What is known of the leaf.
      value: Its own value, or its shape and dtype.
      rng: Where random numbers come from.
      zero_centred: Whether the program adds a constant to it before use, as to a gain ``1 + g``.
      keep_signs: Whether its entries must have the signs of its own value, or be positive where
        that is not known: some leaves are variances, temperatures, time constants.

    Returns:
      The value in double precision. A gain is positive around 1, or around its own values; a bias
      is no smaller than what it is usually added to; anything else is normally distributed.
    """
    noise = rng.normal(size=leaf.shape)
    own = None if is_abstract(value) else np.asarray(value, np.float64)
    size = 0.0 if own is None or not own.size else float(np.sqrt(np.mean(np.square(own))))
    if keep_signs:
        signs = 1.0 if own is None else np.where(own < 0, -1.0, 1.0)
        return signs * (size or _magnitude(leaf)) * np.exp(0.3 * noise)
    if leaf.role in GAINS and zero_centred:
        return noise * (size or 0.3)
    if leaf.role in BIASES:  # its own value may be 1e-3, too small to be seen
        return noise * max(size, _magnitude(leaf))
    if leaf.role not in (Role.WEIGHT, Role.EMBEDDING):
        spread = np.exp(0.3 * noise)
        return spread * (1.0 if own is None else np.where(own == 0, size or 1.0, own))
    return noise * (size or _magnitude(leaf))


def _magnitude(leaf: Leaf) -> float:
    """The usual magnitude of a leaf of this role and shape."""
    if leaf.role is Role.WEIGHT:
        return 1 / math.sqrt(max(1, leaf.size // leaf.shape[-1])) if leaf.shape else 1.0
    return 1.0 if leaf.role is Role.EMBEDDING else 0.5


def _drawn_input(value: Array, rng: np.random.Generator, *, keep_signs: bool) -> Array:
    """The value itself, or a random one where only its shape and dtype are known."""
    if not is_abstract(value):
        return value
    if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        seeds = rng.integers(0, 1 << 31, size=value.shape)
        return jax.vmap(jax.random.key)(seeds.ravel()).reshape(value.shape)
    if compat.is_inexact(value.dtype):
        drawn = rng.normal(size=value.shape)
        return jnp.asarray(np.abs(drawn) if keep_signs else drawn, value.dtype)
    return jnp.asarray(rng.integers(0, 2, size=value.shape), value.dtype)  # valid as any index


def drawn_inputs(given: Any, rng: np.random.Generator, *, keep_signs: bool) -> Any:  # noqa: ANN401 - pytrees
    """Arguments with random arrays where only the shape and dtype are known."""
    draw = functools.partial(_drawn_input, rng=rng, keep_signs=keep_signs)
    return jax.tree.map(draw, given, is_leaf=is_abstract)


def with_arrays(given: Any, inputs: Sequence[Any]) -> Any:  # noqa: ANN401 - pytrees
    """A pytree of arguments whose arrays are replaced by `inputs`, in their order."""
    leaves, rest = jax.tree.flatten(given)
    arrays = iter(inputs)
    return jax.tree.unflatten(rest, [next(arrays) if is_array(x) else x for x in leaves])


def numpy_value(value: Any) -> np.ndarray:  # noqa: ANN401 - any array
    """The NumPy array, real floats in float64; zeros where only the shape and dtype are known."""
    if is_abstract(value):
        return np.zeros(value.shape, value.dtype)
    array = np.asarray(value)
    return array.astype(np.float64) if is_float(value) and not np.iscomplexobj(array) else array
