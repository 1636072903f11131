"""Constants: which of them have every degree at once, and simple arithmetic among them."""

import math
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
    if dtype is not None and not _is_number(dtype):
        return ZERO
    if np.size(value) == 1:
        return _scalar(value, dtype)
    if np.size(value) > _LARGEST or not isinstance(getattr(value, "shape", ()), tuple):
        return ZERO
    try:
        array = np.asarray(value).astype(np.float64)
    except (TypeError, ValueError):
        return ZERO
    return ANY if bool(np.all((array == 0) | ~np.isfinite(array))) else ZERO


def _scalar(value: Any, dtype: Any) -> Degree:  # noqa: ANN401 - as above
    """The degree of one known number."""
    try:
        number = float(np.asarray(value).reshape(()))
    except (TypeError, ValueError):
        return ZERO
    return number_of(number, dtype)


def number_of(number: float, dtype: Any) -> Degree:  # noqa: ANN401 - a dtype
    """The degree of a constant all of whose entries are `number`."""
    floating = dtype is None or jnp.issubdtype(dtype, np.inexact)
    if not floating:
        return Degree({}, const=number)
    if number == 0 or not math.isfinite(number):
        return Degree(None, const=number)
    if dtype is not None and abs(number) >= 0.1 * float(jnp.finfo(dtype).max):
        return Degree(None, const=number, mark=HUGE)
    return Degree({}, const=number)


def _is_number(dtype: Any) -> bool:  # noqa: ANN401 - a dtype, extended ones included
    return bool(jnp.issubdtype(dtype, np.number) or jnp.issubdtype(dtype, np.bool_))


def _same(x: float, *_: float) -> float:
    return x


_FOLD: dict[Any, Callable[..., float]] = {
    compat.primitive(name): function
    for name, function in {
        "add_p": lambda x, y: x + y,
        "sub_p": lambda x, y: x - y,
        "mul_p": lambda x, y: x * y,
        "div_p": lambda x, y: x / y,
        "max_p": max,
        "min_p": min,
        "neg_p": lambda x: -x,
        "abs_p": abs,
        "square_p": lambda x: x * x,
        "sqrt_p": math.sqrt,
        "rsqrt_p": lambda x: 1 / math.sqrt(x),
        "exp_p": math.exp,
        "log_p": math.log,
        "pow_p": lambda x, y: float(x**y),
        "broadcast_in_dim_p": _same,
        "reshape_p": _same,
        "squeeze_p": _same,
        "transpose_p": _same,
        "slice_p": _same,
        "copy_p": _same,
        "stop_gradient_p": _same,
        "convert_element_type_p": _same,
    }.items()
}


def folded(eqn: Eqn, ins: Sequence[Degree]) -> Degree | None:
    """The result of an equation among known constants, if it is simple enough."""
    if not ins or any(d.const is None for d in ins):
        return None
    function = _FOLD.get(eqn.primitive)
    if function is None:
        return None
    out = eqn.outvars[0].aval
    if not _is_number(out.dtype):
        return None
    try:
        number = function(*[d.const for d in ins])
    except (ValueError, ZeroDivisionError, OverflowError, TypeError):
        return None
    if isinstance(number, complex):
        return None
    if jnp.issubdtype(out.dtype, np.integer) or out.dtype == np.bool_:
        number = float(int(number)) if math.isfinite(number) else number
    return number_of(float(number), out.dtype)
