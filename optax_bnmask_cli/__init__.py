"""The command line, `optax-bnmask`.

A package beside `optax_bnmask`, not inside it: to import anything of that package is to import JAX,
which takes seconds, and help and completion need none of it. Only what a command calls imports it.
"""

import sys
import traceback
from typing import Final

_EXTRAS: Final = {
    "click": "click",
    "rich": "rich",
    "matplotlib": "matplotlib",
    "sklearn": "scikit-learn",
}
"""The modules that only the extras install, with the packages they come in."""

_BAD_INPUT: Final = 2
_FAULT: Final = 3
"""Exit codes. They are not imported from `messages`, as `app` cannot be without the extra."""


def main() -> None:
    """Runs the command line; an extra that is not installed is a sentence, not a traceback."""
    try:
        from optax_bnmask_cli.app import app  # noqa: PLC0415 - it needs the extra

        app(prog_name="optax-bnmask")
    except Exception as error:  # exit code 1, Python's own, means findings here
        name = error.name or "" if isinstance(error, ModuleNotFoundError) else ""
        package = _EXTRAS.get(name.partition(".")[0])
        if package is None:
            traceback.print_exception(error)
            sys.exit(_FAULT)
        print(  # noqa: T201 - nothing better is installed
            f"This command needs {package}, which is not installed. Install it: "
            f"{sys.executable} -m pip install {package}",
            file=sys.stderr,
        )
        sys.exit(_BAD_INPUT)
