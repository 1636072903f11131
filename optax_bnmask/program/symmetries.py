"""From solved exponents to symmetries: which leaves may be scaled, alone or with which others."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence, Set

from optax_bnmask.program.cones import Vector, cone_of, null_space, transposed
from optax_bnmask.program.equations import Form, System, plus, quotient
from optax_bnmask.program.freedom import LeafExponents
from optax_bnmask.vocabulary import Scale


@dataclasses.dataclass(frozen=True, slots=True)
class Symmetries:
    """What the null space says of each leaf.

    Attributes:
      basis: A basis of the scale symmetries.
      scale: For each leaf, its `Scale`.
      witness: For each invariant leaf, the symmetry that scales it: it and biases of its own.
      groups: The jointly invariant groups.
      group: For each leaf, the group that it is in.
      cone: A symmetry with all exponents >= 0, and > 0 wherever that is possible.
    """

    basis: tuple[Vector, ...]
    scale: tuple[Scale, ...]
    witness: Mapping[int, Vector]
    groups: tuple[tuple[int, ...], ...]
    group: tuple[int | None, ...]
    cone: Vector


def symmetries(
    system: System,
    leaves: Mapping[int, LeafExponents],
    biases: Sequence[Iterable[int]],
    n_leaves: int,
) -> Symmetries:
    """The symmetries that scale each leaf as a whole.

    Args:
      system: The unknowns, solved as far as the program demands.
      leaves: The exponents of the live leaves, by number.
      biases: For each leaf, the biases added to its own output.
      n_leaves: The number of all leaves.

    Returns:
      The `Symmetries`.
    """
    forms = _whole_leaves(system, leaves)
    columns = _columns(forms)
    parts = _connected([columns[leaf] for leaf in sorted(columns)])
    witness = {
        i: found
        for i in {i for v in columns.values() for i in v}
        if (found := _scaling(columns, i, {i, *biases[i]})) is not None
    }
    cone = {i: c for part in parts for i, c in cone_of(part).items()}
    groups = sorted(
        tuple(sorted({i for v in part for i in v}))
        for part in _connected(_within(columns, cone.keys()))
    )
    groups = [group for group in groups if len(group) > 1]
    scale = [Scale.SENSITIVE if i in forms else Scale.UNUSED for i in range(n_leaves)]
    for i in cone:
        scale[i] = Scale.JOINT
    for i in witness:
        scale[i] = Scale.INVARIANT
    number = {i: n for n, members in enumerate(groups) for i in members}
    return Symmetries(
        tuple(vector for part in parts for vector in part),
        tuple(scale),
        witness,
        tuple(groups),
        tuple(number.get(i) for i in range(n_leaves)),
        cone,
    )


def _whole_leaves(system: System, leaves: Mapping[int, LeafExponents]) -> dict[int, Form]:
    """The exponent of each leaf, in the symmetries in which no leaf varies along its axes."""
    whole = system.copy()
    for leaf in leaves.values():
        for form in leaf.varying():
            whole.zero(form)
    return {i: whole.resolve(leaf.level) for i, leaf in leaves.items()}


def _columns(forms: Mapping[int, Form]) -> dict[int, Vector]:
    """The symmetries, with the exponents of some leaves, the free ones, as coordinates.

    Args:
      forms: The exponent of each leaf, in unknowns.

    Returns:
      For each free leaf the symmetry in which it has exponent 1, and the other free leaves 0. With
      ``a`` the exponent of leaf 0, ``a + b`` of leaf 1 and ``2*b`` of leaf 2, the leaves 0 and 2
      are free: ``{0: {0: 1, 1: 1}, 2: {1: 1/2, 2: 1}}``.
    """
    system = System()
    system.own = {unknown for form in forms.values() for unknown in form}
    for i in sorted(forms, key=lambda i: (len(forms[i]), i)):  # short ones first: fewer terms
        rest = system.resolve(forms[i])
        if not system.own.isdisjoint(rest):  # it is free: its exponent in the place of an unknown
            system.zero(plus(rest, {_exponent(i): 1}, -1))
    rows = {i: system.resolve(forms[i]) for i in sorted(forms)}
    return {_exponent(u): column for u, column in transposed(rows).items()}


def _exponent(leaf: int) -> int:
    """The unknown, below 0, that is the whole exponent of a leaf; and the leaf of an unknown."""
    return -1 - leaf


def _within(columns: Mapping[int, Vector], allowed: Set[int]) -> list[Vector]:
    """A basis of the symmetries that scale none but `allowed` leaves."""
    free = sorted(columns.keys() & allowed)
    if len(free) < 2:
        return [columns[leaf] for leaf in free if columns[leaf].keys() <= allowed]
    outside = {k: {i: c for i, c in columns[k].items() if i not in allowed} for k in free}
    found: list[Vector] = []
    for point in null_space(free, transposed(outside).values()):
        vector: Vector = {}
        for leaf, c in point.items():
            vector = plus(vector, columns[leaf], c)
        found.append({i: vector[i] for i in sorted(vector)})
    return found


def _scaling(columns: Mapping[int, Vector], leaf: int, allowed: Set[int]) -> Vector | None:
    """A symmetry with exponents >= 0, of `leaf` 1, that scales `allowed` leaves only; if any."""
    own = columns.get(leaf)
    found = [own] if own and own.keys() <= allowed else _within(columns, allowed)
    for v in (*found, cone_of(found) if len(found) > 1 else {}):
        if leaf in v and all(c > 0 for c in v.values()):
            return {i: quotient(c, v[leaf]) for i, c in v.items()}
    return None


def _connected(vectors: Sequence[Vector]) -> list[list[Vector]]:
    """The vectors in groups: those that share a leaf, directly or through others, are in one."""
    parent: dict[int, int] = {}

    def root(x: int) -> int:
        while parent.setdefault(x, x) != x:
            parent[x] = parent[parent[x]]
            x = parent[x]
        return x

    for first, *rest in vectors:
        for i in rest:
            parent[root(i)] = root(first)
    out: dict[int, list[Vector]] = {}
    for v in vectors:
        out.setdefault(root(next(iter(v))), []).append(v)
    return list(out.values())
