"""A numeric check of `Leaf.scale` and `Leaf.invariant_axes`, leaf by leaf and index by index."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optax_bnmask.analysis import Analysis
from optax_bnmask.vocabulary import Scale

_NEAR, _FAR = 2.0**8, 2.0**16
"""Two factors so large that no epsilon is felt at either; float64 has room for both."""


class Oracle:
    """Scales parameters of a function and looks whether its outputs move.

    Args:
      fn: ``fn(params)``, everything else closed over.
      params: Its parameters, arrays or shapes; their values are drawn, so that none hides anything.
      seed: Of the draw.
    """

    def __init__(self, fn: Callable[[Any], Any], params: Any, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        leaves, self._treedef = jax.tree.flatten(params)
        self.leaves = [self._drawn(rng, np.shape(leaf)) for leaf in leaves]
        self._fn = jax.jit(lambda leaves: fn(jax.tree.unflatten(self._treedef, leaves)))

    @staticmethod
    def _drawn(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        if len(shape) < 2:
            return rng.uniform(0.5, 1.5, shape) * rng.choice([-1, 1], shape)
        return rng.normal(0, 1 / np.sqrt(np.prod(shape[:-1])), shape)

    def outputs(self, factors: dict[int, Any]) -> np.ndarray:
        """All outputs in one row, with some leaves multiplied."""
        scaled = [jnp.asarray(x * factors.get(i, 1.0)) for i, x in enumerate(self.leaves)]
        return np.concatenate([np.ravel(y) for y in jax.tree.leaves(self._fn(scaled))])

    def is_hidden(self, factors: Callable[[float], dict[int, Any]]) -> bool:
        """Whether the outputs are the same at both factors, where no epsilon is felt."""
        near, far = self.outputs(factors(_NEAR)), self.outputs(factors(_FAR))
        return bool(np.abs(near - far).max() <= 1e-6 * np.abs(near).max())

    def is_hidden_all_the_way(self, number: int) -> bool:
        """Whether a leaf alone is hidden far out and, but for epsilons, on the way there.

        Far out alone would not do: a saturated softmax does not move either.
        """
        here, near = self.outputs({}), self.outputs({number: _NEAR})
        close = np.abs(here - near).max() <= 1e-3 * np.abs(near).max()
        return bool(close) and self.is_hidden(lambda c: {number: c})

    def hidden_axes(self, number: int) -> tuple[int, ...]:
        """The axes, of more than one index, each index of which may be scaled alone."""
        shape = self.leaves[number].shape
        return tuple(
            axis
            for axis, n in enumerate(shape)
            if n > 1 and all(self._is_slice_hidden(number, axis, i) for i in range(n))
        )

    def _is_slice_hidden(self, number: int, axis: int, index: int) -> bool:
        def factors(c: float) -> dict[int, Any]:
            factor = np.ones(self.leaves[number].shape)
            factor[(slice(None),) * axis + (index,)] = c
            return {number: factor}

        return self.is_hidden(factors)


def disagreements(
    analysis: Analysis, fn: Callable[[Any], Any], params: Any, *, axes: bool = True
) -> list[str]:
    """Where an analysis and the numbers differ, a sentence each.

    Args:
      analysis: Of ``fn`` and `params`; no invariant leaf should have biases of its own if `axes`.
      fn: ``fn(params)``.
      params: Its parameters.
      axes: Whether to check axes too.

    Returns:
      Claims that fail, and invariances that were missed.
    """
    oracle = Oracle(fn, params)
    paths = [leaf.path for leaf in analysis.leaves]
    out = []
    for i, leaf in enumerate(analysis.leaves):
        if leaf.scale in (Scale.UNUSED, Scale.UNKNOWN):
            continue
        if leaf.dead:  # far out, where the squares of a variance have no digits left, nothing shows
            out += [] if _is_dead(oracle, i) else [f"{leaf.path} is not dead"]
            continue
        witness = {paths.index(p): float(c) for p, c in analysis.proof.witness(leaf.path).items()}
        alone = oracle.is_hidden_all_the_way(i)
        if leaf.scale is Scale.INVARIANT:
            if not oracle.is_hidden(lambda c, w=witness: {j: c**e for j, e in w.items()}):
                out.append(f"{leaf.path} is not invariant")
            if axes and alone and oracle.hidden_axes(i) != leaf.invariant_axes:
                out.append(
                    f"{leaf.path}: {leaf.invariant_axes}, in numbers {oracle.hidden_axes(i)}"
                )
        elif alone:
            what = "dead" if _is_dead(oracle, i) else "invariant"
            out.append(f"{leaf.path} is {what} in numbers")
    return out


def _is_dead(oracle: Oracle, number: int) -> bool:
    """Whether the leaf's value does not matter at all, as a bias before a mean is subtracted."""
    rng = np.random.default_rng(1)
    other = {number: rng.normal(size=oracle.leaves[number].shape)}
    same, changed = oracle.outputs({}), oracle.outputs(other)
    return bool(np.abs(same - changed).max() <= 1e-6 * np.abs(same).max())
