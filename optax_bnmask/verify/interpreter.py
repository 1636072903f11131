"""Runs a traced program in double precision, with chosen constants made smaller or larger.

A proof about a program speaks of the mathematics: casts only round, and an epsilon that the proof
lists counts as 0. To check it in numbers, the interpreter computes every float of the user's jaxpr
in float64, and multiplies the constants that the proof leans on by factors `t`:

    jaxpr:        var: f32[8], z: bf16[4,8]     add var 1e-05:f32[]      rsqrt ...
    computed:     var: f64[8], z: f64[4,8]      add var (1e-05 * t)      rsqrt ...

It runs under `jax.jit`. Loops and branches are built anew around their bodies; calls are inlined.
What cannot be widened (callbacks, kernels, foreign functions) gets its operands in the dtypes that
it was traced with, and `RunLog.narrow_dtypes` lists these.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from optax_bnmask import compat
from optax_bnmask.program.constants import computed, known_of
from optax_bnmask.program.control import CALLS, body_of_call
from optax_bnmask.verify.widening import bound, widened

Array = Any


class Constant(NamedTuple):
    """A constant operand that a proof leans on.

    Attributes:
      primitive: The name of the operation that takes it.
      value: Its value.
      locations: Where in the user's code, as `compat.location` says it; anywhere if empty.
    """

    primitive: str
    value: float
    locations: frozenset[str] = frozenset()


class Value(NamedTuple):
    """A value of the program.

    Attributes:
      array: The value, in double precision.
      number: The number that all its entries are, if constant folding tells; otherwise `None`.
    """

    array: Array
    number: float | None = None


@dataclasses.dataclass
class RunLog:
    """What an `Interpreter` met on its way through a program.

    Attributes:
      constants: The constants that were found, each with its locations.
      narrow_dtypes: The float dtypes of what could not be computed in double precision.
    """

    constants: dict[Constant, set[str]] = dataclasses.field(default_factory=dict)
    narrow_dtypes: set[Any] = dataclasses.field(default_factory=set)


@dataclasses.dataclass(frozen=True)
class Interpreter:
    """Runs jaxprs in double precision.

    Attributes:
      factors: For each constant, the tracer or number that it is multiplied by.
      log: What is met on the way; the interpreter adds to it.
      calls: The calls that the program is nested in, outermost first.
      widen: What makes a constant or literal of the program one in double precision.
    """

    factors: Mapping[Constant, Any]
    log: RunLog
    calls: tuple[Any, ...] = ()
    widen: Callable[[Any], Array] = widened

    def run(self, jaxpr: Any, ins: Sequence[Value]) -> list[Value]:  # noqa: ANN401 - a jaxpr
        """The outputs of a closed jaxpr at these inputs."""
        inner = compat.open_jaxpr(jaxpr)
        consts = map(self._constant, compat.consts_of(jaxpr))
        env = dict(zip(inner.constvars, consts, strict=True))
        env.update(zip(inner.invars, ins, strict=True))

        def read(atom: Any) -> Value:  # noqa: ANN401 - a variable or a literal
            if not isinstance(atom, compat.Literal):
                return env[atom]
            aval: Any = atom.aval  # the value by itself may have another dtype
            return self._constant(np.asarray(atom.val, aval.dtype))

        for eqn in inner.eqns:
            if eqn.outvars:  # one without outputs is an effect: a print, a callback
                outs = self._equation(eqn, [read(atom) for atom in eqn.invars])
                env.update(zip(eqn.outvars, outs, strict=True))
        return [read(atom) for atom in inner.outvars]

    def results_of(self, eqn: Any, arrays: Sequence[Array]) -> list[Array]:  # noqa: ANN401
        """The results of one equation at these arrays."""
        return [x.array for x in self._equation(eqn, [*map(Value, arrays)])]

    def _constant(self, array: Array) -> Value:
        return Value(self.widen(array), known_of(array)[0])

    def _equation(self, eqn: Any, ins: Sequence[Value]) -> list[Value]:  # noqa: ANN401
        if eqn.primitive in CALLS and (body := body_of_call(eqn.params, len(ins))) is not None:
            return self._within(eqn).run(body, ins)
        if eqn.primitive in _NESTED:
            return [Value(x) for x in _NESTED[eqn.primitive](self._within(eqn), eqn.params, ins)]
        ins = [self._scaled(eqn, x) for x in ins]
        arrays = self._bind_widened(eqn, [x.array for x in ins])
        number = computed(eqn.primitive, [x.number for x in ins])
        return [Value(x, number) for x in arrays]

    def _within(self, call: Any) -> "Interpreter":  # noqa: ANN401 - an equation
        return dataclasses.replace(self, calls=(*self.calls, call))

    def _scaled(self, eqn: Any, x: Value) -> Value:  # noqa: ANN401
        """An operand, multiplied if it is a constant that the proof leans on."""
        if x.number is None:
            return x
        for constant, factor in self.factors.items():
            # The constant may have been rounded to the function's own dtype.
            if eqn.primitive.name == constant.primitive and _is_near(x.number, constant.value):
                where = compat.location(eqn, self.calls)
                self.log.constants.setdefault(constant, set()).add(where)
                if not constant.locations or where in constant.locations:
                    return Value(x.array * factor)
        return x

    def _bind_widened(self, eqn: Any, ins: Sequence[Array]) -> list[Array]:  # noqa: ANN401
        """The results of an equation that holds no other program, in double precision if it can."""
        if (outs := bound(eqn, ins)) is not None:
            return outs
        own = [
            jnp.asarray(x, v.aval.dtype) if compat.is_inexact(v.aval.dtype) else x
            for x, v in zip(ins, eqn.invars, strict=True)
        ]
        outs = eqn.primitive.bind(*own, **eqn.primitive.get_bind_params(eqn.params))
        outs = list(outs) if eqn.primitive.multiple_results else [outs]
        if any(compat.is_inexact(x.dtype) for x in own):  # floats made of integers' bits are exact
            self.log.narrow_dtypes |= {x.dtype for x in outs if compat.is_inexact(x.dtype)}
        return [widened(x) for x in outs]

    def function_of(
        self,
        jaxpr: Any,  # noqa: ANN401 - JAX keeps its type private
        numbers: Sequence[float | None] = (),
    ) -> Callable[..., list[Array]]:
        """A closed jaxpr as a function of arrays; `numbers` are `Value.number` of the first."""

        def run(*arrays: Array) -> list[Array]:
            known = [*numbers, *[None] * (len(arrays) - len(numbers))]
            return [x.array for x in self.run(jaxpr, [*map(Value, arrays, known)])]

        return run


def _scan(i: Interpreter, params: Mapping[str, Any], ins: Sequence[Value]) -> Sequence[Array]:
    n_consts, n_carry = compat.carry_of_scan(params)
    consts, arrays = ins[:n_consts], [x.array for x in ins]
    body = i.function_of(params["jaxpr"], [x.number for x in consts])

    def step(carry: list[Array], row: list[Array]) -> tuple[list[Array], list[Array]]:
        outs = body(*arrays[:n_consts], *carry, *row)
        return outs[:n_carry], outs[n_carry:]

    start, rows = arrays[n_consts : n_consts + n_carry], arrays[n_consts + n_carry :]
    end, stacks = lax.scan(step, start, rows, length=params["length"], reverse=params["reverse"])
    return [*end, *stacks]


def _while(i: Interpreter, params: Mapping[str, Any], ins: Sequence[Value]) -> Sequence[Array]:
    n_test = params["cond_nconsts"]
    n = n_test + params["body_nconsts"]
    arrays = [x.array for x in ins]
    test = i.function_of(params["cond_jaxpr"], [x.number for x in ins[:n_test]])
    body = i.function_of(params["body_jaxpr"], [x.number for x in ins[n_test:n]])
    return lax.while_loop(
        lambda carry: test(*arrays[:n_test], *carry)[0],
        lambda carry: body(*arrays[n_test:n], *carry),
        arrays[n:],
    )


def _cond(i: Interpreter, params: Mapping[str, Any], ins: Sequence[Value]) -> Sequence[Array]:
    which, *operands = ins
    numbers = [x.number for x in operands]
    branches = [i.function_of(branch, numbers) for branch in params["branches"]]
    return lax.switch(which.array, branches, *[x.array for x in operands])


def _linear_solve(
    i: Interpreter, params: Mapping[str, Any], ins: Sequence[Value]
) -> Sequence[Array]:
    """Runs the solver given to `lax.custom_linear_solve`, whose operands follow `const_lengths`."""
    lengths = params["const_lengths"]
    before = lengths.matvec + lengths.vecmat
    given = [*ins[before : before + lengths.solve], *ins[sum(lengths) :]]
    return i.function_of(params["jaxprs"].solve)(*[x.array for x in given])


def _shard_map(i: Interpreter, params: Mapping[str, Any], ins: Sequence[Value]) -> Sequence[Array]:
    mapped = jax.shard_map(
        i.function_of(params["jaxpr"], [x.number for x in ins]),
        mesh=params["mesh"],
        in_specs=tuple(params["in_specs"]),
        out_specs=list(params["out_specs"]),
        axis_names=frozenset(params["newly_manual_axes"]),
        check_vma=params["check_vma"],
    )
    return mapped(*[x.array for x in ins])


def _reduce(i: Interpreter, params: Mapping[str, Any], ins: Sequence[Value]) -> Sequence[Array]:
    """A reduction by a function of the program: of the operands, then as many initial values."""
    arrays, body = [x.array for x in ins], i.function_of(params["jaxpr"])
    n = len(arrays) // 2

    def combined(a: Sequence[Array], b: Sequence[Array]) -> Sequence[Array]:
        return tuple(body(*a, *b))

    given = tuple(arrays[:n]), tuple(arrays[n:]), combined
    if "window_dimensions" not in params:
        return lax.reduce(*given, params["dimensions"])
    sizes = ("window_dimensions", "window_strides", "padding", "base_dilation", "window_dilation")
    return lax.reduce_window(*given, **{name: params[name] for name in sizes})


_NESTED: Final[dict[Any, Callable[..., Sequence[Array]]]] = {
    compat.primitive("scan_p"): _scan,
    compat.primitive("while_p"): _while,
    compat.primitive("cond_p"): _cond,
    compat.primitive("linear_solve_p"): _linear_solve,
    compat.primitive("shard_map_p"): _shard_map,
    compat.primitive("reduce_p"): _reduce,
    compat.primitive("reduce_window_p"): _reduce,
}


def _is_near(x: float, y: float) -> bool:
    return abs(x - y) <= 0.01 * abs(y)
