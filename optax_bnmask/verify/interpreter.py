"""A traced program run again in double precision, with chosen constants made smaller or larger.

What a proof says of a program is said of the mathematics: a cast from float32 to bfloat16 changes
nothing but rounding, and an epsilon that it lists is taken as 0. Both can be looked at directly.
The interpreter reads the jaxpr of the function as its user has it and computes every float in
float64, whatever the jaxpr asks for, and it multiplies the constants that the proof leans on:

    jaxpr:        var: f32[8], z: bf16[4,8]     add var 1e-05:f32[]      rsqrt ...
    computed:     var: f64[8], z: f64[4,8]      add var (1e-05 * t)      rsqrt ...

It runs under `jax.jit` and is differentiable, like the function itself. Loops and branches are
made anew around their bodies; calls are inlined. What it cannot open (callbacks, kernels, foreign
functions) gets its operands in the dtypes that it was traced with, and `Opened.narrow` has these.
"""

import dataclasses
import functools
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from optax_bnmask import compat
from optax_bnmask.program.constants import known_of
from optax_bnmask.program.control import CALLS, body_of_call

Array = Any


class Constant(NamedTuple):
    """A constant operand that a proof leans on.

    Attributes:
      primitive: The name of the operation that takes it.
      value: Its value.
      places: Where in the user's code. It is looked for there, and where it is at none of these
        (the same function called from elsewhere), at all places.
    """

    primitive: str
    value: float
    places: frozenset[str] = frozenset()


class Value(NamedTuple):
    """A value of the program.

    Attributes:
      array: The value, in double precision.
      number: The number that it is, where that is known without running anything.
    """

    array: Array
    number: float | None = None


@dataclasses.dataclass
class Opened:
    """What was met while a program was opened.

    Attributes:
      met: The constants that were found, each at the places where it was.
      narrow: The float dtypes of what could not be computed in double precision.
    """

    met: dict[Constant, set[str]] = dataclasses.field(default_factory=dict)
    narrow: set[Any] = dataclasses.field(default_factory=set)


@dataclasses.dataclass(frozen=True)
class Interpreter:
    """Runs jaxprs in double precision.

    Attributes:
      factors: By what each constant is multiplied: tracers, or numbers.
      opened: What is met on the way.
      calls: The calls that the program is nested in, outermost first.
    """

    factors: Mapping[Constant, Any]
    opened: Opened
    calls: tuple[Any, ...] = ()

    def run(self, jaxpr: Any, ins: Sequence[Value]) -> list[Value]:  # noqa: ANN401 - a jaxpr
        """The outputs of a jaxpr, closed or of the one kind that JAX 0.12 has, at these inputs."""
        inner = compat.open_jaxpr(jaxpr)
        consts = [Value(widened(c), known_of(c)[0]) for c in compat.consts_of(jaxpr)]
        env = dict(zip(inner.constvars, consts, strict=True))
        env.update(zip(inner.invars, ins, strict=True))

        def read(atom: Any) -> Value:  # noqa: ANN401 - a variable or a literal
            return _literal(atom) if isinstance(atom, compat.Literal) else env[atom]

        for eqn in inner.eqns:
            if eqn.outvars:  # one without outputs is an effect: a print, a callback
                outs = self._equation(eqn, [read(atom) for atom in eqn.invars])
                env.update(zip(eqn.outvars, outs, strict=True))
        return [read(atom) for atom in inner.outvars]

    def applied(self, eqn: Any, arrays: Sequence[Array]) -> list[Array]:  # noqa: ANN401
        """The results of one equation at these arrays, none of them known before it runs."""
        return [x.array for x in self._equation(eqn, [*map(Value, arrays)])]

    def _equation(self, eqn: Any, ins: Sequence[Value]) -> list[Value]:  # noqa: ANN401
        if eqn.primitive in CALLS and (body := body_of_call(eqn.params, len(ins))) is not None:
            return self._within(eqn).run(body, ins)
        if eqn.primitive in _NESTED:
            return [Value(x) for x in _NESTED[eqn.primitive](self._within(eqn), eqn.params, ins)]
        ins = [self._scaled(eqn, x) for x in ins]
        arrays = self._bound(eqn, [x.array for x in ins])
        return [Value(x, _folded(eqn.primitive.name, ins)) for x in arrays]

    def _within(self, call: Any) -> "Interpreter":  # noqa: ANN401 - an equation
        return dataclasses.replace(self, calls=(*self.calls, call))

    def _scaled(self, eqn: Any, x: Value) -> Value:  # noqa: ANN401
        """An operand, multiplied if it is a constant that the proof leans on."""
        if x.number is None:
            return x
        for constant, factor in self.factors.items():
            # In the function's own dtype the constant may have been rounded on its way.
            if eqn.primitive.name == constant.primitive and _is_near(x.number, constant.value):
                where = compat.location(eqn, self.calls)
                self.opened.met.setdefault(constant, set()).add(where)
                if not constant.places or where in constant.places:
                    return Value(x.array * factor)
        return x

    def _bound(self, eqn: Any, ins: Sequence[Array]) -> list[Array]:  # noqa: ANN401
        """The results of an equation that holds no other program, in double precision if it can."""
        if _iswidened(eqn):
            try:
                return _results(_WIDE.get(eqn.primitive, _bind)(eqn, ins), eqn)
            except (TypeError, ValueError, NotImplementedError):
                pass  # a primitive that insists on the dtypes it was traced with
        own = [
            jnp.asarray(x, v.aval.dtype) if compat.is_inexact(v.aval.dtype) else x
            for x, v in zip(ins, eqn.invars, strict=True)
        ]
        outs = eqn.primitive.bind(*own, **eqn.primitive.get_bind_params(eqn.params))
        outs = list(outs) if eqn.primitive.multiple_results else [outs]
        if any(compat.is_inexact(x.dtype) for x in own):  # floats made of bits are exact
            self.opened.narrow |= {x.dtype for x in outs if compat.is_inexact(x.dtype)}
        return [widened(x) for x in outs]

    def closed(
        self,
        jaxpr: Any,  # noqa: ANN401 - closed, or of 0.12's one kind
        numbers: Sequence[float | None] = (),
    ) -> Callable[..., list[Array]]:
        """A jaxpr as a function of arrays, of which the first may be known numbers."""

        def run(*arrays: Array) -> list[Array]:
            known = [*numbers, *[None] * (len(arrays) - len(numbers))]
            return [x.array for x in self.run(jaxpr, [*map(Value, arrays, known)])]

        return run


def _scan(i: Interpreter, params: Mapping[str, Any], ins: Sequence[Value]) -> Sequence[Array]:
    n_consts, n_carry = compat.carry_of_scan(params)
    consts, arrays = ins[:n_consts], [x.array for x in ins]
    body = i.closed(params["jaxpr"], [x.number for x in consts])

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
    test = i.closed(params["cond_jaxpr"], [x.number for x in ins[:n_test]])
    body = i.closed(params["body_jaxpr"], [x.number for x in ins[n_test:n]])
    return lax.while_loop(
        lambda carry: test(*arrays[:n_test], *carry)[0],
        lambda carry: body(*arrays[n_test:n], *carry),
        arrays[n:],
    )


def _cond(i: Interpreter, params: Mapping[str, Any], ins: Sequence[Value]) -> Sequence[Array]:
    which, *operands = ins
    numbers = [x.number for x in operands]
    branches = [i.closed(branch, numbers) for branch in params["branches"]]
    return lax.switch(which.array, branches, *[x.array for x in operands])


def _linear_solve(
    i: Interpreter, params: Mapping[str, Any], ins: Sequence[Value]
) -> Sequence[Array]:
    """Runs the solver that `lax.custom_linear_solve` was given."""
    lengths = params["const_lengths"]
    before = lengths.matvec + lengths.vecmat
    given = [*ins[before : before + lengths.solve], *ins[sum(lengths) :]]
    return i.closed(params["jaxprs"].solve)(*[x.array for x in given])


def _shard_map(i: Interpreter, params: Mapping[str, Any], ins: Sequence[Value]) -> Sequence[Array]:
    mapped = jax.shard_map(
        i.closed(params["jaxpr"], [x.number for x in ins]),
        mesh=params["mesh"],
        in_specs=tuple(params["in_specs"]),
        out_specs=list(params["out_specs"]),
        axis_names=frozenset(params["newly_manual_axes"]),
        check_vma=params["check_vma"],
    )
    return mapped(*[x.array for x in ins])


def _reduce(i: Interpreter, params: Mapping[str, Any], ins: Sequence[Value]) -> Sequence[Array]:
    """A reduction by a function of the program's own: operands first, then where each starts."""
    arrays, body = [x.array for x in ins], i.closed(params["jaxpr"])
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


def _literal(literal: Any) -> Value:  # noqa: ANN401 - JAX's own say nothing of dtypes
    array = np.asarray(literal.val, literal.aval.dtype)
    return Value(widened(array), known_of(array)[0])


def _same(_: Any, ins: Sequence[Array]) -> Array:  # noqa: ANN401 - an equation
    return ins[0]


def _bind(eqn: Any, ins: Sequence[Array]) -> Any:  # noqa: ANN401
    """The primitive itself, asked for double precision wherever it is asked for a float."""
    params = eqn.primitive.get_bind_params(eqn.params)
    return eqn.primitive.bind(*ins, **{name: _widest_of(name, v) for name, v in params.items()})


def _widest_of(name: str, value: Any) -> Any:  # noqa: ANN401 - any parameter
    if name == "precision":
        return None  # algorithms of products are of one dtype each
    if name in ("dtype", "new_dtype", "preferred_element_type") and value is not None:
        return wide(value)
    return value


def _cast(eqn: Any, ins: Sequence[Array]) -> Array:  # noqa: ANN401
    """A cast between floats only rounds, and is left out; ``f(a*x) = a*f(x)``."""
    return lax.convert_element_type(ins[0], wide(eqn.params["new_dtype"]))


def _scatter(function: Callable[..., Array]) -> Callable[..., Array]:
    """The rule of a scatter, whose parameters hold a jaxpr for one dtype: `function` remakes it."""

    def scattered(eqn: Any, ins: Sequence[Array]) -> Array:  # noqa: ANN401
        names = ("dimension_numbers", "indices_are_sorted", "unique_indices", "mode")
        return function(*ins, **{name: eqn.params[name] for name in names})

    return scattered


_WIDE: Final[dict[Any, Callable[..., Any]]] = {
    compat.primitive("convert_element_type_p"): _cast,
    compat.primitive("reduce_precision_p"): _same,
    compat.primitive("scatter_p"): _scatter(lax.scatter),
    compat.primitive("scatter_add_p"): _scatter(lax.scatter_add),
    compat.primitive("scatter_sub_p"): _scatter(lax.scatter_sub),
    compat.primitive("scatter_mul_p"): _scatter(lax.scatter_mul),
    compat.primitive("scatter_min_p"): _scatter(lax.scatter_min),
    compat.primitive("scatter_max_p"): _scatter(lax.scatter_max),
}

_BITS: Final = compat.primitive("bitcast_convert_type_p")


@functools.cache
def wide(dtype: Any) -> Any:  # noqa: ANN401 - a dtype
    """The dtype in which values of a dtype are computed here."""
    if jnp.issubdtype(dtype, np.complexfloating):
        return np.dtype(np.complex128)
    return np.dtype(np.float64) if jnp.issubdtype(dtype, np.floating) else dtype


def widened(x: Any) -> Any:  # noqa: ANN401 - any array, keys of random numbers among them
    """An array in double precision, if it is one of floats."""
    return jnp.asarray(x, wide(x.dtype)) if compat.is_inexact(x.dtype) else x


def _iswidened(eqn: Any) -> bool:  # noqa: ANN401
    """Whether an equation can be widened: it names no dtypes but those that `_bind` replaces."""
    if eqn.primitive in _WIDE:
        return True
    if eqn.primitive is _BITS or any(
        name.endswith(("avals", "shape_dtypes")) for name in eqn.params
    ):
        return False
    return not any(hasattr(compat.open_jaxpr(value), "eqns") for value in eqn.params.values())


def _results(outs: Any, eqn: Any) -> list[Array]:  # noqa: ANN401
    """The results as a list; fails unless they have the jaxpr's shapes and its dtypes, widened."""
    outs = list(outs) if eqn.primitive.multiple_results else [outs]
    for x, variable in zip(outs, eqn.outvars, strict=True):
        if x.shape != variable.aval.shape or x.dtype != wide(variable.aval.dtype):
            raise TypeError(f"`{eqn.primitive}` gave {x.dtype}{x.shape}")
    return outs


def _is_near(x: float, y: float) -> bool:
    return abs(x - y) <= 0.01 * abs(y)


def _first(x: float, *_: float) -> float:
    return x


_SAME: Final = ("broadcast_in_dim", "convert_element_type", "reshape", "squeeze", "expand_dims")

_FOLD: Final[dict[str, Callable[..., float]]] = {
    **dict.fromkeys((*_SAME, "copy", "copy_p", "stop_gradient", "pvary"), _first),
    "neg": operator.neg,
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": operator.truediv,
    "max": max,
    "min": min,
    "sqrt": math.sqrt,
    "pow": operator.pow,
}
"""What operations make of known numbers, as far as epsilons are written so."""


def _folded(primitive: str, ins: Sequence[Value]) -> float | None:
    """The number that an operation among known numbers gives, if that is simple."""
    numbers = [x.number for x in ins if x.number is not None]
    if primitive not in _FOLD or not numbers or len(numbers) < len(ins):
        return None
    try:
        number = _FOLD[primitive](*numbers)
    except (ArithmeticError, TypeError, ValueError):
        return None
    return number if isinstance(number, (int, float)) else None
