"""Flags: what is known of all entries of a value, and what may be so of some."""

from typing import Final

ANY_DEGREE: Final = 1
"""All entries are 0, infinite or NaN, and known to be: a constant of every degree at once."""
AS_CAPTURED: Final = 2
"""... but only as long as an array that the function closes over keeps the values it has now."""
NONNEG: Final = 4
"""No entry is negative."""
CLIPPED: Final = 8
"""Entries may be exactly 0 on ordinary inputs, one here and one there: behind a ReLU, differences.
A sum of several is not."""
MASKED: Final = 16
"""Whole rows may be exactly 0 on ordinary inputs: behind masks, padding, loops. Sums of them are,
too, and so is what a kernel makes of them."""
MAY_BE_0: Final = CLIPPED | MASKED
"""Nothing is known of zeros: any entry may be one."""
CAPTURED_NONZERO: Final = 32
"""An array that the function closes over, without a 0 in it."""
HUGE: Final = 64
"""A constant nearly as large as its dtype allows: it stands for infinity where it is compared."""
NONZERO: Final = 128
"""A predicate that is true unless some value is 0, ..."""
ZERO_TEST: Final = 256
"""... or false unless it is 0."""
PACKED: Final = 512
"""An LU factorisation in one array: its lower half does not scale as its upper half does."""
MEAN: Final = 1024
"""A sum or a mean of several values: ``x - mean(x)`` is not 0 in whole rows."""
RECTIFIED: Final = 2048
"""Entries are 0 wherever a bound was met or a zero chosen, as behind a ReLU: in some row, all of a
few entries may be 0 at once."""

EPSILON: Final = 1.01e-3
"""Constants of at most this magnitude may stand for 0. That is 1e-3, the largest epsilon in common
use (EfficientNet's BatchNorm), as any dtype down to bfloat16 rounds it."""
