"""What there is to say of an `Analysis`, as a `Document`."""

from collections.abc import Iterable

from optax_bnmask.analysis import Analysis, Leaf, Role, Scale
from optax_bnmask.mask import Mask
from optax_bnmask.report.document import Cell, Column, Document, Items, Table, Tone

_NORMS = frozenset({Role.NORM_SCALE, Role.NORM_BIAS})
_SCALE_TONES = {
    Scale.INVARIANT: Tone.NO,
    Scale.JOINT: Tone.NO,
    Scale.SENSITIVE: Tone.YES,
    Scale.UNUSED: Tone.OPEN,
}


def document_of(analysis: Analysis, mask: Mask | None = None) -> Document:
    """The report on an analysis and, where there is one, on the mask decided from it.

    Args:
      analysis: What is known of each leaf.
      mask: What was decided; it adds a column to the table of leaves.

    Returns:
      A `Document`: the table of leaves, then whichever of groups, assumptions, primitives without a
      rule and notes there are.
    """
    lists = (
        Items("Jointly invariant groups", tuple(_groups(analysis))),
        Items("Assumptions", tuple(str(assumption) for assumption in analysis.assumptions)),
        Items("Primitives without a rule", tuple(_unhandled(analysis))),
        Items("Notes", analysis.notes),
    )
    return Document(
        "Parameters and weight decay",
        tuple(_summary(analysis, mask)),
        (leaf_table(analysis, mask), *(block for block in lists if block.items)),
    )


def leaf_table(analysis: Analysis, mask: Mask | None = None) -> Table:
    """One row for each leaf; what the evidence says nothing of has no column."""
    scales = any(leaf.scale is not Scale.UNKNOWN for leaf in analysis.leaves)
    axes = any(leaf.invariant_axes for leaf in analysis.leaves)
    columns = [Column("path"), Column("shape"), Column("size", number=True), Column("role")]
    columns += [Column("scale")] if scales else []
    columns += [Column("axes")] if axes else []
    columns += [Column("decays")] if mask is not None else []
    columns += [Column("why", prose=True)]
    rows = []
    for leaf in analysis.leaves:
        row = [Cell(leaf.path), Cell(str(leaf.shape)), Cell(f"{leaf.size:,}"), _role(leaf)]
        row += [Cell(_scale(leaf), _SCALE_TONES.get(leaf.scale, Tone.OPEN))] if scales else []
        row += [Cell(", ".join(map(str, leaf.invariant_axes)))] if axes else []
        row += [_decision(decays=mask[leaf.path])] if mask is not None else []
        rows.append((*row, Cell(leaf.reason)))
    return Table("Leaves", tuple(columns), tuple(rows))


def _role(leaf: Leaf) -> Cell:
    return Cell(leaf.role.value, Tone.OPEN if leaf.role is Role.UNKNOWN else Tone.PLAIN)


def _scale(leaf: Leaf) -> str:
    """The scale, and for a jointly invariant leaf the number of its group."""
    return leaf.scale.value if leaf.group is None else f"{leaf.scale.value} [{leaf.group}]"


def _decision(*, decays: bool) -> Cell:
    return Cell("yes", Tone.YES) if decays else Cell("no", Tone.NO)


def _summary(analysis: Analysis, mask: Mask | None) -> Iterable[str]:
    """A sentence or two with the totals."""
    leaves, total = analysis.leaves, sum(leaf.size for leaf in analysis.leaves)
    evidence = " and ".join(sorted(analysis.evidence))
    yield f"{_count(len(leaves), 'leaf', 'leaves')}, {total:,} parameters, by {evidence}."
    norms = [leaf for leaf in leaves if leaf.role in _NORMS]
    if norms:
        yield f"A normaliser's: {_share(norms, total)}."
    if unknown := [leaf for leaf in leaves if leaf.role is Role.UNKNOWN]:
        yield f"Of unknown role: {_share(unknown, total)}."
    if invariant := [leaf for leaf in leaves if leaf.scale is Scale.INVARIANT]:
        yield f"Scale-invariant: {_share(invariant, total)}."
    if mask is not None:
        yield f"Decayed: {_share([leaf for leaf in leaves if mask[leaf.path]], total)}."


def _share(leaves: list[Leaf], total: int) -> str:
    size = sum(leaf.size for leaf in leaves)
    percent = 100 * size / total if total else 0.0
    return f"{_count(len(leaves), 'leaf', 'leaves')}, {percent:.1f} % of the parameters"


def _count(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"


def _groups(analysis: Analysis) -> Iterable[str]:
    """Each group in the order of the leaves, under the number that the table gives it."""
    for number, group in enumerate(analysis.groups):
        members = [leaf.path for leaf in analysis.leaves if leaf.path in group]
        yield f"[{number}] {', '.join(members)}"


def _unhandled(analysis: Analysis) -> Iterable[str]:
    for name, count in sorted(analysis.unhandled.items()):
        yield f"`{name}`, {_count(count, 'time', 'times')}: its inputs were taken as sensitive"
