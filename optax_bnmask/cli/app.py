"""The command line: its commands, their help, and where shells complete them."""

from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console

from optax_bnmask.cli import commands
from optax_bnmask.cli.speaking import EXIT_CODES

app: Final = typer.Typer(
    name="optax-bnmask",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


def _show_version(wanted: bool) -> None:  # noqa: FBT001 - typer calls it so
    if wanted:
        typer.echo(f"optax-bnmask {version('optax-bnmask')}")
        raise typer.Exit


@app.callback(
    epilog="Examples:\n\noptax-bnmask demo --seeds 8 --out results\n\n"
    "optax-bnmask inspect mymodels.resnet:resnet50 --input 8,224,224,3 --arg train=True\n\n"
    "optax-bnmask inspect checkpoints/20000 --exempt norm,bias\n\n"
    "optax-bnmask audit mytraining:optimizer_and_params\n\n"
    + EXIT_CODES.format(one="1 findings or a difference")
)
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


_INSPECT: Final = """Examples:

optax-bnmask inspect mymodels.resnet:resnet50 --input 8,224,224,3 --arg train=True

optax-bnmask inspect mymodels.bert:base --input 8,128:int32 --explain '*/query/kernel'

optax-bnmask inspect checkpoints/20000 --exempt norm,bias --format html > report.html

For a golden file in your tests, keep this in the repository, and in CI make it anew and compare:

optax-bnmask inspect mymodels.resnet:resnet50 --input 8,224,224,3 --format json > golden.json

optax-bnmask diff golden.json today.json

""" + EXIT_CODES.format(one="1 is not used")
_AUDIT: Final = """Examples:

optax-bnmask audit mytraining:optimizer_and_params

optax-bnmask audit mytraining:optimizer_and_params --strict --format json > audit.json

""" + EXIT_CODES.format(one="1 errors were found, or it could not be told what decays")
_DIFF: Final = """Examples:

optax-bnmask inspect mymodels.resnet:resnet50 --input 8,224,224,3 --format json > today.json

optax-bnmask diff golden.json today.json

""" + EXIT_CODES.format(one="1 they differ")

app.command(epilog=_INSPECT)(commands.inspect)
app.command(epilog=_AUDIT)(commands.audit)
app.command(epilog=_DIFF)(commands.diff)
