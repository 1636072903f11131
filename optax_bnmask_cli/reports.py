"""What a command found, put on the standard output in the format that was asked for."""

import dataclasses
import textwrap
from collections.abc import Callable, Collection

from rich.console import Console

from optax_bnmask.analysis import Analysis
from optax_bnmask.audit import Audit
from optax_bnmask.audit.outcome import audit_document
from optax_bnmask.categories import STANDARD, STRICT, WIDE
from optax_bnmask.errors import StructureError
from optax_bnmask.mask import Mask
from optax_bnmask.paths import matches
from optax_bnmask.report import to_html
from optax_bnmask.report.content import document_of
from optax_bnmask.report.document import Document
from optax_bnmask.report.json_format import as_dict
from optax_bnmask.report.repetition import leaf_families
from optax_bnmask.report.text import text_of
from optax_bnmask.wording import json_text
from optax_bnmask_cli.terminal import renderables


def show_analysis(analysis: Analysis, form: str, mask: Mask | None) -> None:
    """Shows an analysis, and what was decided from it.

    In JSON the decision is a further field of `to_json`'s object, ``"decays"``, by path, which
    `Analysis.from_json` ignores.
    """

    def to_json() -> str:
        decays = None if mask is None else {path: mask[path] for path in mask}
        return json_text(as_dict(analysis) | ({} if decays is None else {"decays": decays}))

    _show(form, document_of(analysis, mask), to_json, lambda: to_html(analysis, mask=mask))


def show_audit(audit: Audit, form: str) -> None:
    """Shows an audit."""
    _show(form, audit_document(audit), audit.to_json, audit.to_html)


def _show(
    form: str, document: Document, to_json: Callable[[], str], to_html: Callable[[], str]
) -> None:
    """Prints one of three: text is fitted to a terminal, and has one line a leaf elsewhere."""
    console = Console()
    if form != "text":
        print((to_json if form == "json" else to_html)())  # noqa: T201 - rich may fold it
    elif console.is_terminal:
        for renderable in renderables(document, console):
            console.print(renderable)
    else:
        print(text_of(document))  # noqa: T201 - as above


def require_explanations_alone(form: str, *, decides: bool) -> None:
    """Raises where options beside `--explain` ask for what it does not show."""
    if decides or form != "text":
        found = "--exempt" if decides else f"--format {form}"
        raise StructureError(
            f"--explain says in text what leaves are, and not what is decided of them. Found it "
            f"beside {found}. Leave out the one or the other."
        )


def show_explanations(analysis: Analysis, globs: Collection[str]) -> None:
    """Shows why each leaf that the globs match is what it is; blocks that repeat, once."""
    chosen = matches(globs, [leaf.path for leaf in analysis.leaves], "--explain")
    leaves = tuple(leaf for leaf in analysis.leaves if leaf.path in chosen)
    found = leaf_families(dataclasses.replace(analysis, leaves=leaves))
    for place, family in enumerate(found):
        if place:
            print()  # noqa: T201 - as above
        others = len(family.members) - 1
        if others:
            _print_wrapped(f"{family.pattern}: {others + 1:,} leaves, of which the first:")
        for line in analysis.explain(leaves[family.members[0]].path).splitlines():
            _print_wrapped(line)


def _print_wrapped(line: str) -> None:
    """Prints a line; on a terminal it wraps between words, with the rest indented further."""
    console = Console()
    start = line[: len(line) - len(line.lstrip())]
    width = console.width if console.is_terminal else max(1, len(line))
    for folded in textwrap.wrap(line, width, subsequent_indent=f"{start}    "):
        print(folded)  # noqa: T201 - as above


def mask_for(analysis: Analysis, exempt: Collection[str]) -> Mask | None:
    """The mask for categories that are listed with commas; none where nothing was asked."""
    if not exempt:
        return None
    return analysis.decay_mask(exempt=categories(exempt))


def categories(listed: Collection[str]) -> list[str]:
    """The categories that are listed with commas, those of presets in the place of their names."""
    presets = {"STANDARD": STANDARD, "STRICT": STRICT, "WIDE": WIDE}
    names = [name.strip() for some in listed for name in some.split(",")]
    return [part for name in names if name for part in presets.get(name.upper(), (name,))]
