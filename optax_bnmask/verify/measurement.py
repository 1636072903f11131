"""Evaluating a function at many settings of its parameters, in double precision."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optax_bnmask import compat
from optax_bnmask.arguments import is_array
from optax_bnmask.errors import first_line
from optax_bnmask.program.trace import traced
from optax_bnmask.verify.interpreter import Constant, Interpreter, Opened, Value, widened

Outputs = list[np.ndarray]


class Measured:
    """A function of its parameters' leaves, compiled once.

    It is computed in float64 whatever it computes in by itself, what it closes over included, as
    far as `Interpreter` can open it, and otherwise just as it is.

    Attributes:
      inputs: The arrays among its other arguments.
      names: Their names.
      dtype: The coarsest floating dtype that anything is computed in.
      tolerance: Changes below this, relative to how far an output moves when the parameters are
        drawn anew, are rounding.
      bits: By how many powers of 2 its values may grow before they overflow.
      why: Why nothing could be computed in float64, if it is so; what JAX said.
      unmet: Of the constants asked for, those that it does not have.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        params: Any,  # noqa: ANN401 - any pytree
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        *,
        has_aux: bool,
        constants: Sequence[Constant],
    ) -> None:
        self.inputs = inputs_of(args, kwargs)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            shapes = jax.tree.map(_shape_of, params)
            program = traced(fn, shapes, args, kwargs, has_aux=has_aux)
        self.names = program.argument_paths
        self._jaxpr, self._dtypes = program.jaxpr, program.dtypes
        self._is_double, self.why = True, ""
        self._constants, opened = tuple(constants), Opened()
        zeros = [np.zeros(s, d) for s, d in zip(program.shapes, program.dtypes, strict=True)]
        given = (zeros, self.inputs, np.ones(len(constants)))
        try:
            with jax.enable_x64(new_val=True):
                self._constants = self._located(given)
                self._compiled = jax.jit(self._opened(opened, self._constants))
                self._called(*given)
        except (TypeError, ValueError, NotImplementedError, jax.errors.JaxRuntimeError) as error:
            self.why = first_line(error)
            self._is_double, opened = False, Opened(narrow=set(_dtypes(self._jaxpr)))
            self._compiled = jax.jit(self._as_it_is)
        narrow = [d for d in opened.narrow if not _is_double(d)]
        coarsest = max(narrow, key=lambda d: float(jnp.finfo(d).eps), default=np.dtype("float64"))
        self.dtype, info = coarsest, jnp.finfo(coarsest)
        self.eps = float(info.eps)
        self.tolerance = min(0.1, max(1e-8, 4000 * self.eps))
        self.bits = 0.2 * float(info.maxexp)
        self.unmet = tuple(c for c in self._constants if c not in opened.met)

    def _located(self, given: Sequence[Any]) -> tuple[Constant, ...]:
        """The constants; one that is found at none of its places is looked for everywhere."""
        opened = Opened()
        anywhere = tuple(c._replace(places=frozenset()) for c in self._constants)
        jax.eval_shape(self._opened(opened, anywhere), *given)
        met = [opened.met.get(c, set()) for c in anywhere]
        kept = zip(self._constants, anywhere, met, strict=True)
        return tuple(c if c.places & places else a for c, a, places in kept)

    @property
    def is_double(self) -> bool:
        """Whether all of it is computed in double precision."""
        return _is_double(self.dtype)

    def _opened(self, opened: Opened, constants: Sequence[Constant]) -> Callable[..., Any]:
        def run(leaves: Sequence[Any], inputs: Sequence[Any], factors: Any) -> list[Any]:  # noqa: ANN401
            known = {c: factors[n] for n, c in enumerate(constants)}
            given = [Value(widened(x)) for x in (*leaves, *inputs)]
            return [x.array for x in Interpreter(known, opened).run(self._jaxpr, given)]

        return run

    def _as_it_is(self, leaves: Sequence[Any], inputs: Sequence[Any], _: Any) -> Any:  # noqa: ANN401
        return compat.function_of(self._jaxpr)(*leaves, *inputs)

    def _called(self, values: Sequence[Any], inputs: Sequence[Any], factors: Any) -> Any:  # noqa: ANN401
        if not self._is_double:
            values = [jnp.asarray(v, d) for v, d in zip(values, self._dtypes, strict=True)]
        return self._compiled(values, inputs, factors)

    def __call__(
        self, values: Sequence[np.ndarray], factors: np.ndarray, inputs: Sequence[Any] | None = None
    ) -> Outputs:
        """The outputs at these values of the leaves.

        Args:
          values: The value of each leaf.
          factors: By what each of the constants asked for is multiplied.
          inputs: Arrays in the place of `self.inputs`.
        """
        with warnings.catch_warnings(), jax.enable_x64(self._is_double):
            warnings.simplefilter("ignore")
            given = self.inputs if inputs is None else inputs
            outs = self._called(values, given, np.asarray(factors, np.float64))
            return [
                np.asarray(y).astype(np.complex128 if np.iscomplexobj(y) else np.float64)
                for y in outs
            ]


def inputs_of(args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    """The arrays among some arguments."""
    return [x for x in jax.tree.leaves((tuple(args), dict(kwargs))) if is_array(x)]


def _shape_of(value: Any) -> Any:  # noqa: ANN401 - any leaf
    """The shape and dtype of an array; how it lies on devices says nothing of what it does."""
    return jax.ShapeDtypeStruct(value.shape, value.dtype) if is_array(value) else value


def _is_double(dtype: Any) -> bool:  # noqa: ANN401 - a dtype
    return float(jnp.finfo(dtype).eps) <= float(np.finfo(np.float64).eps)


def _dtypes(jaxpr: Any) -> Sequence[Any]:  # noqa: ANN401 - JAX keeps the type private
    """The floating dtypes of all values of a program, those of the programs within it included."""
    found: list[Any] = []
    waiting = [jaxpr]
    for program in waiting:
        for eqn in getattr(compat.open_jaxpr(program), "eqns", ()):
            found += [v.aval.dtype for v in eqn.outvars if hasattr(v.aval, "dtype")]
            for value in eqn.params.values():
                waiting += value if isinstance(value, (tuple, list)) else (value,)
    return [d for d in dict.fromkeys(found) if compat.is_inexact(d)] or [np.dtype("float32")]
