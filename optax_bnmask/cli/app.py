"""The commands."""

from enum import StrEnum
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


class Format(StrEnum):
    """How an analysis is shown."""

    TEXT = "text"
    JSON = "json"
    HTML = "html"


@app.command(
    epilog="Examples:\n\noptax-bnmask inspect mymodels.resnet:resnet50 --input 8,224,224,3\n\n"
    "optax-bnmask inspect mymodels.bert:base --input 8,128:int32 --arg train=True --explain "
    "'*/query/kernel'"
)
def inspect(
    factory: Annotated[
        str,
        typer.Argument(
            metavar="MODULE:FACTORY",
            help="A function of no arguments that returns a Linen module, an NNX module, or a pair "
            "(fn, params).",
        ),
    ],
    *,
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input", metavar="SIZES[:DTYPE]", help="The shape of an input; once for each."
        ),
    ] = None,
    arguments: Annotated[
        list[str] | None,
        typer.Option("--arg", metavar="NAME=VALUE", help="A further argument of the model."),
    ] = None,
    explain: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", help="Explain these leaves instead of listing all."),
    ] = None,
    form: Annotated[
        Format, typer.Option("--format", help="How the analysis is shown.")
    ] = Format.TEXT,
) -> None:
    """Trace a model without allocating it, and show how each parameter is used.

    For each leaf: its role, whether its scale matters, along which axes, and why.
    """
    from optax_bnmask.cli.inspect import inspected, quietly  # noqa: PLC0415 - JAX where it serves
    from optax_bnmask.errors import CategoryError, PathError, StructureError  # noqa: PLC0415
    from optax_bnmask.paths import matches  # noqa: PLC0415

    try:
        analysis, warned = quietly(lambda: inspected(factory, inputs or (), arguments or ()))
        paths = [leaf.path for leaf in analysis.leaves]
        chosen = matches(explain or (), paths, "--explain")
    except (StructureError, PathError, CategoryError) as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(2) from None
    for message in warned:
        typer.echo(f"Warning: {message}", err=True)
    shown = {
        Format.TEXT: analysis.to_text,
        Format.JSON: analysis.to_json,
        Format.HTML: analysis.to_html,
    }
    if chosen:
        typer.echo("\n\n".join(analysis.explain(path) for path in paths if path in chosen))
    else:
        typer.echo(shown[form]())
