"""Runs a shortened program in float64, whatever dtypes it was traced with.

Optimizers that form an update as *new - old* leave rounding in it, which in float32 looks like a
decay of 1e-7. Tracing with float64 leaves would not do, as a mask may go by the dtype of a leaf.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from optax_bnmask import compat
from optax_bnmask.audit.deduplication import ShortProgram
from optax_bnmask.verify.interpreter import Interpreter, RunLog
from optax_bnmask.verify.widening import widened


def _as_written(value: Any) -> Any:  # noqa: ANN401 - an array
    """A constant in double precision; a scalar as the shortest decimal that rounds to it.

    That is most likely how it was written. In float32, 0.9 and 0.1 are rounded and no longer add up
    to 1, so that an average of two equal values would shrink them by 1e-8.
    """
    if not (compat.is_inexact(value.dtype) and value.ndim == 0 and value.dtype.kind != "c"):
        return widened(value)
    exact = float(value)
    with np.errstate(over="ignore"):  # the largest number of a dtype, rounded up
        for digits in range(1, 17):
            near = float(f"{exact:.{digits}g}")
            if np.asarray(near).astype(value.dtype) == value:
                return jnp.asarray(near, np.float64)
    return jnp.asarray(exact, np.float64)  # infinite, or not a number


def _as_is(value: Any) -> Any:  # noqa: ANN401 - an array
    return value


def evaluate(short: ShortProgram, *values: Any) -> list[Any]:  # noqa: ANN401 - arrays
    """The results of a program, each operation in float64, or in its own dtypes if it insists.

    Args:
      short: The program.
      *values: Its inputs, floats in float64, complex numbers in complex128.

    Returns:
      Its outputs, in the same wide dtypes.
    """
    interpreter = Interpreter({}, RunLog(), widen=_as_written)
    return _results(short, *values, constant=_as_written, results_of=interpreter.results_of)


def over_runs(short: ShortProgram) -> Callable[[list[Any]], list[Any]]:
    """A program compiled for many inputs, one after the other along a first axis of each."""

    def run(values: list[Any]) -> list[Any]:
        return evaluate(short, *values)

    return jax.jit(partial(lax.map, run))


def as_traced(short: ShortProgram) -> Callable[[list[Any]], list[Any]]:
    """A program compiled in the dtypes that it was traced with."""

    def bound(eqn: Any, operands: Sequence[Any]) -> Sequence[Any]:  # noqa: ANN401 - an equation
        outs = eqn.primitive.bind(*operands, **eqn.primitive.get_bind_params(eqn.params))
        return outs if eqn.primitive.multiple_results else [outs]

    def run(values: list[Any]) -> list[Any]:
        return _results(short, *values, constant=_as_is, results_of=bound)

    return jax.jit(run)


def _results(
    short: ShortProgram,
    *values: Any,  # noqa: ANN401 - arrays
    constant: Callable[[Any], Any],
    results_of: Callable[[Any, Sequence[Any]], Sequence[Any]],
) -> list[Any]:
    """The results of a program, given functions for its constants and its equations."""
    env = {label: constant(value) for label, value in short.constants.items()}
    env.update(zip(short.inputs, values, strict=True))
    run = partial(_results, constant=constant, results_of=results_of)
    for operation in short.operations:
        operands = [env[label] for label in operation.ins]
        if operation.branches:
            branches = [partial(run, branch) for branch in operation.branches]
            outs = lax.switch(operands[0], branches, *operands[1:])
        else:
            outs = results_of(operation.eqn, operands)
        env.update(zip(operation.outs, outs, strict=True))
    return [env[label] for label in short.results]
