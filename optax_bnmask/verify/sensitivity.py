"""Which leaves move no output although no claim says so, and which claims fail at `params`."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from optax_bnmask.program.cones import Vector
from optax_bnmask.verify.claims import group_claims, moved, sum_of_moves, witness
from optax_bnmask.verify.draws import is_abstract, numpy_value
from optax_bnmask.verify.interpreter import Constant
from optax_bnmask.verify.outcome import Weak
from optax_bnmask.verify.trial import DRAWS, Trial
from optax_bnmask.verify.yardstick import relative_change
from optax_bnmask.vocabulary import BIASES, Role, Scale

Leaves = Sequence[np.ndarray]
"""The values of all leaves."""

_WEAK = 0.01
"""An invariance is weak where doubling its leaves moves an output by more than this part."""

_NOT_LOOKED_AT = (Role.UNUSED, Role.UNKNOWN)


def unmoving(trial: Trial) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The paths of leaves whose scale moves no output, unclaimed, and the paths of dead biases.

    Inputs whose examples are all alike hide what many leaves do. A leaf that moves no output on
    such inputs, and does on varied ones, is not returned but named in a note.
    """
    dead, missed, hidden = list[str](), list[str](), list[str]()
    for i, leaf in enumerate(trial.analysis.leaves):
        if leaf.role in _NOT_LOOKED_AT:
            continue
        found = _unmoving(trial, i, on_varied=False)
        if found and trial.hiding_inputs and _unmoving(trial, i, on_varied=True) != found:
            hidden.append(leaf.path)
        elif found:
            (dead if found == "dead" else missed).append(leaf.path)
    _note_degenerate(trial, hidden)
    return tuple(missed), tuple(dead)


def _unmoving(trial: Trial, i: int, *, on_varied: bool) -> str:
    """``"dead"`` for a bias whose value moves no output, ``"missed"`` if its scale moves none."""
    leaf = trial.analysis.leaves[i]
    is_dead = _is_dead(trial, i, on_varied=on_varied)
    if leaf.role in BIASES and is_dead:
        return "dead"
    if leaf.scale is Scale.INVARIANT or is_dead:
        return ""
    together = {(i,), (i, *trial.proof.biases[i])}
    found = any(_is_invariant(trial, some, on_varied=on_varied) for some in together)
    return "missed" if found else ""


def _is_dead(trial: Trial, i: int, *, on_varied: bool) -> bool:
    """Whether a new draw of a leaf moves no output."""
    return _moves_nothing(
        trial, lambda base: [[*base[:i], trial.new_leaf(i), *base[i + 1 :]]], on_varied=on_varied
    )


def _is_invariant(trial: Trial, some: Sequence[int], *, on_varied: bool) -> bool:
    """Whether to double some leaves, or to halve them, moves no output."""
    moves = dict.fromkeys(some, 1.0), dict.fromkeys(some, -1.0)
    return _moves_nothing(
        trial, lambda base: [moved(base, move) for move in moves], on_varied=on_varied
    )


def _moves_nothing(
    trial: Trial, changed: Callable[[Leaves], Sequence[Leaves]], *, on_varied: bool
) -> bool:
    """Whether none of the ways in which `changed` changes the leaves of a draw moves an output."""
    for draw, base in enumerate(trial.draws):
        yardstick = trial.yardstick(draw, on_varied=on_varied)
        if not yardstick.n_visible:
            return False
        for leaves in changed(base):
            outputs = trial.outputs_at(leaves, on_varied=on_varied)
            if not yardstick.change(outputs) <= trial.function.tolerance:
                return False
    return True


def _note_degenerate(trial: Trial, hidden: Sequence[str]) -> None:
    if not hidden and not trial.inputs.all_degenerate:
        return
    some = ", ".join(map(repr, hidden[:3])) + (", ..." if len(hidden) > 3 else "")
    so = f", so that {some} move nothing here, which do elsewhere" if hidden else ""
    trial.notes.append(
        f"Inputs that tell no example from another hide what `fn` does: {trial.hiding_inputs}{so}. "
        f"Give examples that differ, or `jax.ShapeDtypeStruct`s, for which they are drawn."
    )


def weak(trial: Trial) -> tuple[Weak, ...]:
    """The invariances that do not hold at the user's own parameters."""
    if any(map(is_abstract, trial.given_leaves)):
        trial.notes.append("`params` are known by shape only: weakness was not looked at.")
        return ()
    return _AtOwnParams(trial).weak()


class _AtOwnParams:
    """The function at the user's own parameters, with epsilons as they are."""

    def __init__(self, trial: Trial) -> None:
        self.trial = trial
        self.base = [numpy_value(value) for value in trial.given_leaves]
        self.own_factors = np.ones(len(trial.constants))
        drawn = trial.draws[:DRAWS]
        self.elsewhere = [trial.function(values, self.own_factors) for values in drawn]
        self.outputs_at_base = trial.function(self.base, self.own_factors)

    def weak(self) -> tuple[Weak, ...]:
        if not any(np.any(np.isfinite(y)) for y in self.outputs_at_base):
            self.trial.notes.append("No output is finite at `params`: weakness was not looked at.")
            return ()
        if all(not np.any(y) for y in self.outputs_at_base):
            self.trial.notes.append("All outputs are 0 at `params`: weakness cannot be seen there.")
        found, waiting = list[Weak](), [list(self._scaled())]
        while waiting:  # bisection, from all at once
            some = waiting.pop()
            change = self._change([exponents for _, _, exponents in some], self.own_factors)
            if len(some) > 1 and not change <= _WEAK:
                waiting += [some[: len(some) // 2], some[len(some) // 2 :]]
            elif change > _WEAK:
                ((path, others, exponents),) = some
                found.append(Weak(path, change, others, self._because(exponents)))
        return tuple(sorted(found, key=lambda w: (-w.change, w.path)))

    def _scaled(self) -> Iterator[tuple[str, tuple[str, ...], Vector]]:
        """Yields the path of a leaf, the rest of its joint group if any, and the exponents."""
        analysis, proof = self.trial.analysis, self.trial.proof
        for i, leaf in enumerate(analysis.leaves):
            if leaf.scale is Scale.INVARIANT:
                yield leaf.path, (), witness(proof, i)
        alone = [
            set(witness(proof, i))
            for i, x in enumerate(analysis.leaves)
            if x.scale is Scale.INVARIANT
        ]
        for scaling in group_claims(analysis, proof):
            if not any(scaling.exponents.keys() <= leaves for leaves in alone):
                path, *others = (analysis.leaves[i].path for i in sorted(scaling.exponents))
                yield path, tuple(others), scaling.exponents

    def _change(self, several: Sequence[Vector], factors: np.ndarray) -> float:
        """The change of the outputs by several symmetries, each of which scales by 2 at most.

        Args:
          several: The exponents of each symmetry.
          factors: What the constants of the proof are multiplied by.
        """
        tops = [max(map(abs, exponents.values()), default=1) for exponents in several]
        scaled = zip(several, tops, strict=True)
        move = sum_of_moves(
            {i: float(s / top) for i, s in exponents.items()} for exponents, top in scaled
        )
        is_known = bool(np.all(factors == 1))
        before = self.outputs_at_base if is_known else self.trial.function(self.base, factors)
        after = self.trial.function(moved(self.base, move), factors)
        return relative_change(after, before, self.elsewhere)

    def _because(self, exponents: Vector) -> str:
        """Why an invariance is weak, in words: the constants that are not negligible."""
        trial = self.trial
        for by in trial.epsilon_factors if trial.constants else ():
            negligible = trial.factors(by)
            if self._change([exponents], negligible) > _WEAK:
                continue
            alone = []
            for n, constant in enumerate(trial.constants):
                all_but_one = np.where(np.arange(len(negligible)) == n, 1.0, negligible)
                if self._change([exponents], all_but_one) > _WEAK:
                    alone.append(constant)
            return _named_constants(alone or list(trial.constants))
        guards = sorted({a.value for a in trial.analysis.assumptions if a.kind == "guard"})
        named = ", ".join(f"{value:g}" for value in guards)
        return f"where a guarded value is 0 and a guard ({named}) in its place" if guards else ""


def _named_constants(constants: Sequence[Constant]) -> str:
    named = ", ".join(f"{c.value:g} in `{c.primitive}`" for c in constants)
    return f"where {named} is not negligible"
