"""A report as plain text: aligned columns, nothing that needs a terminal."""

from optax_bnmask.mask import Mask
from optax_bnmask.paths import printable
from optax_bnmask.record import Record
from optax_bnmask.report.content import document_of, leaf_table
from optax_bnmask.report.document import Document, Figure, Items, Leaves, Table


def to_text(analysis: Record, *, mask: Mask | None = None, collapse: bool = True) -> str:
    """The analysis as aligned text.

    Blocks that differ only in a number of their path, and whose leaves agree in all that is shown
    but the reason, are shown once, as ``block{0..35}/conv/kernel``, with their count and their
    total size; the reason is the first one's. ``{0,2..5}`` stands for 0, 2, 3, 4 and 5.

    Args:
      analysis: What is known of each leaf.
      mask: A mask decided from it, to show beside it.
      collapse: Whether to do so; otherwise each leaf has a line of its own.

    Returns:
      Lines of text without trailing blanks: the totals, one line for each leaf or family of
      leaves, then whichever of groups, assumptions, primitives without a rule and notes there are.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax_bnmask as bnmask
      >>> params = {"dense": {"kernel": jnp.ones((2, 3))}}
      >>> print(to_text(bnmask.analyze_structure(params)))
      1 leaf, 6 parameters, by structure.
      <BLANKLINE>
      path          shape   size  role    why
      dense/kernel  (2, 3)     6  weight  by convention: a matrix or filter of that name
      >>> params = {f"layer_{i}": {"kernel": jnp.ones((2, 3))} for i in range(12)}
      >>> print(to_text(bnmask.analyze_structure(params)).splitlines()[-1][:56])
      layer_{0..11}/kernel  (2, 3)     12          72  weight
    """
    return text_of(document_of(analysis, mask, collapse=collapse))


def text_of(document: Document) -> str:
    """A document as text; its title and its pictures are left to other renderers."""
    parts = ["\n".join(map(printable, document.summary))]
    for index, block in enumerate(document.blocks):
        match block:
            case Leaves() | Table():
                table = leaf_table(block) if isinstance(block, Leaves) else block
                shown = _table(table)
                parts.append(shown if index == 0 else f"{table.title}\n{shown}")
            case Items():
                parts.append(
                    "\n".join([block.title, *(f"- {printable(item)}" for item in block.items)])
                )
            case Figure():
                continue
    return "\n\n".join(parts)


def _table(table: Table) -> str:
    """The heading and one line for each row, numbers to the right."""
    names = [column.name for column in table.columns]
    rows = [names, *([printable(cell.text) for cell in row] for row in table.rows)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            text.rjust(width) if column.number else text.ljust(width)
            for text, width, column in zip(row, widths, table.columns, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
