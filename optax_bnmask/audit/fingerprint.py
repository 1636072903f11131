"""A fingerprint of a program without its shapes, equal for programs that do the same."""

import functools
import operator
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from optax_bnmask import compat
from optax_bnmask.audit.update import Update
from optax_bnmask.verify.widening import programs_in


class Fingerprint(NamedTuple):
    """The fingerprint of a jaxpr.

    Attributes:
      operations: For each operation, its primitive, which operands are a literal 0, and the
        fingerprints of the jaxprs in its parameters.
      reads: For each output, the inputs that it is made from, as a bit mask.
      zeros: For each constant of the jaxpr, whether all of it is 0.
    """

    operations: tuple[Any, ...]
    reads: tuple[int, ...]
    zeros: tuple[bool, ...]


def fingerprint(update: Update) -> tuple[Fingerprint, ...]:
    """The `Fingerprint` of an optimizer's programs: of its `init`, then of each update."""
    return tuple(map(fingerprint_of, (update.start, *update.steps)))


def fingerprint_of(program: Any) -> Fingerprint:  # noqa: ANN401 - JAX keeps its type private
    """The `Fingerprint` of a program.

    Args:
      program: A jaxpr, closed or not.
    """
    jaxpr = compat.open_jaxpr(program)
    reads = {var: 1 << i for i, var in enumerate(jaxpr.invars)}

    def made_from(atoms: Iterable[Any]) -> int:
        known = (0 if isinstance(atom, compat.Literal) else reads.get(atom, 0) for atom in atoms)
        return functools.reduce(operator.or_, known, 0)

    operations = []
    for eqn in jaxpr.eqns:
        zeros = tuple(_is_zero(atom) for atom in eqn.invars)
        inner = map(fingerprint_of, programs_in(eqn.params))
        operations.append((eqn.primitive.name, zeros, *inner))
        reads.update(dict.fromkeys(eqn.outvars, made_from(eqn.invars)))
    zeros = tuple(not np.any(const) for const in compat.consts_of(program))
    return Fingerprint(tuple(operations), tuple(made_from([atom]) for atom in jaxpr.outvars), zeros)


def _is_zero(atom: Any) -> bool:  # noqa: ANN401 - JAX keeps its type private
    """Whether an operand is a literal 0, as where a mask is applied by multiplication."""
    return isinstance(atom, compat.Literal) and not np.any(atom.val)
