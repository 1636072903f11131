"""The leaves of an `Analysis` by scope, with what each scope holds in total."""

import dataclasses
from collections.abc import Mapping, Sequence

from optax_bnmask.families import Family
from optax_bnmask.mask import Mask
from optax_bnmask.record import Record
from optax_bnmask.report.repetition import leaf_families
from optax_bnmask.vocabulary import Leaf

_CHAINS = 100_000
"""At most this is the product of leaves and explanations: each may walk the whole program."""


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """A family of leaves.

    Attributes:
      name: Its pattern, relative to the scope that it is shown in.
      pattern: Its pattern.
      leaves: Its leaves.
      decays: What was decided, if anything was.
      explanation: The chain of operations of its first leaf, if it was asked for.
    """

    name: str
    pattern: str
    leaves: tuple[Leaf, ...]
    decays: bool | None
    explanation: str

    @property
    def size(self) -> int:
        """The number of elements of all leaves."""
        return len(self.leaves) * self.leaves[0].size


@dataclasses.dataclass(frozen=True, slots=True)
class Scope:
    """A scope, or a family of scopes that hold the same.

    Attributes:
      name: Its pattern, relative to the scope around it; the root's is empty.
      times: How many scopes it stands for.
      inside: The rows and the scopes that it holds, in the order of the leaves.
    """

    name: str
    times: int
    inside: tuple["Row | Scope", ...]

    def rows(self) -> list[Row]:
        """All rows, those of the scopes inside among them."""
        found: list[Row] = []
        for each in self.inside:
            found += [each] if isinstance(each, Row) else each.rows()
        return found


def scope_tree(analysis: Record, mask: Mask | None = None) -> Scope:
    """All leaves under the root.

    A scope that holds one row alone is shown as that row, and one that holds one scope alone as
    that scope: ``stem/kernel``, ``layers/{0..11}``.

    Args:
      analysis: What is known of each leaf.
      mask: What was decided.

    Returns:
      The root.
    """
    found = leaf_families(analysis, mask)
    explained = _explanations(analysis, found)
    rows = []
    for number, family in enumerate(found):
        leaves = tuple(analysis.leaves[member] for member in family.members)
        decays = None if mask is None else mask[leaves[0].path]
        explanation = explained.get(number, "")
        rows.append(Row(family.pattern, family.pattern, leaves, decays, explanation))
    return _scope("", rows, 0)


def _explanations(analysis: Record, found: Sequence[Family]) -> Mapping[int, str]:
    """The explanations of the first leaf of each family, of the largest only if they are many."""
    if analysis.proof is None:
        return {}
    leaves = analysis.leaves
    sizes = [len(family.members) * leaves[family.members[0]].size for family in found]
    largest = sorted(range(len(found)), key=lambda number: -sizes[number])
    return {
        number: analysis.explain(leaves[found[number].members[0]].path)
        for number in largest[: max(1, _CHAINS // len(leaves))]
    }


def _scope(name: str, rows: Sequence[Row], depth: int) -> Scope:
    """The scope of rows whose patterns agree in their first `depth` components."""
    by_name: dict[str, list[Row]] = {}
    for row in rows:
        by_name.setdefault(row.pattern.split("/")[depth], []).append(row)
    inside: list[Row | Scope] = []
    for inner, held in by_name.items():
        ends = [row for row in held if row.pattern.count("/") == depth]
        inside += [dataclasses.replace(row, name=inner) for row in ends]
        goes_on = [row for row in held if row.pattern.count("/") > depth]
        inside += [_named(_scope(inner, goes_on, depth + 1))] if goes_on else []
    paths = (leaf.path.split("/")[:depth] for row in rows for leaf in row.leaves)
    return Scope(name, len({tuple(path) for path in paths}), tuple(inside))


def _named(scope: Scope) -> Row | Scope:
    """The scope; if it holds one thing only, that thing under both their names joined by ``/``."""
    if len(scope.inside) > 1:
        return scope
    (only,) = scope.inside
    return dataclasses.replace(only, name=f"{scope.name}/{only.name}")
