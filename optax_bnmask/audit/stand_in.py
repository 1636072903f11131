"""Small params that an optimizer treats as it would treat the real ones.

An optimizer may have weights of ten gigabytes to look after; what it does with each can be seen on
a few numbers, as long as it does the same. Whether it does shows in the program of its update: the
same operations in the same order, and each leaf's update made from the same leaves.
"""

import dataclasses
import functools
import operator
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np

from optax_bnmask import compat
from optax_bnmask.paths import layout

SMALL: Final = 2**24
"""So many numbers are not worth making smaller."""

_BEARABLE: Final = 2**27
"""So many numbers are run as they are where nothing smaller will do."""

_CAPS: Final = (2, 128)
"""The longest axes to try; from 128 on, which is Adafactor's default, moments are factored."""


@dataclasses.dataclass(frozen=True, slots=True)
class StandIn:
    """Params to put in the place of the real ones.

    Attributes:
      tree: The shapes, in the params' own containers.
      faithful: Whether the optimizer does to them what it does to the real ones.
    """

    tree: Any
    faithful: bool


def stand_in(tx: Any, params: Any) -> StandIn:  # noqa: ANN401 - an optimizer, any pytree
    """The smallest params that an optimizer treats like the real ones.

    Args:
      tx: The optimizer.
      params: Any pytree of arrays or `jax.ShapeDtypeStruct`s; only their shapes are looked at.

    Returns:
      The `StandIn`: the real shapes if they are small; otherwise the same ranks with short axes, if
      that is the same to the optimizer, and `faithful` says whether it is.
    """
    whole = _shapes(params, None)
    size = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(whole))
    if size <= SMALL:
        return StandIn(whole, faithful=True)
    wanted = _deeds(tx, whole)
    for cap in _CAPS:
        short = _shapes(params, cap)
        if _deeds(tx, short) == wanted:
            return StandIn(short, faithful=True)
    bearable = size <= _BEARABLE
    return StandIn(whole if bearable else _shapes(params, _CAPS[-1]), faithful=bearable)


def _shapes(params: Any, cap: int | None) -> Any:  # noqa: ANN401 - any pytree
    """The shapes, cut to an axis length; narrow floats become float32, where no rate underflows."""
    leaves = []
    for leaf in layout(params).leaves.values():
        shape = np.shape(leaf)
        dtype = leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf)
        if jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32:
            dtype = jnp.dtype("float32")
        axes = shape if cap is None else tuple(min(length, cap) for length in shape)
        leaves.append(jax.ShapeDtypeStruct(axes, dtype))
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


def _deeds(tx: Any, params: Any) -> Any:  # noqa: ANN401 - an optimizer, any pytree
    """What an update does, without the shapes: its operations, and which leaves each update reads.

    None if it cannot be traced with these shapes.
    """

    def update(params: Any) -> list[Any]:  # noqa: ANN401 - the params
        zeros = jax.tree.map(jnp.zeros_like, params)
        updates, _ = tx.update(zeros, tx.init(params), params)
        return jax.tree.leaves(updates)

    try:
        return _signature(compat.open_jaxpr(jax.make_jaxpr(update)(params)))
    except (TypeError, ValueError, ZeroDivisionError):
        return None


def _signature(jaxpr: Any) -> tuple[Any, ...]:  # noqa: ANN401 - JAX keeps its type private
    """The names of the operations, those within others too, and what each output is made from."""
    reads = {var: 1 << i for i, var in enumerate(jaxpr.invars)}

    def made_from(atoms: Iterable[Any]) -> int:
        known = (0 if isinstance(atom, compat.Literal) else reads.get(atom, 0) for atom in atoms)
        return functools.reduce(operator.or_, known, 0)

    names = []
    for eqn in jaxpr.eqns:
        within = (inner for value in eqn.params.values() for inner in _jaxprs(value))
        names.append((eqn.primitive.name, *map(_signature, within)))
        reads.update(dict.fromkeys(eqn.outvars, made_from(eqn.invars)))
    return tuple(names), tuple(made_from([atom]) for atom in jaxpr.outvars)


def _jaxprs(value: object) -> Iterator[Any]:
    """The programs in a parameter of an operation."""
    items: Iterable[Any] = value if isinstance(value, Sequence) else (value,)
    for item in items:
        if hasattr(item, "eqns"):
            yield compat.open_jaxpr(item)
