"""A report as one HTML page: it loads no font or other file, and can be read without its script."""

import dataclasses

from optax_bnmask.mask import Mask
from optax_bnmask.record import Record
from optax_bnmask.report.content import document_of
from optax_bnmask.report.document import (
    Block,
    Cell,
    Column,
    Document,
    Figure,
    Items,
    Leaves,
    Table,
    Tone,
)
from optax_bnmask.report.repetition import symmetry_lines
from optax_bnmask.report.tree import asset, escaped, leaf_section, prose

_AT_ONCE = 12
"""A longer list is folded at first."""


def to_html(analysis: Record, *, mask: Mask | None = None) -> str:
    """The analysis as one self-contained HTML page.

    The leaves are a tree of scopes to open and close, with totals, a search, and for each leaf the
    reason and, from a program, the explanation; blocks that repeat are shown once, as in `to_text`.
    All of it can be read without the page's one script, which only searches. Light or dark as the
    reader's system or notebook is, and fit for a narrow screen; its styles and its script affect
    nothing else in a notebook.

    Args:
      analysis: What is known of each leaf.
      mask: A mask decided from it, to show beside it.

    Returns:
      A page, as text, in which everything that came from the user is escaped.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax_bnmask as bnmask
      >>> page = to_html(bnmask.analyze_structure({"<b>": {"kernel": jnp.ones((2, 3))}}))
      >>> "&lt;b&gt;/kernel" in page
      True
    """
    found = document_of(analysis, mask)
    leaves, *others = found.blocks
    symmetries = Items("Scale symmetries", tuple(symmetry_lines(analysis)))
    blocks = (leaves, *([symmetries] if symmetries.items else []), *others)
    return html_of(dataclasses.replace(found, blocks=blocks))


def html_of(document: Document) -> str:
    """A document as an HTML page, whose outer tags a notebook drops."""
    title = escaped(document.title)
    told = "".join(f"<p>{prose(line)}</p>\n" for line in document.summary)
    sections = map(_block, document.blocks)
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>\n{asset('style.css')}</style>\n</head>\n<body>\n"
        f'<main class="bnmask">\n<h1>{title}</h1>\n<div class="summary">\n{told}</div>\n'
        f"{''.join(sections)}</main>\n</body>\n</html>\n"
    )


def _block(block: Block) -> str:
    """One section of the page."""
    match block:
        case Leaves():
            return leaf_section(block.analysis, block.mask)
        case Table():
            inner = _table(block)
        case Items():
            inner = "".join(f"<li>{prose(item)}</li>\n" for item in block.items)
            inner = f"<ul>\n{inner}</ul>\n"
            if len(block.items) > _AT_ONCE:
                head = f"<summary>{len(block.items):,} lines</summary>"
                inner = f'<details class="long">{head}\n{inner}</details>\n'
        case Figure():
            panels = "\n".join(block.panels)
            inner = (
                f'<div class="panels" role="img" aria-label="{escaped(block.alt)}">\n{panels}\n'
                f"</div>\n"
            )
    return f"<section>\n<h2>{escaped(block.title)}</h2>\n{inner}</section>\n"


def _table(table: Table) -> str:
    heads = "".join(f'<th scope="col"{_class(c)}>{escaped(c.name)}</th>' for c in table.columns)
    rows = "".join(f"<tr>{''.join(map(_cell, row, table.columns))}</tr>\n" for row in table.rows)
    return f"<table>\n<thead><tr>{heads}</tr></thead>\n<tbody>\n{rows}</tbody>\n</table>\n"


def _cell(cell: Cell, column: Column) -> str:
    """A cell; it carries its heading, which a narrow screen shows beside it."""
    text = prose(cell.text) if column.prose else escaped(cell.text)
    if cell.tone is not Tone.PLAIN:
        text = f'<span class="{cell.tone}">{text}</span>'
    return f'<td data-head="{escaped(column.name)}"{_class(column)}>{text}</td>'


def _class(column: Column) -> str:
    if column.number:
        return ' class="number"'
    return ' class="prose"' if column.prose else ""
