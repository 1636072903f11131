"""Running an optimizer on chosen params: what it does to a leaf that no gradient asks to move."""

import dataclasses
from collections.abc import Mapping
from typing import Final

import jax
import numpy as np

from optax_bnmask.audit.machine import Machine
from optax_bnmask.audit.observations import Behaviour, Reader, Reading, alike
from optax_bnmask.audit.patterns import ELSEWHERE, PUSHED, QUIET, UNEVEN
from optax_bnmask.audit.update import Update

_LEAST: Final = 8
"""The first steps, all of which are read; of later ones, those in which something is new."""

PATIENCE: Final = 64
"""Steps to wait for a decay: it may have a schedule of its own that starts at 0."""

AT_MOST: Final = 512
"""Steps to wait for leaves that do not move: they may be in a long warm-up, or frozen."""

_FINE: Final = 2.0**-5
"""The scale of smaller params for a second run. A pull that is clipped at 1 is in proportion to
them, and takes the same course over the steps. One that is divided by its own size is not in
proportion here either; one divided by a constant and the sum of its squares, as by Adagrad, takes
another course.
"""

_HALF: Final = 0.5
"""A leaf that seems to lose more than this share of itself in a step may be clipped to a range."""

_TINY: Final = 2.0**-12
"""The scale of params so small that clipping to a range does not reach them."""

_FAINT: Final = 2.0**-20
"""The scale of gradients so small that nothing clips them: are they handed on as they are?"""

_BARE: Final = 0.5
"""Updates that are no smaller than this part of the gradients have met no learning rate."""

_ROUNDING: Final = 2.0**-36
"""A rate below this part of the highest is what rounding leaves where a decay is undone."""


def probe(update: Update, paths: tuple[str, ...]) -> Mapping[str, Behaviour]:
    """Measures what an optimizer does to each leaf, by taking the steps of all `RUNS` side by side.

    These have params and their negatives, even and uneven, with a gradient and without. A decay is
    what changes its sign with the params: half the difference of the two updates. The params stay
    where they are; only the state goes on. All is computed in float64.

    The decay without a gradient is what counts. Only for leaves where it is 0, or not finite, that
    under a gradient is taken, which some optimizers need to set their step.

    Args:
      update: The optimizer, traced.
      paths: The canonical paths of its leaves.

    Returns:
      By path, what it does to each leaf.
    """
    if not paths:
        return {}
    with jax.enable_x64(True):  # noqa: FBT003 - JAX's own signature
        machine = Machine(update)
        found = _run(machine)
        if any(each.rate > _HALF for each in found):
            tiny = _run(machine, scale=_TINY)
            found = [b if a.rate > _HALF > b.rate else a for a, b in zip(found, tiny, strict=True)]
        if any(each.rate and not each.proportional for each in found):
            fine = _run(machine, scale=_FINE)
            found = [_finer(a, b) for a, b in zip(found, fine, strict=True)]
        if any(each.answer > 0 for each in found):
            faint = _run(machine, pushed=_FAINT)
            found = [_unscaled(a, b) for a, b in zip(found, faint, strict=True)]
    found = _signed(_rated(found))
    return {path: found[kind] for path, kind in zip(paths, machine.kind_of, strict=True)}


def _run(machine: Machine, *, scale: float = 1.0, pushed: float = 1.0) -> list[Behaviour]:
    """What the optimizer does to each kind of leaf, on params and gradients of one scale each."""
    readers = [Reader(kind.leaf.shape, scale, pushed) for kind in machine.kinds]
    readings: list[list[Reading]] = [[] for _ in readers]
    for number, updates in enumerate(machine.steps(scale, pushed)):
        for kind, reader, past in zip(machine.kinds, readers, readings, strict=True):
            made = updates[kind.updates[min(number, len(kind.updates) - 1)]]
            if number < _LEAST or _is_news(made, past):
                past.append(reader.read(made))
        if number + 1 >= _steps_to_take(readings):
            break
    return [reader.behaviour(past) for reader, past in zip(readers, readings, strict=True)]


def _is_news(updates: np.ndarray, past: list[Reading]) -> bool:
    """Whether a leaf moves or decays for the first time, or has decayed once only, and in part."""
    seen = [reading for reading in past if reading.rate or reading.pushed]
    if len(seen) > 1 or (seen and not seen[0].entries.in_part):
        return not any(reading.moved for reading in past) and bool(np.any(updates))
    plus, minus = updates[PUSHED[0]], updates[PUSHED[1]]
    depends = np.any(updates[[*QUIET, *UNEVEN, ELSEWHERE]]) or np.any(plus != minus)
    return bool(depends or (np.any(plus) and not any(reading.moved for reading in past)))


def _steps_to_take(readings: list[list[Reading]]) -> int:
    """How long to go on, given what has moved so far."""
    moved = all(any(reading.moved for reading in past) for past in readings)
    return PATIENCE if moved else AT_MOST


def _finer(here: Behaviour, fine: Behaviour) -> Behaviour:
    """The behaviour of a leaf, corrected by its behaviour on small params."""
    if fine.proportional and not here.proportional and alike(here.course, fine.course):
        return fine
    return dataclasses.replace(here, rises=0 < 2 * fine.rate < here.rate)


def _unscaled(here: Behaviour, faint: Behaviour) -> Behaviour:
    """The behaviour of a leaf, with `climbs_raw` and `bare` judged on faint gradients too.

    Its steps have met no learning rate if they are about as large as the gradients, or as the faint
    ones, which nothing clips; or if their norm is about 1, as where an update is normalised.
    """
    (share, whole), (faint_share, _) = here.steps, faint.steps
    bare = share >= _BARE or _BARE <= faint_share <= 1 / _BARE or abs(whole - 1) < 1e-2
    return dataclasses.replace(here, climbs_raw=faint.climbs_raw, bare=bare)


def _rated(found: list[Behaviour]) -> list[Behaviour]:
    """The behaviours with the rate that counts: without a gradient or, if that is 0, under one.

    A leaf whose norm is kept is turned and set back, which is no decay. A leaf too small to tell
    its decay from the gradient behind a trust ratio gets the highest rate of the others there.
    """
    stretched = [each.rate for each in found if each.stretched and not each.unsure]
    found = [
        dataclasses.replace(each, rate=max(stretched), least=max(stretched))
        if each.unsure and stretched
        else each
        for each in found
    ]
    some = any(each.rate for each in found)
    found = [
        each
        if each.rate or (some and (each.kept or not each.alone))
        else dataclasses.replace(
            each,
            rate=each.pushed,
            least=min(each.least or each.pushed, each.pushed),
            proportional=True,
            centre=0.0,
        )
        for each in found
    ]
    top = max(abs(each.rate) for each in found)
    return [
        each if abs(each.rate) > _ROUNDING * top else dataclasses.replace(each, rate=0.0, least=0.0)
        for each in found
    ]


def _signed(found: list[Behaviour]) -> list[Behaviour]:
    """The behaviours with rates that are negative where a leaf grows.

    A pull away from 0 is growth if the updates are ready to be added to the params, as they are if
    some leaf descends its gradient. Where all climb, `tx` is taken for the first part of a chain
    that turns the sign later, and all rates for positive.
    """
    if any(each.answer < 0 for each in found) or not any(each.answer > 0 for each in found):
        return found
    return [dataclasses.replace(each, rate=abs(each.rate), least=abs(each.least)) for each in found]
