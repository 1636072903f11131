"""What an analysis does not claim: leaves that it missed, dead biases, weakness at hand."""

from collections.abc import Mapping

import numpy as np

from optax_bnmask.analysis import Role, Scale
from optax_bnmask.verify.drawing import drawn_leaf, is_abstract
from optax_bnmask.verify.measuring import Outputs, change
from optax_bnmask.verify.trial import Trial, plain
from optax_bnmask.verify.verification import Weak

_WEAK = 0.01
_BIASES = (Role.BIAS, Role.NORM_BIAS)


def sensitive(trial: Trial) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The leaves whose scale moved nothing though it was not claimed, and the dead biases."""
    there = trial.along_cone(trial.far + 8)
    before = trial.at(there)
    missed: list[str] = []
    dead: list[str] = []
    for i, leaf in enumerate(trial.analysis.leaves):
        if leaf.scale in (Scale.UNUSED, Scale.UNKNOWN):
            continue
        if leaf.role in _BIASES and _is_dead(trial, i, there, before):
            dead.append(leaf.path)
            continue
        if leaf.scale is Scale.INVARIANT or not _is_unmoved(trial, i, there, before):
            continue
        if leaf.role in _BIASES or not _is_dead(trial, i, there, before):
            missed.append(leaf.path)
    return tuple(missed), tuple(dead)


def _is_dead(trial: Trial, i: int, there: Mapping[int, float], before: Outputs) -> bool:
    leaf = trial.analysis.leaves[i]
    base = list(trial.base)
    base[i] = drawn_leaf(leaf, trial.own[i], trial.rng)
    return change(trial.at(there, base), before) <= trial.measured.tolerance


def _is_unmoved(trial: Trial, i: int, there: Mapping[int, float], before: Outputs) -> bool:
    for with_biases in ((i,), (i, *trial.proof.biases[i])):
        errors = []
        for by in (2.0, 0.5):
            moved = {j: there.get(j, 1.0) * by for j in with_biases}
            errors.append(change(trial.at({**there, **moved}), before))
            if errors[-1] > trial.measured.tolerance:
                break
        if max(errors) <= trial.measured.tolerance:
            return True
    return False


def weak(trial: Trial) -> tuple[Weak, ...]:
    """The invariances that do not hold at the user's own parameters."""
    if any(map(is_abstract, trial.own)):
        trial.notes.append("`params` are known by shape only: weakness was not looked at.")
        return ()
    base = [plain(value) for value in trial.own]
    before = trial.at({}, base)
    if all(not np.any(y) for y in before):
        trial.notes.append("All outputs are 0 at `params`: weakness cannot be seen there.")
    out = []
    for i, leaf in enumerate(trial.analysis.leaves):
        if leaf.scale is Scale.INVARIANT:
            by = {j: 2.0 ** float(s) for j, s in trial.witness(i).items()}
            moved = change(trial.at(by, base), before)
            if moved > _WEAK:
                out.append(Weak(leaf.path, moved))
    return tuple(sorted(out, key=lambda w: -w.change))
