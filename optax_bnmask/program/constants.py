"""Constant arrays: the one number that such an array holds, and arithmetic with these numbers."""

import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, Final

import jax.numpy as jnp
import numpy as np

from optax_bnmask import compat
from optax_bnmask.program.flags import ANY_DEGREE, CAPTURED_NONZERO, HUGE, NONNEG
from optax_bnmask.program.tape import MOVE, RESHAPE, SLICE, Equation

_LARGEST: Final = 1 << 22
"""Constant arrays with more entries than this are not looked into."""


def known_of(value: Any) -> tuple[float | None, int]:  # noqa: ANN401 - a literal's or a constant's value
    """The number that a constant of one entry is, else `None`; and the flags of the constant."""
    array = entries_of(value)
    if array is None:
        return None, 0
    if array.size == 1 and not np.iscomplexobj(array):
        return number_of(float(array.item()), getattr(value, "dtype", None))
    solid = CAPTURED_NONZERO if bool(np.all(array != 0)) else 0
    if np.iscomplexobj(array):  # a complex product with an infinity may not be one
        return None, solid or (ANY_DEGREE if bool(np.all(array == 0)) else 0)
    array = array.astype(np.float64)
    trivial = bool(np.all((array == 0) | ~np.isfinite(array)))
    return None, (ANY_DEGREE if trivial else solid) | (NONNEG if bool(np.all(array >= 0)) else 0)


def entries_of(value: Any) -> Any:  # noqa: ANN401 - as above
    """The entries of a constant in NumPy; `None` if they are no numbers, or too many to look at."""
    readable = isinstance(getattr(value, "shape", ()), tuple) and is_readable(value)
    dtype = getattr(value, "dtype", None)
    if not readable or (dtype is not None and not _is_number(dtype)):
        return None
    if np.size(value) > _LARGEST:
        return None
    return np.asarray(value)


def is_readable(value: Any) -> bool:  # noqa: ANN401 - as above
    """Whether an array is concrete, and each process that holds it can read all of it."""
    if isinstance(value, compat.Tracer):
        return False
    return getattr(value, "is_fully_replicated", True) or value.is_fully_addressable


_FINE: Final = 5, 7
"""The least bits of an exponent, as in float16, and of a mantissa, as in bfloat16. With fewer, as
in floats of 8 and of 4 bits, rounding and saturation are part of what the program computes."""


def is_precise(exponent_bits: int, mantissa_bits: int) -> bool:
    """Whether floats of so many bits are precise enough to leave rounding out of account."""
    return exponent_bits >= _FINE[0] and mantissa_bits >= _FINE[1]


def has_precise_result(e: Equation) -> bool:
    """Whether the result of an equation has a float dtype of such precision: see `is_precise`."""
    dtype = e.source.outvars[e.place].aval.dtype
    return compat.is_inexact(dtype) and _is_fine_dtype(dtype)


@functools.lru_cache
def _is_fine_dtype(dtype: Any) -> bool:  # noqa: ANN401 - a dtype
    info = jnp.finfo(dtype)
    return is_precise(info.nexp, info.nmant)


def number_of(number: float, dtype: Any) -> tuple[float, int]:  # noqa: ANN401 - a dtype
    """A constant all of whose entries are `number`, and its flags."""
    flags = NONNEG if number >= 0 else 0
    if number == 0 or not math.isfinite(number):
        return number, flags | (ANY_DEGREE if dtype is None or compat.is_inexact(dtype) else 0)
    if dtype is not None and compat.is_inexact(dtype) and abs(number) >= _large(dtype):
        flags |= HUGE
    return number, flags


@functools.lru_cache
def _large(dtype: Any) -> float:  # noqa: ANN401 - a dtype
    """A tenth of the largest number of a dtype: what masks are filled with is at least that."""
    return 0.1 * float(jnp.finfo(dtype).max)


@functools.lru_cache
def _is_number(dtype: Any) -> bool:  # noqa: ANN401 - a dtype, extended ones included
    return bool(jnp.issubdtype(dtype, np.number) or jnp.issubdtype(dtype, np.bool_))


@functools.lru_cache
def _is_real(dtype: Any) -> bool:  # noqa: ANN401 - a dtype
    return _is_number(dtype) and not bool(jnp.issubdtype(dtype, np.complexfloating))


def folded(e: Equation, numbers: Sequence[float | None]) -> tuple[float, int] | None:
    """The result of an equation all of whose operands are numbers, and its flags; or `None`."""
    if not e.ins or e.op not in _FOLD:
        return None
    dtype = e.source.outvars[e.place].aval.dtype
    number = computed(e.op, [numbers[x] for x in e.ins]) if _is_real(dtype) else None
    if number is None:
        return None
    rounded = _rounded(float(number), dtype)
    return None if rounded is None else number_of(rounded, dtype)


def computed(op: Any, numbers: Sequence[Any]) -> float | None:  # noqa: ANN401 - as in `_FOLD`
    """What an operation makes of numbers, unrounded; `None` if that is not known."""
    function = _FOLD.get(op)
    try:
        number = function(*numbers) if function and numbers else None
    except (ValueError, ZeroDivisionError, OverflowError, TypeError):
        return None
    return None if isinstance(number, complex) else number


def _square(x: float) -> float:
    return x * x


def _inverse_root(x: float) -> float:
    return 1 / math.sqrt(x)


def _same(x: float, *_: float) -> float:
    return x


_KEEPING: Final = (
    *("copy_p", "stop_gradient_p", "convert_element_type_p", "pvary_p"),
    *("broadcast_in_dim_p", "reshape_p", "squeeze_p"),  # before they are written on a tape
)
_FOLD: dict[Any, Callable[..., Any]] = {
    MOVE: _same,
    RESHAPE: _same,
    SLICE: _same,
    **{
        compat.primitive(name): function
        for name, function in {
            "add_p": operator.add,
            "sub_p": operator.sub,
            "mul_p": operator.mul,
            "div_p": operator.truediv,
            "max_p": max,
            "min_p": min,
            "neg_p": operator.neg,
            "abs_p": abs,
            "square_p": _square,
            "sqrt_p": math.sqrt,
            "rsqrt_p": _inverse_root,
            "exp_p": math.exp,
            "log_p": math.log,
            "pow_p": pow,
            "gt_p": operator.gt,
            "ge_p": operator.ge,
            "lt_p": operator.lt,
            "le_p": operator.le,
            "eq_p": operator.eq,
            "ne_p": operator.ne,
            **dict.fromkeys(_KEEPING, _same),
        }.items()
    },
}
"""Arithmetic among numbers, as far as epsilons and bounds are computed in programs."""


def _rounded(number: float, dtype: Any) -> float | None:  # noqa: ANN401 - a dtype
    """The number rounded to a dtype; `None` for integers where that is not certain."""
    if dtype == np.bool_:
        return float(number != 0)
    if compat.is_inexact(dtype):
        with np.errstate(over="ignore", under="ignore"):
            return float(np.asarray(number).astype(dtype))
    limits = np.iinfo(dtype)
    exact = math.isfinite(number) and abs(number) < 2**53
    return float(int(number)) if exact and limits.min <= number <= limits.max else None
