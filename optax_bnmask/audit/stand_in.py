"""Small params that an optimizer treats as it would treat the real ones.

The params may have ten gigabytes; what an optimizer does to each leaf shows on a few numbers, if it
does the same to them. It does if the program of its update has the same operations in the same
order, and makes each leaf's update from the same leaves: if its `Fingerprint` is the same.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np

from optax_bnmask.audit.fingerprint import fingerprint
from optax_bnmask.audit.update import Update, traced
from optax_bnmask.paths import tree_index

_SMALL: Final = 2**20
"""Up to this many entries, leaves of one shape and dtype counted once, are run as they are."""

_BEARABLE: Final = 2**23
"""Up to this many, they are if the optimizer does something else to smaller params."""

_CAPS: Final = (2, 128)
"""The longest axes to try; from 128 on, which is Adafactor's default, moments are factored."""


@dataclasses.dataclass(frozen=True, slots=True)
class StandIn:
    """The update of the params that an audit runs.

    Attributes:
      update: The traced optimizer.
      faithful: Whether the optimizer does to them what it does to the real ones.
    """

    update: Update
    faithful: bool


def stand_in(tx: Any, params: Any) -> StandIn:  # noqa: ANN401 - an optimizer, any pytree
    """Traces an optimizer on the smallest params that it treats like the real ones.

    Args:
      tx: The optimizer.
      params: Any pytree of arrays or `jax.ShapeDtypeStruct`s; only their shapes are looked at.

    Returns:
      The `StandIn`: of the real shapes if they are small; otherwise of the same ranks with short
      axes, if that is the same to the optimizer, and `faithful` says whether it is.
    """
    whole, dtypes = _whole(tx, params)
    size = sum(int(np.prod(shape)) for shape, _ in {(x.shape, x.dtype) for x in whole.leaves})
    if size <= _SMALL:
        return StandIn(whole, faithful=True)
    wanted, short = fingerprint(whole), None
    for cap in _CAPS:
        try:
            short = traced(tx, _shapes(params, dtypes, cap))
        except (TypeError, ValueError, ZeroDivisionError):  # it holds arrays of the real shapes
            continue
        if fingerprint(short) == wanted:
            return StandIn(short, faithful=True)
    if size <= _BEARABLE or short is None:
        return StandIn(whole, faithful=size <= _BEARABLE)
    return StandIn(short, faithful=False)


def _whole(tx: Any, params: Any) -> tuple[Update, Sequence[Any]]:  # noqa: ANN401 - as above
    """The update of the real shapes, and the dtypes that it is traced with.

    In float16 and narrower, Adam's 1e-8 and small learning rates round to 0. Such leaves are traced
    as float32, unless some update is then made from other leaves, as where a mask goes by the
    dtype.
    """
    own = list(dtypes_of(params).values())
    whole = traced(tx, _shapes(params, own, None))
    wide = [jnp.dtype(jnp.float32) if _is_short(dtype) else dtype for dtype in own]
    if wide == own:
        return whole, own
    try:
        widened = traced(tx, _shapes(params, wide, None))
    except (TypeError, ValueError):  # it is for that dtype
        return whole, own
    same = all(
        a.reads == b.reads for a, b in zip(fingerprint(whole), fingerprint(widened), strict=False)
    )
    return (widened, wide) if same else (whole, own)


def _is_short(dtype: Any) -> bool:  # noqa: ANN401 - a dtype
    """Whether floats of a dtype have a shorter range than float32."""
    return jnp.issubdtype(dtype, jnp.floating) and float(jnp.finfo(dtype).tiny) > 1e-37


def dtypes_of(params: Any) -> dict[str, Any]:  # noqa: ANN401 - any pytree
    """The dtype of each leaf by path, as JAX holds it.

    Args:
      params: Any pytree of arrays, shapes or numbers.

    Returns:
      The dtypes in the order of the leaves.
    """
    return {
        path: jax.dtypes.canonicalize_dtype(
            leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf)
        )
        for path, leaf in tree_index(params).leaves.items()
    }


def _shapes(params: Any, dtypes: Sequence[Any], cap: int | None) -> Any:  # noqa: ANN401 - any pytree
    """The params' shapes, cut to an axis length, in the given dtypes."""
    leaves = [
        jax.ShapeDtypeStruct(_cut(np.shape(leaf), cap), dtype)
        for leaf, dtype in zip(tree_index(params).leaves.values(), dtypes, strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


def _cut(shape: tuple[int, ...], cap: int | None) -> tuple[int, ...]:
    """The shape with its long axes cut, so that a longer axis is still the longer."""
    if cap is None:
        return shape
    long = sorted({length for length in shape if length >= cap})
    return tuple(cap + long.index(n) if n >= cap else n for n in shape)
