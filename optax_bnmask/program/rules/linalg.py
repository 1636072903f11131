"""Factorisations and solutions of linear equations; matrices are the last two axes."""

from fractions import Fraction

from optax_bnmask.program.facts import Facts
from optax_bnmask.program.flags import ANY_DEGREE, AS_CAPTURED, PACKED
from optax_bnmask.program.registry import ANYTHING, PIN, Kind, Law, Map, rule
from optax_bnmask.program.rules.contraction import last
from optax_bnmask.program.rules.shaping import unchanged
from optax_bnmask.program.tape import Equation


def _matrix(e: Equation, reading: Facts) -> Map:
    """The map of a stack of matrices, none of which may vary within itself."""
    rank = len(reading.tape.shapes[e.ins[0]])
    return unchanged(rank, last(rank, 2))


@rule(Kind.REDUCTION, "cholesky_p", facts=ANYTHING)
def cholesky(e: Equation, reading: Facts) -> Law:
    """``chol(a*x) = sqrt(a) * chol(x)``."""
    return Law((_matrix(e, reading),), (Fraction(1, 2),))


def _scaling(place: int):  # noqa: ANN202 - a law
    def law(e: Equation, reading: Facts) -> Law:
        """One of the results scales with the matrix, the others do not scale."""
        to = _matrix(e, reading)
        return Law((to,)) if e.place == place else Law((to,), (0,), scales=False)

    return law


# ``a*x = q @ (a*r)``: `q` does not scale, `r` does; pivots are places.
rule(Kind.REDUCTION, "qr_p", facts=ANYTHING)(_scaling(1))

# Eigenvalues, singular values and the Schur form scale, the vectors beside them do not.
rule(Kind.REDUCTION, "eig_p", "svd_p", "schur_p", facts=ANYTHING)(_scaling(0))


@rule(Kind.REDUCTION, "eigh_p", facts=ANYTHING)
def eigh(e: Equation, reading: Facts) -> Law:
    """Eigenvalues scale, eigenvectors do not; which come first is for the version of JAX to say."""
    to = _matrix(e, reading)
    values = len(reading.tape.shapes[e.out]) < len(reading.tape.shapes[e.ins[0]])
    return Law((to,)) if values else Law((to,), (0,), scales=False)


def _packed(reading: Facts, e: Equation, flags: int) -> int:
    """The first result is packed."""
    del reading, flags
    return PACKED if e.place == 0 else 0


# ``a*x = l @ (a*u)``, with `l` and `u` packed in one array; pivots are places.
rule(Kind.FACTORS, "lu_p", facts=_packed)(_scaling(0))


def _of_solution(reading: Facts, e: Equation, flags: int) -> int:
    """With a unit diagonal, a matrix of zeros is the identity: only zeros of `b` are zeros."""
    of_b = reading.flags[e.ins[1]] & (ANY_DEGREE | AS_CAPTURED)
    return flags & ~(ANY_DEGREE | AS_CAPTURED) | of_b if e.params["unit_diagonal"] else flags


@rule(Kind.SOLUTION, "triangular_solve_p", facts=_of_solution)
def triangular_solve(e: Equation, reading: Facts) -> Law | None:
    """``solve(c*a, d*b) = d/c * solve(a, b)``; a unit diagonal keeps `a` from scaling.

    Of a packed factorisation, the lower half with a unit diagonal does not scale, and the upper
    half with its own diagonal does; other combinations are pinned.
    """
    a, b = e.ins
    unit, lower = e.params["unit_diagonal"], e.params["lower"]
    if reading.flags[b] & PACKED:
        return PIN
    rank = len(reading.tape.shapes[b])
    stacked = unchanged(rank, last(rank, 2))
    free = rank - 1 if e.params["left_side"] else rank - 2  # each right-hand side by itself
    sides = {**stacked, free: free}
    packed = reading.flags[a] & PACKED
    if packed and unit and lower:
        return Law((stacked, sides), (0, 1))
    pinned = unit or (packed and lower)
    return Law((None, sides), (0, 1), pinned=(0,)) if pinned else Law((stacked, sides), (-1, 1))


@rule(Kind.REDUCTION, "tridiagonal_solve_p", facts=ANYTHING)
def tridiagonal_solve(e: Equation, reading: Facts) -> Law:
    """``solve(c*a, d*b) = d/c * solve(a, b)``, where the three bands of `a` scale alike."""
    del e, reading
    return Law(({}, {}, {}, {}), (-1, 0, 0, 1), alike=(0, 1, 2))


# Their outputs mix parts that scale differently: nothing may scale.
rule(
    Kind.OPAQUE,
    *("householder_product_p", "hessenberg_p", "tridiagonal_p", "geqrf_p", "geqp3_p", "ormqr_p"),
    *("cholesky_update_p", "symmetric_product_p", "scaled_dot_p"),
)(PIN)
