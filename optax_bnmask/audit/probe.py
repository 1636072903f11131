"""Running an optimizer on chosen params: what it does to a leaf that no gradient asks to move."""

import dataclasses
from collections.abc import Mapping
from typing import Final

import jax
import numpy as np

from optax_bnmask.audit.machine import Machine
from optax_bnmask.audit.readings import Behaviour, Reader, Reading, alike, behaviour_of
from optax_bnmask.audit.update import Update

_LEAST: Final = 8
"""Steps that are always taken: a decay may have a schedule of its own that starts at 0."""

PATIENCE: Final = 64
"""Steps to wait for leaves that do not move, as under `optax.MultiSteps`, and for any decay."""

AT_MOST: Final = 512
"""Steps to wait while nothing moves at all, as before a long warm-up."""

_FINE: Final = 2.0**-5
"""Smaller params to ask again with: a pull that is clipped at 1 is in proportion here, and takes
the same course over the steps. One that is divided by its own size is not in proportion here
either; one divided by a constant and the sum of its squares, as by Adagrad, takes another course.
"""

_ROUNDING: Final = 2.0**-36
"""Beside the highest rate, less than this is what rounding leaves where a decay is taken back."""


def probe(update: Update, paths: tuple[str, ...]) -> Mapping[str, Behaviour]:
    """Takes steps side by side: with params and their negative, even and uneven, pushed and not.

    A decay is what changes its sign with the params: of the two updates, half the difference. They
    stay where they are; only the state goes on. All is computed in float64.

    What decays without a gradient is what counts. Only where that is nothing, or not a number, the
    same is asked under a gradient, which some optimizers need to set their step.

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
        found = _run(machine, 1.0)
        if any(each.rate and not each.proportional for each in found):
            fine = _run(machine, _FINE)
            found = [
                b if b.proportional and not a.proportional and alike(a.course, b.course) else a
                for a, b in zip(found, fine, strict=True)
            ]
    found = _signed(_rated(found))
    return {path: found[kind] for path, kind in zip(paths, machine.kind_of, strict=True)}


def _run(machine: Machine, scale: float) -> list[Behaviour]:
    """What the optimizer does to each kind of leaf, on params of one scale."""
    readers = [Reader(kind.leaf.shape, scale) for kind in machine.kinds]
    readings: list[list[Reading]] = [[] for _ in readers]
    for number, updates in enumerate(machine.steps(scale)):
        for kind, reader, past in zip(machine.kinds, readers, readings, strict=True):
            past.append(reader.read(updates[kind.updates[min(number, len(kind.updates) - 1)]]))
        if number + 1 >= _steps_to_take(readings):
            break
    return [behaviour_of(past) for past in readings]


def _steps_to_take(readings: list[list[Reading]]) -> int:
    """How long to go on, given what has moved and what has decayed so far."""
    moved = [any(reading.moved for reading in past) for past in readings]
    if not any(moved):
        return AT_MOST
    decays = any(reading.rate or reading.pushed for past in readings for reading in past)
    return _LEAST if all(moved) and decays else PATIENCE


def _rated(found: list[Behaviour]) -> list[Behaviour]:
    """With the rate that counts: that without a gradient, or if there is none, that under one."""
    if not any(each.rate for each in found):
        found = [
            dataclasses.replace(each, rate=each.pushed, proportional=True, centre=0.0)
            for each in found
        ]
    top = max(abs(each.rate) for each in found)
    return [
        each if abs(each.rate) > _ROUNDING * top else dataclasses.replace(each, rate=0.0)
        for each in found
    ]


def _signed(found: list[Behaviour]) -> list[Behaviour]:
    """With rates that are negative where a leaf grows.

    A pull away from 0 is growth where what is returned is ready to be added, as it is if some leaf
    descends its gradient. Where all climb, it is a part of a chain whose sign is still to come.
    """
    if any(each.answer < 0 for each in found) or not any(each.answer > 0 for each in found):
        return found
    return [dataclasses.replace(each, rate=float(np.abs(each.rate))) for each in found]
