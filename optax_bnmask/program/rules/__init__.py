"""The rules, in families. `load` fills the table of `optax_bnmask.program.registry`."""

import sys


def load() -> None:
    """Imports all families, and those of libraries that the user has imported."""
    from optax_bnmask.program import control, devices, lowering  # noqa: F401, PLC0415 - see above
    from optax_bnmask.program.rules import (  # noqa: F401, PLC0415
        arithmetic,
        contraction,
        indexing,
        linalg,
        shaping,
    )

    if "equinox" in sys.modules:
        from optax_bnmask.program.rules import equinox  # noqa: PLC0415 - only for those who have it

        equinox.load()
