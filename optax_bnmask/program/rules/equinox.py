"""Equinox's own primitives, which Diffrax and others trace too; ruled once the user has them.

Most check that nobody transforms a value as its author did not mean; to what is computed they are
identities.
"""

from optax_bnmask import compat
from optax_bnmask.program.facts import Facts
from optax_bnmask.program.flags import CLIPPED, MASKED
from optax_bnmask.program.registry import AGREE, PIN, RULES, Kind, Law, rule
from optax_bnmask.program.tape import LOWERINGS, Equation, Writer

_INTERNAL = "equinox.internal."


def load() -> None:
    """Rules the primitives that are there and are not ruled yet."""
    _rule(Kind.VIEW, "_nontraceable", "nontraceable_p", "nonbatchable_p", law=Law())
    _rule(Kind.VIEW, "_nontraceable", "nondifferentiable_backward_p", law=Law())
    for name in ("unvmap_all_p", "unvmap_any_p", "unvmap_max_p"):
        key = compat.primitive_of("equinox._unvmap", name)
        if key is not None and key not in RULES:
            rule(Kind.UNSCALED, key)(PIN)
    _rule(Kind.JOIN, "_loop.common", "maybe_set_p", law=maybe_set)
    chosen = compat.primitive_of(f"{_INTERNAL}_loop.common", "select_if_vmap_p")
    if chosen is not None:
        LOWERINGS[chosen] = select_if_vmap


def _rule(kind: Kind, module: str, *names: str, law: object) -> None:
    for name in names:
        key = compat.primitive_of(_INTERNAL + module, name)
        if key is not None and key not in RULES:
            rule(kind, key, facts=_anything if kind is Kind.JOIN else None)(law)


def _anything(reading: Facts, e: Equation, flags: int) -> int:
    """What is set may be 0."""
    del reading, e, flags
    return CLIPPED | MASKED


def maybe_set(e: Equation, reading: Facts) -> Law:
    """``xs.at[i].set(x)`` where a predicate holds: entries of both remain, so the degrees agree."""
    whole, row = (reading.tape.shapes[x] for x in e.ins[1:3])
    rows = whole[1:] == row
    to = ({a + 1: a + 1 for a in range(len(row))}, {a: a + 1 for a in range(len(row))})
    return Law((None, *(to if rows else ({}, {}))), AGREE)


def select_if_vmap(w: Writer, which: int, x: int, y: int) -> list[int]:
    """``where(which, x, y)``."""
    return [w.emit(compat.primitive("select_n_p"), (which, y, x), w.shape, 0)]
