"""What an optimizer does to a leaf: read off its updates in one step, and summed up over steps."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple

import numpy as np

from optax_bnmask.audit.entries import (
    ALIKE,
    FLOOR,
    STEADY,
    UNTOUCHED,
    Entries,
    entries_of,
    is_divided,
    parts_of,
    strongest,
)
from optax_bnmask.audit.patterns import (
    GRADIENT,
    NO_GRADIENT,
    OPPOSITE_GRADIENT,
    OTHER_START,
    UNEVEN_PARAMS,
    checkerboard,
    gradient_pattern,
    orthogonal_checkerboard,
    uneven_checkerboard,
)

_ALONG: Final = 0.5
"""The least cosine between a leaf and its decay; behind a trust ratio, noise has smaller ones."""

_PARALLEL: Final = 1 - 1e-9
"""The least cosine between a leaf and a part of its update that is nothing but a decay."""

_SAME_NORM: Final = 1e-12
"""Norms that differ relatively by less are equal. Rounding makes a difference of 1e-16 to 2e-14; a
step of Adam across a leaf with entries of size 1, half the square of the learning rate."""

_RECOMPUTED: Final = 0.05
"""A larger pull to the params of `init` is none: the step computes the params from the state."""


class StepReading(NamedTuple):
    """What one step does to one leaf. The runs with a gradient are those of `GRADIENT`.

    Attributes:
      rate: The share of itself that it loses with no gradient: negative if it grows.
      rate_uneven_params: The same share of params whose entries differ in size.
      rate_under_gradient: The same share under a gradient.
      only_decay_is_odd: Whether, under a gradient, the part of the update that changes its sign
        with the params is parallel to them, as a decay is.
      pulled_to: With no gradient, the params at which the update is 0: their mean, their standard
        deviation, and a checksum that tells two such params apart.
      pulled_to_start: The share of the way back to the params of `init` that it goes.
      along_gradient: How far it follows a gradient: negative if it descends.
      step_sizes: The mean size of its updates relative to that of the gradients, and their norm.
      moved_by_gradient: Whether the gradient's sign makes a difference.
      adds_raw_gradient: Whether the update is the gradient itself.
      divided_by_gradient: Whether entries with larger gradients lose a smaller share.
      norm_kept: Whether a gradient moves it and leaves its norm as it was, or as it is held.
      finite: Whether the updates with no gradient are finite, and those with one.
      entries: What it does entry by entry.
    """

    rate: float
    rate_uneven_params: float
    rate_under_gradient: float
    only_decay_is_odd: bool
    pulled_to: tuple[float, float, float]
    pulled_to_start: float
    along_gradient: float
    step_sizes: tuple[float, float]
    moved_by_gradient: bool
    adds_raw_gradient: bool
    divided_by_gradient: bool
    norm_kept: bool
    finite: tuple[bool, bool]
    entries: Entries


@dataclasses.dataclass(frozen=True, slots=True)
class Behaviour:
    """What an optimizer does to a leaf over the steps. See `StepReading` for a single step.

    Attributes:
      rate: The share of itself that it loses in the first step in which it loses any, with no
        gradient; negative if it grows.
      rate_under_gradient: The same under a gradient.
      only_decay_is_odd: That of all steps in which it decays under a gradient.
      proportional: Whether what it loses is in proportion to its size, in every step.
      rate_trend: The rate in the last step in which it decays, divided by that in the first.
      steady: Whether the rate was seen in several steps and does not rise, as in a warm-up.
      pulled_to: The number that it is pulled to, NaN if that differs from entry to entry; 0 for a
        weight decay.
      pulled_to_start: The share of the way back to the params of `init` that it goes in a step.
      along_gradient: How far it follows a gradient: negative if it descends, in any step.
      step_sizes: The mean size of its updates relative to that of the gradients, and their norm.
      moved_by_gradient: Whether a gradient moves it.
      adds_raw_gradient: Whether the gradient itself is added to it.
      divided_by_gradient: Whether entries with larger gradients lose a smaller share, in any step.
      norm_kept: Whether gradients turn it and leave its norm as it was, or as it is held.
      norm_held: Whether `keep_norm` or `hyperball` is to hold its norm.
      not_finite: Whether its updates are not finite, with a gradient and without.
      has_trust_ratio: Whether its steps are as long with a gradient as without, as a trust ratio
        makes them. Then `rate` is that under a gradient.
      too_small_to_tell: Whether, behind a trust ratio, it has too few entries to tell its decay
        from the gradient.
      lowest_rate: The lowest rate of the entries that a gradient moves; `rate` is the highest.
      erased_part: Which entries decay and get no gradient: ``""`` for none, ``"rows"`` for all at
        some indices of an axis, ``"entries"`` for others.
      random: Whether chance decides which entries lose something.
      rate_grows_with_size: Whether a smaller leaf loses a smaller share of itself.
      no_learning_rate: Whether it climbs its gradient in steps that no learning rate has scaled.
    """

    rate: float
    rate_under_gradient: float
    only_decay_is_odd: bool
    proportional: bool
    rate_trend: float
    steady: bool
    pulled_to: float
    pulled_to_start: float
    along_gradient: float
    step_sizes: tuple[float, float]
    moved_by_gradient: bool
    adds_raw_gradient: bool
    divided_by_gradient: bool
    norm_kept: bool
    not_finite: bool
    norm_held: bool = False
    has_trust_ratio: bool = False
    too_small_to_tell: bool = False
    lowest_rate: float = 0.0
    erased_part: str = ""
    random: bool = False
    rate_grows_with_size: bool = False
    no_learning_rate: bool = False


class StepReader:
    """Reads the updates of leaves of one shape.

    Args:
      shape: Their shape.
      scale: What the patterns of the params were multiplied with.
      gradient_scale: What the patterns of the gradients were multiplied with.
      held_norm: The norm that they are held at in each run, if they are.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        scale: float,
        gradient_scale: float,
        held_norm: np.ndarray | None = None,
    ) -> None:
        self._shape = shape
        self._held_norm = held_norm
        self._params = scale * checkerboard(shape).ravel()
        self._uneven_params = scale * uneven_checkerboard(shape).ravel()
        self._gradient = gradient_scale * gradient_pattern(shape).ravel()
        start = scale * orthogonal_checkerboard(shape).ravel()
        size = max(float(self._params @ self._params), np.finfo(float).tiny)
        # What of `start` is at a right angle to the params, which a decay does not change.
        self._to_start = start - (start @ self._params) / size * self._params

    def read(self, updates: np.ndarray) -> StepReading:
        """The reading of a step, from its updates: one row for each of `RUNS`."""
        with np.errstate(all="ignore"):  # infinities and NaN are looked for
            return self._read(np.real(updates).reshape(len(updates), -1).astype(float))

    def _read(self, u: np.ndarray) -> StepReading:
        params, gradient = self._params, self._gradient
        plus, minus, quiet = u[list(GRADIENT)], u[list(OPPOSITE_GRADIENT)], u[list(NO_GRADIENT)]
        apart = plus - minus
        size = np.max(np.abs(u[[*GRADIENT, *OPPOSITE_GRADIENT]]), initial=0)
        moved = bool(np.max(np.abs(apart), initial=0) > UNTOUCHED * size)
        rate, uneven = _pull(quiet, params), _pull(u[list(UNEVEN_PARAMS)], self._uneven_params)
        under_gradient = _pull(plus, params)
        entries = entries_of(u, params, self._uneven_params, self._shape)
        if entries.shares is not None:
            own = strongest(entries.shares)
            if entries.under_gradient:
                under_gradient = own
            else:
                rate = uneven = own
        return StepReading(
            rate=rate,
            rate_uneven_params=uneven,
            rate_under_gradient=under_gradient,
            only_decay_is_odd=bool(_pull(plus, params, least_cosine=_PARALLEL)),
            pulled_to=_centre(quiet, rate),
            pulled_to_start=self._pull_to_start(u[OTHER_START] - quiet[0]),
            along_gradient=_or_0(float(np.sum(apart @ gradient))),
            step_sizes=_step_sizes(apart[0] / 2, gradient),
            moved_by_gradient=moved,
            adds_raw_gradient=moved and np.allclose(plus[0], gradient, rtol=1e-9, atol=0),
            divided_by_gradient=is_divided(plus, params, gradient),
            norm_kept=moved and self._keeps_norm(plus[0]),
            finite=(bool(np.isfinite(quiet).all()), bool(np.isfinite(plus).all())),
            entries=entries,
        )

    def behaviour(self, readings: Sequence[StepReading]) -> Behaviour:
        """The `Behaviour` of a leaf over all steps that were read."""
        made = _behaviour_without_parts(readings)
        if self._held_norm is not None:
            return _held(made)
        moving = [reading.entries for reading in readings if reading.moved_by_gradient]
        if not moving:
            return made
        lowest_rate, erased_part, random = parts_of(moving, self._shape, self._gradient)
        if lowest_rate is None:
            lowest_rate = made.lowest_rate
        return dataclasses.replace(
            made, lowest_rate=lowest_rate, erased_part=erased_part, random=random
        )

    def _keeps_norm(self, update: np.ndarray) -> bool:
        """Whether an update of the first run with a gradient leaves the norm that should be."""
        held = self._held_norm
        wanted = np.linalg.norm(self._params) if held is None else held[GRADIENT[0]]
        return bool(np.abs(np.linalg.norm(self._params + update) - wanted) < _SAME_NORM * wanted)

    def _pull_to_start(self, change: np.ndarray) -> float:
        """The share of the way to the params of `init`, from what these change in the update."""
        size = float(self._to_start @ self._to_start)
        return _or_0(float(change @ self._to_start) / size) if size > 1e-6 else 0.0


def _centre(pair: np.ndarray, rate: float) -> tuple[float, float, float]:
    """What a leaf is pulled to: half the sum of its updates at `p` and ``-p``, by the rate."""
    if not rate:
        return 0.0, 0.0, 0.0
    middle = np.sum(pair, 0) / 2 / rate
    checksum = middle @ np.cos(np.arange(middle.size))
    return float(np.mean(middle)), float(np.std(middle)), float(checksum)


def _step_sizes(update: np.ndarray, gradient: np.ndarray) -> tuple[float, float]:
    """The mean size of an update relative to that of its gradient, and its norm."""
    sizes = [float(np.sum(np.abs(x))) for x in (update, gradient)]
    share = sizes[0] / sizes[1] if sizes[1] else 0.0
    return _or_0(share), _or_0(float(np.linalg.norm(update)))


def _pull(pair: np.ndarray, params: np.ndarray, least_cosine: float = _ALONG) -> float:
    """The share of itself that a leaf loses, from the updates at `params` and at ``-params``.

    In half their difference, what depends on the norm of the params alone, as a trust ratio does,
    or not on them at all, as noise, cancels. It is 0 unless that is parallel enough to the params.
    """
    response = (pair[0] - pair[1]) / 2
    top = np.max(np.abs(response), initial=0)
    if not (np.isfinite(top) and top > 0):
        return 0.0
    shape = response / top  # squares neither overflow nor vanish
    inward, size = -float(shape @ params), float(params @ params)
    along = abs(inward) >= least_cosine * np.sqrt(float(shape @ shape) * size)
    rate = top * inward / size
    return float(rate) if along and abs(rate) > FLOOR else 0.0


def _or_0(value: float) -> float:
    """The value, or 0 where it is not finite."""
    return value if np.isfinite(value) else 0.0


def _behaviour_without_parts(readings: Sequence[StepReading]) -> Behaviour:
    """The `Behaviour` of a leaf, but for what `parts_of` says of its entries."""
    decaying = [reading for reading in readings if reading.rate or reading.rate_uneven_params]
    first = decaying[0] if decaying else readings[0]
    finite, finite_under_gradient = zip(*(reading.finite for reading in readings), strict=True)
    rate = first.rate or first.rate_uneven_params
    under_gradient = _first(readings, lambda r: r.rate_under_gradient)
    to_start = _first(
        readings, lambda r: r.pulled_to_start if abs(r.pulled_to_start) > FLOOR else 0.0
    )
    proportional = all(alike(reading.rate, reading.rate_uneven_params) for reading in decaying)
    rising = _rise(r.rate for r in readings) or _rise(r.rate_under_gradient for r in readings)
    moving = [reading for reading in readings if reading.moved_by_gradient]
    finite_somehow = all(finite) or all(finite_under_gradient) or rate or under_gradient
    return Behaviour(
        rate=rate,
        rate_under_gradient=under_gradient,
        only_decay_is_odd=all(r.only_decay_is_odd for r in readings if r.rate_under_gradient),
        proportional=proportional,
        rate_trend=decaying[-1].rate / first.rate if first.rate else 0.0,
        steady=len(decaying) > 1 and not rising,
        pulled_to=_common_centre(first, decaying[-1]) if decaying else 0.0,
        pulled_to_start=to_start if 0 < to_start < _RECOMPUTED else 0.0,
        along_gradient=_first(readings, lambda r: min(r.along_gradient, 0.0))
        or _first(readings, lambda r: r.along_gradient),
        step_sizes=next((r.step_sizes for r in readings if r.step_sizes[0]), (0.0, 0.0)),
        moved_by_gradient=bool(moving),
        adds_raw_gradient=any(reading.adds_raw_gradient for reading in readings),
        divided_by_gradient=any(reading.divided_by_gradient for reading in readings),
        norm_kept=bool(moving) and all(reading.norm_kept for reading in moving),
        not_finite=not finite_somehow,
        has_trust_ratio=first.entries.has_trust_ratio and proportional,
        too_small_to_tell=first.entries.too_small_to_tell,
        lowest_rate=rate or under_gradient,
    )


def _held(found: Behaviour) -> Behaviour:
    """The behaviour of a leaf whose norm is to be held: what sets that back is no decay."""
    found = dataclasses.replace(found, norm_held=True, rate_under_gradient=0.0)
    if not found.norm_kept:
        return found
    return dataclasses.replace(
        found, rate=0.0, lowest_rate=0.0, proportional=True, pulled_to=0.0, pulled_to_start=0.0
    )


def _rise(rates: Iterable[float]) -> bool:
    """Whether rates are higher in the last step than in the first in which there is one."""
    sizes = [abs(rate) for rate in rates if rate]
    return bool(sizes) and sizes[-1] > (1 + STEADY) * sizes[0]


def alike(one: float, other: float) -> bool:
    """Whether two rates count as equal."""
    return abs(one - other) <= ALIKE * max(abs(one), abs(other))


def _first(readings: Sequence[StepReading], of: Callable[[StepReading], float]) -> float:
    """The first number that is not 0."""
    return next((value for value in map(of, readings) if value), 0.0)


def _common_centre(first: StepReading, last: StepReading) -> float:
    """What a leaf is pulled to, if that is the same in two steps, as it is not for noise."""
    one, other = np.array(first.pulled_to), np.array(last.pulled_to)
    if np.max(np.abs(one - other)) > STEADY * np.max(np.abs(one)):
        return 0.0
    mean, spread, _ = first.pulled_to
    if max(abs(mean), spread) < STEADY:
        return 0.0
    return mean if spread <= STEADY * abs(mean) else float("nan")
