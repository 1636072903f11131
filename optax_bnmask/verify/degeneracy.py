"""Inputs that hide what a function does: examples that are all equal, arrays of one number.

A normaliser over a batch of equal examples puts out 0 (or rounding, divided by an epsilon) whatever
it is given. On such a batch the parameters before it seem not to matter, though they do on others.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from optax_bnmask.program.constants import is_readable

_N_EXAMPLES = 4
"""How many examples replace a single one, which a normaliser over the batch would make 0."""


def is_data(value: Any) -> bool:  # noqa: ANN401 - any array
    """Whether an input may hold examples: numbers, and several of them."""
    return value.size > 1 and bool(jnp.issubdtype(value.dtype, np.number))


def degeneracy(value: Any) -> str:  # noqa: ANN401 - any array
    """How all examples of an input are alike, ``all 0.0`` or ``8 equal examples``, or empty."""
    if not is_data(value) or not is_readable(value):
        return ""
    array = np.asarray(value)
    if np.all(array == array.ravel()[0]):
        return f"all {array.ravel()[0]}"
    if array.shape[0] > 1 and np.all(array == array[:1]):
        return f"{array.shape[0]} equal examples"
    return ""


def _varied(value: Any, rng: np.random.Generator) -> Any:  # noqa: ANN401 - any array
    """An input with all entries changed: floats keep their signs, integers their range."""
    array = np.asarray(value)
    if np.issubdtype(array.dtype, np.integer):
        low, high = int(min(array.min(), 0)), int(max(array.max(), 1))
        return rng.integers(low, high, size=array.shape, endpoint=True).astype(array.dtype)
    noise = 0.3 * rng.normal(size=array.shape)
    return np.where(array == 0, noise, array * np.exp(noise)).astype(array.dtype)


@dataclasses.dataclass(frozen=True, slots=True)
class ExaminedInputs:
    """Which inputs of a function may hide what it does, and varied inputs that do not.

    Attributes:
      degenerate_inputs: By number of the input, in which way its examples are all alike.
      single_examples: The numbers of the inputs that hold one example.
      all_degenerate: Whether all inputs that hold data are degenerate.
      varied: All inputs: those of these two kinds varied, with several examples.
    """

    degenerate_inputs: Mapping[int, str]
    single_examples: tuple[int, ...]
    all_degenerate: bool
    varied: Sequence[Any]

    @property
    def hiding(self) -> Mapping[int, str]:
        """By number of the input, in which way it may hide what the function does."""
        return {**dict.fromkeys(self.single_examples, "a single example"), **self.degenerate_inputs}


def examined_inputs(
    inputs: Sequence[Any], n_state: int, rng: np.random.Generator
) -> ExaminedInputs:
    """Finds the inputs whose examples are all alike, or which hold only one, and varies them.

    Args:
      inputs: All inputs.
      n_state: How many of the first inputs are a state, such as statistics, and hold no examples.
      rng: Where random numbers come from.
    """
    data = {i: x for i, x in enumerate(inputs) if i >= n_state and is_data(x)}
    found = {i: said for i, x in data.items() if (said := degeneracy(x))}
    singles = tuple(i for i, x in data.items() if x.ndim > 1 and x.shape[0] == 1 and is_readable(x))
    several = [np.repeat(x, _N_EXAMPLES, 0) if i in singles else x for i, x in enumerate(inputs)]
    others = {*found, *singles}
    varied = [_varied(x, rng) if i in others else x for i, x in enumerate(several)]
    return ExaminedInputs(found, singles, len(found) == len(data) > 0, varied)
