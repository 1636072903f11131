"""Windows that move over padded or dilated axes, as in convolutions and pools."""

import functools

import numpy as np


@functools.lru_cache  # layers that repeat have the same
def misses(
    n: int, window: int, stride: int, padding: tuple[int, int], holes: tuple[int, int]
) -> bool:
    """Whether a window somewhere lies on padding and on holes alone, so that its sum is 0.

    A window of 1 that moves over two entries with a hole between them, as in a transposed
    convolution of stride 2, misses all entries at the hole.

    Args:
      n: How many entries the axis has.
      window: How many entries a window has.
      stride: By how much it moves.
      padding: The padding before and after the axis.
      holes: The dilations of the axis and of the window: 1 where there are no holes.
    """
    base, inside = holes
    last = (n - 1) * base
    free = padding[0] + last + padding[1] - (window - 1) * inside
    starts = np.arange(0, free + 1, stride) - padding[0]
    at = starts[:, None] + np.arange(window) * inside
    return not np.all(np.any((at >= 0) & (at <= last) & (at % base == 0), axis=1))
