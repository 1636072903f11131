"""Which share of itself each entry of a leaf loses in a step, and whether a gradient moves it.

A leaf may decay in part: some layers of a stack, one block of a fused kernel, one expert.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from optax_bnmask.audit.patterns import (
    CHANGING_GRADIENT,
    GRADIENT,
    NO_GRADIENT,
    OPPOSITE_GRADIENT,
    UNEVEN_PARAMS,
)

FLOOR: Final = 2.0**-44
"""A smaller rate is rounding: what a hundred roundings of numbers near 1 leave in float64."""

STEADY: Final = 1e-3
"""Numbers that differ relatively by less from step to step are the same number, not noise."""

ALIKE: Final = 0.05
"""Rates that differ relatively by less count as equal."""

_CANCELLED: Final = 2.0**-20
"""A share below this part of the leaf's highest counts as 0: constants that should cancel, rounded
to float32 by the program, leave as much."""

UNTOUCHED: Final = 1e-12
"""A change below this part of the largest update is no response to a gradient."""

_NEARLY: Final = 0.1
"""Numbers that differ relatively by less are nearly the same. Behind a trust ratio a gradient
changes all entries by a little, and those that it moves by more."""

_FEW: Final = 8
"""Leaves of fewer entries are too small to correlate their losses with their gradients."""

_INVERSE: Final = 0.95
"""The correlation, of logarithms, between losses and inverse gradients from which on it is not
chance."""


class Entries(NamedTuple):
    """The entries of one leaf in one step.

    Attributes:
      shares: The share of itself that each entry loses; `None` if it depends on their sizes.
      unmoved: Which entries the gradient does not move.
      never_moved: Which of those a gradient that changes from step to step does not move either.
      under_gradient: Whether the shares are those under a gradient, as without one nothing is lost.
      has_trust_ratio: Whether a step is as long with a gradient as without, as a trust ratio makes
        it. Without a gradient a leaf loses that length however small its decay is, so that the
        shares are those under a gradient.
      too_small_to_tell: Whether, behind a trust ratio, the leaf has too few entries to tell its
        decay from the gradient.
    """

    shares: np.ndarray | None
    unmoved: np.ndarray
    never_moved: np.ndarray
    under_gradient: bool = False
    has_trust_ratio: bool = False
    too_small_to_tell: bool = False

    @property
    def in_part(self) -> bool:
        """Whether entries lose different shares of themselves."""
        return self.shares is not None and not is_one_pattern(self.shares, np.ones(1))


def entries_of(
    u: np.ndarray, params: np.ndarray, uneven_params: np.ndarray, shape: tuple[int, ...]
) -> Entries:
    """What a step does to the entries of a leaf.

    Args:
      u: The updates, a flat row for each of `RUNS`.
      params: The params of the even runs, 0 nowhere.
      uneven_params: The params of the uneven runs.
      shape: The leaf's own shape.

    Returns:
      The `Entries`.
    """
    plus, minus, quiet = u[list(GRADIENT)], u[list(OPPOSITE_GRADIENT)], u[list(NO_GRADIENT)]
    size = np.max(np.abs(u[[*GRADIENT, *OPPOSITE_GRADIENT]]), initial=0)
    even, uneven = _shares(quiet, params), _shares(u[list(UNEVEN_PARAMS)], uneven_params)
    if _is_one_length(quiet[0], plus[0]) and is_one_pattern(even, uneven):
        shares = _shares_behind_trust_ratio(even / np.max(np.abs(even)), plus, params)
        unmoved = np.all(_is_near(plus, minus), 0)
        never = unmoved & _is_a_multiple(u[CHANGING_GRADIENT], plus[0], unmoved)
        unknown = shares is None
        shares = even if unknown else shares
        return Entries(shares, unmoved, never, has_trust_ratio=True, too_small_to_tell=unknown)
    unmoved = np.max(np.abs(plus - minus), 0, initial=0) <= UNTOUCHED * size
    never = unmoved & (np.abs(u[CHANGING_GRADIENT] - quiet[0]) <= UNTOUCHED * size)
    if np.max(np.abs(quiet), initial=0) > FLOOR:
        return Entries(_common_shares(even, uneven), unmoved, never)
    shares = _common_shares(_shares(plus, params), _shares(minus, params))
    if shares is not None and not _are_of_rows(shares, shape):
        shares = None  # the length of the step hangs on the params, as by their loss
    return Entries(shares, unmoved, never, under_gradient=True)


def _shares(pair: np.ndarray, params: np.ndarray) -> np.ndarray:
    """The share of itself that each entry loses, from the updates at `params` and ``-params``."""
    return (pair[1] - pair[0]) / 2 / params


def _common_shares(one: np.ndarray, other: np.ndarray) -> np.ndarray | None:
    """The shares `one`, tiny ones set to 0, or `None` if those in `other` are not alike."""
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


def _shares_behind_trust_ratio(
    pattern: np.ndarray, plus: np.ndarray, params: np.ndarray
) -> np.ndarray | None:
    """The shares under a gradient of a leaf whose step has a given length; `None` if none is told.

    The step is ``-r(p)*(g + d*p)``, with ``r(p)`` such that its length is that of `p`. Of what
    changes its sign with `p`, the part along `g` is due to `r`, and the rest is ``r*d`` times the
    part of `p` that is at a right angle to `g`. What is returned is divided by the root of the mean
    square of `p`, since `r` is in proportion to that.

    Args:
      pattern: The shares without a gradient, divided by the largest.
      plus: The updates under a gradient, at `params` and at ``-params``.
      params: The params `p`.
    """
    odd, rest = (plus[1] - plus[0]) / 2, (plus[0] + plus[1]) / 2
    along = rest / max(float(np.linalg.norm(rest)), np.finfo(float).tiny)
    pulled = pattern * params
    across = pulled - (pulled @ along) * along
    if not across @ across > _NEARLY**2 * (pulled @ pulled):
        return None
    rate = float(odd @ across) / float(across @ across) / float(np.sqrt(np.mean(params**2)))
    return rate * np.where(np.abs(pattern) > _CANCELLED, pattern, 0.0)


def _is_near(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Where two updates are nearly the same."""
    return np.abs(one - other) <= _NEARLY * np.maximum(np.abs(one), np.abs(other))


def _is_a_multiple(one: np.ndarray, other: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Which of the entries `among` have nearly the median of their ratios ``one / other``."""
    if not np.any(among):
        return among
    factors = one[among] / np.where(other[among] == 0, 1, other[among])
    return _is_near(one, float(np.median(factors)) * other)


def _is_one_length(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two steps are equally long, and not 0."""
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
      lowest_rate: The lowest share that an entry moved by gradients loses, each taken in the step
        in which it loses most; `None` if entries have no shares of their own.
      erased_part: Which entries decay and get no gradient: ``""`` for none, ``"rows"`` for all at
        some indices of an axis, ``"entries"`` for others.
      random: Whether the entries that lose something differ from step to step. Where they are all
        those at some indices of an axis, layers are updated by turns, and it is False.
    """

    lowest_rate: float | None
    erased_part: str
    random: bool


def parts_of(steps: Sequence[Entries], shape: tuple[int, ...], gradient: np.ndarray) -> Parts:
    """What becomes of the entries of a leaf over the steps.

    Args:
      steps: Its `Entries` in each step in which a gradient moves it.
      shape: Its shape.
      gradient: The gradient that it was given.
    """
    seen = [entries.shares for entries in steps if entries.shares is not None]
    if not seen:
        return Parts(None, "", random=False)
    unmoved = np.all([entries.unmoved for entries in steps], axis=0)
    never = np.all([entries.never_moved for entries in steps], axis=0)
    most = np.max(seen, axis=0)
    small = _are_the_smallest(unmoved.reshape(shape), np.abs(gradient).reshape(shape))
    changes = any(not is_one_pattern(seen[0], other) for other in seen)
    return Parts(
        float(np.min(most[~never], initial=strongest(most))),
        "" if small else _erased(never & (most > 0), never, shape),
        changes and not all(_are_rows(shares != 0, shape) for shares in seen),
    )


def _erased(gone: np.ndarray, never: np.ndarray, shape: tuple[int, ...]) -> str:
    """`Parts.erased_part`, from the entries that decay and are never moved, and all never moved."""
    if not np.any(gone) or np.all(never):
        return ""
    return "rows" if _are_rows(never, shape) else "entries"


def _are_the_smallest(unmoved: np.ndarray, size: np.ndarray) -> bool:
    """Whether the entries that are not moved are those with the smallest gradients.

    They are compared all together, within each slice of an axis or each line along it, or slice by
    slice.
    """
    if _is_below(unmoved.ravel()[None], size.ravel()[None]):
        return True
    for axis in range(unmoved.ndim):
        lines = [np.moveaxis(x, axis, -1).reshape(-1, x.shape[axis]) for x in (unmoved, size)]
        rows, sizes = lines[0].T, lines[1].T
        if _is_below(*lines) or _is_below(rows, sizes):
            return True
        whole = np.all(rows, 1)
        if np.array_equal(whole, np.any(rows, 1)) and _is_below(
            whole[None], np.linalg.norm(sizes, axis=1)[None]
        ):
            return True
    return False


def _is_below(which: np.ndarray, size: np.ndarray) -> bool:
    """Whether in each row the sizes of some entries, and not of all, are the smallest."""
    top = np.max(np.where(which, size, 0), 1)
    return bool(np.all(top <= np.min(np.where(which, np.inf, size), 1)) and not which.all(1).any())


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


def is_divided(pair: np.ndarray, params: np.ndarray, gradient: np.ndarray) -> bool:
    """Whether entries lose a smaller share of themselves the larger their gradient is.

    They do where a decay is divided by the root of a mean of squares that the gradient is in, and
    not where the whole leaf is scaled, as by clipping or a trust ratio.
    """
    shares = (pair[1] - pair[0]) / 2 / np.where(params == 0, 1, params)
    if params.size < _FEW or not (np.all(np.isfinite(shares)) and np.all(shares > 0)):
        return False
    x, y = np.log(np.abs(gradient)), np.log(shares)
    return bool(np.std(y) > STEADY and np.corrcoef(x, y)[0, 1] < -_INVERSE)
