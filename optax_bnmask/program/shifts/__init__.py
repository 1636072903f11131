"""What adding to a leaf changes, read off the tape: which leaves do not matter at all.

    changes.py    changes: what is added, how often, and along which axes it is constant (no JAX)
    flatness.py   the axes along which values do not vary
    reading.py    one loop over the tape, and what it found
    entrywise.py, mixing.py, axes.py   the laws, by kind of operation
"""

from collections.abc import Sequence

from optax_bnmask.program.facts import Facts
from optax_bnmask.program.shifts import axes, entrywise, mixing
from optax_bnmask.program.shifts.reading import Shifts

__all__ = ["Shifts", "axes", "entrywise", "mixing", "shifts"]


def shifts(facts: Facts, leaves: Sequence[int]) -> Shifts:
    """What adding to the leaves of a program changes."""
    return Shifts(facts, leaves)
