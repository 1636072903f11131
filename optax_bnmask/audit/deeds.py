"""What a program does, whatever the sizes of its arrays."""

import functools
import operator
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from optax_bnmask import compat
from optax_bnmask.audit.update import Update


class Deeds(NamedTuple):
    """What a program does, whatever the sizes.

    Attributes:
      names: The operations in their order, those within others too, and which constants are 0.
      reads: For each output, the inputs that it is made from, as bits.
      zeros: Which arrays that the program holds are 0.
    """

    names: tuple[Any, ...]
    reads: tuple[int, ...]
    zeros: tuple[bool, ...]


def deeds(update: Update) -> tuple[Deeds, ...]:
    """What an optimizer does, without the shapes: its operations, and which leaves each reads."""
    return tuple(map(deeds_of, (update.start, *update.steps)))


def deeds_of(program: Any) -> Deeds:  # noqa: ANN401 - JAX keeps its type private
    """The `Deeds` of a program.

    Args:
      program: A jaxpr.

    Returns:
      What it does.
    """
    jaxpr = compat.open_jaxpr(program)
    reads = {var: 1 << i for i, var in enumerate(jaxpr.invars)}

    def made_from(atoms: Iterable[Any]) -> int:
        known = (0 if isinstance(atom, compat.Literal) else reads.get(atom, 0) for atom in atoms)
        return functools.reduce(operator.or_, known, 0)

    names = []
    for eqn in jaxpr.eqns:
        within = (inner for value in eqn.params.values() for inner in _jaxprs(value))
        zeros = tuple(_is_zero(atom) for atom in eqn.invars)
        names.append((eqn.primitive.name, zeros, *map(deeds_of, within)))
        reads.update(dict.fromkeys(eqn.outvars, made_from(eqn.invars)))
    zeros = tuple(not np.any(const) for const in compat.consts_of(program))
    return Deeds(tuple(names), tuple(made_from([atom]) for atom in jaxpr.outvars), zeros)


def _is_zero(atom: Any) -> bool:  # noqa: ANN401 - JAX keeps its type private
    """Whether a number is written there and is 0: a mask may multiply."""
    return isinstance(atom, compat.Literal) and not np.any(atom.val)


def _jaxprs(value: object) -> Iterator[Any]:
    """The programs in a parameter of an operation."""
    items: Iterable[Any] = value if isinstance(value, Sequence) else (value,)
    for item in items:
        if hasattr(compat.open_jaxpr(item), "eqns"):
            yield item
