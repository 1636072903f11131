"""Null spaces, and the cones of their vectors without negative entries."""

from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction

from optax_bnmask.program.equations import NOTHING, Form, Number, System, plus

Vector = dict[int, Number]
"""Exponents by leaf number, without the zeros."""


def transposed(rows: Mapping[int, Vector]) -> dict[int, Vector]:
    """The columns of a matrix that is given by its rows."""
    out: dict[int, Vector] = {}
    for i, row in rows.items():
        for j, c in row.items():
            out.setdefault(j, {})[i] = c
    return out


def null_space(free: Iterable[int], equations: Iterable[Vector]) -> list[Vector]:
    """A basis of the points with the coordinates `free` that fulfil all equations."""
    system = System()
    for equation in equations:
        system.zero(equation)
    return list(transposed({leaf: system.resolve({leaf: 1}) for leaf in free}).values())


def cone_of(basis: Sequence[Vector]) -> Vector:
    """A combination of `basis` without negative entries, as many of them positive as possible.

    Nearly always a few rounds of doubling find a point at which nothing is negative, so that the
    linear program, and SciPy, are the last resort.
    """
    rows = transposed(dict(enumerate(basis)))
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
    """`cone_of` by a linear program: maximise the sum of ``z <= 1`` with ``0 <= z <= s``.

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
