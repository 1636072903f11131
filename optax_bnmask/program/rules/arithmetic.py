"""Entry by entry: products, powers, sums, choices, and everything that is none of these."""

import math
from fractions import Fraction

import numpy as np

from optax_bnmask.program.constants import has_precise_result, is_precise
from optax_bnmask.program.equations import Number
from optax_bnmask.program.facts import Facts
from optax_bnmask.program.flags import (
    ANY_DEGREE,
    AS_CAPTURED,
    HUGE,
    MAY_BE_0,
    NONNEG,
    NONZERO,
    ZERO_TEST,
)
from optax_bnmask.program.registry import AGREE, PIN, SAME, Kind, Law, known, rule
from optax_bnmask.program.tape import BRANCH, CARRIED, CARRY, Equation

_HALF = Fraction(1, 2)

# ``(a*x) * (b*y) = a*b * (x*y)``, and with the second factor inverted.
rule(Kind.PRODUCT, "mul_p")(Law(SAME, (1, 1)))
rule(Kind.QUOTIENT, "div_p")(Law(SAME, (1, -1)))


# ``(a*x)**k = a**k * x**k``.
rule(Kind.POWER, "square_p", facts=known(adds=NONNEG))(Law(SAME, (2,)))
rule(Kind.POWER, "sqrt_p", facts=known(adds=NONNEG))(Law(SAME, (_HALF,)))
rule(Kind.POWER, "rsqrt_p", facts=known(adds=NONNEG))(Law(SAME, (-_HALF,)))
rule(Kind.POWER, "cbrt_p")(Law(SAME, (Fraction(1, 3),)))
rule(Kind.POWER, "abs_p", facts=known(adds=NONNEG))(Law())


def _of_integer_power(reading: Facts, e: Equation, flags: int) -> int:
    """Even powers have no sign; ``x**0`` is 1, whatever `x` is."""
    del reading
    n = e.params["y"]
    return 0 if n == 0 else flags | NONNEG if n % 2 == 0 else flags


@rule(Kind.POWER, "integer_pow_p", facts=_of_integer_power)
def integer_power(e: Equation, reading: Facts) -> Law:
    """``(a*x)**n = a**n * x**n``."""
    del reading
    n = e.params["y"]
    return Law(SAME, (n,), scales=n != 0)


def _of_power(reading: Facts, e: Equation, flags: int) -> int:
    """A known exponent other than 0 keeps the zeros, not the sign; else no flag is set."""
    return flags & ~NONNEG if reading.numbers[e.ins[1]] else 0


@rule(Kind.POWER, "pow_p", facts=_of_power)
def power(e: Equation, reading: Facts) -> Law | None:
    """``(a*x)**y = a**y * x**y`` for a known `y`; for an unknown one neither may scale."""
    y = reading.numbers[e.ins[1]]
    if y is None or not math.isfinite(y):
        return PIN
    return Law((SAME, None), (_fraction(y), 0), scales=y != 0)


def _fraction(value: float) -> Number:
    """The simple fraction that a float stands for: 0.33333334 is a third, and 1e-7 itself."""
    if value == int(value):
        return int(value)
    simple = Fraction(value).limit_denominator(1 << 20)
    return simple if abs(simple - Fraction(value)) < 1e-6 * abs(value) else Fraction(value)


# ``f(a*x) = a * f(x)``.
rule(Kind.VIEW, "neg_p", "real_p", facts=known(keeps=~(NONNEG | HUGE)))(Law())
# Fourier transforms of real arrays have real entries, whose imaginary part is 0.
rule(Kind.VIEW, "imag_p", facts=known(keeps=~(NONNEG | HUGE), adds=MAY_BE_0))(Law())
rule(Kind.VIEW, "conj_p", "copy_p", "stop_gradient_p", "name_p")(Law())


def _of_second(reading: Facts, e: Equation, flags: int) -> int:
    """What is known of the second operand."""
    del flags
    return reading.flags[e.ins[1]]


rule(Kind.VIEW, "tie_p", facts=_of_second)(Law((None, SAME), (0, 1)))

# ``a*x + a*y = a * (x + y)``: the degrees must agree.
rule(Kind.SUM, "add_p", "sub_p", "add_any_p")(Law(SAME, AGREE))

# ``max(a*x, a*y) = a * max(x, y)`` for ``a > 0``: the degrees must agree.
rule(Kind.EXTREMUM, "max_p", "min_p")(Law(SAME, AGREE))


def _of_clamp(reading: Facts, e: Equation, flags: int) -> int:
    """Not negative if neither bound is."""
    return flags & ~NONNEG | reading.flags[e.ins[0]] & reading.flags[e.ins[2]] & NONNEG


# ``clamp(a*l, a*x, a*h) = a * clamp(l, x, h)``.
rule(Kind.EXTREMUM, "clamp_p", facts=_of_clamp)(Law(SAME, AGREE))


# ``f(a*x, a*y) = a * f(x, y)``.
rule(
    Kind.EXTREMUM, "rem_p", "complex_p", facts=known(keeps=ANY_DEGREE | AS_CAPTURED, adds=MAY_BE_0)
)(Law(SAME, AGREE))

# ``(a*x < a*y) = (x < y)``: the degrees must agree, and the answer does not scale.
rule(Kind.COMPARISON, "eq_p", "ne_p", "lt_p", "le_p", "gt_p", "ge_p")(
    Law(SAME, AGREE, scales=False)
)
rule(Kind.COMPARISON, "eq_to_p", "lt_to_p", "le_to_p")(Law(SAME, AGREE, scales=False))


def _negated(reading: Facts, e: Equation, flags: int) -> int:
    """Of a test for zeros this makes a test for anything else, and the reverse."""
    del flags
    known = reading.flags[e.ins[0]] & (NONZERO | ZERO_TEST)
    return known ^ (NONZERO | ZERO_TEST) if known else 0


rule(Kind.UNSCALED, "not_p", facts=_negated)(Law(None, (0,), scales=False))

# ``atan2(a*x, a*y) = atan2(x, y)``: the degrees must agree, and the angle does not scale.
rule(Kind.OPAQUE, "atan2_p")(Law(SAME, AGREE, scales=False))

# ``f(a*x) = f(x)`` for ``a > 0``, whatever the degree.
rule(Kind.OPAQUE, "sign_p", "is_finite_p")(Law((None,), (0,), scales=False))


def _choice(e: Equation, reading: Facts) -> Law:
    """``where(p, a*x, a*y) = a * where(p, x, y)``: the cases' degrees must agree."""
    del reading
    return Law((None, *[SAME] * (len(e.ins) - 1)), AGREE, pinned=(0,))


rule(Kind.SELECT, "select_n_p", BRANCH)(_choice)

# In every iteration a carry has the degree that it starts with.
rule(Kind.LOOP, CARRY)(Law())


@rule(Kind.LOOP, CARRIED)
def carried(e: Equation, reading: Facts) -> Law:
    """What the body hands on scales like the carry, and the test of a ``while`` does not."""
    del reading
    tests = range(2, len(e.ins))
    return Law((SAME, SAME, *[None for _ in tests]), AGREE, pinned=tuple(tests))


@rule(Kind.VIEW, "reduce_precision_p")
def rounded(e: Equation, reading: Facts) -> Law | None:
    """``f(a*x) = a * f(x)`` up to rounding, as between dtypes."""
    del reading
    return Law() if is_precise(e.params["exponent_bits"], e.params["mantissa_bits"]) else PIN


@rule(Kind.CAST, "convert_element_type_p")
def cast(e: Equation, reading: Facts) -> Law | None:
    """Between floats ``f(a*x) = a * f(x)``; to bool, whether it is 0; to int, no such law."""
    if reading.tape.floats[e.out]:
        return Law() if has_precise_result(e) else PIN
    made_bool = e.source.outvars[0].aval.dtype == np.bool_
    return Law((None,), (0,), scales=False) if made_bool else PIN


def _is_positive(reading: Facts, e: Equation, flags: int) -> int:
    """Not negative, and 0 only where the operand is minus infinity, as masks are."""
    del flags
    return NONNEG | reading.flags[e.ins[0]] & MAY_BE_0


# No power of `a` can be taken out of ``f(a*x)``: the operand must not scale.
rule(Kind.NONLINEAR, "exp_p", "exp2_p", "logistic_p", facts=_is_positive)(PIN)
rule(
    Kind.NONLINEAR,
    *("expm1_p", "log_p", "log1p_p", "log2_p", "one_minus_square_p"),
    *("sin_p", "cos_p", "tan_p", "asin_p", "acos_p", "atan_p"),
    *("sinh_p", "cosh_p", "tanh_p", "asinh_p", "acosh_p", "atanh_p"),
    *("erf_p", "erfc_p", "erf_inv_p", "lgamma_p", "digamma_p", "bessel_i0e_p", "bessel_i1e_p"),
    *("floor_p", "ceil_p", "round_p"),
)(PIN)
rule(
    Kind.OPAQUE,
    *("igamma_p", "igammac_p", "igamma_grad_a_p", "polygamma_p", "zeta_p", "nextafter_p"),
    *("regularized_incomplete_beta_p", "random_gamma_p"),
    *("bitcast_convert_type_p", "polynomial_p"),
)(PIN)

# Integers, predicates and random numbers.
rule(
    Kind.UNSCALED,
    *("and_p", "or_p", "xor_p", "clz_p", "population_count_p", "mulhi_p"),
    *("shift_left_p", "shift_right_arithmetic_p", "shift_right_logical_p"),
    *("reduce_and_p", "reduce_or_p", "reduce_xor_p", "iota_p", "empty_p", "empty2_p"),
    *("random_bits_p", "random_clone_p", "random_fold_in_p", "random_seed_p", "random_split_p"),
    *("random_unwrap_p", "random_wrap_p", "rng_bit_generator_p", "rng_uniform_p"),
    *("threefry2x32_p", "threefry4x32_p", "philox2x32_p", "philox4x32_p", "iota_2x32_shape_p"),
    *("axis_index_p", "create_token_p", "after_all_p", "lu_pivots_to_permutation_p"),
    *("platform_index_p", "dimension_size_p"),
)(PIN)

# Without results these are never written on the tape, so that what they read is not pinned.
rule(Kind.UNSCALED, "debug_callback_p", "debug_print_p", "dce_sink_p")(PIN)
