"""What share of itself each entry of a leaf loses in a step, and whether a gradient moves it.

A leaf may decay in part: some layers of a stack, one block of a fused kernel, one expert.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from optax_bnmask.audit.patterns import AGAINST, CHANGING, PUSHED, QUIET, UNEVEN

FLOOR: Final = 2.0**-44
"""Less is rounding: what some hundred roundings of numbers near 1 leave in float64."""

STEADY: Final = 1e-3
"""What differs relatively by less from one step to another counts as the same, not as noise."""

ALIKE: Final = 0.05
"""Rates that differ relatively by less, as of even and of uneven params, count as equal."""

_CANCELLED: Final = 2.0**-20
"""A share below this part of the leaf's highest counts as 0: it is left where constants should
cancel that the program has rounded to float32."""

_UNTOUCHED: Final = 1e-12
"""A change below this part of the largest update is no response to a gradient."""

_NEARLY: Final = 0.1
"""Behind a trust ratio, which changes all entries by a little, only those that a gradient moves
change relatively by more."""


class Entries(NamedTuple):
    """The entries of one leaf in one step.

    Attributes:
      shares: The share of itself that each entry loses; `None` where it depends on the entries'
        sizes.
      still: Which entries the gradient does not move.
      never: Which of those a gradient that changes from step to step does not move either.
      pushed: Whether the shares are those under a gradient, as without one nothing is lost.
      stretched: Whether a step is as long with a gradient as without, as a trust ratio makes it.
        What is lost without a gradient is then that length alone, however small the decay is, so
        that `shares` are those under a gradient.
      unsure: Whether the leaf is so small that no gradient can be told from its decay there.
    """

    shares: np.ndarray | None
    still: np.ndarray
    never: np.ndarray
    pushed: bool = False
    stretched: bool = False
    unsure: bool = False

    @property
    def in_part(self) -> bool:
        """Whether entries lose different shares of themselves."""
        return self.shares is not None and not is_one_pattern(self.shares, np.ones(1))


def entries_of(
    u: np.ndarray, params: np.ndarray, mixed: np.ndarray, shape: tuple[int, ...]
) -> Entries:
    """What a step does to the entries of a leaf.

    Args:
      u: The updates, a flat row for each of `RUNS`.
      params: The params of the even runs, 0 nowhere.
      mixed: The params of the uneven runs.
      shape: The leaf's own shape.

    Returns:
      The `Entries`.
    """
    plus, minus = u[list(PUSHED)], u[list(AGAINST)]
    size = np.max(np.abs(u[[*PUSHED, *AGAINST]]), initial=0)
    stretched = _is_one_length(u[QUIET[0]], plus[0])
    even, uneven = _shares(u[list(QUIET)], params), _shares(u[list(UNEVEN)], mixed)
    if stretched and is_one_pattern(even, uneven):
        shares, unsure = _behind_a_ratio(even / np.max(np.abs(even)), plus, params)
        still = np.all(_is_near(plus, minus), 0)
        never = still & _is_a_multiple(u[CHANGING], plus[0], still)
        return Entries(even if unsure else shares, still, never, stretched=True, unsure=unsure)
    still = np.max(np.abs(plus - minus), 0, initial=0) <= _UNTOUCHED * size
    never = still & (np.abs(u[CHANGING] - u[QUIET[0]]) <= _UNTOUCHED * size)
    if np.max(np.abs(u[list(QUIET)]), initial=0) > FLOOR:
        return Entries(_one_of(even, uneven), still, never)
    hard = _one_of(_shares(plus, params), _shares(minus, params))
    if hard is not None and not _are_of_rows(hard, shape):
        hard = None  # the length of the step hangs on the params, as by their loss
    return Entries(hard, still, never, pushed=True)


def _shares(pair: np.ndarray, params: np.ndarray) -> np.ndarray:
    """The share of itself that each entry loses, from the updates at `params` and ``-params``."""
    return (pair[1] - pair[0]) / 2 / params


def _one_of(one: np.ndarray, other: np.ndarray) -> np.ndarray | None:
    """The shares `one`, tiny ones set to 0, or `None` if those in `other` differ by `ALIKE`."""
    top = np.max(np.abs(one), initial=0)
    if not (np.isfinite(top) and top > FLOOR) or np.max(np.abs(one - other)) > ALIKE * top:
        return None
    return np.where(np.abs(one) > _CANCELLED * top, one, 0.0)


def is_one_pattern(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two sets of shares are the same once each is divided by its largest."""
    tops = [np.max(np.abs(shares), initial=0) for shares in (one, other)]
    if not all(np.isfinite(top) and top > FLOOR for top in tops):
        return False
    return bool(np.max(np.abs(one / tops[0] - other / tops[1])) <= ALIKE)


def _behind_a_ratio(
    pattern: np.ndarray, plus: np.ndarray, params: np.ndarray
) -> tuple[np.ndarray, bool]:
    """The shares under a gradient of a leaf whose step has a given length, and whether in doubt.

    The step is ``-r(p)*(g + d*p)``, with ``r(p)`` such that its length is that of `p`. Of what
    changes its sign with `p`, the part along `g` is due to `r`, and the rest is ``r*d`` times the
    part of `p` that is at a right angle to `g`. What is returned is divided by the root of the mean
    square of `p`, since `r` is in proportion to that.
    """
    odd, rest = (plus[1] - plus[0]) / 2, (plus[0] + plus[1]) / 2
    along = rest / max(float(np.linalg.norm(rest)), np.finfo(float).tiny)
    pulled = pattern * params
    across = pulled - (pulled @ along) * along
    if not across @ across > _NEARLY**2 * (pulled @ pulled):
        return pattern, True
    rate = float(odd @ across) / float(across @ across) / float(np.sqrt(np.mean(params**2)))
    return rate * np.where(np.abs(pattern) > _CANCELLED, pattern, 0.0), False


def _is_near(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Where two updates are nearly the same."""
    return np.abs(one - other) <= _NEARLY * np.maximum(np.abs(one), np.abs(other))


def _is_a_multiple(one: np.ndarray, other: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Where ``one / other`` is nearly the median of that ratio over the entries `among`."""
    if not np.any(among):
        return among
    factors = one[among] / np.where(other[among] == 0, 1, other[among])
    return _is_near(one, float(np.median(factors)) * other)


def _is_one_length(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two steps are equally long, and are steps."""
    lengths = [float(np.linalg.norm(x)) for x in (one, other)]
    return max(lengths) > 0 and max(lengths) <= (1 + STEADY) * min(lengths)


def strongest(shares: np.ndarray) -> float:
    """One share for all entries: the lowest if that is negative (some grow), or the highest.

    Where they agree to within `STEADY`, it is their mean.
    """
    low, high = float(np.min(shares)), float(np.max(shares))
    if high - low <= STEADY * max(abs(high), abs(low)):
        return float(np.mean(shares))
    return low if low < 0 else high


class Parts(NamedTuple):
    """What becomes of the entries of a leaf over the steps.

    Attributes:
      least: Of the entries that a gradient moves, taken each in the step in which it loses most,
        the lowest share; `None` if entries have no shares of their own.
      erased: Which entries decay and get no gradient: ``""`` for none, ``"rows"`` for all at some
        indices of an axis, ``"entries"`` for others.
      random: Whether other entries lose something in other steps, unless they are all those at some
        indices of an axis, as where layers are updated by turns.
    """

    least: float | None
    erased: str
    random: bool


def parts_of(steps: Sequence[Entries], shape: tuple[int, ...], gradient: np.ndarray) -> Parts:
    """What becomes of the entries of a leaf that a gradient moves.

    Args:
      steps: Its entries in each step in which something moves.
      shape: Its shape.
      gradient: The gradient that it was pushed with.
    """
    seen = [entries.shares for entries in steps if entries.shares is not None]
    if not seen:
        return Parts(None, "", random=False)
    still = np.all([entries.still for entries in steps], axis=0)
    never = np.all([entries.never for entries in steps], axis=0)
    most = np.max(seen, axis=0)
    small = _are_the_smallest(still.reshape(shape), np.abs(gradient).reshape(shape))
    changes = any(not is_one_pattern(seen[0], other) for other in seen)
    return Parts(
        float(np.min(most[~never], initial=strongest(most))),
        "" if small else _erased(never & (most > 0), never, shape),
        changes and not all(_are_rows(shares != 0, shape) for shares in seen),
    )


def _erased(gone: np.ndarray, never: np.ndarray, shape: tuple[int, ...]) -> str:
    """Which entries decay that no gradient moves."""
    if not np.any(gone) or np.all(never):
        return ""
    return "rows" if _are_rows(never, shape) else "entries"


def _are_the_smallest(still: np.ndarray, size: np.ndarray) -> bool:
    """Whether entries are not moved because their gradients are the smallest.

    They are compared all together, within each slice of an axis or each line along it, or slice by
    slice.
    """
    if _is_below(still.ravel()[None], size.ravel()[None]):
        return True
    for axis in range(still.ndim):
        lines = [np.moveaxis(x, axis, -1).reshape(-1, x.shape[axis]) for x in (still, size)]
        rows, sizes = lines[0].T, lines[1].T
        if _is_below(*lines) or _is_below(rows, sizes):
            return True
        whole = np.all(rows, 1)
        if np.array_equal(whole, np.any(rows, 1)) and _is_below(
            whole[None], np.linalg.norm(sizes, axis=1)[None]
        ):
            return True
    return False


def _is_below(still: np.ndarray, size: np.ndarray) -> bool:
    """Whether in each row the entries in `still` are the smallest, and others are there."""
    top = np.max(np.where(still, size, 0), 1)
    return bool(np.all(top <= np.min(np.where(still, np.inf, size), 1)) and not still.all(1).any())


def _are_rows(which: np.ndarray, shape: tuple[int, ...]) -> bool:
    """Whether entries are all of those at some indices of one axis."""
    shaped, axes = which.reshape(shape), range(len(shape))
    others = (tuple(a for a in axes if a != axis) for axis in axes)
    return any(np.array_equal(shaped.any(rest), shaped.all(rest)) for rest in others)


def _are_of_rows(shares: np.ndarray, shape: tuple[int, ...]) -> bool:
    """Whether shares are all the same or, of two axes or more, depend on the index of one only."""
    shaped, axes = shares.reshape(shape), range(len(shape))
    spreads = [np.ptp(shares)]
    if sum(n > 1 for n in shape) > 1:
        spreads += [np.max(np.ptp(shaped, tuple(a for a in axes if a != axis))) for axis in axes]
    return bool(min(spreads) <= ALIKE * np.max(np.abs(shares)))
