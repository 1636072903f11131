"""The commands that read a model, a checkpoint, an optimizer or two reports.

They are declared here and done elsewhere, so that this module stays a list of what can be asked.
"""

from pathlib import Path
from typing import Annotated

import typer

from optax_bnmask.cli.speaking import FINDINGS, Format, PlainFormat, aloud, sentences
from optax_bnmask.errors import StructureError


def inspect(
    subject: Annotated[
        str,
        typer.Argument(
            metavar="MODULE:FACTORY|CHECKPOINT",
            help="A function of no arguments that returns a Linen module, an NNX module, or a pair "
            "(fn, params). Or the path of a checkpoint: Orbax, Flax msgpack, safetensors, npz.",
        ),
    ],
    *,
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            metavar="SIZES[:DTYPE]",
            help="The shape of a model's input; once for each.",
        ),
    ] = None,
    arguments: Annotated[
        list[str] | None,
        typer.Option("--arg", metavar="NAME=VALUE", help="A further argument of the model."),
    ] = None,
    params: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Where in a checkpoint the params are: state/params."),
    ] = None,
    stats: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Where in a checkpoint the running statistics are."),
    ] = None,
    exempt: Annotated[
        str | None,
        typer.Option(
            metavar="CATEGORIES",
            help="Show the mask that exempts these: norm, bias, gain, embedding, scale_invariant, "
            "jointly_invariant, with commas between.",
        ),
    ] = None,
    explain: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", help="Explain these leaves instead of listing all."),
    ] = None,
    form: Annotated[
        Format, typer.Option("--format", help="How the analysis is shown.")
    ] = Format.TEXT,
) -> None:
    """Show how each parameter is used: of a model, traced, or of a checkpoint.

    A model is traced without allocating it.
    For each leaf: its role, whether its scale matters, along which axes, and why.

    Of a checkpoint only the metadata are read, whatever its size, and nothing in it is run.
    That tells roles, not scales, and no program has verified it: the report says so.

    What exists as a path is taken for a checkpoint, all else for MODULE:FACTORY.
    """
    with sentences():
        is_checkpoint = Path(subject).exists() or ":" not in subject
        _refuse_stray(is_checkpoint, [*(inputs or ()), *(arguments or ())], [params, stats])
        if is_checkpoint:
            from optax_bnmask.checkpoints import analyze_checkpoint  # noqa: PLC0415 - only where it serves

            _refuse_missing(subject)
            analysis = analyze_checkpoint(subject, params=params, stats=stats)
        else:
            from optax_bnmask.cli.inspect import inspected  # noqa: PLC0415 - only where it serves

            analysis = aloud(lambda: inspected(subject, inputs or (), arguments or ()))
        from optax_bnmask.cli.showing import decided, explained, shown  # noqa: PLC0415 - as above

        if explain:
            typer.echo(explained(analysis, explain))
        else:
            mask = aloud(lambda: decided(analysis, exempt))
            typer.echo(shown(analysis, form, mask))


def audit(
    factory: Annotated[
        str,
        typer.Argument(
            metavar="MODULE:FACTORY",
            help="A function of no arguments that returns (tx, params), or (tx, params, analysis). "
            "Without an analysis the params' structure tells.",
        ),
    ],
    *,
    strict: Annotated[bool, typer.Option("--strict", help="Fail on warnings too.")] = False,
    form: Annotated[Format, typer.Option("--format", help="How the audit is shown.")] = Format.TEXT,
) -> None:
    """Show what an optimizer really decays, found by running it, and what is wrong with that."""
    with sentences():
        from optax_bnmask.cli.audit import audited  # noqa: PLC0415 - only where it serves

        found = aloud(lambda: audited(factory))
    shown = {Format.TEXT: found.to_text, Format.JSON: found.to_json, Format.HTML: found.to_html}
    typer.echo(shown[form]())
    warned = any(finding.severity != "note" for finding in found.findings)
    if not found.ok or (strict and warned):
        raise typer.Exit(FINDINGS)


def diff(
    old: Annotated[Path, typer.Argument(metavar="OLD.json", help="The report that is kept.")],
    new: Annotated[Path, typer.Argument(metavar="NEW.json", help="The report of today.")],
    *,
    form: Annotated[
        PlainFormat, typer.Option("--format", help="How the changes are shown.")
    ] = PlainFormat.TEXT,
) -> None:
    """List what changed between two reports: leaves, shapes, roles, scales, what decays.

    The reports are those of `inspect --format json`, with or without --exempt, or of
    `audit --format json`; or objects that say true or false for each path.
    """
    with sentences():
        from optax_bnmask.cli.diff import difference  # noqa: PLC0415 - only where it serves

        found = difference(old, new)
    typer.echo(found.to_json() if form is PlainFormat.JSON else found.to_text())
    if not found.same:
        raise typer.Exit(FINDINGS)


def _refuse_stray(
    is_checkpoint: bool,  # noqa: FBT001 - what the rest is judged by
    of_models: list[str],
    of_checkpoints: list[str | None],
) -> None:
    """Fails on options that mean nothing here."""
    if is_checkpoint and of_models:
        raise StructureError(
            "--input and --arg are for a model. A checkpoint has no program to be given them. "
            "Leave them out, or name MODULE:FACTORY."
        )
    if not is_checkpoint and any(place is not None for place in of_checkpoints):
        raise StructureError(
            "--params and --stats are for a checkpoint. A model brings its own. Leave them out, or "
            "name the path of a checkpoint."
        )


def _refuse_missing(subject: str) -> None:
    """Fails where there is nothing of that path."""
    if not Path(subject).exists():
        raise StructureError(
            f"What to look at is given as 'package.module:factory' or as the path of a checkpoint. "
            f"Found {subject!r}, which has no colon and does not exist."
        )
