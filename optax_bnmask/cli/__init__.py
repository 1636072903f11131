"""The command line, `optax-bnmask`: nothing of it is imported by `import optax_bnmask`."""

import sys
from typing import Final

_EXTRAS: Final = {
    "typer": "typer",
    "rich": "rich",
    "matplotlib": "matplotlib",
    "sklearn": "scikit-learn",
}
"""The modules that only the extras install, with the packages they come in."""


def main() -> None:
    """Runs the command line; an extra that is not installed is a sentence, not a traceback."""
    try:
        from optax_bnmask.cli.app import app  # noqa: PLC0415 - it needs the extra

        app()
    except ModuleNotFoundError as error:
        package = _EXTRAS.get((error.name or "").partition(".")[0])
        if package is None:
            raise
        sys.exit(
            f"This command needs {package}, which is not installed. Install the extra that brings "
            f'it: {sys.executable} -m pip install "optax-bnmask[demo]"'
        )
