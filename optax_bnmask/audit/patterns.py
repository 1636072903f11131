"""The params, gradients and starts that an optimizer is run on."""

from typing import Final, NamedTuple

import numpy as np

SIZE: Final = 5.0
"""How much larger some entries of the second params are than others; no power of 2, so that
rounding differs."""


CHANGES: Final = 8
"""For so many first steps the gradient of a `changing` run differs in each; then it stays."""


class Run(NamedTuple):
    """One of the runs that are compared, as multiples of patterns.

    Attributes:
      params: The params, as a multiple of `board`.
      gradient: The gradient, as a multiple of `push`.
      uneven: Whether the params are a multiple of `mixed` instead.
      moved: Whether the state was initialised with other params, `aside`.
      changing: Whether the gradient is another one in each of the first steps.
    """

    params: float
    gradient: float = 0.0
    uneven: bool = False
    moved: bool = False
    changing: bool = False


RUNS: Final = (
    *(Run(1), Run(-1), Run(1, uneven=True), Run(-1, uneven=True)),
    *(Run(1, 1), Run(-1, 1), Run(1, -1), Run(-1, -1)),
    Run(1, moved=True),
    Run(1, 1, changing=True),
)
QUIET, UNEVEN, PUSHED, AGAINST, ELSEWHERE, CHANGING = (0, 1), (2, 3), (4, 5), (6, 7), 8, 9
"""Where in `RUNS` to find: no gradient; the same on uneven params; a gradient; the opposite one;
the state of other params; gradients that change."""


def board(shape: tuple[int, ...]) -> np.ndarray:
    """1 and -1 by turns along every axis, with a mean of 0 along each that has more than one entry.

    Mostly of one size, so that rates compare even where an optimizer normalises the decay, and of
    mean 0, so that centring leaves them as they are: an odd axis ends in 1, -1/2, -1/2.
    """
    return _product([_by_turns(length, 1.0, (1.0, -0.5, -0.5)) for length in shape])


def mixed(shape: tuple[int, ...]) -> np.ndarray:
    """The board with every other pair of entries larger along its longest axis.

    A pull in proportion to its leaf is the same share of these. One that is divided by its own
    size is not: neither entry by entry, as by Adam, nor as a whole. Scaling the whole leaf would
    not do, since Adafactor multiplies its steps with the size of the leaf again.
    """
    factors = [_by_turns(length, 1.0, (1.0, -0.5, -0.5)) for length in shape]
    if not shape:
        return np.array(SIZE)
    longest = int(np.argmax(shape))
    factors[longest] = _by_turns(shape[longest], SIZE, (1.0, SIZE - 1, -SIZE))
    return _product(factors)


def _by_turns(length: int, size: float, end: tuple[float, float, float]) -> np.ndarray:
    """Pairs of a number and its negative, each other pair of a size; of mean 0 from length 2 on."""
    if length < 3:
        return size * np.array([1.0, -1.0])[:length]
    pairs = [(1.0, -1.0), (size, -size)]
    even = length - 3 * (length % 2)
    return np.array([x for k in range(even // 2) for x in pairs[k % 2]] + [*end][: length - even])


def _product(factors: list[np.ndarray]) -> np.ndarray:
    """The outer product of vectors."""
    made = np.ones(())
    for factor in factors:
        made = np.multiply.outer(made, factor)
    return made


def aside(shape: tuple[int, ...]) -> np.ndarray:
    """The board with the signs of every other pair of entries turned: orthogonal to the board."""
    return board(shape) * (1 - np.arange(np.prod(shape, dtype=int)).reshape(shape) // 2 % 2 * 2)


def push(shape: tuple[int, ...], number: int = 0) -> np.ndarray:
    """A pseudo-random gradient, so that no slice of it is parallel to a slice of the params.

    Two neighbours along the last axis have one sign, where those of the `board` have two: all signs
    together, which is what Adam makes of a gradient, are at a right angle to it, or nearly.

    Args:
      shape: The shape.
      number: The seed.

    Returns:
      Numbers between 0.5 and 1.5 of both signs.
    """
    rng = np.random.default_rng(number)
    sizes, signs = rng.uniform(0.5, 1.5, shape), rng.choice([-1.0, 1.0], shape)
    axis = next((a for a in reversed(range(len(shape))) if shape[a] > 1), None)
    if axis is not None:
        signs = np.take(signs, np.arange(shape[axis]) // 2 * 2, axis)
    return sizes * signs
