"""Tries many claims by few evaluations: all at once, and by bisection where that fails."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NoReturn

import numpy as np

from optax_bnmask.errors import VerificationError
from optax_bnmask.program.cones import Vector
from optax_bnmask.verify.claims import AxisScaling, Claim, Move, max_growth, sum_of_moves
from optax_bnmask.verify.trial import DRAWS, Trial

_MAX_DOWN: Final = 2.0
"""In the last draw each leaf is scaled down, by ``2**2`` at most: epsilons weigh more there."""

_MAX_AT_OWN_PARAMS: Final = 2.0
"""At the user's own parameters each leaf is scaled up by ``2**2`` at most."""

_MAX_DOWN_TOGETHER: Final = 16.0
"""In the last draw a product of all leaves is scaled down by ``2**16`` at most."""

_TIE_BREAKS: Final = 12
"""The number of further moves by which ways of scaling biases with an axis are told apart."""

_SMALLER_PARTS: Final = (0.25, 0.05, 0.01)
"""The parts of a move that are tried, one after the other, where values overflow."""


def largest_error(trial: Trial, claims: Sequence[Claim], far: float) -> float:
    """The largest change of an output by any of some claims, each of which must hold.

    Args:
      trial: The function and the parameters that the claims are tried on.
      claims: The claims, all of one kind.
      far: The power of 2 by which leaves are scaled up at most.

    Raises:
      VerificationError: A claim fails.
    """
    worst = 0.0
    for draw in range(len(trial.draws)):
        own = draw >= DRAWS  # the user's parameters
        power = -_MAX_DOWN if draw == DRAWS - 1 else min(far, _MAX_AT_OWN_PARAMS) if own else far
        moves = [claim.move(power, trial.rng) for claim in claims]
        most = trial.function.headroom
        most = most if power > 0 else min(_MAX_DOWN_TOGETHER, most)
        for batch in _batches(moves, most):
            chosen = [claims[i] for i in batch]
            worst = max(worst, _error_of_batch(trial, draw, chosen, [moves[i] for i in batch]))
    return worst


def added_error(trial: Trial) -> float:
    """The largest change of an output by additions to leaves that, as claimed, change no output.

    To a dead leaf anything is added; to a leaf that may be shifted along an axis, numbers that are
    constant along it.

    Raises:
      VerificationError: An addition changes an output.
    """
    leaves, shifts = trial.analysis.leaves, trial.analysis.shift_axes
    claimed: list[tuple[int, int | None]] = [(i, None) for i, x in enumerate(leaves) if x.dead]
    claimed += [(i, axis) for i, leaf in enumerate(leaves) for axis in shifts.get(leaf.path, ())]
    worst, tolerance = 0.0, trial.function.tolerance
    for draw in range(len(trial.draws) if claimed else 0):
        sign = -1 if draw == 1 else 1  # gains are drawn positive, and may matter by their signs
        base = trial.draws[draw]
        additions = [_addition(trial, base[i], i, axis, sign) for i, axis in claimed]

        def error_of(
            some: Sequence[int], draw: int = draw, additions: Sequence[np.ndarray] = additions
        ) -> float:
            values = list(trial.draws[draw])
            for n in some:
                values[claimed[n][0]] = values[claimed[n][0]] + additions[n]
            return trial.error_of_values(draw, values)

        error = error_of(range(len(claimed)))
        if not np.isfinite(error):
            trial.unseen["What may be added to leaves"] += 1
            continue
        if error > tolerance:
            some = _smallest_failing(
                range(len(claimed)), lambda some, of=error_of: of(some) > tolerance
            )
            said = ", ".join(_described_addition(trial, *claimed[n]) for n in some[:3])
            _raise_refuted(trial, f"{said} changes", error)
        worst = max(worst, error)
    return worst


def _addition(trial: Trial, base: np.ndarray, i: int, axis: int | None, sign: int) -> np.ndarray:
    """What to add to a leaf: numbers constant along `axis`, or any where that is `None`."""
    if axis is None:
        return sign * trial.new_leaf(i) - base
    shape = [1 if a == axis else n for a, n in enumerate(base.shape)]
    if sign < 0:  # far enough to change all signs
        return -float(np.max(np.abs(base), initial=0.0) or 1.0) * trial.rng.uniform(
            1.5, 3.0, size=shape
        )
    size = float(np.sqrt(np.mean(np.square(np.abs(base))))) or 1.0
    return size * trial.rng.normal(size=shape)


def _described_addition(trial: Trial, i: int, axis: int | None) -> str:
    path = trial.analysis.leaves[i].path
    if axis is None:
        return f"Another value of {path!r}, which it calls dead,"
    return f"Adding the same number along axis {axis} of {path!r}"


def _raise_refuted(trial: Trial, said: str, error: float) -> NoReturn:
    raise VerificationError(
        f"What `analysis` calls a symmetry must leave the outputs of `fn` as they are. {said} them "
        f"by {error:.1e}, beside what they do elsewhere; the tolerance is "
        f"{trial.function.tolerance:.1e}, computed in {np.dtype(trial.function.dtype)}. "
        f"{_way_out(trial)}"
    )


def _batches(moves: list[Move], most: float) -> Iterator[list[int]]:
    """The numbers of the moves in batches, each of which grows a product by ``2**most`` at most.

    Moves that are too long by themselves are shortened in place.
    """
    batch, used = list[int](), 0.0
    for i, move in enumerate(moves):
        own = max_growth(move)
        if own > most:
            moves[i], own = _fraction_of(move, most / own), most
        if batch and used + own > most:
            yield batch
            batch, used = list[int](), 0.0
        batch.append(i)
        used += own
    if batch:
        yield batch


def _error_of_batch(
    trial: Trial, draw: int, claims: Sequence[Claim], moves: Sequence[Move]
) -> float:
    """The error of several moves at once, or of halves of them where values overflow."""
    error = trial.error(draw, sum_of_moves(moves))
    if error <= trial.function.tolerance:
        return error
    if np.isfinite(error):
        return _judged(trial, draw, claims, moves)
    if len(claims) == 1:
        return _error_of_smaller_move(trial, draw, claims[0], moves[0])
    middle = len(claims) // 2
    return max(
        _error_of_batch(trial, draw, claims[:middle], moves[:middle]),
        _error_of_batch(trial, draw, claims[middle:], moves[middle:]),
    )


def _error_of_smaller_move(trial: Trial, draw: int, claim: Claim, move: Move) -> float:
    """The error of a claim whose move overflows, by the longest of the parts that does not."""
    for part in _SMALLER_PARTS:
        less = _fraction_of(move, part)
        error = trial.error(draw, less)
        if error <= trial.function.tolerance:
            return error
        if np.isfinite(error):
            return _judged(trial, draw, [claim], [less])
    trial.unseen[claim.description] += 1
    return 0.0


def _fraction_of(move: Move, part: float) -> Move:
    return {i: power * part for i, power in move.items()}


def _judged(trial: Trial, draw: int, claims: Sequence[Claim], moves: Sequence[Move]) -> float:
    """Raises the error that names the claim that fails; 0 where that cannot be told."""

    def error_of(some: Sequence[int]) -> float:
        return trial.error(draw, sum_of_moves(moves[i] for i in some))

    culprits = _smallest_failing(
        range(len(claims)), lambda some: not error_of(some) <= trial.function.tolerance
    )
    claim = claims[culprits[0]]
    said, error = claim.description, error_of(culprits)
    if not np.isfinite(error):  # rounding has grown: see `Trial.error_of_values`
        trial.unseen[said] += 1
        return 0.0
    if len(culprits) > 1:
        said += f", together with {len(culprits) - 1} more that each may be scaled,"
    elif isinstance(claim, AxisScaling):
        said = _described_indices(trial, draw, claim)
    if trial.function.missing_constants and not trial.function.is_double:
        trial.notes.append(
            f"{said} changes the outputs by {error:.1e}, where {_named_missing(trial)} could not "
            f"be made smaller to look on."
        )
        return 0.0
    _raise_refuted(trial, f"{said} changes", error)


def _described_indices(trial: Trial, draw: int, claim: AxisScaling) -> str:
    def fails(some: Sequence[int]) -> bool:
        move = dataclasses.replace(claim, indices=tuple(some)).move(1.0, trial.rng)
        return not trial.error(draw, move) <= trial.function.tolerance

    found = _smallest_failing(range(claim.size), fails)
    which = f"index {found[0]}" if len(found) == 1 else f"indices {', '.join(map(str, found[:8]))}"
    return f"Scaling {which} of {claim.description}"


def _smallest_failing(
    items: Sequence[int], fails: Callable[[Sequence[int]], bool]
) -> Sequence[int]:
    """Bisection: some items that fail together, neither half of which fails by itself."""
    while len(items) > 1:
        middle = len(items) // 2
        half = next((half for half in (items[:middle], items[middle:]) if fails(half)), None)
        if half is None:
            break
        items = half
    return items


def _way_out(trial: Trial) -> str:
    if trial.degenerate_inputs:
        return (
            f"On these inputs little can be told: {trial.degenerate_inputs}. Give examples that "
            f"differ, or `jax.ShapeDtypeStruct`s, for which they are drawn."
        )
    missing = _named_missing(trial)
    missing = f"It has no constant such as {missing}. " if missing else ""
    return (
        f"Is `fn` the function that was analysed, with arguments of the same kind? {missing}If it "
        f"is, this is a bug in the analysis: report it."
    )


def _named_missing(trial: Trial) -> str:
    return " and ".join(f"{c.value:g} in `{c.primitive}`" for c in trial.function.missing_constants)


def with_biases(trial: Trial, claim: AxisScaling, exponents: Vector, far: float) -> AxisScaling:
    """The claim about an axis, with the one of its `alternatives` that holds.

    If none holds, one that cannot be tried, as values overflow, is preferred to one that is wrong.
    """
    ways = list(claim.alternatives(exponents))
    if len(ways) == 1:  # no bias goes along: whether it is right, `largest_error` sees
        return ways[0]
    draws, tolerance = range(len(trial.draws)), trial.function.tolerance
    right, untold = list[AxisScaling](), list[AxisScaling]()
    for way in ways:
        if right and not _is_rival(way, right[0]):
            continue
        errors = [_error_of_way(trial, draw, way, far) for draw in draws]
        if max(errors) <= tolerance:
            right.append(way)
        elif all(error <= tolerance or np.isinf(error) for error in errors):
            untold.append(way)
    # Two entries, normalised, are signs: a wrong way may pass until one of them flips.
    for n in range(_TIE_BREAKS):
        if len(right) < 2:
            break
        draw = draws[n % len(draws)]
        still = [way for way in right if _error_of_way(trial, draw, way, far) <= tolerance]
        right = still or right
    return next(iter([*right, *untold, *ways]), claim)


def _is_rival(way: AxisScaling, right: AxisScaling) -> bool:
    """Whether a way scales as many biases as one that holds, all of them index by index."""
    return len(way.biases) == len(right.biases) and all(b.axis is not None for b in way.biases)


def _error_of_way(trial: Trial, draw: int, way: AxisScaling, far: float) -> float:
    return trial.error(draw, way.move(far, trial.rng))


def unseen(trial: Trial) -> tuple[str, ...]:
    """The claims that could not be looked at, at any of the draws."""
    return tuple(said for said, draws in trial.unseen.items() if draws >= DRAWS)
