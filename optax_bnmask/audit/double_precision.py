"""A shortened program run in float64, whatever floats it was written for.

Optimizers that form an update as *new - old* leave rounding in it, which in float32 looks like a
decay of 1e-7. A mask may go by the dtype of a leaf, so the program is traced with the real dtypes;
here each of its operations is done with wide floats instead.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from optax_bnmask import compat
from optax_bnmask.audit.deduplication import Line, Short
from optax_bnmask.verify.interpreter import Interpreter, Opened, widened

_INTERPRETER: Final = Interpreter({}, Opened())


def evaluate(short: Short, *values: Any) -> list[Any]:  # noqa: ANN401 - arrays
    """The results of a program.

    Args:
      short: The program.
      *values: Its inputs, floats in float64, complex numbers in complex128.

    Returns:
      Its outputs, in the same wide dtypes.
    """
    env = {label: _constant(value) for label, value in short.known.items()}
    env.update(zip(short.inputs, values, strict=True))
    for line in short.lines:
        operands = [env[label] for label in line.ins]
        rule = _LOOPS.get(line.eqn.primitive, _applied)
        env.update(zip(line.outs, rule(line, operands), strict=True))
    return [env[label] for label in short.results]


def _constant(value: Any) -> Any:  # noqa: ANN401 - an array
    """A constant in its wide dtype, a number as it was most likely written.

    In a program for float32, 0.9 and 0.1 are rounded and no longer add up to 1, so that an average
    of two equal values would shrink them by 1e-8. The shortest decimal that rounds to a number is
    the one in the source, but for numbers that were computed there.
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


def _applied(line: Line, operands: Sequence[Any]) -> Sequence[Any]:
    """One operation in float64, as `verify` runs it; in its own dtypes if it accepts no others."""
    return _INTERPRETER.applied(line.eqn, operands)


def _cond(line: Line, operands: Sequence[Any]) -> Sequence[Any]:
    which, *rest = operands
    return lax.switch(which, [partial(evaluate, body) for body in line.bodies], *rest)


def _while(line: Line, operands: Sequence[Any]) -> Sequence[Any]:
    p = line.eqn.params
    names = [name for name in p if name in ("cond_jaxpr", "body_jaxpr")]
    bodies = dict(zip(names, line.bodies, strict=True))
    n_test, n = p["cond_nconsts"], p["cond_nconsts"] + p["body_nconsts"]

    def test(carry: Sequence[Any]) -> Any:  # noqa: ANN401 - a truth value
        return evaluate(bodies["cond_jaxpr"], *operands[:n_test], *carry)[0]

    def step(carry: Sequence[Any]) -> Sequence[Any]:
        return evaluate(bodies["body_jaxpr"], *operands[n_test:n], *carry)

    return lax.while_loop(test, step, list(operands[n:]))


def _scan(line: Line, operands: Sequence[Any]) -> Sequence[Any]:
    p = line.eqn.params
    n_consts, n_carry = compat.carry_of_scan(p)
    consts, rest = operands[:n_consts], operands[n_consts:]

    def step(carry: Sequence[Any], row: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any]]:
        outs = evaluate(line.bodies[0], *consts, *carry, *row)
        return outs[:n_carry], outs[n_carry:]

    carry, rows = lax.scan(
        step, list(rest[:n_carry]), list(rest[n_carry:]), p["length"], reverse=p["reverse"]
    )
    return [*carry, *rows]


_Rule = Callable[[Line, Sequence[Any]], Sequence[Any]]

_LOOPS: Final[Mapping[Any, _Rule]] = {
    compat.primitive("cond_p"): _cond,
    compat.primitive("while_p"): _while,
    compat.primitive("scan_p"): _scan,
}
"""Operations whose bodies are widened too."""


def over_runs(short: Short) -> Callable[[list[Any]], list[Any]]:
    """A program compiled for many inputs, one after the other along a first axis of each."""

    def run(values: list[Any]) -> list[Any]:
        return evaluate(short, *values)

    return jax.jit(partial(lax.map, run))


def as_traced(short: Short) -> Callable[[list[Any]], list[Any]]:
    """A program compiled in the dtypes that it was traced with."""

    def run(values: list[Any]) -> list[Any]:
        env = dict(zip(short.inputs, values, strict=True)) | dict(short.known)
        for line in short.lines:
            primitive, operands = line.eqn.primitive, [env[label] for label in line.ins]
            outs = primitive.bind(*operands, **primitive.get_bind_params(line.eqn.params))
            env.update(zip(line.outs, outs if primitive.multiple_results else [outs], strict=True))
        return [env[label] for label in short.results]

    return jax.jit(run)
