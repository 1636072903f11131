"""Running an optimizer on chosen params: what it does to a leaf that no gradient asks to move."""

from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_bnmask.paths import layout

_LEAST: Final = 8
"""Steps that are always taken: a decay may have a schedule of its own that starts at 0."""

_PATIENCE: Final = 64
"""Steps to wait for leaves that do not move, as under `optax.MultiSteps`."""

_AT_MOST: Final = 2048
"""Steps to wait while nothing moves at all, as before a long warm-up."""

_ALONG: Final = 0.5
"""The least cosine between a leaf and its decay; less is noise that a trust ratio stretches."""


class Probe(NamedTuple):
    """What was seen of each leaf, by path.

    Attributes:
      rates: The share of itself that it loses in the first step in which it loses any.
      moved: Whether a gradient moves it.
      steps: How many steps were taken.
    """

    rates: dict[str, float]
    moved: dict[str, bool]
    steps: int


def probe(tx: Any, shapes: Any) -> Probe:  # noqa: ANN401 - an optimizer, any pytree
    """Takes steps side by side: with params and without, with a gradient and without.

    The params are 1 and -1 like the fields of a chessboard: of one size, so that rates compare even
    where an optimizer normalises the decay, and of mean 0 along every axis, so that centring leaves
    them as they are. Without a gradient, what is left of the update once that of zero params is
    taken away (noise, say) is the decay. The params stay where they are; only the state goes on.

    Args:
      tx: The optimizer.
      shapes: The params' shapes.

    Returns:
      The `Probe`.
    """
    tx = optax.with_extra_args_support(tx)
    board = _filled(shapes, _chessboard)
    zero = _filled(shapes, np.zeros)
    update = jax.jit(tx.update)
    runs = {"decayed": (zero, board), "empty": (zero, zero), "pushed": (board, zero)}
    states = {name: tx.init(params) for name, (_, params) in runs.items()}
    chosen = {path: np.real(leaf).astype(float) for path, leaf in layout(board).leaves.items()}
    rates, moved = dict.fromkeys(chosen, 0.0), dict.fromkeys(chosen, False)
    steps = 0
    while steps < _steps_to_take(moved):
        steps += 1
        seen = {}
        for name, (gradient, params) in runs.items():
            updates, states[name] = update(gradient, states[name], params)
            leaves = layout(updates).leaves
            seen[name] = {path: np.real(leaf).astype(float) for path, leaf in leaves.items()}
        for path, params in chosen.items():
            still = seen["empty"].get(path, np.zeros(()))
            rates[path] = rates[path] or _rate(seen["decayed"].get(path, still) - still, params)
            moved[path] |= bool(np.any(seen["pushed"].get(path, still) != still))
    return Probe(rates, moved, steps)


def _steps_to_take(moved: dict[str, bool]) -> int:
    """How long to go on, given what has moved so far."""
    if all(moved.values()):
        return _LEAST
    return _PATIENCE if any(moved.values()) else _AT_MOST


def _rate(response: Any, params: Any) -> float:  # noqa: ANN401 - NumPy arrays
    """By how much of itself a leaf is pulled along its own direction.

    What points outward is no growth but a chain without the sign of its learning rate.
    """
    pull, size = abs(np.sum(response * params)), np.sqrt(np.sum(params**2))
    along = pull >= _ALONG * np.sqrt(np.sum(response**2)) * size
    return float(pull / size**2) if along and size and np.isfinite(pull) else 0.0


def _filled(shapes: Any, fill: Any) -> Any:  # noqa: ANN401 - any pytree, a function of a shape
    """The tree with arrays in place of shapes."""

    def array(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        return jnp.asarray(fill(leaf.shape), leaf.dtype)

    return jax.tree.map(array, shapes)


def _chessboard(shape: tuple[int, ...]) -> Any:  # noqa: ANN401 - a NumPy array
    """1 where the indices add up to an even number, -1 where they do not."""
    return 1 - 2 * (np.indices(shape).sum(0) % 2) if shape else np.ones(())
