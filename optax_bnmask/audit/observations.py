"""What is read off the updates of one leaf in one step, and what it comes to over the steps."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple

import numpy as np

from optax_bnmask.audit.entries import (
    ALIKE,
    FLOOR,
    STEADY,
    Entries,
    entries_of,
    parts_of,
    strongest,
)
from optax_bnmask.audit.patterns import (
    AGAINST,
    ELSEWHERE,
    PUSHED,
    QUIET,
    UNEVEN,
    aside,
    board,
    mixed,
    push,
)

_ALONG: Final = 0.5
"""The least cosine between a leaf and its decay; less is noise that a trust ratio stretches."""

_PARALLEL: Final = 1 - 1e-9
"""The least cosine between them where nothing but a decay changes its sign with the leaf."""

_FEW: Final = 8
"""Leaves of fewer entries are too small to correlate their losses with their gradients."""

_INVERSE: Final = 0.95
"""The least correlation, of logarithms, between losses and inverse gradients that is not taken for
chance."""

_RECOMPUTED: Final = 0.05
"""A larger pull back to the state's own params means that a step computes the params from it."""


class Reading(NamedTuple):
    """One step of one leaf.

    Attributes:
      rate: The share of itself that it loses, with no gradient: negative if it grows.
      uneven: The same share of params whose entries differ in size.
      pushed: The same share under a gradient.
      alone: Whether, under a gradient, nothing but a decay changes its sign with the params.
      centre: What it is pulled to: the mean over the entries, their standard deviation, and a
        checksum that tells two such centres apart.
      recalled: The share of the way to the params that the state was initialised with that it goes.
      answer: How far it follows a gradient: negative if it descends.
      steps: The mean size of its updates relative to that of the gradients, and their norm.
      moved: Whether the gradient's sign makes a difference.
      climbs_raw: Whether the update is the gradient itself.
      divided: Whether entries with larger gradients lose less of themselves.
      kept: Whether its norm is what it was although it moved.
      finite: Whether the updates with no gradient are finite, and those with one.
      entries: What it comes to entry by entry.
    """

    rate: float
    uneven: float
    pushed: float
    alone: bool
    centre: tuple[float, float, float]
    recalled: float
    answer: float
    steps: tuple[float, float]
    moved: bool
    climbs_raw: bool
    divided: bool
    kept: bool
    finite: tuple[bool, bool]
    entries: Entries


@dataclasses.dataclass(frozen=True, slots=True)
class Behaviour:
    """What an optimizer does to a leaf.

    Attributes:
      rate: The share of itself that it loses in the first step in which it loses any, with no
        gradient; negative if it grows.
      pushed: The same under a gradient.
      alone: Whether, under a gradient, nothing but a decay changes its sign with the params, in any
        step.
      proportional: Whether what it loses is in proportion to its size, in every step.
      course: The rate in the last step in which it decays, as a share of that in the first.
      steady: Whether the rate was seen in several steps and does not rise, as in a warm-up.
      centre: What it is pulled to: a number, or NaN for numbers that differ from entry to entry.
      recalled: The share of the way back to where it started that it goes in a step.
      answer: How far it follows a gradient: negative if it descends, in any step.
      steps: The mean size of its updates relative to that of the gradients, and their norm.
      moved: Whether a gradient moves it.
      climbs_raw: Whether the gradient itself is added to it.
      divided: Whether entries with larger gradients lose less of themselves, in any step.
      kept: Whether gradients turn it and leave its norm alone.
      broken: Whether its updates are not finite, with a gradient and without.
      stretched: Whether its steps are as long with a gradient as without, as a trust ratio makes
        them: its rate is that under a gradient.
      unsure: Whether it is so small that there its decay cannot be told from the gradient.
      least: The lowest rate of its entries that move; that of the others is `rate`.
      erased: Which of its entries decay and get no gradient: ``""`` for none, ``"rows"`` for all
        at some indices of an axis, ``"entries"`` for others.
      random: Whether which of its entries lose something is up to chance.
      rises: Whether a smaller leaf loses a smaller share of itself.
      bare: Whether it climbs its gradient in steps that have met no learning rate.
    """

    rate: float
    pushed: float
    alone: bool
    proportional: bool
    course: float
    steady: bool
    centre: float
    recalled: float
    answer: float
    steps: tuple[float, float]
    moved: bool
    climbs_raw: bool
    divided: bool
    kept: bool
    broken: bool
    stretched: bool = False
    unsure: bool = False
    least: float = 0.0
    erased: str = ""
    random: bool = False
    rises: bool = False
    bare: bool = False


class Reader:
    """Reads the updates of leaves of one shape, whose params and gradients had one scale each."""

    def __init__(self, shape: tuple[int, ...], scale: float, pushed: float) -> None:
        self._params = scale * board(shape).ravel()
        self._mixed = scale * mixed(shape).ravel()
        self._push = pushed * push(shape).ravel()
        self._shape = shape
        self._mark = np.cos(np.arange(self._params.size))
        here, there = self._params, scale * aside(shape).ravel()
        size = max(float(here @ here), np.finfo(float).tiny)
        self._aside = there - (there @ here) / size * here  # along this the two starts differ

    def read(self, updates: np.ndarray) -> Reading:
        """The `Reading` of a step, whose rows are the runs."""
        with np.errstate(all="ignore"):  # infinities and NaN are looked for
            return self._read(np.real(updates).reshape(len(updates), -1).astype(float))

    def _read(self, u: np.ndarray) -> Reading:
        params, push_ = self._params, self._push
        plus, minus = u[list(PUSHED)], u[list(AGAINST)]
        apart = plus - minus
        size = np.max(np.abs(u[[*PUSHED, *AGAINST]]), initial=0)
        moved = bool(np.max(np.abs(apart), initial=0) > 1e-12 * size)
        length = np.linalg.norm(params)
        turned = np.abs(np.linalg.norm(params + plus[0]) - length)
        rate, uneven = _pull(u[list(QUIET)], params), _pull(u[list(UNEVEN)], self._mixed)
        pushed, entries = _pull(plus, params), entries_of(u, params, self._mixed, self._shape)
        if entries.shares is not None:
            own = strongest(entries.shares)
            rate, uneven, pushed = (rate, uneven, own) if entries.pushed else (own, own, pushed)
        return Reading(
            rate,
            uneven,
            pushed,
            bool(_pull(plus, params, least=_PARALLEL)),
            self._centre(u[list(QUIET)], rate),
            self._recalled(u[ELSEWHERE] - u[QUIET[0]]),
            _finite(float(np.sum(apart @ push_))),
            _steps(apart[0] / 2, push_),
            moved,
            moved and np.allclose(plus[0], push_, rtol=1e-9, atol=0),
            _is_divided(plus, params, push_),
            moved and bool(turned < 1e-9 * length),
            (bool(np.isfinite(u[list(QUIET)]).all()), bool(np.isfinite(plus).all())),
            entries,
        )

    def behaviour(self, readings: Sequence[Reading]) -> Behaviour:
        """The `Behaviour` of a leaf over all steps, fields that need its entries included."""
        made = behaviour_of(readings)
        moving = [reading.entries for reading in readings if reading.moved]
        if not moving:
            return made
        least, erased, random = parts_of(moving, self._shape, self._push)
        least = (made.rate or made.pushed) if least is None else least
        return dataclasses.replace(made, least=least, erased=erased, random=random)

    def _centre(self, pair: np.ndarray, rate: float) -> tuple[float, float, float]:
        """What a leaf is pulled to: half the sum of its updates at `p` and ``-p``, by the rate."""
        if not rate:
            return 0.0, 0.0, 0.0
        middle = np.sum(pair, 0) / 2 / rate
        return float(np.mean(middle)), float(np.std(middle)), float(middle @ self._mark)

    def _recalled(self, change: np.ndarray) -> float:
        size = float(self._aside @ self._aside)
        return _finite(float(change @ self._aside) / size) if size > 1e-6 else 0.0


def _steps(update: np.ndarray, gradient: np.ndarray) -> tuple[float, float]:
    sizes = [float(np.sum(np.abs(x))) for x in (update, gradient)]
    share = sizes[0] / sizes[1] if sizes[1] else 0.0
    return _finite(share), _finite(float(np.linalg.norm(update)))


def _is_divided(pair: np.ndarray, params: np.ndarray, by: np.ndarray) -> bool:
    """Whether entries lose less of themselves the larger their gradient is.

    So it is where a decay is divided by the root of a mean of squares that the gradient is in, and
    not where the whole leaf is scaled, as by clipping or a trust ratio.
    """
    shares = (pair[1] - pair[0]) / 2 / np.where(params == 0, 1, params)
    if params.size < _FEW or not (np.all(np.isfinite(shares)) and np.all(shares > 0)):
        return False
    x, y = np.log(np.abs(by)), np.log(shares)
    return bool(np.std(y) > STEADY and np.corrcoef(x, y)[0, 1] < -_INVERSE)


def _pull(pair: np.ndarray, params: np.ndarray, least: float = _ALONG) -> float:
    """The share of itself that a leaf loses, from the updates at `params` and at ``-params``.

    In half their difference, what depends on the norm of the params alone, as a trust ratio does,
    or not on them at all, as noise, cancels.
    """
    response = (pair[0] - pair[1]) / 2
    top = np.max(np.abs(response), initial=0)
    if not (np.isfinite(top) and top > 0):
        return 0.0
    shape = response / top  # squares neither overflow nor vanish
    inward, size = -float(shape @ params), float(params @ params)
    along = abs(inward) >= least * np.sqrt(float(shape @ shape) * size)
    rate = top * inward / size
    return float(rate) if along and abs(rate) > FLOOR else 0.0


def _finite(value: float) -> float:
    return value if np.isfinite(value) else 0.0


def behaviour_of(readings: Sequence[Reading]) -> Behaviour:
    """The `Behaviour` of a leaf over all steps, but for the fields that need its entries."""
    rates = [reading for reading in readings if reading.rate or reading.uneven]
    first = rates[0] if rates else readings[0]
    calm, hard = zip(*(reading.finite for reading in readings), strict=True)
    rate, pushed = first.rate or first.uneven, _first(readings, lambda r: r.pushed)
    recalled = _first(readings, lambda r: r.recalled if abs(r.recalled) > FLOOR else 0.0)
    proportional = all(alike(reading.rate, reading.uneven) for reading in rates)
    return Behaviour(
        rate,
        pushed,
        all(reading.alone for reading in readings if reading.pushed),
        proportional,
        rates[-1].rate / first.rate if first.rate else 0.0,
        len(rates) > 1
        and not (_rise(r.rate for r in readings) or _rise(r.pushed for r in readings)),
        _centre(first, rates[-1]) if rates else 0.0,
        recalled if 0 < recalled < _RECOMPUTED else 0.0,
        _first(readings, lambda r: min(r.answer, 0.0)) or _first(readings, lambda r: r.answer),
        next((r.steps for r in readings if r.steps[0]), (0.0, 0.0)),
        any(reading.moved for reading in readings),
        any(reading.climbs_raw for reading in readings),
        any(reading.divided for reading in readings),
        _all_kept(readings),
        not (all(calm) or all(hard) or rate or pushed),
        first.entries.stretched and proportional,
        first.entries.unsure,
        rate or pushed,
    )


def _rise(rates: Iterable[float]) -> bool:
    """Whether rates are higher in the last step than in the first in which there is one."""
    sizes = [abs(rate) for rate in rates if rate]
    return bool(sizes) and sizes[-1] > (1 + STEADY) * sizes[0]


def alike(one: float, other: float) -> bool:
    """Whether two rates are one."""
    return abs(one - other) <= ALIKE * max(abs(one), abs(other))


def _first(readings: Sequence[Reading], of: Callable[[Reading], float]) -> float:
    """The first number that is not 0."""
    return next((value for value in map(of, readings) if value), 0.0)


def _all_kept(readings: Sequence[Reading]) -> bool:
    moving = [reading.kept for reading in readings if reading.moved]
    return bool(moving) and all(moving)


def _centre(first: Reading, last: Reading) -> float:
    """What a leaf is pulled to, if that is the same in two steps, as noise is not."""
    one, other = np.array(first.centre), np.array(last.centre)
    if np.max(np.abs(one - other)) > STEADY * np.max(np.abs(one)):
        return 0.0
    mean, spread, _ = first.centre
    if max(abs(mean), spread) < STEADY:
        return 0.0
    return mean if spread <= STEADY * abs(mean) else float("nan")
