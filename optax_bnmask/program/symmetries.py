"""From solved exponents to symmetries: which leaves may be scaled, alone or with which others."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from optax_bnmask.analysis import Scale
from optax_bnmask.program.cones import Vector, cone_of, null_space
from optax_bnmask.program.equations import Form, Number, System, plus, quotient, times
from optax_bnmask.program.freedom import LeafExponents


@dataclasses.dataclass(frozen=True, slots=True)
class Symmetries:
    """What the null space says of each leaf.

    Attributes:
      basis: A basis of the scale symmetries.
      scale: For each leaf, what scaling it does.
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
    spaces = [_Space({i: forms[i] for i in component}) for component in _components(forms)]
    witness = {
        i: found
        for space in spaces
        for i in space.rows
        if (found := space.within(i, {i, *biases[i]})) is not None
    }
    cones = [space.cone() for space in spaces]
    groups = sorted(
        group
        for space, inside in zip(spaces, cones, strict=True)
        for group in space.groups(frozenset(inside))
    )
    cone = {i: c for inside in cones for i, c in inside.items()}
    scale = [Scale.SENSITIVE if i in forms else Scale.UNUSED for i in range(n_leaves)]
    for i in cone:
        scale[i] = Scale.JOINT
    for i in witness:
        scale[i] = Scale.INVARIANT
    number = {i: n for n, members in enumerate(groups) for i in members}
    return Symmetries(
        tuple(vector for space in spaces for vector in space.basis()),
        tuple(scale),
        witness,
        tuple(groups),
        tuple(number.get(i) for i in range(n_leaves)),
        cone,
    )


def _whole_leaves(system: System, leaves: Mapping[int, LeafExponents]) -> dict[int, Form]:
    """The exponent of each leaf, where no leaf is scaled but as a whole."""
    whole = system.copy()
    for leaf in leaves.values():
        for form in leaf.varying():
            whole.zero(form)
    return {i: whole.resolve(leaf.level) for i, leaf in leaves.items()}


def _components(forms: Mapping[int, Form]) -> list[list[int]]:
    """The leaves whose exponents have free unknowns in common, in order."""
    parent: dict[int, int] = {}

    def root(x: int) -> int:
        while parent.setdefault(x, x) != x:
            parent[x] = parent[parent[x]]
            x = parent[x]
        return x

    for form in forms.values():
        keys = list(form)
        for key in keys[1:]:
            parent[root(key)] = root(keys[0])
    out: dict[int, list[int]] = {}
    for i, form in forms.items():
        if form:
            out.setdefault(root(next(iter(form))), []).append(i)
    return list(out.values())


def _exchange(
    rows: dict[int, dict[int, Number]], users: dict[int, set[int]], key: int, pivot: int
) -> None:
    """Puts the exponent of the leaf `pivot`, as the unknown ``-1 - pivot``, in place of `key`."""
    k = rows[pivot][key]
    rest = {j: c for j, c in rows[pivot].items() if j != key}
    value = plus({-1 - pivot: quotient(1, k)}, times(rest, quotient(-1, k)))
    for i in list(users[key]):
        c = rows[i].pop(key)
        rows[i] = dict(plus(rows[i], value, c))
        for other in value:
            if other in rows[i]:
                users.setdefault(other, set()).add(i)
            else:
                users.get(other, set()).discard(i)


class _Space:
    """The symmetries of one component, with the exponents of some of its leaves as coordinates.

    Attributes:
      rows: The exponent of each leaf in terms of those of the free leaves.
      columns: For each free leaf, the leaves whose exponents depend on its own.
    """

    def __init__(self, forms: Mapping[int, Form]) -> None:
        rows = {i: dict(form) for i, form in forms.items()}
        users: dict[int, set[int]] = {}
        for i, form in rows.items():
            for key in form:
                users.setdefault(key, set()).add(i)
        pivots: set[int] = set()
        for key in sorted(users):
            if able := [i for i in users[key] if i not in pivots]:
                pivot = min(able, key=lambda i: (len(rows[i]), i))
                pivots.add(pivot)
                _exchange(rows, users, key, pivot)
        self.rows: dict[int, Vector] = {
            i: {-1 - key: c for key, c in form.items()} for i, form in rows.items()
        }
        self.columns: dict[int, set[int]] = {}
        for i, row in self.rows.items():
            for leaf in row:
                self.columns.setdefault(leaf, set()).add(i)

    def vector(self, point: Vector) -> Vector:
        """The symmetry in which the free leaves have these exponents."""
        out: Vector = {}
        for leaf, c in point.items():
            for i in self.columns[leaf]:
                out[i] = out.get(i, 0) + c * self.rows[i][leaf]
        return {i: out[i] for i in sorted(out) if out[i]}

    def basis(self) -> list[Vector]:
        """One symmetry for each free leaf."""
        return [self.vector({leaf: 1}) for leaf in sorted(self.columns)]

    def supported(self, leaves: Iterable[int]) -> list[Vector]:
        """A basis of the symmetries that scale no other leaf."""
        allowed = set(leaves)
        free = sorted(allowed & self.columns.keys())
        outside = {i for leaf in free for i in self.columns[leaf] if i not in allowed}
        equations = [
            {leaf: self.rows[i][leaf] for leaf in free if leaf in self.rows[i]}
            for i in sorted(outside)
        ]
        return [self.vector(point) for point in null_space(free, equations)]

    def within(self, leaf: int, allowed: set[int]) -> Vector | None:
        """A symmetry with exponents >= 0 that scales `leaf` and otherwise only `allowed` leaves."""
        found = self.supported(allowed & self.rows.keys())
        for v in found:
            for sign in (1, -1):
                if sign * v.get(leaf, 0) > 0 and all(sign * c > 0 for c in v.values()):
                    k = sign * v[leaf]
                    return {i: quotient(sign * c, k) for i, c in v.items()}
        if len(found) > 1:
            inside = cone_of(found)
            return (
                {i: quotient(c, inside[leaf]) for i, c in inside.items()}
                if leaf in inside
                else None
            )
        return None

    def cone(self) -> Vector:
        """A symmetry with exponents >= 0, and > 0 for every leaf for which that is possible."""
        return cone_of(self.basis())

    def groups(self, inside: frozenset[int]) -> list[tuple[int, ...]]:
        """The leaves of the cone, split where they can be scaled independently."""
        parent = {i: i for i in inside}

        def root(x: int) -> int:
            while parent[x] != x:
                x = parent[x]
            return x

        for v in self.supported(inside):
            first, *rest = v
            for i in rest:
                parent[root(i)] = root(first)
        members: dict[int, set[int]] = {}
        for i in inside:
            members.setdefault(root(i), set()).add(i)
        return [tuple(sorted(group)) for group in members.values() if len(group) > 1]
