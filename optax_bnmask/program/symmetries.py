"""From solved exponents to symmetries: which leaves may be scaled, alone or with which others."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction

from optax_bnmask.analysis import Scale
from optax_bnmask.program.degree import Degree, Key
from optax_bnmask.program.layout import Layouts
from optax_bnmask.program.unknowns import NOTHING, Form, Number, Unknowns, plus, quotient, times

Vector = dict[int, Number]
"""Exponents by leaf number, without the zeros."""


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


def leaf_degree(unknowns: Unknowns, shape: Sequence[int]) -> Degree:
    """The degree of a leaf: an unknown for the whole, and one for each index of each axis."""
    return Degree(
        {unknowns.scalar(): 1},
        {
            ((axis, n),): [(n, {unknowns.vector(n, gauge=True): 1})]
            for axis, n in enumerate(shape)
            if n > 1
        },
    )


def symmetries(
    unknowns: Unknowns,
    degrees: Mapping[int, Degree],
    biases: Sequence[Iterable[int]],
    n_leaves: int,
) -> Symmetries:
    """The symmetries that scale each leaf as a whole.

    Args:
      unknowns: The exponents, solved as far as the program demands.
      degrees: The degrees of the live leaves, by number.
      biases: For each leaf, the biases added to its own output.
      n_leaves: The number of all leaves.

    Returns:
      The `Symmetries`.
    """
    forms = _whole_leaves(unknowns, degrees)
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


def _whole_leaves(unknowns: Unknowns, degrees: Mapping[int, Degree]) -> dict[int, Form]:
    """The exponent of each leaf, where no leaf is scaled but as a whole."""
    whole = unknowns.copy()
    layouts = Layouts(whole, whole.flattened)
    levels = {i: layouts.level(d) for i, d in _settled(whole, degrees).items()}
    return {i: whole.resolve(level) for i, level in levels.items()}


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
        return [self.vector(point) for point in _null_space(free, equations)]

    def within(self, leaf: int, allowed: set[int]) -> Vector | None:
        """A symmetry with exponents >= 0 that scales `leaf` and otherwise only `allowed` leaves."""
        found = self.supported(allowed & self.rows.keys())
        for v in found:
            for sign in (1, -1):
                if sign * v.get(leaf, 0) > 0 and all(sign * c > 0 for c in v.values()):
                    k = sign * v[leaf]
                    return {i: quotient(sign * c, k) for i, c in v.items()}
        if len(found) > 1:
            inside = _cone(found)
            return (
                {i: quotient(c, inside[leaf]) for i, c in inside.items()}
                if leaf in inside
                else None
            )
        return None

    def cone(self) -> Vector:
        """A symmetry with exponents >= 0, and > 0 for every leaf for which that is possible."""
        return _cone(self.basis())

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


def _null_space(free: Sequence[int], equations: Sequence[Vector]) -> list[Vector]:
    """A basis of the points that fulfil all equations."""
    solved: dict[int, Vector] = {}
    for equation in equations:
        rest: Form = NOTHING
        for leaf, c in equation.items():
            rest = plus(rest, solved[leaf], c) if leaf in solved else plus(rest, {leaf: c})
        if not rest:
            continue
        pivot = min(rest)
        value = times({k: c for k, c in rest.items() if k != pivot}, quotient(-1, rest[pivot]))
        for leaf, form in solved.items():
            if pivot in form:
                c = form[pivot]
                trimmed = {k: d for k, d in form.items() if k != pivot}
                solved[leaf] = dict(plus(trimmed, value, c))
        solved[pivot] = dict(value)
    out = []
    for leaf in free:
        if leaf not in solved:
            point: Vector = {leaf: 1}
            point.update({k: f[leaf] for k, f in solved.items() if f.get(leaf)})
            out.append(point)
    return out


def _cone(basis: Sequence[Vector]) -> Vector:
    """The largest support of a combination of `basis` that has no negative entry, and one such.

    Nearly always a few rounds of doubling find a point at which nothing is negative, so that the
    linear program, and SciPy, are the last resort.
    """
    rows: dict[int, Vector] = {}
    for j, v in enumerate(basis):
        for i, c in v.items():
            rows.setdefault(i, {})[j] = c
    alive = _possible(rows, len(basis))
    rows = {i: {j: c for j, c in row.items() if j in alive} for i, row in rows.items()}
    rows = {i: row for i, row in rows.items() if row}
    point: Vector = dict.fromkeys(sorted(alive), 1)
    for _ in range(24):
        low = [row for row in rows.values() if sum(c * point[j] for j, c in row.items()) <= 0]
        if not low:
            return {i: sum(c * point[j] for j, c in row.items()) for i, row in sorted(rows.items())}
        for j in {j for row in low for j, c in row.items() if c > 0}:
            point[j] *= 2
    return _cone_by_linear_program(basis)


def _possible(rows: Mapping[int, Vector], n: int) -> set[int]:
    """The coordinates that need not be 0, as far as signs alone tell.

    A coordinate that is some leaf's exponent is >= 0. Where all coefficients of another leaf are
    negative, the coordinates with them must be 0.
    """
    alive = set(range(n))
    rising = {j for row in rows.values() if len(row) == 1 for j, c in row.items() if c > 0}
    users: dict[int, list[int]] = {}
    for i, row in rows.items():
        for j in row:
            users.setdefault(j, []).append(i)
    waiting = list(rows)
    while waiting:
        left = {j: c for j, c in rows[waiting.pop()].items() if j in alive}
        if left and all(c < 0 and j in rising for j, c in left.items()):
            alive -= left.keys()
            waiting += [i for j in left for i in users[j]]
    return alive


def _cone_by_linear_program(basis: Sequence[Vector]) -> Vector:
    """`_cone` by a linear program: maximise the sum of ``z <= 1`` with ``0 <= z <= s``.

    Since a cone may be scaled, each ``z`` is 0 or 1 at the optimum. The solution is rounded to
    rationals and checked exactly; only what passes is claimed.
    """
    import numpy as np  # noqa: PLC0415 - with SciPy, only where it is needed
    from scipy.optimize import linprog  # noqa: PLC0415
    from scipy.sparse import coo_array, hstack, identity  # noqa: PLC0415

    leaves = sorted({i for v in basis for i in v})
    place = {i: n for n, i in enumerate(leaves)}
    entries = [(place[i], j, float(c)) for j, v in enumerate(basis) for i, c in v.items()]
    where_i, where_j, values = zip(*entries, strict=True)
    n, k = len(leaves), len(basis)
    exponents = coo_array((values, (where_i, where_j)), shape=(n, k)).tocsr()
    solution = linprog(
        np.concatenate([np.zeros(k), -np.ones(n)]),
        A_ub=hstack([-exponents, identity(n)]).tocsr(),
        b_ub=np.zeros(n),
        bounds=[(None, None)] * k + [(0, 1)] * n,
        method="highs",
    )
    if not solution.success:
        return {}
    inside = {i for i in leaves if solution.x[k + place[i]] > 0.5}
    for denominator in (1, 2, 12, 1000, 10**6):
        point = [Fraction(float(x)).limit_denominator(denominator) for x in solution.x[:k]]
        out: Form = NOTHING
        for v, c in zip(basis, point, strict=True):
            out = plus(out, v, c) if c else out
        if all(c > 0 for c in out.values()) and inside <= out.keys():
            return {i: Fraction(out[i]) for i in sorted(out)}
    return {}


def free_parts(
    unknowns: Unknowns, degrees: Mapping[int, Degree], biases: Sequence[Iterable[int]]
) -> dict[int, dict[Key, list[tuple[int, int, bool]]]]:
    """Where along their axes leaves may be scaled by themselves.

    Args:
      unknowns: The exponents, solved as far as the program demands.
      degrees: The degrees of the live leaves, by number.
      biases: For each leaf, the biases added to its own output.

    Returns:
      For each leaf and each of its axes along which that is known, the ranges ``(start, stop,
      single)`` that may be scaled without the rest; `single` if every index of the range may be
      scaled on its own.
    """
    resolved = _settled(unknowns, degrees)
    parts = _Parts(unknowns, resolved)
    out: dict[int, dict[Key, list[tuple[int, int, bool]]]] = {}
    for i, d in resolved.items():
        allowed = {i, *biases[i]}
        for axes, profile in d.along.items():
            start = 0
            for place, (length, form) in enumerate(profile):
                if form and (found := parts.freedom((i, axes, place), length, form, allowed)):
                    ranges = out.setdefault(i, {}).setdefault(axes, [])
                    ranges.append((start, start + length, found == "single"))
                start += length
    return out


def _settled(unknowns: Unknowns, degrees: Mapping[int, Degree]) -> dict[int, Degree]:
    """The degrees resolved; again as long as resolving one takes apart an unknown of another."""
    layouts = Layouts(unknowns, unknowns.flattened)
    while True:
        before = len(unknowns.solved)
        resolved = {i: layouts.resolved(d) for i, d in degrees.items()}
        if len(unknowns.solved) == before:
            return resolved


Place = tuple[int, Key | None, int]
"""A leaf, the axes of one of its profiles (`None` for the level), and a segment of it."""


class _Parts:
    """Which unknowns scale which parts of which leaves.

    Attributes:
      used: For each unknown, the parts that it scales, and by what power through which view.
      forms: For each leaf, the forms of its parts.
    """

    def __init__(self, unknowns: Unknowns, resolved: Mapping[int, Degree]) -> None:
        self.unknowns = unknowns
        self.used: dict[int, dict[Place, Form]] = {}
        self.forms: dict[int, list[Form]] = {i: [] for i in resolved}
        for i, d in resolved.items():
            self._use((i, None, 0), d.level or NOTHING)
            for axes, profile in d.along.items():
                for place, (_, form) in enumerate(profile):
                    self._use((i, axes, place), form or NOTHING)

    def _use(self, place: Place, form: Form) -> None:
        self.forms[place[0]].append(form)
        for key, c in form.items():
            uses = self.used.setdefault(self.unknowns.source(key), {})
            uses.setdefault(place, {})[key] = c

    def freedom(self, mine: Place, length: int, form: Form, allowed: set[int]) -> str:
        """How a part may be scaled alone: ``"single"`` index by index, ``"block"``, or ``""``."""
        size = self.unknowns.size
        singles = {key for key in form if size[key] == length}
        if singles and self._is_free(mine, self._beside(mine, singles, allowed, length), allowed):
            return "single"
        return (
            "block" if self._is_free(mine, [self.unknowns.source(k) for k in form], allowed) else ""
        )

    def _beside(self, mine: Place, keys: set[int], allowed: set[int], length: int) -> list[int]:
        """The unknowns of one length that scale a part or the biases added to its output."""
        found = set(keys)
        for i in allowed - {mine[0]}:
            for form in self.forms[i]:
                found |= {key for key in form if self.unknowns.size[key] == length}
        return sorted({self.unknowns.source(key) for key in found})

    def _is_free(self, mine: Place, sources: Sequence[int], allowed: set[int]) -> bool:
        """Whether some of the unknowns can scale the part and otherwise only biases of its own."""
        outside: dict[tuple[Place, int], Form] = {}
        inside: dict[Place, Form] = {}
        for source in sources:
            for place, form in self.used[source].items():
                if place == mine or (place[0] in allowed and place[0] != mine[0]):
                    inside.setdefault(place, {})[source] = sum(form.values())
                else:
                    for key, c in form.items():
                        inner = 1 if self.unknowns.size[key] == 1 else self.unknowns.inner(key)
                        outside.setdefault((place, inner), {})[source] = c
        for point in _null_space(list(sources), list(outside.values())):
            levels = {
                place: sum(c * point.get(source, 0) for source, c in form.items())
                for place, form in inside.items()
            }
            sign = levels.get(mine, 0)
            if sign and all(sign * level >= 0 for level in levels.values()):
                return True
        return False
