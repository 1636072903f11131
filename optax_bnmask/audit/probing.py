"""Running an optimizer on chosen params: what it does to a leaf that no gradient asks to move."""

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_bnmask.paths import layout

_LEAST: Final = 8
"""Steps that are always taken: a decay may have a schedule of its own that starts at 0."""

_PATIENCE: Final = 64
"""Steps to wait for leaves that do not move, as under `optax.MultiSteps`, and for any decay."""

_AT_MOST: Final = 512
"""Steps to wait while nothing moves at all, as before a long warm-up."""

_ALONG: Final = 0.5
"""The least cosine between a leaf and its decay; less is noise that a trust ratio stretches."""

_ROUNDING: Final = 2.0**-20
"""Beside the highest rate, less than this is what rounding leaves where a decay is taken back."""


class Probe(NamedTuple):
    """What was seen of each leaf, by path.

    Attributes:
      rates: The share of itself that it loses in the first step in which it loses any.
      moved: Whether a gradient moves it.
      steps: How many steps were taken.
      broken: The leaves whose updates were not finite, with a gradient or without.
    """

    rates: dict[str, float]
    moved: dict[str, bool]
    steps: int
    broken: tuple[str, ...]


class _Pair(NamedTuple):
    """Two updates of a leaf compared, as arrays over the leaves.

    Attributes:
      rate: Half their difference along the params, as a share of the params.
      differ: Whether they differ.
      finite: Whether both are finite.
    """

    rate: Any
    differ: Any
    finite: Any


def probe(tx: Any, shapes: Any) -> Probe:  # noqa: ANN401 - an optimizer, any pytree
    """Takes steps side by side: with params and with their negative, with a gradient and without.

    A decay is what changes its sign with the params: of the two updates, half the difference. What
    depends on their norm alone, as a trust ratio does, or not on them at all, as noise, is gone
    with that. The params are 1 and -1 like the fields of a chessboard: of one size, so that rates
    compare even where an optimizer normalises the decay, and of mean 0 along every axis, so that
    centring leaves them as they are. They stay where they are; only the state goes on.

    What decays without a gradient is what counts. Only where that is nothing, or not a number, the
    same is asked under a gradient, which some optimizers need to set their step.

    Args:
      tx: The optimizer.
      shapes: The params' shapes.

    Returns:
      The `Probe`.
    """
    if not jax.tree.leaves(shapes):
        return Probe({}, {}, 0, ())
    tx = optax.with_extra_args_support(tx)
    board, minus = _filled(shapes, _chessboard), _filled(shapes, _negative)
    zero, push = _filled(shapes, np.zeros), _filled(shapes, _uneven)
    runs = ((zero, board), (zero, minus), (push, board), (push, minus))
    states = [tx.init(params) for _, params in runs]
    update, compare = jax.jit(with_losses(tx.update)), jax.jit(_compared)
    paths = tuple(layout(board).leaves)
    quiet, pushed = np.zeros(len(paths)), np.zeros(len(paths))
    moved, broken = np.zeros(len(paths), bool), np.zeros((2, len(paths)), bool)
    steps = 0
    while steps < _steps_to_take(moved, quiet, pushed):
        steps += 1
        taken = [update(*run, state) for run, state in zip(runs, states, strict=True)]
        updates, states = [made for made, _ in taken], [state for _, state in taken]
        calm, hard, apart = (
            jax.device_get(compare(updates[one], updates[other], board))
            for one, other in ((0, 1), (2, 3), (0, 2))
        )
        quiet, pushed = np.where(quiet, quiet, calm.rate), np.where(pushed, pushed, hard.rate)
        moved |= apart.differ
        broken |= ~np.stack([calm.finite, hard.finite])
    rates = quiet if np.any(quiet) else pushed
    rates = np.where(rates > _ROUNDING * np.max(rates, initial=0), rates, 0)
    lost = tuple(np.array(paths, object)[broken.all(0) & (rates == 0)])
    found, went = map(float, rates), map(bool, moved)
    return Probe(
        dict(zip(paths, found, strict=True)), dict(zip(paths, went, strict=True)), steps, lost
    )


def _steps_to_take(moved: Any, *rates: Any) -> int:  # noqa: ANN401 - NumPy arrays
    """How long to go on, given what has moved and what has decayed so far."""
    if not np.any(moved):
        return _AT_MOST
    return _LEAST if np.all(moved) and np.any(rates) else _PATIENCE


def with_losses(update: Callable[..., Any]) -> Callable[..., Any]:
    """The update, given also what some optimizers ask for: a loss that has that very gradient."""

    def updated(gradient: Any, params: Any, state: Any) -> Any:  # noqa: ANN401 - pytrees
        def loss(params: Any) -> jax.Array:  # noqa: ANN401 - a pytree
            terms = zip(jax.tree.leaves(gradient), jax.tree.leaves(params), strict=True)
            return sum(
                (jnp.sum(jnp.real(g * p)).astype(jnp.float32) for g, p in terms), start=jnp.ones(())
            )

        asked = {"value": loss(params), "grad": gradient, "value_fn": loss, "obj_fn": loss}
        return update(gradient, state, params, **asked)

    return updated


def _compared(one: Any, other: Any, board: Any) -> _Pair:  # noqa: ANN401 - pytrees
    """Two trees of updates, leaf by leaf in the order of the params."""
    first, second = layout(one).leaves, layout(other).leaves
    pairs = [
        _pair(first[path], second[path], params)
        if path in first
        else _Pair(jnp.zeros(()), jnp.zeros((), bool), jnp.ones((), bool))
        for path, params in layout(board).leaves.items()
    ]
    return _Pair(*(jnp.stack(column) for column in zip(*pairs, strict=True)))


def _pair(one: jax.Array, other: jax.Array, params: jax.Array) -> _Pair:
    """By how much of itself a leaf is pulled along its own direction.

    What points outward is no growth but a chain without the sign of its learning rate.
    """
    one, other, params = (jnp.real(leaf).astype(jnp.float32) for leaf in (one, other, params))
    response = (one - other) / 2
    top = jnp.max(jnp.abs(response), initial=0)
    shape = response / jnp.where(top > 0, top, 1)  # squares neither overflow nor vanish
    pull, size = jnp.abs(jnp.sum(shape * params)), jnp.sum(params**2)
    along = pull >= _ALONG * jnp.sqrt(jnp.sum(shape**2) * size)
    rate = top * pull / jnp.maximum(size, 1)
    rate = jnp.where(along & jnp.isfinite(rate), rate, 0)
    return _Pair(rate, jnp.any(one != other), jnp.all(jnp.isfinite(one) & jnp.isfinite(other)))


def _filled(shapes: Any, fill: Any) -> Any:  # noqa: ANN401 - any pytree, a function of a shape
    """The tree with arrays in place of shapes."""

    def array(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        return jnp.asarray(fill(leaf.shape), leaf.dtype)

    return jax.tree.map(array, shapes)


def _chessboard(shape: tuple[int, ...]) -> Any:  # noqa: ANN401 - a NumPy array
    """1 where the indices add up to an even number, -1 where they do not."""
    return 1 - 2 * (np.indices(shape).sum(0) % 2) if shape else np.ones(())


def _negative(shape: tuple[int, ...]) -> Any:  # noqa: ANN401 - a NumPy array
    """The chessboard with its colours exchanged."""
    return -_chessboard(shape)


def _uneven(shape: tuple[int, ...]) -> Any:  # noqa: ANN401 - a NumPy array
    """The chessboard with every other pair of its fields turned: at a right angle to it."""
    turned = 1 - np.arange(np.prod(shape, dtype=int)).reshape(shape) // 2 % 2 * 2
    return _chessboard(shape) * turned
