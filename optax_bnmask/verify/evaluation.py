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
from optax_bnmask.verify.interpreter import Constant, Interpreter, RunLog, Value
from optax_bnmask.verify.widening import programs_in, widened

Outputs = list[np.ndarray]


class CompiledFunction:
    """A function of the leaves of its parameters, traced and compiled once.

    `Interpreter` runs it in float64, with what it closes over. Where JAX refuses that, it runs in
    its own dtypes.

    Attributes:
      inputs: The arrays among its other arguments.
      names: The names of these.
      dtype: The coarsest floating dtype that anything is computed in.
      tolerance: Changes below this, relative to how far an output moves when the parameters are
        drawn anew, are rounding.
      headroom: The power of 2 by which a product of all leaves may grow without overflow.
      why_not_double: What JAX said where it refused float64; empty otherwise.
      missing_constants: Those of the constants asked for that the function does not have.
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
        self._is_widened, self.why_not_double = True, ""
        self._constants, log = tuple(constants), RunLog()
        zeros = [np.zeros(s, d) for s, d in zip(program.shapes, program.dtypes, strict=True)]
        given = (zeros, self.inputs, np.ones(len(constants)))
        try:
            with jax.enable_x64(new_val=True):
                self._constants = self._located(given)
                self._compiled = jax.jit(self._interpreted(self._constants, log))
                self._called(*given)
        except (TypeError, ValueError, NotImplementedError, jax.errors.JaxRuntimeError) as error:
            self.why_not_double = first_line(error)
            self._is_widened, log = False, RunLog(narrow_dtypes=set(_dtypes(self._jaxpr)))
            self._compiled = jax.jit(self._as_traced)
        narrow = [d for d in log.narrow_dtypes if not _is_double(d)]
        coarsest = max(narrow, key=lambda d: float(jnp.finfo(d).eps), default=np.dtype("float64"))
        self.dtype, info = coarsest, jnp.finfo(coarsest)
        self.eps = float(info.eps)
        self.tolerance = min(0.1, max(1e-8, 4000 * self.eps))
        self.headroom = 0.2 * float(info.maxexp)
        self.missing_constants = tuple(c for c in self._constants if c not in log.constants)

    def _located(self, given: Sequence[Any]) -> tuple[Constant, ...]:
        """The constants, without `locations` where the function has the value elsewhere only."""
        log = RunLog()
        anywhere = tuple(c._replace(locations=frozenset()) for c in self._constants)
        jax.eval_shape(self._interpreted(anywhere, log), *given)
        pairs = zip(self._constants, anywhere, strict=True)
        return tuple(c if c.locations & log.constants.get(a, set()) else a for c, a in pairs)

    @property
    def is_double(self) -> bool:
        """Whether all of it is computed in double precision."""
        return _is_double(self.dtype)

    def _interpreted(self, constants: Sequence[Constant], log: RunLog) -> Callable[..., Any]:
        """The function in float64, of leaves, inputs and a factor for each constant."""

        def run(leaves: Sequence[Any], inputs: Sequence[Any], factors: Any) -> list[Any]:  # noqa: ANN401
            known = {c: factors[n] for n, c in enumerate(constants)}
            given = [Value(widened(x)) for x in (*leaves, *inputs)]
            return [x.array for x in Interpreter(known, log).run(self._jaxpr, given)]

        return run

    def _as_traced(self, leaves: Sequence[Any], inputs: Sequence[Any], _: Any) -> Any:  # noqa: ANN401
        return compat.function_of(self._jaxpr)(*leaves, *inputs)

    def _called(self, values: Sequence[Any], inputs: Sequence[Any], factors: Any) -> Any:  # noqa: ANN401
        if not self._is_widened:
            values = [jnp.asarray(v, d) for v, d in zip(values, self._dtypes, strict=True)]
        return self._compiled(values, inputs, factors)

    def __call__(
        self, values: Sequence[np.ndarray], factors: np.ndarray, inputs: Sequence[Any] | None = None
    ) -> Outputs:
        """The outputs at these values of the leaves.

        Args:
          values: The value of each leaf.
          factors: For each constant asked for, the number that it is multiplied by.
          inputs: What to use instead of the attribute `inputs`.
        """
        with warnings.catch_warnings(), jax.enable_x64(self._is_widened):
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
    """The shape and dtype of an array, without its sharding; any other value as it is."""
    return jax.ShapeDtypeStruct(value.shape, value.dtype) if is_array(value) else value


def _is_double(dtype: Any) -> bool:  # noqa: ANN401 - a dtype
    return float(jnp.finfo(dtype).eps) <= float(np.finfo(np.float64).eps)


def _dtypes(jaxpr: Any) -> Sequence[Any]:  # noqa: ANN401 - JAX keeps the type private
    """The floating dtypes of the results of all equations, those of inner programs included."""
    found: list[Any] = []
    waiting = [jaxpr]
    for program in waiting:
        for eqn in compat.open_jaxpr(program).eqns:
            found += [v.aval.dtype for v in eqn.outvars if hasattr(v.aval, "dtype")]
            waiting += programs_in(eqn.params)
    return [d for d in dict.fromkeys(found) if compat.is_inexact(d)] or [np.dtype("float32")]
