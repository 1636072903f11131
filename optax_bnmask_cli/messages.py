"""How the commands speak: formats, exit codes, sentences on the standard error."""

import contextlib
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeVar

T = TypeVar("T")

FINDINGS: Final = 1
"""The exit code where something was found that a test should fail on."""
BAD_INPUT: Final = 2
"""The exit code for arguments or files that cannot be used; click's own is the same."""
EXIT_CODES: Final = (
    "Exit code: 0 all is well, {one}, 2 bad input or a package that is missing, "
    "3 a fault of this tool."
)


@contextlib.contextmanager
def errors_printed(*, debug: bool) -> Iterator[None]:
    """Turns errors of bad input into a sentence and an exit code; `debug` shows the traceback."""
    from optax_bnmask.errors import (  # noqa: PLC0415 - it imports JAX, which help does without
        CategoryError,
        PathError,
        StructureError,
    )

    try:
        yield
    except (StructureError, PathError, CategoryError) as error:
        if debug:
            traceback.print_exception(error)
        _print_message("Error", str(error), "bold red")
        raise SystemExit(BAD_INPUT) from None


def with_warnings_printed(function: Callable[[], T]) -> T:
    """Calls a function, prints its `UserWarning`s on the standard error, and returns its result.

    What users' code prints goes there, too: the standard output is for the command's own.
    """
    from optax_bnmask.families import folded_lines  # noqa: PLC0415 - as above

    with (
        warnings.catch_warnings(record=True) as caught,
        contextlib.redirect_stdout(sys.stderr),
    ):
        warnings.simplefilter("always", UserWarning)
        result = function()
    said = [str(warning.message) for warning in caught if warning.category is UserWarning]
    for message in folded_lines(said):
        _print_message("Warning", message, "bold yellow")
    return result


def _print_message(kind: str, message: str, style: str) -> None:
    """A sentence on the standard error."""
    from rich.text import Text  # noqa: PLC0415 - help does without

    say(Text.assemble((f"{kind}:", style), f" {message}"), stderr=True)


def say(text: Any, *, stderr: bool = False) -> None:  # noqa: ANN401 - a string, or a Text of rich's
    """Prints text: folded between words on a terminal, as it is everywhere else."""
    from rich.console import Console  # noqa: PLC0415 - as above

    console = Console(stderr=stderr)
    console.print(text, soft_wrap=not console.is_terminal, markup=False, highlight=False)
