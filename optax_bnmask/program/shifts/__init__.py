"""What adding to a leaf changes, read off the tape: which leaves are dead, and shift axes.

changes.py    changes: what is added, how often, and along which axes it is constant (no JAX)
candidates.py   which leaves are worth following
reading.py    one loop over the tape, and what it found
entrywise.py, mixing.py, axes.py   the laws, by kind of operation
"""

from optax_bnmask.program.flatness import Flatness as Flatness
from optax_bnmask.program.shifts import axes, entrywise, mixing  # noqa: F401 - they register laws
from optax_bnmask.program.shifts.reading import Shifts as Shifts
