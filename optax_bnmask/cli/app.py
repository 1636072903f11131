"""The commands."""

from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console

app: Final = typer.Typer(
    name="optax-bnmask",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


def _show_version(wanted: bool) -> None:  # noqa: FBT001 - typer calls it so
    if wanted:
        typer.echo(f"optax-bnmask {version('optax-bnmask')}")
        raise typer.Exit


@app.callback(epilog="Example:\n\noptax-bnmask demo --seeds 8 --out results")
def root(
    *,
    show_version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Weight-decay masks for JAX, decided from evidence instead of names."""
    del show_version


@app.command(
    epilog="Examples:\n\noptax-bnmask demo\n\noptax-bnmask demo --seeds 8 --epochs 40 --out results"
)
def demo(
    *,
    seeds: Annotated[
        int, typer.Option(min=2, help="Runs for each policy; all are trained at once.")
    ] = 5,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training images.")] = 20,
    out: Annotated[
        Path,
        typer.Option(
            file_okay=False, writable=True, help="Where report.html and policies.png are written."
        ),
    ] = Path(),
) -> None:
    """Train a ResNet on handwritten digits, with decay on everything and with the mask.

    The digits are real scans; a quarter is held out for the test.
    Shows which leaves decay and why, then what came out of each policy,
    and where the policies do not differ.
    """
    from optax_bnmask.demo import run  # noqa: PLC0415 - JAX and matplotlib only where they serve

    run(seeds=seeds, epochs=epochs, out=out, console=Console())
