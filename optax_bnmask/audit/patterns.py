"""The params and gradients that an optimizer is run on."""

import functools
from typing import Final, NamedTuple

import numpy as np

UNEVENNESS: Final = 5.0
"""How much larger some entries of uneven params are than others; no power of 2, so that rounding
differs."""

CHANGING_STEPS: Final = 8
"""The number of first steps in each of which a `Run.changing_gradient` is another one."""


class Run(NamedTuple):
    """The params and gradients of one run, as multiples of the patterns below.

    Attributes:
      params: The params, as a multiple of `checkerboard`.
      gradient: The gradient, as a multiple of `gradient_pattern`.
      uneven_params: Whether the params are a multiple of `uneven_checkerboard` instead.
      other_start: Whether `init` gets other params than `update`: `orthogonal_checkerboard`.
      changing_gradient: Whether the gradient is another one in each of the first steps.
    """

    params: float
    gradient: float = 0.0
    uneven_params: bool = False
    other_start: bool = False
    changing_gradient: bool = False


RUNS: Final = (
    *(Run(1), Run(-1), Run(1, uneven_params=True), Run(-1, uneven_params=True)),
    *(Run(1, 1), Run(-1, 1), Run(1, -1), Run(-1, -1)),
    Run(1, other_start=True),
    Run(1, 1, changing_gradient=True),
)
NO_GRADIENT, UNEVEN_PARAMS, GRADIENT, OPPOSITE_GRADIENT = (0, 1), (2, 3), (4, 5), (6, 7)
"""The places in `RUNS` of pairs of runs, from some params and from their negatives."""

OTHER_START, CHANGING_GRADIENT = 8, 9
"""The places in `RUNS` of the last two runs."""


def checkerboard(shape: tuple[int, ...]) -> np.ndarray:
    """1 and -1 by turns along every axis.

    The mean along each axis is 0, so that centring changes nothing; for that, an axis of odd length
    ends in 1, -1/2, -1/2. All other entries have one size, so that rates are right even where an
    optimizer normalises the decay.
    """
    return _outer_product([_alternating(length, 1.0, (1.0, -0.5, -0.5)) for length in shape])


def uneven_checkerboard(shape: tuple[int, ...]) -> np.ndarray:
    """The checkerboard with every other pair of entries larger along its longest axis.

    A pull in proportion to the leaf is the same share of it as of the checkerboard. A pull divided
    by its own size, entry by entry as by Adam or as a whole, is not. Params scaled as a whole would
    not show that, since Adafactor multiplies its steps with the size of the leaf again.
    """
    factors = [_alternating(length, 1.0, (1.0, -0.5, -0.5)) for length in shape]
    if not shape:
        return np.array(UNEVENNESS)
    longest = int(np.argmax(shape))
    factors[longest] = _alternating(shape[longest], UNEVENNESS, (1.0, UNEVENNESS - 1, -UNEVENNESS))
    return _outer_product(factors)


def _alternating(length: int, size: float, end: tuple[float, float, float]) -> np.ndarray:
    """1, -1, `size`, ``-size``, and so on; an odd length from 3 on ends in `end`."""
    if length < 3:
        return size * np.array([1.0, -1.0])[:length]
    pairs = [(1.0, -1.0), (size, -size)]
    even = length - 3 * (length % 2)
    return np.array([x for k in range(even // 2) for x in pairs[k % 2]] + [*end][: length - even])


def _outer_product(factors: list[np.ndarray]) -> np.ndarray:
    return functools.reduce(np.multiply.outer, factors, np.ones(()))


def orthogonal_checkerboard(shape: tuple[int, ...]) -> np.ndarray:
    """The checkerboard with the signs of every other pair of entries turned: orthogonal to it."""
    pairs = np.arange(np.prod(shape, dtype=int)).reshape(shape) // 2
    return checkerboard(shape) * (1 - pairs % 2 * 2)


def gradient_pattern(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """A pseudo-random gradient, so that no slice of it is parallel to a slice of the params.

    Neighbours along the last axis come in pairs of one sign, and those of the `checkerboard` have
    different signs. So the signs, which is what Adam makes of a gradient, are nearly orthogonal to
    it.

    Args:
      shape: The shape.
      seed: Of the random numbers.

    Returns:
      Numbers between 0.5 and 1.5 of both signs.
    """
    rng = np.random.default_rng(seed)
    sizes, signs = rng.uniform(0.5, 1.5, shape), rng.choice([-1.0, 1.0], shape)
    axis = next((a for a in reversed(range(len(shape))) if shape[a] > 1), None)
    if axis is not None:
        signs = np.take(signs, np.arange(shape[axis]) // 2 * 2, axis)
    return sizes * signs
