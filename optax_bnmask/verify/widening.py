"""Single operations of a traced program, done in double precision.

Casts between floats do nothing, parameters that name a dtype of floats name the wide one. What
cannot be widened is for the caller to do in the dtypes that it was traced with.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import jax.numpy as jnp
import numpy as np
from jax import lax

from optax_bnmask import compat

Array = Any


@functools.cache
def wide(dtype: Any) -> Any:  # noqa: ANN401 - a dtype
    """The dtype of double precision for values of this dtype: itself if it is none of floats."""
    if jnp.issubdtype(dtype, np.complexfloating):
        return np.dtype(np.complex128)
    return np.dtype(np.float64) if jnp.issubdtype(dtype, np.floating) else dtype


def widened(x: Any) -> Any:  # noqa: ANN401 - any array, keys of random numbers among them
    """An array in double precision if its dtype is inexact, as it is otherwise."""
    return jnp.asarray(x, wide(x.dtype)) if compat.is_inexact(x.dtype) else x


def bound(eqn: Any, ins: Sequence[Array]) -> list[Array] | None:  # noqa: ANN401 - an equation
    """The results of an equation in double precision; `None` if it cannot be had.

    Args:
      eqn: The equation, which holds no other program.
      ins: Its operands, in double precision.
    """
    if not _can_be_widened(eqn):
        return None
    try:
        return _checked_results(_WIDENED_RULES.get(eqn.primitive, _bind)(eqn, ins), eqn)
    except (TypeError, ValueError, NotImplementedError):
        return None  # a primitive that insists on the dtypes it was traced with


def _checked_results(outs: Any, eqn: Any) -> list[Array]:  # noqa: ANN401
    """The results as a list; fails unless they have the jaxpr's shapes and its dtypes, widened."""
    outs = list(outs) if eqn.primitive.multiple_results else [outs]
    for x, variable in zip(outs, eqn.outvars, strict=True):
        if x.shape != variable.aval.shape or x.dtype != wide(variable.aval.dtype):
            raise TypeError(f"`{eqn.primitive}` gave {x.dtype}{x.shape}")
    return outs


def _identity(_: Any, ins: Sequence[Array]) -> Array:  # noqa: ANN401 - an equation
    return ins[0]


def _bind(eqn: Any, ins: Sequence[Array]) -> Any:  # noqa: ANN401
    """Binds the primitive, with the float dtypes among its parameters widened."""
    params = eqn.primitive.get_bind_params(eqn.params)
    return eqn.primitive.bind(*ins, **{name: _widened_param(name, v) for name, v in params.items()})


def _widened_param(name: str, value: Any) -> Any:  # noqa: ANN401 - any parameter
    if name == "precision":
        return None  # an algorithm of `dot_general` is for one dtype
    if name in ("dtype", "new_dtype", "preferred_element_type") and value is not None:
        return wide(value)
    return value


def _cast(eqn: Any, ins: Sequence[Array]) -> Array:  # noqa: ANN401
    """A cast, which between floats only rounds and here does nothing."""
    return lax.convert_element_type(ins[0], wide(eqn.params["new_dtype"]))


def _scatter(function: Callable[..., Array]) -> Callable[..., Array]:
    """The rule of a scatter, by the function of `lax`: the parameters hold a jaxpr of one dtype."""

    def scattered(eqn: Any, ins: Sequence[Array]) -> Array:  # noqa: ANN401
        names = ("dimension_numbers", "indices_are_sorted", "unique_indices", "mode")
        return function(*ins, **{name: eqn.params[name] for name in names})

    return scattered


_WIDENED_RULES: Final[dict[Any, Callable[..., Any]]] = {
    compat.primitive("convert_element_type_p"): _cast,
    compat.primitive("reduce_precision_p"): _identity,
    compat.primitive("scatter_p"): _scatter(lax.scatter),
    compat.primitive("scatter_add_p"): _scatter(lax.scatter_add),
    compat.primitive("scatter_sub_p"): _scatter(lax.scatter_sub),
    compat.primitive("scatter_mul_p"): _scatter(lax.scatter_mul),
    compat.primitive("scatter_min_p"): _scatter(lax.scatter_min),
    compat.primitive("scatter_max_p"): _scatter(lax.scatter_max),
}

_BITCAST: Final = compat.primitive("bitcast_convert_type_p")


def _can_be_widened(eqn: Any) -> bool:  # noqa: ANN401
    """Whether an equation holds neither inner programs nor dtypes that `_bind` leaves alone."""
    if eqn.primitive in _WIDENED_RULES:
        return True
    if eqn.primitive is _BITCAST or any(
        name.endswith(("avals", "shape_dtypes")) for name in eqn.params
    ):
        return False
    return not programs_in(eqn.params)


def programs_in(params: Mapping[str, Any]) -> list[Any]:
    """The jaxprs among the parameters of an equation, alone or in sequences."""
    found: list[Any] = []
    for value in params.values():
        items: Sequence[Any] = value if isinstance(value, Sequence) else (value,)
        found += [item for item in items if hasattr(compat.open_jaxpr(item), "eqns")]
    return found
