"""The structure analysis of what a checkpoint holds."""

import dataclasses
import os
from typing import Final

from optax_bnmask.analysis import Analysis, analyze_structure
from optax_bnmask.checkpoints.reader import read

UNVERIFIED: Final = (
    "unverified by a program: the roles rest on names, shapes and running statistics alone; "
    "`analyze` and `verify` on the model itself prove them"
)


def analyze_checkpoint(
    path: str | os.PathLike[str], *, params: str | None = None, stats: str | None = None
) -> Analysis:
    """What the metadata of a checkpoint tell of each param's role.

    Args:
      path: The checkpoint, as for `read`.
      params: Where in it the params are; without, they are looked for.
      stats: Where in it the running statistics are; without, they are looked for.

    Returns:
      An `Analysis` by structure, which says in its `notes` what it was read from and that no
      program verified it.

    Raises:
      StructureError: As `read` and `analyze_structure`.

    Example:
      >>> import pathlib, tempfile
      >>> import numpy as np
      >>> path = pathlib.Path(tempfile.mkdtemp(), "model.npz")
      >>> np.savez(path, **{"dense/kernel": np.ones((2, 3)), "dense/bias": np.ones(3)})
      >>> analysis = analyze_checkpoint(path)
      >>> analysis["dense/bias"].role.value
      'bias'
      >>> print(analysis.notes[0])
      read from a checkpoint (npz), params at the top
    """
    stored = read(path, params=params, stats=stats)
    analysis = analyze_structure(stored.params, stored.batch_stats)
    return dataclasses.replace(analysis, notes=(*stored.notes, UNVERIFIED, *analysis.notes))
