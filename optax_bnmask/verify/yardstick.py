"""How much an output moved, entry by entry, beside how far it moves between random parameters.

A change is large or small beside how far *that entry* moves when the parameters are drawn anew. So
masked logits of -1e9, which never move, lend nothing to the others:

    outputs       [ 0.31  -1.20  -1e9 ]
    elsewhere     [ 1.02   0.44  -1e9 ]      moves by [ 0.7  1.6  0 ]
    changed to    [ 0.31  -1.19  -1e9 ]      1e-2 of 1.6, and not 1e-11 of 1e9
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from optax_bnmask.verify.measurement import Outputs

_UNITS = 16
"""Rounding of a last sum, in units of its own last place."""
_NOISE = 300
"""A change of so many times what rounding the parameters differently makes is still rounding: the
maximum over the entries that are looked at exceeds what two tries show."""
_COARSEST = 1e-3
"""An entry that rounding moves by more than this part of its size (see `Yardstick`) is skipped."""


@dataclasses.dataclass(frozen=True, slots=True)
class Yardstick:
    """The scale on which changes of some outputs are measured, entry by entry.

    Attributes:
      base: The outputs where nothing is changed.
      sizes: For each entry, how far it moves at other parameters.
      slack: For each entry, how far rounding may move it.
      looked: Which entries can be looked at.
    """

    base: Outputs
    sizes: Outputs
    slack: Outputs
    looked: Sequence[np.ndarray]

    @property
    def n_looked(self) -> int:
        """The number of entries that can be looked at."""
        return sum(int(np.sum(looked)) for looked in self.looked)

    def less_rounding(self, outputs: Outputs, rounded: Sequence[Outputs]) -> "Yardstick":
        """The yardstick for some outputs, with what rounding does to these added to the slack."""
        slack = [
            s + _slack(y, [r[place] for r in rounded])
            for place, (s, y) in enumerate(zip(self.slack, outputs, strict=True))
        ]
        looked = [
            a & (s <= _COARSEST * size)
            for a, s, size in zip(self.looked, slack, self.sizes, strict=True)
        ]
        return dataclasses.replace(self, slack=slack, looked=looked)

    def change(self, outputs: Outputs) -> float:
        """The largest change of an entry beyond rounding; infinite if one is no longer finite."""
        worst = 0.0 if self.n_looked else float("inf")
        for y, a, size, slack, looked in zip(
            outputs, self.base, self.sizes, self.slack, self.looked, strict=True
        ):
            if not np.any(looked):
                continue
            moved = np.abs(y[looked] - a[looked]) - slack[looked]
            if not np.all(np.isfinite(moved)):
                return float("inf")
            worst = max(worst, float(np.max(moved / size[looked])))
        return worst


def yardstick(
    base: Outputs, elsewhere: Sequence[Outputs], rounded: Sequence[Outputs], eps: float
) -> Yardstick:
    """The yardstick of some outputs.

    Args:
      base: The outputs where nothing is changed.
      elsewhere: The outputs at other parameters.
      rounded: The outputs at the same parameters, rounded differently.
      eps: That of the dtype that they are computed in.
    """
    sizes, slacks, looks = list[Any](), list[Any](), list[Any]()
    for place, a in enumerate(base):
        with np.errstate(all="ignore"):
            size = _floored(moves(a, [y[place] for y in elsewhere]), a)
            slack = _UNITS * eps * np.abs(a) + _slack(a, [y[place] for y in rounded])
            looked = np.isfinite(a) & np.isfinite(slack) & (slack <= _COARSEST * size)
        sizes.append(size)
        slacks.append(slack)
        looks.append(looked)
    return Yardstick(base, sizes, slacks, looks)


def _slack(y: np.ndarray, rounded: Sequence[np.ndarray]) -> np.ndarray:
    """What rounding may do to each entry of an output, from what it did."""
    with np.errstate(all="ignore"):  # an output may be filled with infinities
        noise = np.max([np.abs(r - y) for r in rounded], axis=0)
    # An entry that happens not to move has the noise of its neighbours.
    return _NOISE * (noise + _median(noise))


def moves(a: np.ndarray, elsewhere: Sequence[np.ndarray]) -> np.ndarray:
    """For each entry the least that it moves elsewhere, if it moves at all.

    The least and not the largest: where a parameter decides what is masked, an entry moves by 1e9
    now and then.
    """
    least = np.full(np.shape(a), np.inf)
    for y in elsewhere:
        moved = np.abs(y - a)
        least = np.where((moved > 0) & (moved < least), moved, least)
    return np.where(np.isfinite(least), least, 0.0)


def _floored(size: np.ndarray, a: np.ndarray) -> np.ndarray:
    """The sizes, raised to their lowest decile where they are smaller, as may be by chance."""
    some = size[size > 0]
    if some.size:
        return np.maximum(size, np.quantile(some, 0.1))
    finite = np.abs(a[np.isfinite(a)])
    return np.full(np.shape(a), max(float(np.max(finite, initial=0.0)), np.finfo(np.float64).tiny))


def _median(noise: np.ndarray) -> float:
    some = noise[(noise > 0) & np.isfinite(noise)]
    return float(np.median(some)) if some.size else 0.0


_MASK = 1e4
"""An entry so many times as large as the median is taken for the fill value of a mask."""


def relative_change(outputs: Outputs, base: Outputs, elsewhere: Sequence[Outputs]) -> float:
    """The largest change of an output, relative to its largest entry that is no mask's fill value.

    Args:
      outputs: The outputs where something is changed.
      base: The outputs where nothing is.
      elsewhere: The outputs at other parameters: an entry is as large as it is, or as it moves
        there, whichever is less.
    """
    worst = 0.0
    for place, (y, a) in enumerate(zip(outputs, base, strict=True)):
        with np.errstate(all="ignore"):
            moved = np.abs(y - a)
            size = np.minimum(np.abs(a), moves(a, [o[place] for o in elsewhere]))
        seen = np.isfinite(a) & np.isfinite(moved)
        some = size[seen & (size > 0)]
        if not some.size:
            worst = max(worst, float(np.any(moved[seen] > 0)))
            continue
        largest = np.max(some[some <= _MASK * np.median(some)])
        worst = max(worst, float(np.max(moved[seen] / np.maximum(size[seen], largest))))
    return worst
