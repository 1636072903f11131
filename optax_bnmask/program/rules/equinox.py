"""Equinox's own primitives, which Diffrax and others trace too; ruled once the user has them.

Most check that nobody transforms a value as its author did not mean; to what is computed they are
identities.
"""

from typing import Any

from optax_bnmask import compat
from optax_bnmask.program.facts import Facts
from optax_bnmask.program.registry import AGREE, ANYTHING, PIN, RULES, Kind, Law, rule
from optax_bnmask.program.tape import LOWERINGS, Equation, Writer


def maybe_set(e: Equation, reading: Facts) -> Law:
    """``xs.at[i].set(x)`` where a predicate holds: entries of both remain, so the degrees agree."""
    whole, row = (reading.tape.shapes[x] for x in e.ins[1:3])
    if whole[1:] != row:
        return Law((None, {}, {}), AGREE)
    to = {a: a + 1 for a in range(len(row))}
    return Law((None, {a: a for a in to.values()}, to), AGREE)


def select_if_vmap(w: Writer, which: int, x: int, y: int) -> list[int]:
    """``where(which, x, y)``."""
    return [w.emit(compat.primitive("select_n_p"), (which, y, x), w.shape, 0)]


_LAWS: dict[tuple[str, str], tuple[Kind, Any]] = {
    ("equinox.internal._nontraceable", "nontraceable_p"): (Kind.VIEW, Law()),
    ("equinox.internal._nontraceable", "nonbatchable_p"): (Kind.VIEW, Law()),
    ("equinox.internal._nontraceable", "nondifferentiable_backward_p"): (Kind.VIEW, Law()),
    ("equinox._unvmap", "unvmap_all_p"): (Kind.UNSCALED, PIN),
    ("equinox._unvmap", "unvmap_any_p"): (Kind.UNSCALED, PIN),
    ("equinox._unvmap", "unvmap_max_p"): (Kind.UNSCALED, PIN),
    ("equinox.internal._loop.common", "maybe_set_p"): (Kind.JOIN, maybe_set),
}
_LOWERED = {("equinox.internal._loop.common", "select_if_vmap_p"): select_if_vmap}


def primitives() -> set[Any]:
    """The primitives above that the user's version of Equinox has."""
    return {compat.primitive_of(*place) for place in (*_LAWS, *_LOWERED)} - {None}


def load() -> None:
    """Registers the laws of those primitives that exist and have none yet."""
    for place, (kind, law) in _LAWS.items():
        key = compat.primitive_of(*place)
        if key is not None and key not in RULES:
            rule(kind, key, facts=ANYTHING if kind is Kind.JOIN else None)(law)
    for place, function in _LOWERED.items():
        key = compat.primitive_of(*place)
        if key is not None:
            LOWERINGS[key] = function
