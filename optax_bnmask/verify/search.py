"""Many claims by few evaluations: all at once, and halving where that fails."""

from collections.abc import Callable, Iterator, Sequence
from typing import Final, NoReturn

import numpy as np

from optax_bnmask.errors import VerificationError
from optax_bnmask.program.cones import Vector
from optax_bnmask.verify.claims import Claim, EachIndex, Move, added, bits
from optax_bnmask.verify.trial import DRAWS, Trial

_DOWN: Final = 2.0
"""In the last draw leaves are scaled down, by a factor of 4 at most: epsilons weigh more there."""

_AT_HAND: Final = 2.0
"""At the user's own parameters, leaves are scaled by a factor of 4 at most."""

_DOWN_ALL: Final = 16.0
"""In the last draw, all leaves together are scaled down by so many powers of 2 at most."""

_FLIPS: Final = 12
"""So many more moves are tried to tell apart several ways in which biases scale with an axis."""

_RETREATS: Final = (0.25, 0.05, 0.01)
"""A claim whose move overflows by itself is tried with these parts of it."""


def largest_error(trial: Trial, claims: Sequence[Claim], far: float) -> float:
    """The largest change of an output by any of some claims, each of which must hold.

    Args:
      trial: What they are tried on.
      claims: The claims, all of one kind.
      far: By how many powers of 2 to scale leaves up at most.

    Raises:
      VerificationError: A claim fails.
    """
    worst = 0.0
    for draw in range(len(trial.draws)):
        way = -_DOWN if draw == DRAWS - 1 else far if draw < DRAWS else min(far, _AT_HAND)
        moves = [claim.move(way, trial.rng) for claim in claims]
        most = trial.measured.bits if way > 0 else min(_DOWN_ALL, trial.measured.bits)
        for part in _parts(moves, most):
            chosen = [claims[i] for i in part]
            worst = max(worst, _error(trial, draw, chosen, [moves[i] for i in part]))
    return worst


def added_error(trial: Trial) -> float:
    """The largest change of an output by additions to leaves that must, as claimed, change none.

    Dead leaves take other values; to leaves that may be shifted along an axis, something is added
    that is constant along it.

    Raises:
      VerificationError: Something that is added changes an output.
    """
    leaves, shifts = trial.analysis.leaves, trial.analysis.shift_axes
    claimed: list[tuple[int, int | None]] = [(i, None) for i, x in enumerate(leaves) if x.dead]
    claimed += [(i, axis) for i, leaf in enumerate(leaves) for axis in shifts.get(leaf.path, ())]
    worst, tolerance = 0.0, trial.measured.tolerance
    for draw in range(len(trial.draws) if claimed else 0):
        sign = -1 if draw == 1 else 1  # gains are drawn positive, and may matter by their signs
        base = trial.draws[draw]
        added = [_other(trial, base[i], i, axis, sign) for i, axis in claimed]

        def error_of(
            some: Sequence[int], draw: int = draw, added: Sequence[np.ndarray] = added
        ) -> float:
            values = list(trial.draws[draw])
            for n in some:
                values[claimed[n][0]] = values[claimed[n][0]] + added[n]
            return trial.error_at(draw, values)

        error = error_of(range(len(claimed)))
        if not np.isfinite(error):
            trial.unseen["What may be added to leaves"] += 1
            continue
        if error > tolerance:
            some = _smallest(range(len(claimed)), lambda some, of=error_of: of(some) > tolerance)
            said = ", ".join(_said_of_added(trial, *claimed[n]) for n in some[:3])
            _refuse(trial, f"{said} changes", error)
        worst = max(worst, error)
    return worst


def _other(trial: Trial, base: np.ndarray, i: int, axis: int | None, sign: int) -> np.ndarray:
    """What is added to a leaf: anything, or what is constant along an axis."""
    if axis is None:
        return sign * trial.leaf(i) - base
    shape = [1 if a == axis else n for a, n in enumerate(base.shape)]
    if sign < 0:  # far enough to change all signs
        return -float(np.max(np.abs(base), initial=0.0) or 1.0) * trial.rng.uniform(
            1.5, 3.0, size=shape
        )
    size = float(np.sqrt(np.mean(np.square(np.abs(base))))) or 1.0
    return size * trial.rng.normal(size=shape)


def _said_of_added(trial: Trial, i: int, axis: int | None) -> str:
    path = trial.analysis.leaves[i].path
    if axis is None:
        return f"Another value of {path!r}, which it calls dead,"
    return f"Adding the same number along axis {axis} of {path!r}"


def _refuse(trial: Trial, said: str, error: float) -> NoReturn:
    raise VerificationError(
        f"What `analysis` calls a symmetry must leave the outputs of `fn` as they are. {said} them "
        f"by {error:.1e}, beside what they do elsewhere; the tolerance is "
        f"{trial.measured.tolerance:.1e}, computed in {np.dtype(trial.measured.dtype)}. "
        f"{_way_out(trial)}"
    )


def _parts(moves: list[Move], most: float) -> Iterator[list[int]]:
    """Batches of claims whose moves, added, cannot make a product of all leaves overflow."""
    part, used = list[int](), 0.0
    for i, move in enumerate(moves):
        own = bits(move)
        if own > most:
            moves[i], own = _less(move, most / own), most
        if part and used + own > most:
            yield part
            part, used = list[int](), 0.0
        part.append(i)
        used += own
    if part:
        yield part


def _error(trial: Trial, draw: int, claims: Sequence[Claim], moves: Sequence[Move]) -> float:
    error = trial.error(draw, added(moves))
    if error <= trial.measured.tolerance:
        return error
    if np.isfinite(error):
        return _blamed(trial, draw, claims, moves)
    if len(claims) == 1:
        return _retreated(trial, draw, claims[0], moves[0])
    middle = len(claims) // 2
    return max(
        _error(trial, draw, claims[:middle], moves[:middle]),
        _error(trial, draw, claims[middle:], moves[middle:]),
    )


def _retreated(trial: Trial, draw: int, claim: Claim, move: Move) -> float:
    """The error of a claim whose move overflows, by the longest of `_RETREATS` that does not."""
    for part in _RETREATS:
        less = _less(move, part)
        error = trial.error(draw, less)
        if error <= trial.measured.tolerance:
            return error
        if np.isfinite(error):
            return _blamed(trial, draw, [claim], [less])
    trial.unseen[claim.said] += 1
    return 0.0


def _less(move: Move, part: float) -> Move:
    return {i: power * part for i, power in move.items()}


def _blamed(trial: Trial, draw: int, claims: Sequence[Claim], moves: Sequence[Move]) -> float:
    """Raises the error that names the claim that fails, unless nothing can be said of it."""

    def fails(some: Sequence[int]) -> bool:
        return not trial.error(draw, added(moves[i] for i in some)) <= trial.measured.tolerance

    culprits = _smallest(range(len(claims)), fails)
    claim = claims[culprits[0]]
    said, error = claim.said, trial.error(draw, added(moves[i] for i in culprits))
    if not np.isfinite(error):  # once more, rounding has grown
        trial.unseen[said] += 1
        return 0.0
    if len(culprits) > 1:
        said += f", together with {len(culprits) - 1} more that each may be scaled,"
    elif isinstance(claim, EachIndex):
        said = _said_of_indices(trial, draw, claim)
    if trial.measured.unmet and not trial.measured.is_double:
        trial.notes.append(
            f"{said} changes the outputs by {error:.1e}, where {_unmet(trial)} could not be made "
            f"smaller to look on."
        )
        return 0.0
    _refuse(trial, f"{said} changes", error)


def _said_of_indices(trial: Trial, draw: int, claim: EachIndex) -> str:
    def fails(some: Sequence[int]) -> bool:
        move = claim.at(some).move(1.0, trial.rng)
        return not trial.error(draw, move) <= trial.measured.tolerance

    found = _smallest(range(claim.size), fails)
    which = f"index {found[0]}" if len(found) == 1 else f"indices {', '.join(map(str, found[:8]))}"
    return f"Scaling {which} of {claim.said}"


def _smallest(items: Sequence[int], fails: Callable[[Sequence[int]], bool]) -> Sequence[int]:
    """Some items that fail together, of which neither half fails by itself."""
    while len(items) > 1:
        middle = len(items) // 2
        half = next((half for half in (items[:middle], items[middle:]) if fails(half)), None)
        if half is None:
            break
        items = half
    return items


def _way_out(trial: Trial) -> str:
    if trial.degenerate:
        return (
            f"On these inputs little can be told: {trial.degenerate}. Give examples that differ, "
            f"or `jax.ShapeDtypeStruct`s, for which they are drawn."
        )
    unmet = f"It has no constant such as {_unmet(trial)}. " if trial.measured.unmet else ""
    return (
        f"Is `fn` the function that was analysed, with arguments of the same kind? {unmet}If it "
        f"is, this is a bug in the analysis: report it."
    )


def _unmet(trial: Trial) -> str:
    return " and ".join(f"{c.value:g} in `{c.primitive}`" for c in trial.measured.unmet)


def placed(trial: Trial, claim: EachIndex, biases: Vector, far: float) -> EachIndex:
    """The claim about an axis, with a way of scaling its biases along that makes it hold, if any.

    If there is none, a way that cannot be tried, as values overflow, is preferred to a wrong one.
    """
    ways = list(claim.alternatives(biases))
    if len(ways) == 1:  # no bias goes along: whether it is right, `largest_error` sees
        return ways[0]
    draws, tolerance = range(len(trial.draws)), trial.measured.tolerance
    right, blurred = list[EachIndex](), list[EachIndex]()
    for way in ways:
        if right and not _rivals(way, right[0]):
            continue
        errors = [_error_of_way(trial, draw, way, far) for draw in draws]
        if max(errors) <= tolerance:
            right.append(way)
        elif all(error <= tolerance or np.isinf(error) for error in errors):
            blurred.append(way)
    # Two entries, normalised, are signs: a wrong way may pass until one of them flips.
    for n in range(_FLIPS):
        if len(right) < 2:
            break
        draw = draws[n % len(draws)]
        still = [way for way in right if _error_of_way(trial, draw, way, far) <= tolerance]
        right = still or right
    return next(iter([*right, *blurred, *ways]), claim)


def _rivals(way: EachIndex, right: EachIndex) -> bool:
    """Whether a way scales as many biases index by index, all of them, as one that holds."""
    along = [place for place in way.places if place.axis is not None]
    return len(along) == len(way.places) == len(right.places)


def _error_of_way(trial: Trial, draw: int, way: EachIndex, far: float) -> float:
    return trial.error(draw, way.move(far, trial.rng))


def unseen(trial: Trial) -> tuple[str, ...]:
    """The claims that could not be looked at, at any of the draws."""
    return tuple(said for said, draws in trial.unseen.items() if draws >= DRAWS)
