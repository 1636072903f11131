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

from optax_bnmask.verify.evaluation import Outputs

_UNITS = 16
"""What a last sum may round, in units of its last place."""
_NOISE_FACTOR = 300
"""How many times the change seen in two tries rounding may make: a change is judged by its maximum
over all entries, which exceeds what is seen of one entry in two tries."""
_MAX_SLACK = 1e-3
"""An entry whose slack is more than this part of its size (see `Yardstick`) is not visible."""


@dataclasses.dataclass(frozen=True, slots=True)
class Yardstick:
    """The scale on which changes of some outputs are measured, entry by entry.

    Attributes:
      base: The outputs where nothing is changed.
      sizes: For each entry, how far it moves at other parameters.
      slack: For each entry, how far rounding may move it.
      visible: Which entries rounding leaves visible changes of.
    """

    base: Outputs
    sizes: Outputs
    slack: Outputs
    visible: Sequence[np.ndarray]

    @property
    def n_visible(self) -> int:
        """The number of visible entries."""
        return sum(int(np.sum(visible)) for visible in self.visible)

    def with_rounding_of(self, outputs: Outputs, rounded: Sequence[Outputs]) -> "Yardstick":
        """This yardstick with more slack: by what rounding does to other outputs.

        Args:
          outputs: The outputs.
          rounded: The same, at parameters that are rounded differently.
        """
        slack = [
            s + _slack(y, [r[place] for r in rounded])
            for place, (s, y) in enumerate(zip(self.slack, outputs, strict=True))
        ]
        visible = [
            a & (s <= _MAX_SLACK * size)
            for a, s, size in zip(self.visible, slack, self.sizes, strict=True)
        ]
        return dataclasses.replace(self, slack=slack, visible=visible)

    def change(self, outputs: Outputs) -> float:
        """The largest change of a visible entry beyond rounding; infinite if one is not finite."""
        worst = 0.0 if self.n_visible else float("inf")
        for y, a, size, slack, visible in zip(
            outputs, self.base, self.sizes, self.slack, self.visible, strict=True
        ):
            if not np.any(visible):
                continue
            moved = np.abs(y[visible] - a[visible]) - slack[visible]
            if not np.all(np.isfinite(moved)):
                return float("inf")
            worst = max(worst, float(np.max(moved / size[visible])))
        return worst


def yardstick_of(
    base: Outputs, elsewhere: Sequence[Outputs], rounded: Sequence[Outputs], eps: float
) -> Yardstick:
    """The yardstick of some outputs.

    Args:
      base: The outputs where nothing is changed.
      elsewhere: The outputs at other parameters.
      rounded: The outputs at the same parameters, rounded differently.
      eps: That of the dtype that they are computed in.
    """
    sizes, slacks, visibles = list[Any](), list[Any](), list[Any]()
    for place, a in enumerate(base):
        with np.errstate(all="ignore"):
            size = _floored(least_moves(a, [y[place] for y in elsewhere]), a)
            slack = _UNITS * eps * np.abs(a) + _slack(a, [y[place] for y in rounded])
            visible = np.isfinite(a) & np.isfinite(slack) & (slack <= _MAX_SLACK * size)
        sizes.append(size)
        slacks.append(slack)
        visibles.append(visible)
    return Yardstick(base, sizes, slacks, visibles)


def _slack(y: np.ndarray, rounded: Sequence[np.ndarray]) -> np.ndarray:
    """How far rounding may move each entry of `y`, given that entry as `rounded` differently."""
    with np.errstate(all="ignore"):  # an output may be filled with infinities
        noise = np.max([np.abs(r - y) for r in rounded], axis=0)
    # An entry that happens not to move has the noise of its neighbours.
    return _NOISE_FACTOR * (noise + _median(noise))


def least_moves(a: np.ndarray, elsewhere: Sequence[np.ndarray]) -> np.ndarray:
    """For each entry the smallest distance, other than 0, to its value elsewhere; 0 if none is.

    Not the largest distance: where a parameter decides what is masked, an entry moves by 1e9 now
    and then.
    """
    least = np.full(np.shape(a), np.inf)
    for y in elsewhere:
        moved = np.abs(y - a)
        least = np.where((moved > 0) & (moved < least), moved, least)
    return np.where(np.isfinite(least), least, 0.0)


def _floored(size: np.ndarray, a: np.ndarray) -> np.ndarray:
    """The sizes, those below their lowest decile raised to it: they are small by chance."""
    some = size[size > 0]
    if some.size:
        return np.maximum(size, np.quantile(some, 0.1))
    finite = np.abs(a[np.isfinite(a)])
    return np.full(np.shape(a), max(float(np.max(finite, initial=0.0)), np.finfo(np.float64).tiny))


def _median(noise: np.ndarray) -> float:
    """The median of the entries that are finite and not 0; 0 if none is."""
    some = noise[(noise > 0) & np.isfinite(noise)]
    return float(np.median(some)) if some.size else 0.0


_FILL_VALUE = 1e4
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
            size = np.minimum(np.abs(a), least_moves(a, [o[place] for o in elsewhere]))
        seen = np.isfinite(a) & np.isfinite(moved)
        some = size[seen & (size > 0)]
        if not some.size:
            worst = max(worst, float(np.any(moved[seen] > 0)))
            continue
        largest = np.max(some[some <= _FILL_VALUE * np.median(some)])
        worst = max(worst, float(np.max(moved[seen] / np.maximum(size[seen], largest))))
    return worst
