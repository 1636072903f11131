# ruff: noqa: T201
"""Claims that what is added to leaves has no effect against numbers, on random networks.

``python -m tests.support.program.dead --count 10000 --seed 0`` examines that many and prints every
leaf that is called dead and moves an output, and every one that moves none and is not called dead;
and so of what is constant along an axis of a leaf.
Nothing here is shared with `optax_bnmask.verify`.
"""

import argparse
import collections
import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

import optax_bnmask as bnmask
from tests.support.program.evaluating import traced
from tests.support.program.networks import Network, seeded_network
from tests.support.program.soundness import analysis_of

Start = tuple[str, int | None]
"""A leaf, and what is added to it: anything (`None`), or what is constant along this axis."""

SIZES = (0.1, 10.0)
"""So much is added, to parameters and values of the size of 1."""
SAME = 1e-7
"""Outputs that differ by less, relative to the largest entry, are the same."""


@dataclasses.dataclass(frozen=True)
class Examined:
    """What came out.

    Attributes:
      wrong: Leaves that are called dead and move an output, with the relative change; and axes
        along which it is said that they may be shifted.
      missed: Leaves that move no output and are not called dead.
      missed_axes: Axes along which they may be shifted, and it is not said.
      dead: How many are called dead.
      shifts: Along how many axes leaves are said to be free to be shifted.
      skipped: Whether nothing can be said: outputs are not finite, or hang on rounding.
    """

    wrong: tuple[str, ...] = ()
    missed: tuple[str, ...] = ()
    missed_axes: tuple[str, ...] = ()
    dead: int = 0
    shifts: int = 0
    skipped: bool = False


def examine(network: Network, analysis: bnmask.Analysis | None = None) -> Examined:
    """Adds to the leaves of a network, to each alone and to all that are called dead at once."""
    analysis = analysis_of(network) if analysis is None else analysis
    apply = traced(network.fn, network.params, network.x)

    def run(params: Mapping[str, Any]) -> list[np.ndarray]:
        return apply(params, network.x)

    params = {path: np.asarray(value, np.float64) for path, value in network.params.items()}

    def of(starts: Iterable[Start]) -> float:
        return change(run, params, starts)

    rng = np.random.default_rng(1)
    near = {k: v * (1 + 1e-13 * rng.normal(size=v.shape)) for k, v in params.items()}
    if not _difference(run(near), run(params)) < 1e-3 * SAME:
        return Examined(skipped=True)
    claimed: list[Start] = [(path, None) for path in analysis.dead]
    claimed += [(path, axis) for path, own in analysis.shift_axes.items() for axis in own]
    wrong = [f"{_named(start)}: {e:.1e}" for start in claimed if not (e := of([start])) < SAME]
    if claimed and not (e := of(claimed)) < SAME:
        wrong.append(f"all at once: {e:.1e}")
    missed: list[Start] = [
        (path, axis)
        for path, value in params.items()
        if path not in analysis.dead
        for axis in (None, *(a for a, n in enumerate(value.shape) if n > 1))
        if (path, axis) not in claimed and of([(path, axis)]) < 1e-12
    ]
    free = [path for path, axis in missed if axis is None]
    return Examined(
        tuple(wrong),
        tuple(free),
        tuple(_named(x) for x in missed if x[0] not in free),
        len(analysis.dead),
        len(claimed) - len(analysis.dead),
    )


def _named(start: Start) -> str:
    path, axis = start
    return path if axis is None else f"{path}[axis {axis}]"


def change(run: Callable[..., Any], params: Mapping[str, Any], starts: Iterable[Start]) -> float:
    """The largest relative change of an output when something is added to some leaves."""
    rng, base, worst = np.random.default_rng(3), run(params), 0.0
    for size in SIZES:
        moved = dict(params)
        for path, axis in starts:
            shape = [1 if a == axis else n for a, n in enumerate(params[path].shape)]
            moved[path] = moved[path] + size * rng.normal(size=shape)
        worst = max(worst, _difference(run(moved), base))
    return worst


def _difference(outs: Iterable[np.ndarray], base: Iterable[np.ndarray]) -> float:
    """The largest relative difference of two outputs; infinite if one is not finite."""
    worst = 0.0
    for y, before in zip(outs, base, strict=True):
        y, before = (np.asarray(v, np.float64) for v in (y, before))  # noqa: PLW2901 - of bools
        if not np.all(np.isfinite(y)) or not np.all(np.isfinite(before)):
            return np.inf
        scale = max(float(np.max(np.abs(before), initial=0.0)), 1e-300)
        worst = max(worst, float(np.max(np.abs(y - before), initial=0.0)) / scale)
    return worst


def drawn(shapes: Any, seed: int = 0) -> Any:
    """Values of some shapes that hide nothing."""
    rng = np.random.default_rng(seed)
    is_shape = lambda s: isinstance(s, tuple)  # noqa: E731
    return jax.tree.map(lambda s: rng.normal(size=s), shapes, is_leaf=is_shape)


def gradient(fn: Callable[..., Any], params: Any, *args: Any) -> Any:
    """The largest entry of the gradient of a random combination of the outputs, by each leaf."""
    return jax.tree.map(lambda g: float(abs(g).max(initial=0)), gradients(fn, params, *args))


def gradients(fn: Callable[..., Any], params: Any, *args: Any) -> Any:
    """The gradient of a random combination of the outputs, in double precision."""
    with jax.enable_x64(True):
        params, args = jax.tree.map(lambda x: jax.numpy.asarray(x, _wide(x)), (params, args))

        def loss(params: Any) -> Any:
            rng = np.random.default_rng(5)
            outs = [y for y in jax.tree.leaves(fn(params, *args)) if y.dtype == np.float64]
            return sum((y * rng.normal(size=y.shape)).sum() for y in outs)

        return jax.tree.map(np.asarray, jax.grad(loss)(params))


def _wide(x: Any) -> Any:
    return np.float64 if np.issubdtype(x.dtype, np.floating) else x.dtype


def main() -> int:
    """Examines networks by seed and prints what is odd."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    totals: collections.Counter[str] = collections.Counter()
    kinds: collections.Counter[str] = collections.Counter()
    for seed in range(given.seed, given.seed + given.count):
        network = seeded_network(seed)
        got = examine(network)
        totals.update(
            dead=got.dead,
            shifts=got.shifts,
            wrong=len(got.wrong),
            missed=len(got.missed),
            missed_axes=len(got.missed_axes),
            skipped=int(got.skipped),
        )
        for line in got.wrong:
            print(f"WRONG {seed} {line} {network}")
        for missed in (*got.missed, *got.missed_axes):
            kinds[missed.split("/")[-1]] += 1
            print(f"missed {seed} {missed} {network}")
    print(f"{given.count} networks from seed {given.seed}: {dict(totals)}, missed {dict(kinds)}")
    return int(totals["wrong"] > 0)


if __name__ == "__main__":
    raise SystemExit(main())
