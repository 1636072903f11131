"""How the commands speak: formats, exit codes, sentences on the standard error."""

import contextlib
import enum
import warnings
from collections.abc import Callable, Iterator
from typing import Final, TypeVar

import typer

from optax_bnmask.errors import CategoryError, PathError, StructureError

T = TypeVar("T")

FINDINGS: Final = 1
"""The exit code where something was found that a test should fail on."""
BAD_INPUT: Final = 2
"""The exit code where the question could not be asked; typer's own is the same."""
EXIT_CODES: Final = "Exit code: 0 all is well, {one}, 2 bad input."


class Format(enum.StrEnum):
    """How a report is shown."""

    TEXT = "text"
    JSON = "json"
    HTML = "html"


class PlainFormat(enum.StrEnum):
    """How a list of changes is shown."""

    TEXT = "text"
    JSON = "json"


@contextlib.contextmanager
def sentences() -> Iterator[None]:
    """Bad input is a sentence and an exit code, not a traceback."""
    try:
        yield
    except (StructureError, PathError, CategoryError) as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(BAD_INPUT) from None


def aloud(function: Callable[[], T]) -> T:
    """What a function returns; what it warned of is said in the command's own way."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        result = function()
    for message in (str(w.message) for w in caught if w.category is UserWarning):
        typer.echo(f"Warning: {message}", err=True)
    return result
