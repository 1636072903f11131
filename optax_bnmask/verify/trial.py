"""One analysis against one function, at parameters drawn for it."""

import functools
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import jax
import numpy as np

from optax_bnmask.analysis import Analysis
from optax_bnmask.errors import StructureError, VerificationError
from optax_bnmask.program.equations import Number
from optax_bnmask.program.explain import Explainer
from optax_bnmask.verify.drawing import drawn_input, drawn_leaf, is_abstract, is_float
from optax_bnmask.verify.measuring import Measured, Outputs

Vector = Mapping[int, Number]
"""Exponents by leaf number."""


class Trial:
    """One analysis against one function, at parameters drawn for it.

    Attributes:
      measured: The function.
      proof: What the analysis rests on.
      number: The number of each leaf, by its path.
      own: The leaves as they were given.
      base: The leaves as they were drawn.
      far: After how many doublings along the claimed symmetries all epsilons were negligible.
      notes: What could not be looked at.
    """

    def __init__(
        self,
        analysis: Analysis,
        fn: Callable[..., Any],
        params: Any,  # noqa: ANN401 - any pytree
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        *,
        rng: np.random.Generator,
        factor: float,
    ) -> None:
        self.own = jax.tree.leaves(params)
        self.analysis, self.rng, self.factor = analysis, rng, factor
        self.proof = _proof_of(analysis, self.own)
        self.number = {leaf.path: i for i, leaf in enumerate(analysis.leaves)}
        drawn_args, drawn_kwargs = jax.tree.map(
            functools.partial(drawn_input, rng=rng),
            (tuple(args), dict(kwargs)),
            is_leaf=is_abstract,
        )
        self.measured = Measured(fn, params, drawn_args, drawn_kwargs)
        self.base = [
            drawn_leaf(leaf, value, rng) if is_float(value) else plain(value)
            for leaf, value in zip(analysis.leaves, self.own, strict=True)
        ]
        self.far = 0
        self.notes: list[str] = []
        self._require_finite(self.at({}))

    def at(self, factors: Mapping[int, Any], base: Sequence[np.ndarray] | None = None) -> Outputs:
        """The outputs where some leaves are multiplied."""
        values = list(self.base if base is None else base)
        for i, by in factors.items():
            values[i] = values[i] * by
        return self.measured(values)

    def _require_finite(self, outputs: Outputs) -> None:
        if not all(np.all(np.isfinite(y)) for y in outputs):
            raise VerificationError(
                "The outputs of `fn` must be finite to be compared. At parameters drawn with the "
                "magnitudes of `params` some are not. Give a batch of more than one example to "
                "what normalises over the batch, and inputs that are themselves finite."
            )

    def powers(self, vector: Vector, by: float) -> dict[int, float]:
        """The factors of a symmetry: ``by**s``."""
        return {i: float(by ** float(s)) for i, s in vector.items()}

    def witness(self, i: int) -> Vector:
        """The symmetry that scales an invariant leaf: it and biases of its own."""
        return self.proof.found.witness[i]

    def along_cone(self, doublings: int) -> dict[int, float]:
        """The factors to where all that may be scaled up has been doubled that often."""
        cone = self.proof.found.cone
        top = max(cone.values(), default=1)
        return self.powers({i: Fraction(s) / top for i, s in cone.items()}, 2.0**doublings)


def plain(value: Any) -> np.ndarray:  # noqa: ANN401 - any array
    """The array in NumPy, wide enough for any power; zeros where only its shape is known."""
    if is_abstract(value):
        return np.zeros(value.shape, value.dtype)
    array = np.asarray(value)
    return array.astype(np.float64) if is_float(value) and not np.iscomplexobj(array) else array


def _proof_of(analysis: Analysis, leaves: Sequence[Any]) -> Explainer:
    """The proof behind an analysis, after what it is of has been compared with `leaves`."""
    if not isinstance(analysis.proof, Explainer):
        raise StructureError(
            "`analysis` must have been proved from a program to be verified. This one rests on "
            "structure alone and claims nothing of scale. Use `optax_bnmask.analyze`."
        )
    found = [tuple(np.shape(x)) for x in leaves]
    if found != [leaf.shape for leaf in analysis.leaves]:
        raise StructureError(
            f"`params` must be those of `analysis`. It knows {len(analysis.leaves)} leaves, "
            f"`params` has {len(leaves)}, or some of other shapes. Analyse `fn` on these `params`."
        )
    return analysis.proof
