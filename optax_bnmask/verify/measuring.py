"""Evaluating a function at many settings of its parameters, as precisely as it allows."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optax_bnmask import compat
from optax_bnmask.verify.drawing import is_array, is_float

Outputs = list[np.ndarray]


class Measured:
    """A function of its parameters' leaves, compiled once, in double precision where it can.

    Attributes:
      dtype: The coarsest floating dtype it computes in.
      tolerance: Changes below this, relative to the largest entry of an output, are rounding.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        params: Any,  # noqa: ANN401 - any pytree
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> None:
        leaves, tree = jax.tree.flatten(params)
        given, rest = jax.tree.flatten((tuple(args), dict(kwargs)))
        places = [i for i, value in enumerate(given) if is_array(value)]

        def flat(values: Sequence[Any], arrays: Sequence[Any]) -> list[Any]:
            filled = list(given)
            for place, array in zip(places, arrays, strict=True):
                filled[place] = array
            in_args, in_kwargs = jax.tree.unflatten(rest, filled)
            out = fn(jax.tree.unflatten(tree, values), *in_args, **in_kwargs)
            return [x for x in jax.tree.leaves(out) if is_float(x)]

        self._arrays = [given[i] for i in places]
        self._dtypes = [jnp.result_type(x) for x in leaves]
        self._double = True
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                program = self._traced(flat, leaves)
            except (TypeError, ValueError):  # it mixes what it is given with dtypes of its own
                self._double = False
                program = self._traced(flat, leaves)
        floats = [d for d in _dtypes(program) if jnp.issubdtype(d, np.inexact)]
        self.dtype = max(floats, key=lambda d: float(jnp.finfo(d).eps), default=np.dtype("float32"))
        self.tolerance = min(0.1, max(1e-8, 4000 * float(jnp.finfo(self.dtype).eps)))
        self._compiled = jax.jit(flat)

    def _traced(self, flat: Callable[..., Any], leaves: Sequence[Any]) -> Any:  # noqa: ANN401
        with jax.enable_x64(self._double):
            values = [
                jax.ShapeDtypeStruct(np.shape(x), self._cast(jnp.result_type(x))) for x in leaves
            ]
            return jax.make_jaxpr(flat)(values, self._inputs())

    def _cast(self, dtype: Any) -> Any:  # noqa: ANN401 - a dtype
        return np.dtype("float64") if self._double and jnp.issubdtype(dtype, np.floating) else dtype

    def _inputs(self) -> list[Any]:
        return [
            jnp.asarray(x, self._cast(x.dtype)) if jnp.issubdtype(x.dtype, np.floating) else x
            for x in self._arrays
        ]

    def __call__(self, values: Sequence[np.ndarray]) -> Outputs:
        """The outputs at these values of the leaves."""
        with warnings.catch_warnings(), jax.enable_x64(self._double):
            warnings.simplefilter("ignore")
            cast = [
                jnp.asarray(v, self._cast(d)) for v, d in zip(values, self._dtypes, strict=True)
            ]
            outs = self._compiled(cast, self._inputs())
            return [
                np.asarray(y).astype(np.complex128 if np.iscomplexobj(y) else np.float64)
                for y in outs
            ]


def _dtypes(jaxpr: Any) -> Iterator[Any]:  # noqa: ANN401 - JAX keeps the type private
    """The dtypes of all values of a program, those of the programs within it among them."""
    for eqn in compat.open_jaxpr(jaxpr).eqns:
        for variable in eqn.outvars:
            if hasattr(variable.aval, "dtype"):
                yield variable.aval.dtype
        for value in eqn.params.values():
            for inner in value if isinstance(value, (tuple, list)) else (value,):
                if hasattr(compat.open_jaxpr(inner), "eqns"):
                    yield from _dtypes(inner)


def change(outputs: Outputs, base: Outputs) -> float:
    """The largest change of an output, relative to its largest entry; infinite if not finite."""
    worst = 0.0
    for y, a in zip(outputs, base, strict=True):
        if not y.size:
            continue
        if not (np.all(np.isfinite(y)) and np.all(np.isfinite(a))):
            return float("inf")
        moved, size = float(np.max(np.abs(y - a))), float(np.max(np.abs(a)))
        worst = max(worst, moved / size if size else (1.0 if moved else 0.0))
    return worst
