"""Constants: which of them have every degree at once, and simple arithmetic among them."""

import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from optax_bnmask import compat
from optax_bnmask.program.context import Eqn
from optax_bnmask.program.degree import ANY, HUGE, ZERO, Degree

_LARGEST = 1 << 22
"""Constant arrays with more entries than this are not looked into."""


def constant(value: Any) -> Degree:  # noqa: ANN401 - a literal's or a constant's value
    """The degree of a constant: every degree for zeros and infinities, 0 for all others."""
    dtype = getattr(value, "dtype", None)
    if not is_here(value) or (dtype is not None and not _is_number(dtype)):
        return ZERO
    if np.size(value) == 1:
        return _scalar(value, dtype)
    if np.size(value) > _LARGEST or not isinstance(getattr(value, "shape", ()), tuple):
        return ZERO
    array = np.asarray(value)
    if not _is_number(array.dtype):
        return ZERO
    wide = array if np.iscomplexobj(array) else array.astype(np.float64)
    return ANY if bool(np.all((wide == 0) | ~np.isfinite(wide))) else ZERO


def is_here(value: Any) -> bool:  # noqa: ANN401 - as above
    """Whether an array has values, all of which this process can read, as then every other can."""
    if isinstance(value, compat.Tracer):
        return False
    return getattr(value, "is_fully_replicated", True) or value.is_fully_addressable


def _scalar(value: Any, dtype: Any) -> Degree:  # noqa: ANN401 - as above
    """The degree of one known number; of a complex one no more is known than that it is 0."""
    entry = np.asarray(value).reshape(())
    if not _is_number(entry.dtype):
        return ZERO
    if not np.iscomplexobj(entry):
        return number_of(float(entry), dtype)
    return ANY if entry == 0 or not np.isfinite(entry) else ZERO


def number_of(number: float, dtype: Any) -> Degree:  # noqa: ANN401 - a dtype
    """The degree of a constant all of whose entries are `number`.

    One that is nearly as large as its dtype allows has degree 0 and is marked: where it meets a
    value that scales, it stands for infinity, but a product with it is a product.
    """
    floating = dtype is None or jnp.issubdtype(dtype, np.inexact)
    if not floating:
        return Degree({}, const=number)
    if number == 0 or not math.isfinite(number):
        return Degree(None, const=number)
    if dtype is not None and abs(number) >= 0.1 * float(jnp.finfo(dtype).max):
        return Degree({}, const=number, mark=HUGE)
    return Degree({}, const=number)


@functools.lru_cache
def _is_number(dtype: Any) -> bool:  # noqa: ANN401 - a dtype, extended ones included
    return bool(jnp.issubdtype(dtype, np.number) or jnp.issubdtype(dtype, np.bool_))


def _same(x: float, *_: float) -> float:
    return x


def _inverse_root(x: float) -> float:
    return 1 / math.sqrt(x)


def _square(x: float) -> float:
    return x * x


def _power(x: float, y: float) -> float:
    return float(x**y)


_FOLD: dict[Any, Callable[..., float]] = {
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
        "pow_p": _power,
        "broadcast_in_dim_p": _same,
        "reshape_p": _same,
        "squeeze_p": _same,
        "transpose_p": _same,
        "slice_p": _same,
        "copy_p": _same,
        "stop_gradient_p": _same,
        "convert_element_type_p": _same,
        "pvary_p": _same,
        "reshard_p": _same,
        "sharding_constraint_p": _same,
        "layout_constraint_p": _same,
        "device_put_p": _same,
        "optimization_barrier_p": _same,
    }.items()
}


def folded(eqn: Eqn, ins: Sequence[Degree]) -> Degree | None:
    """The result of an equation among known constants, if it is simple enough."""
    if not ins or len(eqn.outvars) > 1 or any(d.const is None for d in ins):
        return None
    function = _FOLD.get(eqn.primitive)
    if function is None:
        return None
    out = eqn.outvars[0].aval
    if not _is_number(out.dtype) or jnp.issubdtype(out.dtype, np.complexfloating):
        return None
    try:
        number = function(*[d.const for d in ins])
    except (ValueError, ZeroDivisionError, OverflowError, TypeError):
        return None
    if isinstance(number, complex):
        return None
    rounded = _rounded(float(number), out.dtype)
    return None if rounded is None else number_of(rounded, out.dtype)


def _rounded(number: float, dtype: Any) -> float | None:  # noqa: ANN401 - a dtype
    """The number as an array of that dtype would hold it, if that is beyond doubt."""
    if dtype == np.bool_:
        return float(number != 0)
    if jnp.issubdtype(dtype, np.inexact):
        with np.errstate(over="ignore", under="ignore"):
            return float(np.asarray(number).astype(dtype))
    limits = jnp.iinfo(dtype)
    exact = math.isfinite(number) and abs(number) < 2**53
    return float(int(number)) if exact and limits.min <= number <= limits.max else None
