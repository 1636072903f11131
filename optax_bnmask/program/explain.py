"""The chain of operations from a leaf to where its scale cancels or is pinned."""

import dataclasses

from collections.abc import Sequence

from optax_bnmask.program.symmetries import Symmetries
from optax_bnmask.program.trace import Program


@dataclasses.dataclass(frozen=True, slots=True)
class Explainer:
    """What an analysis can still be asked."""

    program: Program
    found: Symmetries
    biases: Sequence[Sequence[int]]
