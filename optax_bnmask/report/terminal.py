"""A report for a terminal: the same document, wrapped to its width and coloured by rich."""

from collections.abc import Iterator
from typing import Final

from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from optax_bnmask.report.document import Document, Figure, Items, Table, Tone

_STYLES: Final = {Tone.PLAIN: "", Tone.YES: "blue", Tone.NO: "yellow", Tone.OPEN: "italic"}


def renderables(document: Document) -> Iterator[RenderableType]:
    """What to print of a document, in order; pictures are left to other renderers."""
    yield Text(document.title, style="bold")
    for line in document.summary:
        yield Text(line)
    for block in document.blocks:
        match block:
            case Table():
                yield _table(block)
            case Items():
                yield Text(block.title, style="bold")
                yield from (Text(f"- {item}") for item in block.items)
            case Figure():
                continue


def _table(table: Table) -> RichTable:
    """The rich counterpart: only prose wraps at blanks, paths and words fold where they must."""
    shown = RichTable(
        title=table.title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False
    )
    for column in table.columns:
        shown.add_column(
            column.name,
            justify="right" if column.number else "left",
            overflow="fold",
            no_wrap=False,
        )
    for row in table.rows:
        shown.add_row(*(Text(cell.text, style=_STYLES[cell.tone]) for cell in row))
    return shown
