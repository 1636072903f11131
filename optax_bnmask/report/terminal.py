"""A report for a terminal: the same document, fitted to its width and coloured by rich."""

from collections.abc import Iterator, Sequence
from typing import Final

from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from optax_bnmask.report.document import Cell, Document, Figure, Items, Table, Tone

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
    for line in document.summary:
        yield Text(line)
    for block in document.blocks:
        match block:
            case Table():
                yield Text(f"\n{block.title}", style="bold")
                yield _table(block) if _fits(block, console.width) else _lines(block)
            case Items():
                yield Text(f"\n{block.title}", style="bold")
                yield from (Text(f"- {item}") for item in block.items)
            case Figure():
                continue


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
        shown.add_row(*(Text(cell.text, style=_STYLES[cell.tone]) for cell in row))
    return shown


def _lines(table: Table) -> Text:
    """For a narrow terminal: one line for each row, its prose on a line of its own."""
    heads = tuple(Cell("" if column.prose else column.name) for column in table.columns)
    widths = _widths(table)
    return Text("\n").join(_line(row, table, widths) for row in (heads, *table.rows))


def _line(row: Sequence[Cell], table: Table, widths: Sequence[int]) -> Text:
    """One row, aligned; the prose below it, indented."""
    line, below = Text(), Text()
    for cell, column, width in zip(row, table.columns, widths, strict=True):
        if column.prose:
            below.append(f"\n    {cell.text}" if cell.text else "", style="dim")
        else:
            text = cell.text.rjust(width) if column.number else cell.text.ljust(width)
            line.append(f"{text}  ", style=_STYLES[cell.tone])
    line.rstrip()
    return line + below
