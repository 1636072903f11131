"""Builds the report on an `Analysis`, as a `Document` that renderers turn into text or HTML."""

from collections.abc import Iterable
from typing import Final

from optax_bnmask.families import Family, folded_lines
from optax_bnmask.mask import Mask
from optax_bnmask.record import Record, require_analysis, sizes
from optax_bnmask.report.document import Cell, Column, Document, Items, Leaves, Table, Tone
from optax_bnmask.report.repetition import (
    assumption_lines,
    group_lines,
    leaf_families,
    scale_words,
    single_families,
)
from optax_bnmask.vocabulary import BIASES, NORMS, Dimensions, Leaf, Role, Scale
from optax_bnmask.wording import counted, percent

TITLE: Final = "Parameters and weight decay"

SCALE_TONES = {
    Scale.INVARIANT: Tone.NO,
    Scale.JOINT: Tone.NO,
    Scale.SENSITIVE: Tone.YES,
    Scale.UNUSED: Tone.OPEN,
}


def document_of(analysis: Record, mask: Mask | None = None, *, collapse: bool = True) -> Document:
    """The report on an analysis and, where there is one, on the mask decided from it.

    Args:
      analysis: What is known of each leaf.
      mask: What was decided; it adds a column to the table of leaves.
      collapse: Whether blocks that repeat but for a number are shown once.

    Returns:
      A `Document`: the table of leaves, then whichever of dead parameters, groups, assumptions,
      primitives without a rule and notes there are.
    """
    require_analysis(analysis)
    return Document(
        TITLE,
        tuple(summary(analysis, mask)),
        (Leaves(analysis, mask, collapse), *lists(analysis, collapse=collapse)),
    )


def lists(analysis: Record, *, collapse: bool = True) -> list[Items]:
    """Whichever of dead parameters, groups, assumptions, unruled primitives and notes there are."""
    notes = folded_lines(analysis.notes) if collapse else analysis.notes
    blocks = (
        Items("Dead parameters", tuple(dead_lines(analysis, collapse=collapse))),
        Items("Jointly invariant groups", tuple(group_lines(analysis, collapse=collapse))),
        Items("Assumptions", tuple(assumption_lines(analysis, collapse=collapse))),
        Items("Primitives without a rule", tuple(_unhandled(analysis))),
        Items("Notes", tuple(notes)),
    )
    return [block for block in blocks if block.items]


def leaf_table(block: Leaves) -> Table:
    """One row for each leaf, or each family; columns that would be empty are left out."""
    analysis, mask = block.analysis, block.mask
    rows = leaf_families(analysis, mask) if block.collapse else single_families(analysis)
    scales = any(leaf.scale is not Scale.UNKNOWN for leaf in analysis.leaves)
    axes = any(leaf.invariant_axes for leaf in analysis.leaves)
    counts = any(len(row.members) > 1 for row in rows)
    columns = [Column("path"), Column("shape")]
    columns += [Column("count", number=True)] if counts else []
    columns += [Column("total size" if counts else "size", number=True), Column("role")]
    columns += [Column("scale")] if scales else []
    columns += [Column("axes")] if axes else []
    columns += [Column("matrix")] if any(leaf.dimensions for leaf in analysis.leaves) else []
    columns += [Column("blocks")] if any(leaf.blocks for leaf in analysis.leaves) else []
    columns += [Column("decays")] if mask is not None else []
    columns += [Column("why", prose=True)]
    shown = {column.name for column in columns}
    cells = [_cells(analysis, row, mask) for row in rows]
    return Table(
        "Leaves",
        tuple(columns),
        tuple(tuple(cell for name, cell in row if name in shown) for row in cells),
    )


def _cells(analysis: Record, row: Family, mask: Mask | None) -> Iterable[tuple[str, Cell]]:
    """The cells of a row, each with the name of its column, those left out included."""
    leaves = [analysis.leaves[number] for number in row.members]
    leaf, count = leaves[0], len(leaves)
    size = Cell(f"{count * leaf.size:,}")
    yield "path", Cell(row.pattern)
    yield "shape", Cell(str(leaf.shape))
    yield "count", Cell(f"{count:,}")
    yield "size", size
    yield "total size", size
    yield "role", role_cell(leaf)
    yield "scale", Cell(scale_words(leaves), SCALE_TONES.get(leaf.scale, Tone.OPEN))
    yield "axes", Cell(_joined(leaf.invariant_axes))
    yield "matrix", Cell(_matrix(leaf.dimensions) if leaf.dimensions else "")
    yield "blocks", Cell("; ".join(f"{axis}: {sizes(own)}" for axis, own in leaf.blocks.items()))
    if mask is not None:
        yield "decays", decision_cell(decays=mask[leaf.path])
    yield "why", Cell(leaf.reason)


def _joined(axes: Iterable[int]) -> str:
    return ", ".join(map(str, axes))


def _matrix(has: Dimensions) -> str:
    """The axes of a matrix as ``reduction -> output per batch``."""
    found = f"{_joined(has.reduction)} -> {_joined(has.output)}"
    return f"{found} per {_joined(has.batch)}" if has.batch else found


def role_cell(leaf: Leaf) -> Cell:
    """How a leaf is used; what is not known stands out."""
    return Cell(leaf.role.value, Tone.OPEN if leaf.role is Role.UNKNOWN else Tone.PLAIN)


def decision_cell(*, decays: bool) -> Cell:
    """Whether a leaf decays."""
    return Cell("yes", Tone.YES) if decays else Cell("no", Tone.NO)


def summary(analysis: Record, mask: Mask | None) -> Iterable[str]:
    """A few sentences with the totals."""
    leaves, total = analysis.leaves, sum(leaf.size for leaf in analysis.leaves)
    evidence = " and ".join(sorted(analysis.evidence))
    yield f"{counted(len(leaves), 'leaf', 'leaves')}, {total:,} parameters, by {evidence}."
    norms = [leaf for leaf in leaves if leaf.role in NORMS]
    if norms:
        yield f"A normaliser's: {_share(norms, total)}."
    if unknown := [leaf for leaf in leaves if leaf.role is Role.UNKNOWN]:
        yield f"Of unknown role: {_share(unknown, total)}."
    if invariant := [leaf for leaf in leaves if leaf.scale is Scale.INVARIANT]:
        yield f"Scale-invariant: {_share(invariant, total)}."
    if dead := [leaf for leaf in leaves if leaf.dead]:
        yield f"Dead, as their value does not matter: {_share(dead, total)}."
    if mask is not None:
        yield f"Decayed: {_share([leaf for leaf in leaves if mask[leaf.path]], total)}."


def dead_lines(analysis: Record, *, collapse: bool) -> Iterable[str]:
    """For each dead leaf, why no output depends on it, and what argument would leave it out."""
    lines = [_dead_line(leaf) for leaf in analysis.leaves if leaf.dead]
    return folded_lines(lines) if collapse else lines


def _dead_line(leaf: Leaf) -> str:
    why = f"{leaf.path} never reaches an output: {leaf.dead}"
    saves = leaf.role in BIASES and leaf.dead and leaf.dead.kind == "mean"
    return f"{why}; `use_bias=False` saves it" if saves else why


def _share(leaves: list[Leaf], total: int) -> str:
    size = sum(leaf.size for leaf in leaves)
    return f"{counted(len(leaves), 'leaf', 'leaves')}, {percent(size, total)} of the parameters"


def _unhandled(analysis: Record) -> Iterable[str]:
    for name, count in sorted(analysis.unhandled.items()):
        yield f"`{name}`, {counted(count, 'time', 'times')}: its inputs were taken as sensitive"
