"""The outputs of one function at drawn parameters, and how far moves of these change them."""

import collections
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from optax_bnmask.analysis import Analysis
from optax_bnmask.errors import VerificationError
from optax_bnmask.record import Assumption
from optax_bnmask.verify.claims import Move, moved, proof_of
from optax_bnmask.verify.degeneracy import examined_inputs
from optax_bnmask.verify.draws import (
    drawn_inputs,
    drawn_leaf,
    is_abstract,
    is_float,
    numpy_value,
    with_arrays,
)
from optax_bnmask.verify.evaluation import CompiledFunction, Outputs, inputs_of
from optax_bnmask.verify.interpreter import Constant
from optax_bnmask.verify.yardstick import Yardstick, yardstick_of

DRAWS = 3
"""The number of draws of parameters at which each claim is tried. A rectifier keeps a unit at 0 for
all of a batch of 4 in one of 16 draws, and so in all three draws once in 4096 times."""

_TARGET_EPSILON = 2.0**-40
"""What larger epsilons are reduced to, about 1e-12. Its root, 1e-6, is still far above rounding:
equal values minus their mean are 1e-17, which must stay small when divided by that root."""
_INFINITY_FACTOR = 2.0**24
"""What infinities are multiplied by: as much as `_TARGET_EPSILON` reduces an epsilon of 1e-5."""
_EPSILON_FACTORS = (1.0, 2.0**-6, 2.0**-24, 2.0**-72, 2.0**-300)
"""Further factors for epsilons, where values are too small for `_TARGET_EPSILON`: behind 200 layers
without a normaliser they may be 1e-30."""

_ROUNDING = 2.0**-50
"""The relative size of random changes of the parameters that show what rounding does."""
_TRIES = 2
"""The number of such changes."""
_MANY_TRIES = 8
"""The number of them before a claim is called wrong. Rounding is erratic: a mean of equal numbers
is exact for one number and not for the next."""
_SMALL_PART = 2.0**-10
"""A part of the way to other parameters that changes the outputs, unless these jump."""
_MAX_GROWTH = 16.0
"""The first smaller one of `_EPSILON_FACTORS` removes most of the effect of epsilons. If the next
changes the outputs by more than so many times as much, the outputs do not converge."""
_MAX_REDRAWS = 32
"""The number of draws after which the search for finite outputs is given up."""


class Trial:
    """One analysis against one function, at parameters drawn for it.

    Attributes:
      analysis: The analysis.
      proof: The proof that the analysis rests on.
      function: The function, compiled.
      rng: Where random numbers come from.
      given_leaves: The leaves as they were given.
      draws: The values of all leaves, for each of `DRAWS` draws, followed by their own values where
        these are known: at those the program may take a branch that it takes at no draw.
      constants: The constants that the proof takes for 0 or infinity, each with its kind.
      inputs: Which of the function's inputs may hide what it does.
      unseen: By claim, in words, the number of draws at which it could not be looked at.
      notes: What else could not be looked at, in sentences.
    """

    def __init__(
        self,
        analysis: Analysis,
        fn: Callable[..., Any],
        params: Any,  # noqa: ANN401 - any pytree
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        *,
        has_aux: bool | None,
        n_state: int,
        rng: np.random.Generator,
    ) -> None:
        self.analysis, self.rng = analysis, rng
        self.given_leaves = jax.tree.leaves(params)
        self.proof = proof_of(analysis, self.given_leaves)
        self.unseen = collections.Counter[str]()
        self.notes: list[str] = []
        self.constants = _constants(analysis.assumptions)
        self._yardsticks: dict[tuple[int, float, bool, int], Yardstick] = {}
        given = drawn_inputs((tuple(args), dict(kwargs)), rng, keep_signs=False)
        constants = tuple(self.constants)
        has_aux = self.proof.program.has_aux if has_aux is None else has_aux
        self.function = CompiledFunction(fn, params, *given, has_aux=has_aux, constants=constants)
        self.draws = [self._new_leaves() for _ in range(DRAWS)]
        if not self._is_finite():  # a root or a logarithm of something negative?
            self.draws = [self._new_leaves(keep_signs=True) for _ in range(DRAWS)]
            if not self._is_finite():
                given = drawn_inputs((tuple(args), dict(kwargs)), rng, keep_signs=True)
                self.function.inputs = inputs_of(*given)
        for _ in range(_MAX_REDRAWS + 1):
            if self._is_finite():  # a rectifier may leave nothing of an example to normalise
                break
            self.draws = [self._new_leaves() for _ in range(DRAWS)]
        else:
            raise VerificationError(
                "The outputs of `fn` must be finite to be compared. At parameters drawn with the "
                "magnitudes of `params` none is. Give a batch of more than one example to what "
                "normalises over the batch, and inputs that are themselves finite."
            )
        self._redraw_until_visible()
        if not any(map(is_abstract, self.given_leaves)):
            self.draws.append([numpy_value(value) for value in self.given_leaves])
        self.inputs = examined_inputs(self.function.inputs, n_state, rng)
        self._varied_function = self.function
        if self.inputs.single_examples:
            again = with_arrays(given, self.inputs.varied)
            try:
                self._varied_function = CompiledFunction(
                    fn, params, *again, has_aux=has_aux, constants=constants
                )
            except Exception:  # a function made for one example may raise anything
                self.inputs = dataclasses.replace(
                    self.inputs, single_examples=(), varied=self.function.inputs
                )
        self._note_lower_precision()

    @property
    def epsilon_factors(self) -> Sequence[float]:
        """The factors for epsilons to try in turn; 1 alone where the proof assumes no constant."""
        return _EPSILON_FACTORS if self.constants else (1.0,)

    @property
    def degenerate_inputs(self) -> str:
        """The inputs whose examples are all alike, in words; empty if there are none."""
        return self._described(self.inputs.degenerate_inputs)

    @property
    def hiding_inputs(self) -> str:
        """The inputs that may hide what the function does, in words; empty if there are none."""
        return self._described(self.inputs.hiding)

    def _described(self, inputs: Mapping[int, str]) -> str:
        return ", ".join(f"{self.function.names[i]!r} ({said})" for i, said in inputs.items())

    def new_leaf(self, i: int, *, keep_signs: bool = False) -> np.ndarray:
        """A new draw of a leaf, with the signs of its own value if asked for."""
        leaf, value = self.analysis.leaves[i], self.given_leaves[i]
        if not is_float(value):
            return numpy_value(value)
        centred = i in self.proof.zero_centred
        return drawn_leaf(leaf, value, self.rng, zero_centred=centred, keep_signs=keep_signs)

    def _new_leaves(self, *, keep_signs: bool = False) -> list[np.ndarray]:
        return [self.new_leaf(i, keep_signs=keep_signs) for i in range(len(self.given_leaves))]

    def factors(self, by: float) -> np.ndarray:
        """What to multiply each of `constants` by: epsilons are reduced, and by `by` once more."""
        return np.array(
            [
                by * min(1.0, _TARGET_EPSILON / abs(constant.value))
                if kind == "epsilon"
                else _INFINITY_FACTOR / by
                for constant, kind in self.constants.items()
            ]
        )

    def outputs_at(
        self, leaves: Sequence[np.ndarray], by: float = 1.0, *, on_varied: bool = False
    ) -> Outputs:
        """The outputs at these leaves with constants multiplied by ``factors(by)``.

        Args:
          leaves: The value of each leaf.
          by: The further factor for epsilons.
          on_varied: Whether to use varied inputs in the place of those that hide something.
        """
        if on_varied:
            return self._varied_function(leaves, self.factors(by), self.inputs.varied)
        return self.function(leaves, self.factors(by))

    def yardstick(
        self, draw: int, by: float = 1.0, *, on_varied: bool = False, tries: int = _TRIES
    ) -> Yardstick:
        """The `Yardstick` for changes of the outputs from those at one of the draws."""
        key = draw, by, on_varied, tries
        if key not in self._yardsticks:
            at = functools.partial(self.outputs_at, by=by, on_varied=on_varied)
            base = self.draws[draw]
            others = (values for d, values in enumerate(self.draws[:DRAWS]) if d != draw)
            elsewhere = [at(values) for values in others]
            rounded = [at(self._rounded(base)) for _ in range(tries)]
            found = yardstick_of(at(base), elsewhere, rounded, self.function.eps)
            self._yardsticks[key] = found
        return self._yardsticks[key]

    def _rounded(self, base: Sequence[np.ndarray]) -> list[np.ndarray]:
        by = max(_ROUNDING, 4 * self.function.eps)
        return [x * (1 + by * self.rng.normal(size=x.shape)) if is_float(x) else x for x in base]

    def error(self, draw: int, move: Move) -> float:
        """The change of the outputs by a move from a draw; see `error_of_values`."""
        return self.error_of_values(draw, moved(self.draws[draw], move))

    def error_of_values(self, draw: int, leaves: Sequence[np.ndarray]) -> float:
        """The change of the outputs from a draw to these leaves, where epsilons are negligible.

        It is infinite where values overflow, or where rounding has grown: the variance of equal
        numbers is rounding, which a division can make as large as one likes.
        """
        found = self._smallest_error(draw, leaves)
        return found if found <= self.function.tolerance or self._converges(draw) else np.inf

    def _smallest_error(self, draw: int, leaves: Sequence[np.ndarray]) -> float:
        """The smallest change over all `epsilon_factors`; infinite if none of them tells."""
        errors, first = list[float](), self.yardstick(draw).n_visible
        if not first:  # rounding moves every entry: nothing is seen
            return np.inf
        for by in self.epsilon_factors:
            yardstick = self.yardstick(draw, by)
            if yardstick.n_visible < first:  # rounding, divided by next to nothing
                return np.inf if self._jumps(draw, leaves) else _conclusive(errors)
            outputs = self.outputs_at(leaves, by)
            found = yardstick.change(outputs)
            if self.function.tolerance < found < np.inf:
                found = self._change_beyond_rounding(draw, by, leaves, outputs)
            if not np.isfinite(found):
                return _conclusive(errors)
            errors.append(found)
            if found <= self.function.tolerance:
                break
        return min(errors)

    def _change_beyond_rounding(
        self, draw: int, by: float, leaves: Sequence[np.ndarray], outputs: Outputs
    ) -> float:
        """The change from a draw to the outputs at these leaves, beyond the rounding of both."""
        yardstick = self.yardstick(draw, by, tries=_MANY_TRIES)
        rounded = [self.outputs_at(self._rounded(leaves), by) for _ in range(_MANY_TRIES)]
        finer = yardstick.with_rounding_of(outputs, rounded)
        return finer.change(outputs) if 2 * finer.n_visible >= yardstick.n_visible else np.inf

    def _converges(self, draw: int) -> bool:
        """Whether the outputs at a draw converge as epsilons are made smaller.

        They may not. Two features, normalised over the features, are 1 and -1 but for an epsilon,
        in all examples. A normaliser over the batch then divides differences as small as an
        epsilon, and at last rounding, by the root of an epsilon: the smaller epsilons are, the
        larger is the result.
        """
        yardstick = self.yardstick(draw)
        steps = self.epsilon_factors[1:3]
        changes = [yardstick.change(self.yardstick(draw, by).base) for by in steps]
        return not steps or changes[1] <= max(_MAX_GROWTH * changes[0], self.function.tolerance)

    def _jumps(self, draw: int, leaves: Sequence[np.ndarray]) -> bool:
        """Whether the outputs do not change at all on the first part of the way to these leaves.

        Then they jump on the rest of it. A normaliser over equal examples divides an epsilon by the
        root of an epsilon, and the next one turns that into 1 or -1, however small epsilons are.
        """
        near = [
            x + _SMALL_PART * (y - x) if is_float(x) else x
            for x, y in zip(self.draws[draw], leaves, strict=True)
        ]
        return self.yardstick(draw).change(self.outputs_at(near)) <= self.function.tolerance

    def _is_finite(self) -> bool:
        outs = self.outputs_at(self.draws[0])
        return any(np.any(np.isfinite(y)) for y in outs)

    def _redraw_until_visible(self) -> None:
        """Repeats the draws at which rounding moves every output."""
        for draw in range(DRAWS):
            for _ in range(_MANY_TRIES):
                if self.yardstick(draw).n_visible:
                    break
                self.draws[draw] = self._new_leaves()
                self._yardsticks.clear()

    def _note_lower_precision(self) -> None:
        if not self.function.is_double:
            why = f" ({self.function.why_not_double})" if self.function.why_not_double else ""
            self.notes.append(
                f"`fn`, or a part of it, could not be computed in float64 but only in "
                f"{np.dtype(self.function.dtype)}{why}: changes below "
                f"{self.function.tolerance:.1e} are not seen."
            )


def _conclusive(errors: Sequence[float]) -> float:
    """The error, from those with smaller and smaller epsilons, before these could go further.

    If the last of them halved the error, epsilons may be its cause, and nothing can be said: it is
    infinite.
    """
    still_falling = len(errors) < 2 or errors[-1] < 0.5 * errors[-2]
    return float("inf") if still_falling else min(errors)


def _constants(assumptions: Sequence[Assumption]) -> dict[Constant, str]:
    """The constants that a proof takes for 0 (``"epsilon"``) or infinity (``"infinity"``)."""
    places: dict[tuple[str, str, float], list[str]] = {}
    for a in assumptions:
        if a.kind in ("epsilon", "infinity"):
            places.setdefault((a.kind, a.primitive, a.value), []).append(a.where)
    return {Constant(name, x, frozenset(at)): kind for (kind, name, x), at in places.items()}
