"""What `verify` finds beside claims: missed leaves, dead biases, invariances weak at `params`."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from optax_bnmask.program.cones import Vector
from optax_bnmask.verify.claims import added, groups, witness
from optax_bnmask.verify.draws import is_abstract
from optax_bnmask.verify.interpreter import Constant
from optax_bnmask.verify.trial import DRAWS, Trial, moved, plain
from optax_bnmask.verify.verification import Weak
from optax_bnmask.verify.yardstick import relative_change
from optax_bnmask.vocabulary import BIASES, Role, Scale

_WEAK = 0.01

_ALONE = Scale.INVARIANT

_NO_DATA = (Role.UNUSED, Role.UNKNOWN)


def unmoving(trial: Trial) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The paths of leaves whose scale moved no output though not claimed, and of dead biases.

    On inputs whose examples are all alike, many leaves seem so. Those that do on such inputs alone
    are not returned, but named in a note.
    """
    dead, missed, hidden = list[str](), list[str](), list[str]()
    for i, leaf in enumerate(trial.analysis.leaves):
        if leaf.role in _NO_DATA:
            continue
        found = _unmoving(trial, i, on_varied=False)
        if found and trial.hiding and _unmoving(trial, i, on_varied=True) != found:
            hidden.append(leaf.path)
        elif found:
            (dead if found == "dead" else missed).append(leaf.path)
    _note_degenerate(trial, hidden)
    return tuple(missed), tuple(dead)


def _unmoving(trial: Trial, i: int, *, on_varied: bool) -> str:
    """``"dead"`` for a bias whose value moves no output, ``"missed"`` if only a scale does not."""
    leaf = trial.analysis.leaves[i]
    is_dead = _is_dead(trial, i, on_varied=on_varied)
    if leaf.role in BIASES and is_dead:
        return "dead"
    if leaf.scale is _ALONE or is_dead:
        return ""
    together = {(i,), (i, *trial.proof.biases[i])}
    return "missed" if any(_is_still(trial, some, on_varied=on_varied) for some in together) else ""


def _is_dead(trial: Trial, i: int, *, on_varied: bool) -> bool:
    def settings(draw: int) -> Iterator[Sequence[np.ndarray]]:
        base = trial.draws[draw]
        yield [*base[:i], trial.leaf(i), *base[i + 1 :]]

    return _moves_nothing(trial, settings, on_varied=on_varied)


def _is_still(trial: Trial, some: Sequence[int], *, on_varied: bool) -> bool:
    def settings(draw: int) -> Iterator[Sequence[np.ndarray]]:
        for power in (1.0, -1.0):
            yield moved(trial.draws[draw], dict.fromkeys(some, power))

    return _moves_nothing(trial, settings, on_varied=on_varied)


def _moves_nothing(
    trial: Trial, settings: Callable[[int], Iterator[Sequence[np.ndarray]]], *, on_varied: bool
) -> bool:
    """Whether no setting of any draw moves an output."""
    by = trial.steps[0]
    for draw in range(len(trial.draws)):
        ruler = trial.yardstick(draw, by, on_varied=on_varied)
        if not ruler.n_looked:
            return False
        for leaves in settings(draw):
            outputs = trial.at(leaves, by, on_varied=on_varied)
            if not ruler.change(outputs) <= trial.measured.tolerance:
                return False
    return True


def _note_degenerate(trial: Trial, hidden: Sequence[str]) -> None:
    if not hidden and not trial.inputs.all_degenerate:
        return
    some = ", ".join(map(repr, hidden[:3])) + (", ..." if len(hidden) > 3 else "")
    so = f", so that {some} move nothing here, which do elsewhere" if hidden else ""
    trial.notes.append(
        f"Inputs that tell no example from another hide what `fn` does: {trial.hiding}{so}. Give "
        f"examples that differ, or `jax.ShapeDtypeStruct`s, for which they are drawn."
    )


def weak(trial: Trial) -> tuple[Weak, ...]:
    """The invariances that do not hold at the user's own parameters."""
    if any(map(is_abstract, trial.own)):
        trial.notes.append("`params` are known by shape only: weakness was not looked at.")
        return ()
    return _AtHand(trial).weak()


class _AtHand:
    """The function at the user's own parameters, with epsilons as they are."""

    def __init__(self, trial: Trial) -> None:
        self.trial = trial
        self.base = [plain(value) for value in trial.own]
        self.here = np.ones(len(trial.assumptions))
        drawn = trial.draws[:DRAWS]
        self.elsewhere = [trial.measured(values, self.here) for values in drawn]
        self.at_base = trial.measured(self.base, self.here)

    def weak(self) -> tuple[Weak, ...]:
        if not any(np.any(np.isfinite(y)) for y in self.at_base):
            self.trial.notes.append("No output is finite at `params`: weakness was not looked at.")
            return ()
        if all(not np.any(y) for y in self.at_base):
            self.trial.notes.append("All outputs are 0 at `params`: weakness cannot be seen there.")
        found, waiting = list[Weak](), [list(self._scaled())]
        while waiting:  # all at once, and halves where that changes something
            some = waiting.pop()
            change = self._change([exponents for _, _, exponents in some], self.here)
            if len(some) > 1 and not change <= _WEAK:
                waiting += [some[: len(some) // 2], some[len(some) // 2 :]]
            elif change > _WEAK:
                ((path, others, exponents),) = some
                found.append(Weak(path, change, others, self._because(exponents)))
        return tuple(sorted(found, key=lambda w: (-w.change, w.path)))

    def _scaled(self) -> Iterator[tuple[str, tuple[str, ...], Vector]]:
        """The claimed invariances: a leaf, the rest of its joint group if any, the exponents."""
        analysis, proof = self.trial.analysis, self.trial.proof
        for i, leaf in enumerate(analysis.leaves):
            if leaf.scale is _ALONE:
                yield leaf.path, (), witness(proof, i)
        alone = [set(witness(proof, i)) for i, x in enumerate(analysis.leaves) if x.scale is _ALONE]
        for scaling in groups(analysis, proof):
            if not any(scaling.exponents.keys() <= leaves for leaves in alone):
                path, *others = (analysis.leaves[i].path for i in sorted(scaling.exponents))
                yield path, tuple(others), scaling.exponents

    def _change(self, several: Sequence[Vector], constants: np.ndarray) -> float:
        """The change where each of several symmetries scales its leaves by 2 at most."""
        tops = [max(map(abs, exponents.values()), default=1) for exponents in several]
        scaled = zip(several, tops, strict=True)
        move = added({i: float(s / top) for i, s in exponents.items()} for exponents, top in scaled)
        is_readable = bool(np.all(constants == 1))
        before = self.at_base if is_readable else self.trial.measured(self.base, constants)
        after = self.trial.measured(moved(self.base, move), constants)
        return relative_change(after, before, self.elsewhere)

    def _because(self, exponents: Vector) -> str:
        """Why an invariance is weak, in words: the constants without which it would not be."""
        trial = self.trial
        for by in trial.steps if trial.assumptions else ():
            none = trial.constants(by)
            if self._change([exponents], none) > _WEAK:
                continue
            alone = [
                constant
                for n, constant in enumerate(trial.assumptions)
                if self._change([exponents], np.where(np.arange(len(none)) == n, 1.0, none)) > _WEAK
            ]
            return _said(alone or list(trial.assumptions))
        guards = sorted({a.value for a in trial.analysis.assumptions if a.kind == "guard"})
        named = ", ".join(f"{value:g}" for value in guards)
        return f"where a guarded value is 0 and a guard ({named}) in its place" if guards else ""


def _said(constants: Sequence[Constant]) -> str:
    named = ", ".join(f"{c.value:g} in `{c.primitive}`" for c in constants)
    return f"where {named} is not negligible"
