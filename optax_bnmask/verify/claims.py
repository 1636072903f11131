"""Are the claims right? Scale far what is called invariant, and look whether anything moves."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction

import numpy as np

from optax_bnmask.analysis import Scale
from optax_bnmask.errors import VerificationError
from optax_bnmask.program.equations import Number
from optax_bnmask.verify.measuring import Outputs, change
from optax_bnmask.verify.trial import Trial, Vector

_DOUBLINGS = 40
"""How often a symmetry is doubled at most before its epsilons must have become negligible."""
_STEEPEST = 4096.0
"""What an epsilon does shrinks by a power of 2 at each doubling. What shrinks faster than this is
a nonlinearity that saturates, and no invariance."""


def far(trial: Trial, scale: Scale) -> list[float]:
    """The error far along the symmetries that scale the leaves of one kind."""
    numbers = [i for i, leaf in enumerate(trial.analysis.leaves) if leaf.scale is scale]
    if not numbers:
        return []
    if scale is Scale.JOINT:
        cone = trial.proof.found.cone
        return [_climb(trial, cone, lambda: _blamed_groups(trial, cone))]
    return [_climb(trial, _together(trial, numbers), lambda: _blamed_leaves(trial, numbers))]


def _together(trial: Trial, numbers: Sequence[int]) -> Vector:
    """All witnesses at once: a sum of symmetries is one."""
    out: dict[int, Number] = {}
    for i in numbers:
        for j, s in trial.witness(i).items():
            out[j] = out.get(j, 0) + s
    return out


def _error_along(trial: Trial, vector: Vector) -> float:
    """The change from far along a symmetry to farther still, by the factor asked for.

    Doubling goes on until it changes nothing, at the pace at which epsilons become negligible.
    """
    top = max((abs(s) for s in vector.values()), default=1)
    vector = {i: Fraction(s) / max(top, 1) for i, s in vector.items()}
    tolerance, last, before = trial.measured.tolerance, 0.0, trial.at({})
    for doubled in range(_DOUBLINGS):
        here = trial.at(trial.powers(vector, 2.0 ** (doubled + 1)))
        error = change(here, before)
        if last > _STEEPEST * max(error, 1e-3 * tolerance) or not np.isfinite(error):
            return max(last, error)
        if error <= tolerance:
            farther = change(trial.at(trial.powers(vector, trial.factor * 2.0**doubled)), before)
            if farther <= tolerance:
                trial.far = max(trial.far, doubled)
                return farther
        last, before = error, here
    return last


def _climb(trial: Trial, vector: Vector, blamed: Callable[[], str]) -> float:
    error = _error_along(trial, vector)
    if not error <= trial.measured.tolerance:
        raise VerificationError(
            f"Scaling what `analysis` calls invariant must not change the outputs of `fn`. "
            f"{blamed()} The tolerance is {trial.measured.tolerance:.1e}, in "
            f"{np.dtype(trial.measured.dtype)}. Is `fn` the function that was analysed, with "
            f"arguments of the same kind? If so, this is a bug in the analysis: report it."
        )
    return error


def _blamed_leaves(trial: Trial, numbers: Sequence[int]) -> str:
    culprits = _halved(
        list(numbers),
        lambda some: not _error_along(trial, _together(trial, some)) <= trial.measured.tolerance,
    )
    if not culprits:
        return "Scaling all invariant leaves together changes them, though each alone does not."
    i = culprits[0]
    error = _error_along(trial, trial.witness(i))
    with_others = [trial.analysis.leaves[j].path for j in trial.witness(i) if j != i]
    others = f" with {with_others}" if with_others else ""
    more = f", and {len(culprits) - 1} more leaves" if len(culprits) > 1 else ""
    return f"Scaling {trial.analysis.leaves[i].path!r}{others} changes them by {error:.1e}{more}."


def _blamed_groups(trial: Trial, cone: Vector) -> str:
    for number, group in enumerate(trial.analysis.groups):
        inside = {trial.number[path] for path in group}
        part = {i: s for i, s in cone.items() if i in inside}
        error = _error_along(trial, part)
        if not error <= trial.measured.tolerance:
            return f"Scaling group {number}, {sorted(group)}, changes them by {error:.1e}."
    error = _error_along(trial, cone)
    return f"Scaling all jointly invariant leaves together changes them by {error:.1e}."


def combined(trial: Trial) -> float:
    """The error of a random combination of all symmetries, far along the cone."""
    basis = [
        {trial.number[path]: s for path, s in vector.items()}
        for vector in trial.analysis.symmetries
    ]
    if not basis:
        return 0.0
    tolerance = trial.measured.tolerance
    weights = trial.rng.choice([-2, -1, -0.5, 0.5, 1, 2], size=len(basis)).tolist()
    error = _error_of(trial, basis, weights)
    if error <= tolerance:
        return error
    culprits = _halved(
        list(range(len(basis))),
        lambda some: not _error_of(trial, [basis[i] for i in some], [1.0] * len(some)) <= tolerance,
    )
    of = [trial.analysis.symmetries[i] for i in culprits] or list(trial.analysis.symmetries)
    named = ", ".join(f"{path!r}: {s}" for path, s in of[0].items())
    raise VerificationError(
        f"Every symmetry of `analysis` must leave the outputs of `fn` as they are. Scaling by "
        f"c**s with s = {{{named}}}{f' and {len(of) - 1} others' if len(of) > 1 else ''} changes "
        f"them by {error:.1e}, over the tolerance of {tolerance:.1e}. Is `fn` the function that "
        f"was analysed? If so, this is a bug in the analysis: report it."
    )


def _error_of(trial: Trial, basis: Sequence[Vector], weights: Sequence[float]) -> float:
    """The change by one combination, where it is least: epsilons may demand to go farther."""
    exponents: dict[int, float] = {}
    for vector, weight in zip(basis, weights, strict=True):
        for i, s in vector.items():
            exponents[i] = exponents.get(i, 0.0) + weight * float(s)
    top = max(1.0, max(map(abs, exponents.values()), default=1.0) / 2)
    least = np.inf
    for more in (1, 8, 16):
        there = trial.along_cone(trial.far + more)
        moved = {i: there.get(i, 1.0) * 2.0 ** (s / top) for i, s in exponents.items()}
        least = min(least, change(trial.at({**there, **moved}), trial.at(there)))
        if least <= trial.measured.tolerance:
            break
    return float(least)


def axes(trial: Trial) -> tuple[int, float]:
    """How many axes are claimed invariant index by index, and the largest error."""
    count, worst = 0, 0.0
    there = trial.along_cone(trial.far + 8)
    before = trial.at(there)
    for i, leaf in enumerate(trial.analysis.leaves):
        for axis in leaf.invariant_axes:
            count += 1
            error = _error_at(trial, i, axis, there, before)
            if error > trial.measured.tolerance:
                raise VerificationError(
                    f"Every index along `invariant_axes` may be scaled alone. Scaling one "
                    f"index of axis {axis} of {leaf.path!r} changes the outputs by "
                    f"{error:.1e}, over the tolerance of {trial.measured.tolerance:.1e}. Is `fn` "
                    f"the function that was analysed? If so, this is a bug: report it."
                )
            worst = max(worst, error)
    return count, worst


def _error_at(
    trial: Trial, i: int, axis: int, there: Mapping[int, float], before: Outputs
) -> float:
    """The change when a random index is scaled, with whichever part of its biases goes along."""
    least = np.inf
    index = int(trial.rng.integers(trial.analysis.leaves[i].shape[axis]))
    for factors in _at_index(trial, i, axis, index):
        moved = {j: there.get(j, 1.0) * by for j, by in factors.items()}
        least = min(least, change(trial.at({**there, **moved}), before))
        if least <= trial.measured.tolerance:
            break
    return float(least)


def _at_index(trial: Trial, i: int, axis: int, index: int) -> Iterator[dict[int, np.ndarray]]:
    leaves = trial.analysis.leaves
    size = leaves[i].shape[axis]

    def one(shape: tuple[int, ...], place: int) -> np.ndarray:
        out = np.ones(shape)
        out[(slice(None),) * place + (index,)] = trial.factor
        return out

    own = {i: one(leaves[i].shape, axis)}
    places = [
        [None, *[(j, a) for a, n in enumerate(leaves[j].shape) if n == size]]
        for j in trial.witness(i)
        if j != i
    ]
    for choice in itertools.islice(itertools.product(*[p[::-1] for p in places]), 64):
        with_biases = {c[0]: one(leaves[c[0]].shape, c[1]) for c in choice if c}
        yield {**own, **with_biases}


def _halved(items: list[int], fails: Callable[[list[int]], bool]) -> list[int]:
    """The items that fail by themselves, found by halving."""
    if not items or not fails(items):
        return []
    if len(items) == 1:
        return items
    middle = len(items) // 2
    return [*_halved(items[:middle], fails), *_halved(items[middle:], fails)]
