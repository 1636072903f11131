"""Small params that an optimizer treats as it would treat the real ones.

An optimizer may have weights of ten gigabytes to look after; what it does with each can be seen on
a few numbers, as long as it does the same. Whether it does shows in the program of its update: the
same operations in the same order, and each leaf's update made from the same leaves.
"""

import dataclasses
import functools
import operator
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_bnmask import compat
from optax_bnmask.audit.probing import with_losses
from optax_bnmask.paths import layout

SMALL: Final = 2**24
"""So many numbers are not worth making smaller."""

_BEARABLE: Final = 2**26
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
    widen = _is_same_widened(tx, params)
    whole = _shapes(params, None, widen=widen)
    size = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(whole))
    if size <= SMALL:
        return StandIn(whole, faithful=True)
    wanted = _deeds(tx, whole)
    for cap in _CAPS:
        short = _shapes(params, cap, widen=widen)
        if _deeds(tx, short) == wanted:
            return StandIn(short, faithful=True)
    bearable = size <= _BEARABLE
    return StandIn(whole if bearable else _shapes(params, _CAPS[0], widen=widen), faithful=bearable)


def _is_same_widened(tx: Any, params: Any) -> bool:  # noqa: ANN401 - an optimizer, any pytree
    """Whether narrow floats may be taken for float32: a mask may go by the dtype."""
    narrow, wide = (_shapes(params, None, widen=widen) for widen in (False, True))
    if jax.tree.leaves(narrow) == jax.tree.leaves(wide):
        return True
    before, after = _deeds(tx, narrow), _deeds(tx, wide)
    return before is None or after is None or before.reads == after.reads


def _shapes(params: Any, cap: int | None, *, widen: bool) -> Any:  # noqa: ANN401 - any pytree
    """The shapes, cut to an axis length; widened, narrow floats are float32: no rate underflows."""
    leaves = []
    for leaf in layout(params).leaves.values():
        dtype = leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf)
        dtype = jax.dtypes.canonicalize_dtype(dtype)
        if widen and jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32:
            dtype = jnp.dtype("float32")
        leaves.append(jax.ShapeDtypeStruct(_cut(np.shape(leaf), cap), dtype))
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


def _cut(shape: tuple[int, ...], cap: int | None) -> tuple[int, ...]:
    """The shape with its long axes cut, so that a longer axis is still the longer."""
    if cap is None:
        return shape
    long = sorted({length for length in shape if length >= cap})
    return tuple(cap + long.index(n) if n >= cap else n for n in shape)


class _Deeds(NamedTuple):
    """What a program does, whatever the sizes.

    Attributes:
      names: The operations in their order, those within others too, and which constants are 0.
      reads: For each output, the inputs that it is made from, as bits.
      zeros: Which arrays that the program holds are 0.
    """

    names: tuple[Any, ...]
    reads: tuple[int, ...]
    zeros: tuple[bool, ...] = ()


def _deeds(tx: Any, params: Any) -> _Deeds | None:  # noqa: ANN401 - an optimizer, any pytree
    """What an update does, without the shapes: its operations, and which leaves each update reads.

    None if it cannot be traced with these shapes.
    """

    def update(params: Any) -> list[Any]:  # noqa: ANN401 - the params
        zeros = jax.tree.map(jnp.zeros_like, params)
        updates, _ = with_losses(tx.update)(zeros, params, tx.init(params))
        return jax.tree.leaves(updates)

    tx = optax.with_extra_args_support(tx)
    try:
        program = jax.make_jaxpr(update)(params)
        held = tuple(not np.any(const) for const in compat.consts_of(program))
        return _signature(compat.open_jaxpr(program))._replace(zeros=held)
    except (TypeError, ValueError, ZeroDivisionError):
        return None


def _signature(jaxpr: Any) -> _Deeds:  # noqa: ANN401 - JAX keeps its type private
    """The `_Deeds` of a program, without what it holds."""
    reads = {var: 1 << i for i, var in enumerate(jaxpr.invars)}

    def made_from(atoms: Iterable[Any]) -> int:
        known = (0 if isinstance(atom, compat.Literal) else reads.get(atom, 0) for atom in atoms)
        return functools.reduce(operator.or_, known, 0)

    names = []
    for eqn in jaxpr.eqns:
        within = (inner for value in eqn.params.values() for inner in _jaxprs(value))
        zeros = tuple(_is_zero(atom) for atom in eqn.invars)
        names.append((eqn.primitive.name, zeros, *map(_signature, within)))
        reads.update(dict.fromkeys(eqn.outvars, made_from(eqn.invars)))
    return _Deeds(tuple(names), tuple(made_from([atom]) for atom in jaxpr.outvars))


def _is_zero(atom: Any) -> bool:  # noqa: ANN401 - JAX keeps its type private
    """Whether a number is written there and is 0: a mask may multiply."""
    return isinstance(atom, compat.Literal) and not np.any(atom.val)


def _jaxprs(value: object) -> Iterator[Any]:
    """The programs in a parameter of an operation."""
    items: Iterable[Any] = value if isinstance(value, Sequence) else (value,)
    for item in items:
        if hasattr(item, "eqns"):
            yield compat.open_jaxpr(item)
