"""Runs an optimizer on chosen params, and measures what it does to each leaf."""

import dataclasses
from collections.abc import Mapping
from typing import Final

import jax
import numpy as np

from optax_bnmask.audit.behaviour import Behaviour, StepReader, StepReading, alike
from optax_bnmask.audit.compiled_optimizer import CompiledOptimizer
from optax_bnmask.audit.patterns import GRADIENT, NO_GRADIENT, OTHER_START, UNEVEN_PARAMS
from optax_bnmask.audit.update import Update

_STEPS_READ: Final = 8
"""The first steps that are all read; later ones are if something new happens in them."""

_MIN_STEPS: Final = 64
"""The steps taken at least: a decay may have a schedule of its own that starts at 0."""

_MAX_STEPS: Final = 512
"""The steps taken while some leaf has not moved: it may be in a long warm-up, or frozen."""

_SMALL_SCALE: Final = 2.0**-5
"""The scale of params for a second look at leaves whose loss is not in proportion to them. A pull
that was clipped at 1 is in proportion to smaller params, with the same `Behaviour.rate_trend`. One
divided by its own size is not in proportion here either; one divided by a constant and the sum of
its squares, as by Adagrad, has another trend."""

_SUSPICIOUS_RATE: Final = 0.5
"""A leaf that loses a larger share of itself in a step may be clipped to a range."""

_TINY_SCALE: Final = 2.0**-12
"""The scale of params so small that clipping to a range does not reach them."""

_FAINT_GRADIENTS: Final = 2.0**-20
"""The scale of gradients so small that nothing clips them."""

_UNSCALED: Final = 0.5
"""Updates of at least this part of the gradients were scaled by no learning rate."""

_ROUNDING: Final = 2.0**-36
"""A rate below this part of the highest is rounding, which is left where a decay is undone."""


def probe(update: Update, paths: tuple[str, ...]) -> Mapping[str, Behaviour]:
    """Measures what an optimizer does to each leaf, by taking the steps of all `RUNS`.

    Their params come with their negatives, even and uneven, with a gradient and without. A decay is
    what changes its sign with the params: half the difference of the two updates. The params stay
    where they are; only the state moves. All is computed in float64.

    The rate is that without a gradient or, where that is 0 or not finite, that under a gradient,
    which some optimizers need to set their step.

    Args:
      update: The optimizer, traced.
      paths: The canonical paths of its leaves.

    Returns:
      By path, what it does to each leaf.
    """
    if not paths:
        return {}
    with jax.enable_x64(True):  # noqa: FBT003 - JAX's own signature
        optimizer = CompiledOptimizer(update)
        found = _run(optimizer)
        if any(each.rate > _SUSPICIOUS_RATE for each in found):
            tiny = _run(optimizer, scale=_TINY_SCALE)
            found = [
                b if a.rate > _SUSPICIOUS_RATE > b.rate else a
                for a, b in zip(found, tiny, strict=True)
            ]
        if any(each.rate and not each.proportional for each in found):
            fine = _run(optimizer, scale=_SMALL_SCALE)
            found = [_with_small_params(a, b) for a, b in zip(found, fine, strict=True)]
        if any(each.along_gradient > 0 for each in found):
            faint = _run(optimizer, gradient_scale=_FAINT_GRADIENTS)
            found = [_with_faint_gradients(a, b) for a, b in zip(found, faint, strict=True)]
    found = _with_signs(_with_final_rates(found))
    return {path: found[kind] for path, kind in zip(paths, optimizer.kind_of, strict=True)}


def _run(
    optimizer: CompiledOptimizer, *, scale: float = 1.0, gradient_scale: float = 1.0
) -> list[Behaviour]:
    """What the optimizer does to each kind of leaf, on params and gradients of one scale each."""
    readers = [
        StepReader(kind.leaf.shape, scale, gradient_scale, held_norm)
        for kind, held_norm in zip(optimizer.kinds, optimizer.held_norms(scale), strict=True)
    ]
    readings: list[list[StepReading]] = [[] for _ in readers]
    for number, updates in enumerate(optimizer.steps(scale, gradient_scale)):
        for kind, reader, past in zip(optimizer.kinds, readers, readings, strict=True):
            made = updates[kind.updates[min(number, len(kind.updates) - 1)]]
            if number < _STEPS_READ or _is_news(made, past):
                past.append(reader.read(made))
        if number + 1 >= _steps_to_take(readings):
            break
    return [reader.behaviour(past) for reader, past in zip(readers, readings, strict=True)]


def _is_news(updates: np.ndarray, past: list[StepReading]) -> bool:
    """Whether a leaf moves or decays for the first time, or has decayed once only, and in part."""
    seen = [reading for reading in past if reading.rate or reading.rate_under_gradient]
    if len(seen) > 1 or (seen and not seen[0].entries.in_part):
        return not any(reading.moved_by_gradient for reading in past) and bool(np.any(updates))
    plus, minus = updates[GRADIENT[0]], updates[GRADIENT[1]]
    depends = np.any(updates[[*NO_GRADIENT, *UNEVEN_PARAMS, OTHER_START]]) or np.any(plus != minus)
    return bool(
        depends or (np.any(plus) and not any(reading.moved_by_gradient for reading in past))
    )


def _steps_to_take(readings: list[list[StepReading]]) -> int:
    """How long to go on, given what has moved so far."""
    moved = all(any(reading.moved_by_gradient for reading in past) for past in readings)
    return _MIN_STEPS if moved else _MAX_STEPS


def _with_small_params(here: Behaviour, fine: Behaviour) -> Behaviour:
    """The behaviour of a leaf, corrected by its behaviour on small params."""
    if fine.proportional and not here.proportional and alike(here.rate_trend, fine.rate_trend):
        return fine
    return dataclasses.replace(here, rate_grows_with_size=0 < 2 * fine.rate < here.rate)


def _with_faint_gradients(here: Behaviour, faint: Behaviour) -> Behaviour:
    """The behaviour of a leaf, with what faint gradients tell of the sizes of its steps.

    No learning rate has scaled these if they are about as large as the gradients, or as the faint
    ones, which nothing clips; or if their norm is about 1, as where an update is normalised.
    """
    (share, norm), (faint_share, _) = here.step_sizes, faint.step_sizes
    bare = share >= _UNSCALED or _UNSCALED <= faint_share <= 1 / _UNSCALED or abs(norm - 1) < 1e-2
    return dataclasses.replace(
        here, adds_raw_gradient=faint.adds_raw_gradient, no_learning_rate=bare
    )


def _with_final_rates(found: list[Behaviour]) -> list[Behaviour]:
    """The behaviours with their final rates: without a gradient or, if that is 0, under one.

    A leaf whose norm is kept is turned and set back, which is no decay. Behind a trust ratio, a
    leaf too small to tell its decay from the gradient gets the highest rate of the others there.
    """
    behind_ratio = [
        each.rate for each in found if each.has_trust_ratio and not each.too_small_to_tell
    ]
    found = [
        dataclasses.replace(each, rate=max(behind_ratio), lowest_rate=max(behind_ratio))
        if each.too_small_to_tell and behind_ratio
        else each
        for each in found
    ]
    some = any(each.rate for each in found)
    found = [
        each
        if each.rate or each.norm_kept or (some and not each.only_decay_is_odd)
        else dataclasses.replace(
            each,
            rate=each.rate_under_gradient,
            lowest_rate=min(each.lowest_rate or each.rate_under_gradient, each.rate_under_gradient),
            proportional=True,
            pulled_to=0.0,
        )
        for each in found
    ]
    top = max(abs(each.rate) for each in found)
    return [
        each
        if abs(each.rate) > _ROUNDING * top
        else dataclasses.replace(each, rate=0.0, lowest_rate=0.0)
        for each in found
    ]


def _with_signs(found: list[Behaviour]) -> list[Behaviour]:
    """The behaviours with rates that are negative where a leaf grows.

    A pull away from 0 is growth if the updates are ready to be added to the params, as they are if
    some leaf descends its gradient. Where all climb, `tx` is taken for the first part of a chain
    that turns the sign later, and all rates for positive.
    """
    if any(each.along_gradient < 0 for each in found) or not any(
        each.along_gradient > 0 for each in found
    ):
        return found
    return [
        dataclasses.replace(each, rate=abs(each.rate), lowest_rate=abs(each.lowest_rate))
        for each in found
    ]
