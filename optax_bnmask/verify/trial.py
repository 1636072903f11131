"""One analysis against one function, at parameters drawn for it."""

import collections
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from optax_bnmask.analysis import Analysis
from optax_bnmask.arguments import is_array
from optax_bnmask.errors import StructureError, VerificationError
from optax_bnmask.program.explain import Explainer
from optax_bnmask.record import Assumption
from optax_bnmask.verify.claims import Move
from optax_bnmask.verify.degeneracy import examined
from optax_bnmask.verify.draws import drawn_input, drawn_leaf, is_abstract, is_float
from optax_bnmask.verify.interpreter import Constant
from optax_bnmask.verify.measurement import Measured, Outputs, inputs_of
from optax_bnmask.verify.yardstick import Yardstick, yardstick
from optax_bnmask.vocabulary import Evidence

DRAWS = 3
"""At so many parameters each claim is tried: a unit that a rectifier keeps at 0 for all of a batch
of 4 in one draw, one in 16 of them, is at 0 in all three once in 4096 times."""

_SMALL = 2.0**-40
"""What epsilons become, about 1e-12, if they are larger. The root of that, 1e-6, is still far above
rounding: what is the same everywhere, minus its mean, is 1e-17, and must not become large when
divided. Infinities become larger by as much as epsilons of 1e-5 become smaller, ``2**24``."""
_STEPS = (1.0, 2.0**-6, 2.0**-24, 2.0**-72, 2.0**-300)
"""Further factors for epsilons, where values are so small that `_SMALL` is not enough: behind 200
layers without a normaliser they may be 1e-30."""

_ROUNDING = 2.0**-50
"""By how much parameters are moved to see what rounding does."""
_TRIES = 2
_MANY = 8
"""How often parameters are moved to see it, and (`_MANY`) before a claim is called wrong. Rounding
is erratic: a mean of equal numbers is exact for one number and not for the next."""
_NEAR = 2.0**-10
"""A move by this part of the way to other parameters changes outputs too, unless they jump."""
_GROWN = 16.0
"""To make epsilons smaller by one of `_STEPS` removes what effect they still have. If the next step
changes the outputs by more than so many times as much, something else is at work."""
_UNLUCKY = 32
"""So many times parameters are drawn anew before `verify` gives up on finding finite outputs."""


class Trial:
    """One analysis against one function, at parameters drawn for it.

    Attributes:
      analysis: The analysis.
      proof: What it rests on.
      measured: The function.
      rng: Where random numbers come from.
      own: The leaves as they were given.
      draws: The leaves as they were drawn, `DRAWS` times; and behind these their own values, if
        they have any: by them the program may take a branch that it takes at none of the others.
      assumptions: The constants that it takes for 0 or infinity, as `Measured` can multiply them.
      inputs: What may be hidden by its inputs.
      unseen: The claims that could not be looked at, with the number of draws at which.
      notes: What else could not be looked at.
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
        self.own = jax.tree.leaves(params)
        self.proof = proof_of(analysis, self.own)
        self.unseen = collections.Counter[str]()
        self.notes: list[str] = []
        self.assumptions = _constants(analysis.assumptions)
        self._yardsticks: dict[tuple[int, float, bool, int], Yardstick] = {}
        given = _drawn((tuple(args), dict(kwargs)), rng, keep_signs=False)
        constants = tuple(self.assumptions)
        has_aux = self.proof.program.has_aux if has_aux is None else has_aux
        self.measured = Measured(fn, params, *given, has_aux=has_aux, constants=constants)
        self.draws = [self._leaves(keep_signs=False) for _ in range(DRAWS)]
        if not self._is_finite():  # a root or a logarithm of something negative?
            self.draws = [self._leaves(keep_signs=True) for _ in range(DRAWS)]
            if not self._is_finite():
                given = _drawn((tuple(args), dict(kwargs)), rng, keep_signs=True)
                self.measured.inputs = inputs_of(*given)
        for _ in range(_UNLUCKY):  # or an example of which a rectifier leaves nothing to normalise?
            if self._is_finite():
                break
            self.draws = [self._leaves(keep_signs=False) for _ in range(DRAWS)]
        self._require_finite()
        self._draw_until_something_is_seen()
        if not any(map(is_abstract, self.own)):
            self.draws.append([plain(value) for value in self.own])
        self.inputs = examined(self.measured.inputs, n_state, rng)
        self._on_varied = self.measured
        if self.inputs.singles:
            again = _filled(given, self.inputs.varied)
            try:
                self._on_varied = Measured(fn, params, *again, has_aux=has_aux, constants=constants)
            except Exception:  # whatever a function says that is made for one example
                self.inputs = dataclasses.replace(
                    self.inputs, singles=(), varied=self.measured.inputs
                )
        self._say_what_is_not_double()

    @property
    def steps(self) -> Sequence[float]:
        """The factors `_STEPS`; 1 alone where no constant is assumed that could excuse a claim."""
        return _STEPS if self.assumptions else (1.0,)

    @property
    def degenerate(self) -> str:
        """The inputs that tell no example from another, in words; empty if there are none."""
        return self._said(self.inputs.degenerate)

    @property
    def hiding(self) -> str:
        """The inputs that may hide something, in words; empty if there are none."""
        return self._said(self.inputs.hide)

    def _said(self, inputs: Mapping[int, str]) -> str:
        return ", ".join(f"{self.measured.names[i]!r} ({said})" for i, said in inputs.items())

    def leaf(self, i: int) -> np.ndarray:
        """Another value for a leaf."""
        return self._leaf(i, keep_signs=False)

    def _leaf(self, i: int, *, keep_signs: bool) -> np.ndarray:
        leaf, value = self.analysis.leaves[i], self.own[i]
        if not is_float(value):
            return plain(value)
        centred = i in self.proof.zero_centred
        return drawn_leaf(leaf, value, self.rng, zero_centred=centred, keep_signs=keep_signs)

    def _leaves(self, *, keep_signs: bool) -> list[np.ndarray]:
        return [self._leaf(i, keep_signs=keep_signs) for i in range(len(self.own))]

    def constants(self, by: float) -> np.ndarray:
        """For each assumed constant, the factor that makes it negligible, or larger, at a step."""
        return np.array(
            [
                by * min(1.0, _SMALL / abs(constant.value)) if kind == "epsilon" else 2.0**24 / by
                for constant, kind in self.assumptions.items()
            ]
        )

    def at(self, base: Sequence[np.ndarray], by: float, *, on_varied: bool = False) -> Outputs:
        """The outputs at some leaves, with epsilons multiplied."""
        if on_varied:
            return self._on_varied(base, self.constants(by), self.inputs.varied)
        return self.measured(base, self.constants(by))

    def yardstick(
        self, draw: int, by: float, *, on_varied: bool = False, tries: int = _TRIES
    ) -> Yardstick:
        """The `Yardstick` for changes of the outputs from those at one of the drawn settings."""
        key = draw, by, on_varied, tries
        if key not in self._yardsticks:
            at = functools.partial(self.at, by=by, on_varied=on_varied)
            base = self.draws[draw]
            others = (values for d, values in enumerate(self.draws[:DRAWS]) if d != draw)
            elsewhere = [at(values) for values in others]
            rounded = [at(self._rounded(base)) for _ in range(tries)]
            found = yardstick(at(base), elsewhere, rounded, self.measured.eps)
            self._yardsticks[key] = found
        return self._yardsticks[key]

    def _rounded(self, base: Sequence[np.ndarray]) -> list[np.ndarray]:
        by = max(_ROUNDING, 4 * self.measured.eps)
        return [x * (1 + by * self.rng.normal(size=x.shape)) if is_float(x) else x for x in base]

    def error(self, draw: int, move: Move) -> float:
        """The change by a move, where epsilons are negligible."""
        return self.error_at(draw, moved(self.draws[draw], move))

    def error_at(self, draw: int, base: Sequence[np.ndarray]) -> float:
        """The change from a drawn setting to another, where epsilons are negligible.

        It is infinite where values overflow, or where rounding has grown: the variance of equal
        numbers is rounding, which a division can make as large as one likes.
        """
        found = self._smallest_error(draw, base)
        return found if found <= self.measured.tolerance or self._settles(draw) else np.inf

    def _smallest_error(self, draw: int, base: Sequence[np.ndarray]) -> float:
        """The least change over all `steps` of making epsilons smaller; infinite if none tells."""
        errors, first = list[float](), self.yardstick(draw, self.steps[0]).n_looked
        if not first:  # rounding moves every entry: nothing is seen
            return np.inf
        for by in self.steps:
            ruler = self.yardstick(draw, by)
            if ruler.n_looked < first:  # rounding, divided by next to nothing
                return np.inf if self._jumps(draw, base) else _still(errors)
            outputs = self.at(base, by)
            found = ruler.change(outputs)
            if self.measured.tolerance < found < np.inf:
                found = self._without_rounding(draw, by, base, outputs)
            if not np.isfinite(found):
                return _still(errors)
            errors.append(found)
            if found <= self.measured.tolerance:
                break
        return min(errors)

    def _without_rounding(
        self, draw: int, by: float, base: Sequence[np.ndarray], outputs: Outputs
    ) -> float:
        """The change to some outputs beyond rounding, both of them and of those at the draw."""
        ruler = self.yardstick(draw, by, tries=_MANY)
        rounded = [self.at(self._rounded(base), by) for _ in range(_MANY)]
        finer = ruler.less_rounding(outputs, rounded)
        return finer.change(outputs) if 2 * finer.n_looked >= ruler.n_looked else np.inf

    def _settles(self, draw: int) -> bool:
        """Whether the outputs of a drawn setting converge as epsilons are made smaller.

        They may not: two features, normalised, are 1 and -1 but for an epsilon, for all examples
        the same. A second normaliser, over the batch, divides a difference as small as an epsilon,
        and at last rounding, by the root of an epsilon: the smaller both are, the more they matter.
        """
        ruler = self.yardstick(draw, self.steps[0])
        gone = [ruler.change(self.yardstick(draw, by).base) for by in self.steps[1:3]]
        return not gone or gone[1] <= max(_GROWN * gone[0], self.measured.tolerance)

    def _jumps(self, draw: int, base: Sequence[np.ndarray]) -> bool:
        """Whether the outputs do not change at all on the first part of the way to `base`.

        A normaliser of what is the same for all examples divides an epsilon by the root of an
        epsilon, and the next normaliser makes 1 of it, or -1, however small the epsilons are.
        """
        start, by = self.draws[draw], self.steps[0]
        near = [x + _NEAR * (y - x) if is_float(x) else x for x, y in zip(start, base, strict=True)]
        return self.yardstick(draw, by).change(self.at(near, by)) <= self.measured.tolerance

    def _is_finite(self) -> bool:
        outs = self.at(self.draws[0], self.steps[0])
        return any(np.any(np.isfinite(y)) for y in outs)

    def _require_finite(self) -> None:
        if not self._is_finite():
            raise VerificationError(
                "The outputs of `fn` must be finite to be compared. At parameters drawn with the "
                "magnitudes of `params` none is. Give a batch of more than one example to what "
                "normalises over the batch, and inputs that are themselves finite."
            )

    def _draw_until_something_is_seen(self) -> None:
        """Draws those settings again at which rounding moves every output."""
        for draw in range(DRAWS):
            for _ in range(_MANY):
                if self.yardstick(draw, self.steps[0]).n_looked:
                    break
                self.draws[draw] = self._leaves(keep_signs=False)
                self._yardsticks.clear()

    def _say_what_is_not_double(self) -> None:
        if not self.measured.is_double:
            why = f" ({self.measured.why})" if self.measured.why else ""
            self.notes.append(
                f"`fn`, or a part of it, could not be computed in float64 but only in "
                f"{np.dtype(self.measured.dtype)}{why}: changes below "
                f"{self.measured.tolerance:.1e} are not seen."
            )


def _still(errors: Sequence[float]) -> float:
    """The error where epsilons could not be made as small as they should be.

    If it became smaller with them, they may cause it: it is infinite, as nothing can be said.
    """
    is_theirs = len(errors) < 2 or errors[-1] < 0.5 * errors[-2]
    return float("inf") if is_theirs else min(errors)


def moved(base: Sequence[np.ndarray], move: Move) -> list[np.ndarray]:
    """Leaves after a move."""
    return [x * np.exp2(move[i]) if i in move else x for i, x in enumerate(base)]


def plain(value: Any) -> np.ndarray:  # noqa: ANN401 - any array
    """The array in NumPy, wide enough for any power; zeros where only its shape is known."""
    if is_abstract(value):
        return np.zeros(value.shape, value.dtype)
    array = np.asarray(value)
    return array.astype(np.float64) if is_float(value) and not np.iscomplexobj(array) else array


def _drawn(given: Any, rng: np.random.Generator, *, keep_signs: bool) -> Any:  # noqa: ANN401 - pytrees
    draw = functools.partial(drawn_input, rng=rng, keep_signs=keep_signs)
    return jax.tree.map(draw, given, is_leaf=is_abstract)


def _filled(given: Any, inputs: Sequence[Any]) -> Any:  # noqa: ANN401 - pytrees
    """Arguments with other arrays in the place of theirs."""
    leaves, rest = jax.tree.flatten(given)
    arrays = iter(inputs)
    return jax.tree.unflatten(rest, [next(arrays) if is_array(x) else x for x in leaves])


def _constants(assumptions: Sequence[Assumption]) -> dict[Constant, str]:
    """The constants that are taken for 0 or infinity, and which of both."""
    places: dict[tuple[str, str, float], list[str]] = {}
    for a in assumptions:
        if a.kind in ("epsilon", "infinity"):
            places.setdefault((a.kind, a.primitive, a.value), []).append(a.where)
    return {Constant(name, x, frozenset(at)): kind for (kind, name, x), at in places.items()}


def proof_of(analysis: Analysis, leaves: Sequence[Any]) -> Explainer:
    """The proof behind an analysis; fails if there is none, or `leaves` have other shapes."""
    if not isinstance(analysis.proof, Explainer):
        if Evidence.PROGRAM in analysis.evidence:
            raise StructureError(
                "`analysis` must come with the program that it was proved from. This one was read "
                "from JSON or from a pickle, which hold what was found, and not the program. Call "
                "`optax_bnmask.analyze` in this process."
            )
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
