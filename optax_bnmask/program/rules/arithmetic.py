"""Entry by entry: products, powers, sums, and everything that is neither."""

import math
from collections.abc import Sequence
from fractions import Fraction

import jax.numpy as jnp
import numpy as np

from optax_bnmask.program.context import Context, Eqn
from optax_bnmask.program.degree import (
    ANY,
    CLIPPED,
    HUGE,
    NONNEG,
    NONZERO,
    ZERO,
    ZERO_TEST,
    Degree,
)
from optax_bnmask.program.forms import Number, quotient
from optax_bnmask.program.rules import rule

EPSILON = 1.01e-3
"""Constants of at most this magnitude that are added to a value are taken as 0, and recorded.

That is 1e-3, the largest in common use, as any dtype down to bfloat16 rounds it.
"""


@rule("product", "mul_p")
def product(ctx: Context, eqn: Eqn, x: Degree, y: Degree) -> Degree:
    """``(a*x) * (b*y) = a*b * (x*y)``: degrees add."""
    out = ctx.layouts.product(x, y)
    same = eqn.invars[0] is eqn.invars[1]
    if same or x.mark & y.mark & NONNEG:
        return out.known(mark=NONNEG | (x.mark | y.mark) & CLIPPED)
    return out.known(mark=(x.mark | y.mark) & CLIPPED) if (x.mark | y.mark) & CLIPPED else out


@rule("quotient", "div_p")
def quotient_rule(ctx: Context, eqn: Eqn, x: Degree, y: Degree) -> Degree:
    """``(a*x) / (b*y) = a/b * (x/y)``: degrees subtract."""
    del eqn
    out = ctx.layouts.product(x, y, -1)
    mark = (x.mark & y.mark & NONNEG) | (x.mark & CLIPPED)
    return out.known(mark=mark) if mark else out


def _power(k: Number, mark: int = 0):  # noqa: ANN202 - a rule
    def power(ctx: Context, eqn: Eqn, x: Degree) -> Degree:
        """``(a*x)**k = a**k * x**k``."""
        del eqn
        if k == 0:
            return ZERO
        if x.level is None:
            return ANY
        return ctx.layouts.power(x, k).known(mark=mark | x.mark & CLIPPED)

    return power


rule("pointwise", "square_p")(_power(2, NONNEG))
rule("pointwise", "sqrt_p")(_power(quotient(1, 2), NONNEG))
rule("pointwise", "rsqrt_p")(_power(quotient(-1, 2), NONNEG))
rule("pointwise", "cbrt_p")(_power(quotient(1, 3)))


@rule("pointwise", "integer_pow_p")
def integer_power(ctx: Context, eqn: Eqn, x: Degree) -> Degree:
    """``(a*x)**n = a**n * x**n``."""
    n = eqn.params["y"]
    return _power(n, NONNEG if n % 2 == 0 else x.mark & NONNEG)(ctx, eqn, x)


@rule("pointwise", "pow_p")
def power(ctx: Context, eqn: Eqn, x: Degree, y: Degree) -> Degree:
    """``(a*x)**y = a**y * x**y`` for a known `y`; for an unknown one neither may scale."""
    if y.const is None or not math.isfinite(y.const):
        return ctx.pin(eqn, (x, y))
    k = quotient(int(y.const), 1) if y.const == int(y.const) else _fraction(y.const)
    return _power(k)(ctx, eqn, x)


def _fraction(value: float) -> Number:
    return Fraction(value).limit_denominator(1 << 20)


@rule("view", "neg_p", "real_p", "imag_p", "conj_p", "reduce_precision_p")
def keep(ctx: Context, eqn: Eqn, x: Degree) -> Degree:
    """``f(a*x) = a * f(x)``."""
    del ctx, eqn
    return x.known(mark=x.mark & CLIPPED)


@rule("pointwise", "abs_p")
def magnitude(ctx: Context, eqn: Eqn, x: Degree) -> Degree:
    """``|a*x| = a * |x|``."""
    del ctx, eqn
    return x.known(mark=NONNEG | x.mark & CLIPPED)


@rule("view", "copy_p", "stop_gradient_p", "name_p")
def same(ctx: Context, eqn: Eqn, x: Degree) -> Degree:
    """``f(x) = x``."""
    del ctx, eqn
    return x


@rule("view", "tie_p")
def second(ctx: Context, eqn: Eqn, x: Degree, y: Degree) -> Degree:
    """The second of two operands, unchanged."""
    del ctx, eqn, x
    return y


@rule("sum", "add_p", "sub_p", "add_any_p")
def total(ctx: Context, eqn: Eqn, x: Degree, y: Degree) -> Degree:
    """``a*x + a*y = a * (x + y)``: the degrees must agree."""
    out = agreement(ctx, eqn, (x, y))
    both = x.mark & y.mark & (CLIPPED if eqn.primitive.name == "sub" else CLIPPED | NONNEG)
    return out.known(mark=both) if both else out


@rule("pointwise", "max_p", "min_p")
def extremum(ctx: Context, eqn: Eqn, x: Degree, y: Degree) -> Degree:
    """``max(a*x, a*y) = a * max(x, y)`` for ``a > 0``: the degrees must agree."""
    if eqn.primitive.name == "max":
        out = agreement(ctx, eqn, (x, y))
        floor = any(d.mark & NONNEG or (d.const is not None and d.const >= 0) for d in (x, y))
        return out.known(mark=CLIPPED | (NONNEG if floor else 0))
    return agreement(ctx, eqn, (x, y), small=False).known(mark=CLIPPED)


@rule("pointwise", "clamp_p")
def clamp(ctx: Context, eqn: Eqn, low: Degree, x: Degree, high: Degree) -> Degree:
    """As `extremum`, twice: ``f(a*l, a*x, a*h) = a * f(l, x, h)``."""
    return agreement(ctx, eqn, (low, x, high)).known(mark=CLIPPED)


@rule("pointwise", "rem_p", "complex_p")
def remainder(ctx: Context, eqn: Eqn, x: Degree, y: Degree) -> Degree:
    """``f(a*x, a*y) = a * f(x, y)``: the degrees must agree."""
    return ctx.agree(eqn, (x, y)).known(mark=(x.mark | y.mark) & CLIPPED)


@rule("opaque", "eq_p", "ne_p", "lt_p", "le_p", "gt_p", "ge_p", "eq_to_p", "lt_to_p", "le_to_p")
def comparison(ctx: Context, eqn: Eqn, x: Degree, y: Degree) -> Degree:
    """``(a*x < a*y) = (x < y)``: the degrees must agree, and the answer does not scale."""
    agreement(ctx, eqn, (x, y))
    mark = _test(eqn.primitive.name, x, y)
    return Degree({}, mark=mark) if mark else ZERO


def _test(name: str, x: Degree, y: Degree) -> int:
    """Whether a comparison tells zeros of a value from the rest."""
    if x.const is not None:
        name = {"lt": "gt", "le": "ge", "gt": "lt", "ge": "le"}.get(name, name)
        x, y = y, x
    if y.const is None or abs(y.const) > EPSILON or may_be_zero(x):
        return 0
    if name in ("ne", "eq") and y.const == 0:
        return NONZERO if name == "ne" else ZERO_TEST
    if not x.mark & NONNEG or y.const < 0:
        return 0
    if name == "gt" or (name == "ge" and y.const > 0):
        return NONZERO
    return ZERO_TEST if name == "le" or (name == "lt" and y.const > 0) else 0


def may_be_zero(x: Degree) -> bool:
    """Whether a value may well be 0 where nothing is wrong: clipped there, data, or a constant."""
    anything = any(form is None for profile in x.along.values() for _, form in profile)
    return x.is_zero or x.is_any or anything or bool(x.mark & CLIPPED)


@rule("pointwise", "not_p")
def negation(ctx: Context, eqn: Eqn, x: Degree) -> Degree:
    """Predicates do not scale."""
    del ctx, eqn
    if x.mark & (NONZERO | ZERO_TEST):
        return Degree({}, mark=x.mark ^ (NONZERO | ZERO_TEST))
    return ZERO


@rule("opaque", "atan2_p")
def angle(ctx: Context, eqn: Eqn, x: Degree, y: Degree) -> Degree:
    """``atan2(a*x, a*y) = atan2(x, y)``: the degrees must agree, and the angle does not scale."""
    ctx.agree(eqn, (x, y))
    return ZERO


@rule("opaque", "sign_p", "is_finite_p")
def sign(ctx: Context, eqn: Eqn, x: Degree) -> Degree:
    """``f(a*x) = f(x)`` for ``a > 0``, whatever the degree."""
    del ctx, eqn, x
    return ZERO


@rule("select", "select_n_p")
def choice(ctx: Context, eqn: Eqn, which: Degree, *cases: Degree) -> Degree:
    """``where(p, a*x, a*y) = a * where(p, x, y)``: the cases' degrees must agree.

    A constant that is chosen only where some value is 0, as in ``where(n != 0, n, 1)``, is a guard
    and does not count.
    """
    ctx.pin(eqn, (which,))
    kept = list(cases)
    if len(cases) == 2 and which.mark & (NONZERO | ZERO_TEST):
        place = 0 if which.mark & NONZERO else 1
        guard, other = cases[place], cases[1 - place]
        if guard.const is not None and guard.level is not None:
            ctx.assume("guard", guard.const, eqn, other)
            kept = [other]
    out = agreement(ctx, eqn, kept, small=False)
    mark = (
        NONNEG if all(d.mark & NONNEG or (d.const or -1) > 0 or d.const == 0 for d in kept) else 0
    )
    return out.known(mark=mark | (CLIPPED if len(kept) > 1 else 0))


@rule("cast", "convert_element_type_p")
def cast(ctx: Context, eqn: Eqn, x: Degree) -> Degree:
    """Between floats ``f(a*x) = a * f(x)``; to bool, whether it is 0; to int, no such law."""
    new, old = eqn.params["new_dtype"], eqn.invars[0].aval.dtype
    if jnp.issubdtype(new, np.inexact):
        return x if jnp.issubdtype(old, np.inexact) else x.bare()
    if new == np.bool_:
        if x.mark & (NONZERO | ZERO_TEST):
            return x
        return Degree({}, mark=0 if may_be_zero(x) else NONZERO)
    return x.bare() if not jnp.issubdtype(old, np.inexact) else ctx.pin(eqn, (x,))


def agreement(ctx: Context, eqn: Eqn, degrees: Sequence[Degree], *, small: bool = True) -> Degree:
    """`Context.agree`, after constants that stand for 0 or for infinity are set apart."""
    return ctx.agree(eqn, set_apart(ctx, eqn, degrees, small=small))


def set_apart(
    ctx: Context, eqn: Eqn, degrees: Sequence[Degree], *, small: bool = False
) -> list[Degree]:
    """The degrees; every degree for constants that stand for infinity or, if `small`, for 0."""
    kept = list(degrees)
    for place, d in enumerate(degrees):
        if d.const is None:
            continue
        others = [e for e in degrees if e is not d and not (e.is_zero or e.is_any)]
        if d.mark & HUGE and others:
            ctx.assume("infinity", d.const, eqn, others[0])
            kept[place] = ANY
        elif small and d.level is not None and 0 < abs(d.const) <= EPSILON and others:
            ctx.assume("epsilon", d.const, eqn, others[0])
            kept[place] = ANY
    return kept


@rule(
    "pointwise",
    *("exp_p", "exp2_p", "expm1_p", "log_p", "log1p_p", "logistic_p"),
    *("sin_p", "cos_p", "tan_p", "asin_p", "acos_p", "atan_p"),
    *("sinh_p", "cosh_p", "tanh_p", "asinh_p", "acosh_p", "atanh_p"),
    *("erf_p", "erfc_p", "erf_inv_p", "lgamma_p", "digamma_p", "bessel_i0e_p", "bessel_i1e_p"),
    *("floor_p", "ceil_p", "round_p", "log2_p", "one_minus_square_p"),
)
def nonlinear(ctx: Context, eqn: Eqn, x: Degree) -> Degree:
    """No power of `a` can be taken out of ``f(a*x)``: the operand must not scale."""
    out = ctx.pin(eqn, (x,))
    if eqn.primitive.name in ("exp", "exp2", "logistic"):
        return out.known(mark=NONNEG)
    return out


@rule(
    "opaque",
    *("igamma_p", "igammac_p", "igamma_grad_a_p", "polygamma_p", "zeta_p", "nextafter_p"),
    *("regularized_incomplete_beta_p", "random_gamma_p"),
    *("bitcast_convert_type_p", "polynomial_p"),
)
def nonlinear_together(ctx: Context, eqn: Eqn, *operands: Degree) -> Degree:
    """No power of `a` can be taken out of any operand."""
    return ctx.pin(eqn, operands)


@rule(
    "opaque",
    *("and_p", "or_p", "xor_p", "clz_p", "population_count_p", "mulhi_p"),
    *("shift_left_p", "shift_right_arithmetic_p", "shift_right_logical_p"),
    *("reduce_and_p", "reduce_or_p", "reduce_xor_p", "iota_p", "empty_p", "empty2_p"),
    *("random_bits_p", "random_clone_p", "random_fold_in_p", "random_seed_p", "random_split_p"),
    *("random_unwrap_p", "random_wrap_p", "rng_bit_generator_p", "rng_uniform_p"),
    *("threefry2x32_p", "threefry4x32_p", "philox2x32_p", "philox4x32_p", "iota_2x32_shape_p"),
    *("axis_index_p", "create_token_p", "after_all_p", "lu_pivots_to_permutation_p"),
    *("debug_callback_p", "debug_print_p", "dce_sink_p", "platform_index_p", "dimension_size_p"),
)
def unscaled(ctx: Context, eqn: Eqn, *operands: Degree) -> list[Degree]:
    """Integers, predicates and random numbers: nothing here scales, nor can."""
    ctx.pin(eqn, [d for d, v in zip(operands, eqn.invars, strict=True) if is_float(v)])
    return [ZERO for _ in eqn.outvars]


def is_float(atom: object) -> bool:
    """Whether a variable of a jaxpr holds real or complex numbers."""
    dtype = getattr(atom.aval, "dtype", None)  # pyrefly: ignore[missing-attribute] - a jaxpr's atom
    return dtype is not None and bool(jnp.issubdtype(dtype, np.inexact))
