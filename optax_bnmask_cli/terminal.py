"""A report for a terminal: the same document, fitted to its width and coloured by rich."""

from collections.abc import Iterator, Sequence
from typing import Final

from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table as RichTable
from rich.text import Text

from optax_bnmask.paths import printable
from optax_bnmask.report.content import leaf_table
from optax_bnmask.report.document import Cell, Document, Figure, Items, Leaves, Table, Tone

_STYLES: Final = {Tone.PLAIN: "", Tone.YES: "blue", Tone.NO: "yellow", Tone.OPEN: "italic"}
_PROSE: Final = 40
"""A column of prose is not made narrower than this: its text goes below the row instead."""


def renderables(document: Document, console: Console) -> Iterator[RenderableType]:
    """What to print of a document, in order; pictures are left to other renderers.

    Args:
      document: The report.
      console: Where it will be printed.

    Yields:
      Objects for the console's `print`.
    """
    yield Text(document.title, style="bold")
    yield from map(_prose, document.summary)
    for block in document.blocks:
        match block:
            case Leaves() | Table():
                table = leaf_table(block) if isinstance(block, Leaves) else block
                yield Text(f"\n{table.title}", style="bold")
                if _fits(table, console.width):
                    yield _table(table)
                else:
                    yield from _narrow(table)
            case Items():
                yield Text(f"\n{block.title}", style="bold")
                yield _list(block.items)
            case Figure():
                continue


def _list(items: Sequence[str]) -> RichTable:
    """Sentences as a list with a dash before each and a hanging indent."""
    shown = RichTable.grid(padding=(0, 1))
    for item in items:
        shown.add_row("-", _prose(item))
    return shown


def _fits(table: Table, width: int) -> bool:
    """Whether all columns stand side by side, three blanks apart, with room for the prose."""
    pairs = zip(table.columns, _widths(table), strict=True)
    return sum(3 + (_PROSE if column.prose else needed) for column, needed in pairs) <= width


def _widths(table: Table) -> list[int]:
    """What each column needs on one line."""
    heads = tuple(Cell(column.name) for column in table.columns)
    return [
        max(len(cell.text) for cell in column) for column in zip(heads, *table.rows, strict=True)
    ]


def _table(table: Table) -> RichTable:
    """The rich counterpart, in which only prose wraps."""
    shown = RichTable(box=SIMPLE_HEAD, pad_edge=False)
    for column in table.columns:
        shown.add_column(
            column.name,
            justify="right" if column.number else "left",
            no_wrap=not column.prose,
        )
    for row in table.rows:
        shown.add_row(*map(_styled, row))
    return shown


def _narrow(table: Table) -> Iterator[RenderableType]:
    """For a narrow terminal: the first cell of a row, below it the others, below them its prose."""
    for row in table.rows:
        name, *others = zip(row, table.columns, strict=True)
        yield _styled(name[0])
        facts = [
            _styled(Cell(f"{column.name} {cell.text}", cell.tone))
            for cell, column in others
            if cell.text and not column.prose
        ]
        yield Padding(Text(", ").join(facts), (0, 0, 0, 4))
        for cell, column in others:
            if cell.text and column.prose:
                yield Padding(_prose(cell.text, "dim"), (0, 0, 0, 4))


def _prose(text: str, style: str = "") -> Text:
    """A sentence; what stands between backticks is in italics instead."""
    words = printable(text).split("`")
    if len(words) % 2 == 0:  # one of them has no other
        return Text("`".join(words), style=style)
    pieces = ((word, "italic") if place % 2 else word for place, word in enumerate(words))
    return Text.assemble(*pieces, style=style)


def _styled(cell: Cell) -> Text:
    return Text(printable(cell.text), style=_STYLES[cell.tone])
