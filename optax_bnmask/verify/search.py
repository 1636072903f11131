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

_DOWN_ALL: Final = 16.0
"""And all of them together by so many powers of 2."""

_RETREATS: Final = (0.25, 0.05, 0.01)
"""A claim whose move overflows by itself is tried with these parts of it."""


def largest_error(trial: Trial, claims: Sequence[Claim], far: float) -> float:
    """The largest change of an output by any of some claims, each of which must hold.

    Args:
      trial: What they are tried on.
      claims: The claims, all of one kind.
      far: How many powers of 2 to go.

    Raises:
      VerificationError: A claim fails.
    """
    worst = 0.0
    for draw in range(DRAWS):
        way = -_DOWN if draw == DRAWS - 1 else far
        moves = [claim.move(way, trial.rng) for claim in claims]
        most = trial.measured.bits if way > 0 else min(_DOWN_ALL, trial.measured.bits)
        for part in _parts(moves, most):
            chosen = [claims[i] for i in part]
            worst = max(worst, _error(trial, draw, chosen, [moves[i] for i in part]))
    return worst


def dead_error(trial: Trial) -> float:
    """The largest change of an output when leaves that are called dead take other values.

    Raises:
      VerificationError: One of them is not.
    """
    dead, worst = [i for i, leaf in enumerate(trial.analysis.leaves) if leaf.dead], 0.0

    def error_of(draw: int, some: Sequence[int]) -> float:
        base = [others[i] if i in some else x for i, x in enumerate(trial.draws[draw])]
        return trial.error_at(draw, base)

    for draw in range(DRAWS if dead else 0):
        sign = -1 if draw == 1 else 1  # gains are drawn positive, and may matter by their signs
        others = {i: sign * trial.leaf(i) for i in dead}
        error = error_of(draw, dead)
        if np.isfinite(error) and error > trial.measured.tolerance:
            culprits = _smallest(
                dead, lambda some, d=draw: error_of(d, some) > trial.measured.tolerance
            )
            paths = ", ".join(repr(trial.analysis.leaves[i].path) for i in culprits[:3])
            _refuse(trial, f"Other values of {paths}, which it calls dead, change", error)
        worst = max(worst, error if np.isfinite(error) else 0.0)
        if not np.isfinite(error):
            trial.unseen["Other values of the dead leaves"] += 1
    return worst


def _refuse(trial: Trial, said: str, error: float) -> NoReturn:
    raise VerificationError(
        f"What `analysis` calls a symmetry must leave the outputs of `fn` as they are. {said} them "
        f"by {error:.1e}, beside what they do elsewhere; the tolerance is "
        f"{trial.measured.tolerance:.1e}, computed in {np.dtype(trial.measured.dtype)}. "
        f"{_way_out(trial)}"
    )


def _parts(moves: list[Move], most: float) -> Iterator[list[int]]:
    """The claims, as many at once as cannot make a value overflow that every leaf multiplies."""
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
    """The error of a claim whose move overflows, not so far from where it does not."""
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
    """The claim about an axis, with its biases going along in a way that makes it right, if any."""
    first: EachIndex | None = None
    for way in claim.alternatives(biases):
        first = first or way
        # Two entries, normalised, are signs: a wrong way may pass until one of them flips.
        moves = [way.move(far, trial.rng) for _ in range(DRAWS)]
        errors = (trial.error(draw, move) for draw, move in enumerate(moves))
        if all(error <= trial.measured.tolerance for error in errors):
            return way
    return first or claim


def unseen(trial: Trial) -> tuple[str, ...]:
    """The claims that could not be looked at, at any of the draws."""
    return tuple(said for said, draws in trial.unseen.items() if draws == DRAWS)
