"""The command line: its commands, their help, and where shells complete them.

The commands are declared here and done elsewhere. What does them is imported when a command runs:
imported here, JAX would have to start before any help is shown. For the same reason this is Click
and not Typer, which makes every parameter with Pydantic: that alone takes longer than help may.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import click
from click.shell_completion import get_completion_class

from optax_bnmask_cli.messages import EXIT_CODES, FINDINGS, errors_printed, with_warnings_printed

_SETTINGS: Final = {
    "help_option_names": ["--help", "-h"],
    "max_content_width": 100,  # longer lines are hard to read; a narrower terminal folds earlier
    "show_default": True,
}
_NAME: Final = "optax-bnmask"
_TRACED: Final = f"{_NAME} inspect models.resnet:small --input 8,32,32,3"


def _epilog(one: str, *examples: str, more: str = "") -> str:
    """What stands below a command's help: examples, each on a line of its own, and exit codes."""
    lines = "\n".join(("\b", "Examples:", *(f"  {example}" for example in examples)))
    return "\n\n".join(filter(None, (lines, more, EXIT_CODES.format(one=one))))


def _show_version(context: click.Context, _: click.Parameter, wanted: bool) -> None:  # noqa: FBT001 - click calls it so
    if wanted:
        from importlib.metadata import version  # noqa: PLC0415 - a third of what help would cost

        click.echo(f"{_NAME} {version(_NAME)}")
        context.exit()


def _show_completion(context: click.Context, _: click.Parameter, shell: str | None) -> None:
    if shell is not None and (kind := get_completion_class(shell)) is not None:
        click.echo(kind(app, {}, _NAME, "_OPTAX_BNMASK_COMPLETE").source())
        context.exit()


@click.group(
    _NAME,
    context_settings=_SETTINGS,
    epilog=_epilog(
        "1 findings or a difference",
        f"{_NAME} demo --seeds 8 --out results",
        f"{_TRACED} --arg train=True",
        f"{_NAME} inspect checkpoints/20000 --exempt norm,bias",
        f"{_NAME} audit training:tx_params",
    ),
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the version and exit.",
)
@click.option(
    "--show-completion",
    type=click.Choice(["bash", "zsh", "fish"]),
    is_eager=True,
    expose_value=False,
    callback=_show_completion,
    help="Show what a shell needs to complete commands; its start-up file may evaluate it.",
)
def app() -> None:
    """Weight-decay masks for JAX, decided from evidence instead of names."""


_CATEGORIES: Final = (
    "norm, bias, gain, embedding, scale_invariant, jointly_invariant, input, hidden, head, "
    "learned, scalar, unreached, dead, or a preset, STANDARD, STRICT, WIDE, with commas between."
)
_format = click.option(
    "--format",
    "form",
    type=click.Choice(["text", "json", "html"]),
    default="text",
    help="How the result is shown.",
)
_debug = click.option("--debug", is_flag=True, help="Show the whole traceback of what failed.")


@app.command(
    epilog=_epilog(
        "1 is not used", f"{_NAME} demo", f"{_NAME} demo --seeds 8 --epochs 40 --out results"
    )
)
@click.option(
    "--seeds",
    type=click.IntRange(min=2),
    default=5,
    help="Runs for each policy; all are trained at once.",
)
@click.option(
    "--epochs", type=click.IntRange(min=1), default=20, help="Passes over the training images."
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, writable=True, path_type=Path),
    default=Path(),
    help="Where report.html and policies.png are written.",
)
def demo(*, seeds: int, epochs: int, out: Path) -> None:
    """Train a ResNet on handwritten digits, with decay on everything and with the mask.

    The digits are real scans; a quarter is held out for the test. Shows what came out of each
    policy, and where the policies do not differ, then which leaves decay and why.
    """
    with errors_printed(debug=False):
        from optax_bnmask_cli.examples import example  # noqa: PLC0415 - it imports JAX

        run = example("digits").run
    run(seeds=seeds, epochs=epochs, out=out)


@app.command(
    epilog=_epilog(
        "1 is not used",
        f"{_TRACED} --arg train=True",
        f"{_NAME} inspect models:bert --input 8,128:int32 --explain '*/query/*'",
        f"{_NAME} inspect model.npz --exempt norm --format html > page.html",
        f"{_NAME} inspect models:mlp --input 8,64 --format json > golden.json",
        more="The last of these makes a golden file: keep it in the repository, make it anew in "
        "CI, and compare the two with diff.",
    )
)
@click.argument("subject", metavar="MODULE:FACTORY|CHECKPOINT")
@click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar="SIZES[:DTYPE]",
    help="The shape of a model's input; once for each.",
)
@click.option(
    "--arg",
    "arguments",
    multiple=True,
    metavar="NAME=VALUE",
    help="A further argument of the model.",
)
@click.option(
    "--params", metavar="PATH", help="Where in a checkpoint the params are: state/params."
)
@click.option("--stats", metavar="PATH", help="Where in a checkpoint the running statistics are.")
@click.option(
    "--exempt",
    multiple=True,
    metavar="CATEGORIES",
    help=f"Show the mask that exempts these: {_CATEGORIES}",
)
@click.option(
    "--explain",
    multiple=True,
    metavar="GLOB",
    help="Explain these leaves instead of listing all.",
)
@_format
@_debug
def inspect(
    *,
    subject: str,
    inputs: Sequence[str],
    arguments: Sequence[str],
    params: str | None,
    stats: str | None,
    exempt: Sequence[str],
    explain: Sequence[str],
    form: str,
    debug: bool,
) -> None:
    """Show how each parameter is used: of a model, traced, or of a checkpoint.

    MODULE:FACTORY is a function of no arguments that returns a Linen module, an NNX module, or a
    pair (fn, params). It is traced without allocating anything. For each leaf: its role, whether
    its scale matters, along which axes, and why.

    CHECKPOINT is the path of one: Orbax, Flax msgpack, safetensors, npz. Only the metadata are
    read, whatever its size, and nothing in it is run. That tells roles, not scales, and no program
    has verified it: the report says so.

    What exists as a path is taken for a checkpoint, all else for MODULE:FACTORY.
    """
    with errors_printed(debug=debug):
        from optax_bnmask_cli.inspection import inspected  # noqa: PLC0415 - it imports JAX
        from optax_bnmask_cli.reports import (  # noqa: PLC0415 - as above
            mask_for,
            require_explanations_alone,
            show_analysis,
            show_explanations,
        )

        if explain:
            require_explanations_alone(form, decides=bool(exempt))
        analysis = with_warnings_printed(
            lambda: inspected(subject, inputs, arguments, params=params, stats=stats)
        )
        if explain:
            show_explanations(analysis, explain)
        else:
            show_analysis(analysis, form, with_warnings_printed(lambda: mask_for(analysis, exempt)))


@app.command(
    epilog=_epilog(
        "1 errors were found, or it could not be told what decays",
        f"{_NAME} audit training:tx_params",
        f"{_NAME} audit training:tx_params --strict --format json > audit.json",
    )
)
@click.argument("factory", metavar="MODULE:FACTORY")
@click.option("--strict", is_flag=True, help="Fail on warnings too.")
@click.option(
    "--exempt",
    multiple=True,
    metavar="CATEGORIES",
    help=f"What should not decay, '' for nothing; without, norm. Any of {_CATEGORIES}",
)
@_format
@_debug
def audit(*, factory: str, strict: bool, exempt: Sequence[str], form: str, debug: bool) -> None:
    """Show what an optimizer really decays, found by running it, and what is wrong with that.

    MODULE:FACTORY is a function of no arguments that returns (tx, params), or
    (tx, params, analysis). Without an analysis the params' structure tells.
    """
    with errors_printed(debug=debug):
        from optax_bnmask_cli.audit import audited  # noqa: PLC0415 - it imports JAX
        from optax_bnmask_cli.reports import categories, show_audit  # noqa: PLC0415 - as above

        named = categories(exempt) if exempt else None
        found = with_warnings_printed(lambda: audited(factory, named))
        show_audit(found, form)
    warned = any(finding.severity != "note" for finding in found.findings)
    if not found.ok or (strict and warned):
        raise SystemExit(FINDINGS)


@app.command(
    epilog=_epilog(
        "1 they differ",
        f"{_NAME} inspect models:mlp --input 8,64 --format json > today.json",
        f"{_NAME} diff golden.json today.json",
    )
)
@click.argument("old", metavar="OLD.json", type=click.Path(path_type=Path))
@click.argument("new", metavar="NEW.json", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "json"]),
    default="text",
    help="How the changes are shown.",
)
@_debug
def diff(*, old: Path, new: Path, form: str, debug: bool) -> None:
    """List what changed between two reports: leaves, shapes, roles, scales, what decays.

    OLD.json is the report that is kept, NEW.json today's. They are those that inspect writes with
    --format json, with or without --exempt, or audit with --format json; or objects that say true
    or false for each path.
    """
    with errors_printed(debug=debug):
        from optax_bnmask_cli.diff import difference  # noqa: PLC0415 - it imports JAX

        found = difference(old, new)
    click.echo(found.to_json() if form == "json" else found.to_text())
    if not found.same:
        raise SystemExit(FINDINGS)
