"""Sums of products: linear in each operand."""

from collections.abc import Sequence

from optax_bnmask.program.context import Context, Eqn
from optax_bnmask.program.degree import ANY, PACKED, ZERO, Degree
from optax_bnmask.program.forms import quotient
from optax_bnmask.program.reshapes import blocks, unblocked
from optax_bnmask.program.rules import rule, shape_of


@rule("contraction", "dot_general_p")
def dot(ctx: Context, eqn: Eqn, x: Degree, y: Degree) -> Degree:
    """Linear in both: ``f(a*x, b*y) = a*b * f(x, y)``, where all summands scale alike."""
    (cx, cy), (bx, by) = eqn.params["dimension_numbers"]
    if x.level is None or y.level is None:
        return ANY
    if x.along or y.along:
        x, y = ctx.layouts.uniform(x, cx), ctx.layouts.uniform(y, cy)
        free_x = [a for a in range(len(shape_of(eqn))) if a not in (*cx, *bx)]
        free_y = [a for a in range(len(shape_of(eqn, 1))) if a not in (*cy, *by)]
        order_x, order_y = [*bx, *free_x], [*by, *([-1] * len(free_x)), *free_y]
        x = x.moved(lambda a: order_x.index(a) if a >= 0 else a)
        y = y.moved(lambda a: order_y.index(a) if a >= 0 else a)
    return ctx.layouts.product(x, y)


@rule("contraction", "ragged_dot_general_p")
def ragged_dot(ctx: Context, eqn: Eqn, x: Degree, y: Degree, *sizes: Degree) -> Degree:
    """As `dot`, with one of several right operands for each row."""
    del sizes
    x = ctx.layouts.uniform(x, range(len(shape_of(eqn))))
    y = ctx.layouts.uniform(y, range(len(shape_of(eqn, 1))))
    return ctx.layouts.product(x, y)


@rule("contraction", "conv_general_dilated_p")
def convolution(ctx: Context, eqn: Eqn, x: Degree, w: Degree) -> Degree:
    """``conv(a*x, b*w) = a*b * conv(x, w)``, where all summands scale alike.

    With feature groups, an output channel sums over the input channels of its group only, so that
    the degree may differ from group to group; depthwise, from channel to channel.
    """
    if x.level is None or w.level is None:
        return ANY
    numbers = eqn.params["dimension_numbers"]
    batch, feature, *space = numbers.lhs_spec
    out_feature, in_feature, *kernel_space = numbers.rhs_spec
    groups = eqn.params["feature_group_count"]
    if eqn.params["batch_group_count"] > 1:
        x = ctx.layouts.uniform(x, range(len(shape_of(eqn))))
        w = ctx.layouts.uniform(w, range(len(shape_of(eqn, 1))))
    x = ctx.layouts.uniform(x, space)
    w = ctx.layouts.uniform(w, [in_feature, *kernel_space])
    shape = list(shape_of(eqn))
    if not x.along:
        pass
    elif groups == 1:
        x = ctx.layouts.uniform(x, [feature])
    else:
        x = blocks(ctx.layouts, x, feature, shape, groups)
        shape[feature] = groups
        per_group = shape_of(eqn, 1)[out_feature] // groups
        x = unblocked(ctx.layouts, x, feature, shape, per_group)
    to_batch, to_feature = numbers.out_spec[:2]
    x = x.moved(lambda a: {batch: to_batch, feature: to_feature}.get(a, a))
    w = w.moved(lambda a: to_feature if a == out_feature else a)
    return ctx.layouts.product(x, w)


@rule("reduction", "fft_p")
def fourier(ctx: Context, eqn: Eqn, x: Degree) -> Degree:
    """``fft(a*x) = a * fft(x)``, where all entries along the transformed axes scale alike."""
    return ctx.layouts.uniform(x, _last(eqn, len(eqn.params["fft_lengths"]))).bare()


def _last(eqn: Eqn, n: int) -> Sequence[int]:
    """The last `n` axes of the first operand."""
    rank = len(shape_of(eqn))
    return range(rank - n, rank)


def _matrix(ctx: Context, eqn: Eqn, x: Degree) -> Degree:
    """A stack of matrices whose entries all scale alike."""
    return ctx.layouts.uniform(x, _last(eqn, 2)).bare()


@rule("reduction", "cholesky_p")
def cholesky(ctx: Context, eqn: Eqn, x: Degree) -> Degree:
    """``chol(a*x) = sqrt(a) * chol(x)``."""
    return ctx.layouts.power(_matrix(ctx, eqn, x), quotient(1, 2))


@rule("reduction", "qr_p")
def orthogonal_triangular(ctx: Context, eqn: Eqn, x: Degree) -> list[Degree]:
    """``a*x = q @ (a*r)``: `q` does not scale, `r` does; pivots are places."""
    x = _matrix(ctx, eqn, x)
    return [ZERO, x, *[ZERO for _ in eqn.outvars[2:]]]


@rule("reduction", "eigh_p")
def eigh(ctx: Context, eqn: Eqn, x: Degree) -> list[Degree]:
    """Eigenvalues scale, eigenvectors do not."""
    x = _matrix(ctx, eqn, x)
    first_is_values = len(eqn.outvars[0].aval.shape) < len(shape_of(eqn))
    return [x, ZERO] if first_is_values else [ZERO, x]


@rule("reduction", "eig_p", "svd_p", "schur_p")
def values_first(ctx: Context, eqn: Eqn, x: Degree) -> list[Degree]:
    """Eigenvalues, singular values and the Schur form scale, the vectors beside them do not."""
    x = _matrix(ctx, eqn, x)
    return [x, *[ZERO for _ in eqn.outvars[1:]]]


@rule("reduction", "lu_p")
def lower_upper(ctx: Context, eqn: Eqn, x: Degree) -> list[Degree]:
    """``a*x = l @ (a*u)``, with `l` and `u` packed in one array; pivots are places."""
    return [_matrix(ctx, eqn, x).known(mark=PACKED), ZERO, ZERO]


@rule("packed", "triangular_solve_p")
def triangular_solve(ctx: Context, eqn: Eqn, a: Degree, b: Degree) -> Degree:
    """``solve(c*a, d*b) = d/c * solve(a, b)``; a unit diagonal keeps `a` from scaling."""
    a = _matrix(ctx, eqn, a).known(mark=a.mark)
    b = ctx.layouts.uniform(b, range(len(shape_of(eqn, 1))))
    unit, lower = eqn.params["unit_diagonal"], eqn.params["lower"]
    if a.mark & PACKED:
        if unit and lower:
            return b.bare()
        if unit or lower:
            ctx.pin(eqn, (a,))
    elif unit:
        ctx.pin(eqn, (a,))
        return b.bare()
    return ctx.layouts.product(b, a, -1)


@rule("reduction", "tridiagonal_solve_p")
def tridiagonal_solve(ctx: Context, eqn: Eqn, *operands: Degree) -> Degree:
    """``solve(c*a, d*b) = d/c * solve(a, b)``."""
    *bands, b = operands
    diagonals = [ctx.layouts.uniform(x, range(len(shape_of(eqn)))) for x in bands]
    a = ctx.agree(eqn, diagonals)
    return ctx.layouts.product(ctx.layouts.uniform(b, range(len(shape_of(eqn, 3)))), a, -1)


@rule(
    "opaque",
    *("householder_product_p", "hessenberg_p", "tridiagonal_p", "geqrf_p", "geqp3_p", "ormqr_p"),
    *("cholesky_update_p", "symmetric_product_p", "scaled_dot_p"),
)
def other_factorisations(ctx: Context, eqn: Eqn, *operands: Degree) -> list[Degree]:
    """Their outputs mix parts that scale differently: nothing may scale."""
    out = ctx.pin(eqn, operands)
    return [out for _ in eqn.outvars]
