"""The params, gradients and starts that an optimizer is run on."""

from typing import Final, NamedTuple

import numpy as np

SIZE: Final = 3.0
"""The second size of the params: no power of 2, so that rounding differs at it."""


class Run(NamedTuple):
    """One of the runs that are compared, as multiples of patterns.

    Attributes:
      params: The params, as a multiple of `board`.
      gradient: The gradient, as a multiple of `push`.
      moved: Whether the state is that of other params, `aside`.
    """

    params: float
    gradient: float = 0.0
    moved: bool = False


RUNS: Final = (
    *(Run(1), Run(-1), Run(SIZE), Run(-SIZE)),
    *(Run(1, 1), Run(-1, 1), Run(1, -1), Run(-1, -1)),
    Run(1, moved=True),
)
QUIET, LARGE, PUSHED, AGAINST, ELSEWHERE = (0, 1), (2, 3), (4, 5), (6, 7), 8
"""Where in `RUNS` to find: no gradient; the same on large params; a gradient; the opposite one; the
state of other params."""


def board(shape: tuple[int, ...]) -> np.ndarray:
    """1 where the indices add up to an even number, -1 where they do not.

    Of one size, so that rates compare even where an optimizer normalises the decay, and of mean 0
    along every axis of even length, so that centring leaves them as they are.
    """
    return 1.0 - 2 * (np.indices(shape).sum(0) % 2) if shape else np.ones(())


def aside(shape: tuple[int, ...]) -> np.ndarray:
    """The board with every other pair of its fields turned: at a right angle to it."""
    return board(shape) * (1 - np.arange(np.prod(shape, dtype=int)).reshape(shape) // 2 % 2 * 2)


def push(shape: tuple[int, ...]) -> np.ndarray:
    """A gradient without any order, so that no slice of it is parallel to a slice of the params."""
    drawn = np.random.default_rng(0).uniform(-1, 1, shape)
    return np.copysign(0.5, drawn) + drawn
