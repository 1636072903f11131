"""`optax-bnmask audit`: what the optimizer that a factory makes really decays."""

from collections.abc import Sequence
from typing import Any

from optax_bnmask.analysis import Analysis, analyze_structure
from optax_bnmask.audit import Audit, audit
from optax_bnmask.errors import CategoryError, PathError, StructureError
from optax_bnmask_cli.factories import described_error, imported_factory


def audited(factory: str, exempt: Sequence[str] | None = None) -> Audit:
    """The audit of what ``package.module:factory`` makes.

    Args:
      factory: Where to find a function of no arguments that returns an optimizer and the params,
        ``(tx, params)``, or these and their analysis, ``(tx, params, analysis)``. Shapes will do
        for params.
      exempt: The categories that should not decay; without, those of `audit`.

    Returns:
      The `Audit`.

    Raises:
      StructureError: There is no such factory, it fails, or it returns something else.
    """
    try:
        made = imported_factory(factory)()
    except (StructureError, PathError, CategoryError):
        raise
    except (Exception, SystemExit) as error:  # anything may come out of a user's factory
        raise StructureError(
            f"{factory!r} must return (tx, params) or (tx, params, analysis). It is called without "
            f"arguments, and {described_error(error)}. --debug shows the whole traceback."
        ) from error
    tx, params, analysis = _parts(factory, made)
    known = analyze_structure(params) if analysis is None else analysis
    return audit(tx, params, known) if exempt is None else audit(tx, params, known, exempt=exempt)


def _parts(factory: str, made: object) -> tuple[Any, Any, Analysis | None]:
    """The optimizer, the params, and their analysis if it was given."""
    # an optimizer is a tuple too, one with names
    parts = made if isinstance(made, tuple) and not hasattr(made, "_fields") else ()
    tx, params, analysis = (*parts, None)[:3] if len(parts) in {2, 3} else (None, None, None)
    is_optimizer = callable(getattr(tx, "init", None)) and callable(getattr(tx, "update", None))
    if not is_optimizer or not isinstance(analysis, Analysis | None):
        kinds = ", ".join(type(part).__name__ for part in parts) or type(made).__name__
        raise StructureError(
            f"{factory!r} must return (tx, params) or (tx, params, analysis). It returned "
            f"({kinds}). `tx` is an Optax optimizer, `analysis` what `bnmask.analyze` and its kin "
            f"return."
        )
    return tx, params, analysis
