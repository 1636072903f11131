"""Runs a jaxpr in NumPy: nothing to compile, and a second opinion on what the program means."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy import special

from optax_bnmask import compat

Array = Any


def _select(eqn: Any, which: Array, *cases: Array) -> Array:
    del eqn
    if len(cases) == 2:
        return np.where(which, cases[1], cases[0])
    return np.choose(which, cases)


def _reshape(eqn, x, *_):
    order = eqn.params["dimensions"]  # of the axes, as JAX batches a convolution over its kernels
    return np.reshape(x if order is None else np.transpose(x, order), eqn.params["new_sizes"])


def _broadcast(eqn: Any, x: Array, *_: Array) -> Array:
    shape = eqn.params["shape"]
    inner = [1] * len(shape)
    for place, n in zip(eqn.params["broadcast_dimensions"], np.shape(x), strict=True):
        inner[place] = n
    return np.broadcast_to(np.reshape(x, inner), shape)


def _dot(eqn: Any, x: Array, y: Array) -> Array:
    (cx, cy), (bx, by) = eqn.params["dimension_numbers"]
    names_x = list(range(x.ndim))
    names_y = [x.ndim + a for a in range(y.ndim)]
    for a, b in zip((*cx, *bx), (*cy, *by), strict=True):
        names_y[b] = names_x[a]
    free_x = [names_x[a] for a in range(x.ndim) if a not in (*cx, *bx)]
    free_y = [names_y[a] for a in range(y.ndim) if a not in (*cy, *by)]
    return np.einsum(x, names_x, y, names_y, [*[names_x[a] for a in bx], *free_x, *free_y])


def _conv(eqn: Any, x: Array, w: Array) -> Array:
    p = eqn.params
    if set(p["lhs_dilation"]) | set(p["rhs_dilation"]) != {1} or p["batch_group_count"] != 1:
        return _jax(eqn, x, w)
    lhs, rhs, out = p["dimension_numbers"]
    x, w = np.transpose(x, lhs), np.transpose(w, rhs)  # NC.. and OI..
    x = np.pad(x, [(0, 0), (0, 0), *p["padding"]])
    groups, space = p["feature_group_count"], tuple(range(2, x.ndim))
    patches = sliding_window_view(x, w.shape[2:], axis=space)
    strides = tuple(slice(None, None, s) for s in p["window_strides"])
    patches = patches[(slice(None), slice(None), *strides)]
    n, c = patches.shape[:2]
    patches = patches.reshape(n, groups, c // groups, *patches.shape[2:])
    w = w.reshape(groups, w.shape[0] // groups, *w.shape[1:])
    k = len(space)
    letters = "abcdefgh"
    outer, inner = letters[:k], letters[k : 2 * k]
    y = np.einsum(f"ngi{outer}{inner},goi{inner}->ngo{outer}", patches, w)
    y = y.reshape(n, -1, *y.shape[3:])
    back = np.empty_like(y, shape=[y.shape[list(out).index(a)] for a in range(y.ndim)])
    back[...] = np.transpose(y, [list(out).index(a) for a in range(y.ndim)])
    return back


def _window(reduce: Callable[..., Array], blank: float) -> Callable[..., Array]:
    def apply(eqn: Any, x: Array) -> Array:
        p = eqn.params
        if set(p["base_dilation"]) | set(p["window_dilation"]) != {1}:
            return _jax(eqn, x)
        x = np.pad(x, p["padding"], constant_values=blank)
        windows = sliding_window_view(x, p["window_dimensions"])
        windows = windows[tuple(slice(None, None, s) for s in p["window_strides"])]
        return reduce(windows, axis=tuple(range(x.ndim, 2 * x.ndim)))

    return apply


def _cumulated(f: Any) -> Callable[..., Array]:
    def apply(eqn: Any, x: Array) -> Array:
        axis = eqn.params["axis"]
        if eqn.params["reverse"]:
            return np.flip(f.accumulate(np.flip(x, axis), axis=axis), axis)
        return f.accumulate(x, axis=axis)

    return apply


def _pad(eqn: Any, x: Array, value: Array) -> Array:
    config = eqn.params["padding_config"]
    if any(low < 0 or high < 0 or inside for low, high, inside in config):
        return _jax(eqn, x, value)
    return np.pad(x, [c[:2] for c in config], constant_values=value)


def _slice(eqn: Any, x: Array) -> Array:
    p = eqn.params
    strides = p["strides"] or (1,) * x.ndim
    bounds = zip(p["start_indices"], p["limit_indices"], strides, strict=True)
    return x[tuple(slice(*b) for b in bounds)]


def _split(eqn: Any, x: Array) -> list[Array]:
    return np.split(x, np.cumsum(eqn.params["sizes"])[:-1], axis=eqn.params["axis"])


def _iota(eqn: Any) -> Array:
    shape, axis = eqn.params["shape"], eqn.params["dimension"]
    inner = [1] * len(shape)
    inner[axis] = shape[axis]
    line = np.arange(shape[axis], dtype=eqn.params["dtype"]).reshape(inner)
    return np.broadcast_to(line, shape)


def _jax(eqn: Any, *operands: Array) -> Any:
    """By JAX itself, for what is rare."""
    params = eqn.params
    outs = eqn.primitive.bind(*map(jnp.asarray, operands), **params)
    return [np.asarray(y) for y in outs] if isinstance(outs, list | tuple) else np.asarray(outs)


def _plain(f: Callable[..., Array]) -> Callable[..., Array]:
    return lambda eqn, *operands: f(*operands)


def _reduced(f: Callable[..., Array]) -> Callable[..., Array]:
    return lambda eqn, x: f(x, axis=tuple(eqn.params["axes"]))


_PLAIN: dict[str, Callable[..., Array]] = {
    "add": np.add, "add_any": np.add, "sub": np.subtract, "mul": np.multiply, "max": np.maximum,
    "min": np.minimum, "neg": np.negative, "abs": np.abs, "exp": np.exp, "exp2": np.exp2,
    "log": np.log, "log1p": np.log1p, "expm1": np.expm1, "sqrt": np.sqrt, "tanh": np.tanh,
    "sin": np.sin, "cos": np.cos, "sign": np.sign, "square": np.square, "cbrt": np.cbrt,
    "rsqrt": lambda x: 1 / np.sqrt(x), "logistic": special.expit, "erf": special.erf,
    "erfc": special.erfc, "is_finite": np.isfinite, "eq": np.equal, "ne": np.not_equal,
    "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal, "pow": np.power,
    "and": np.bitwise_and, "or": np.bitwise_or, "not": np.invert, "stop_gradient": np.asarray,
    "copy": np.asarray, "copy_p": np.asarray, "clamp": lambda low, x, high: np.clip(x, low, high),
    "floor": np.floor,
}  # fmt: skip

_RULES: dict[str, Callable[..., Any]] = {
    **{name: _plain(f) for name, f in _PLAIN.items()},
    "div": lambda eqn, x, y: x / y if np.issubdtype(x.dtype, np.floating) else _jax(eqn, x, y),
    "integer_pow": lambda eqn, x: x ** np.asarray(eqn.params["y"], x.dtype),
    "reduce_sum": _reduced(np.sum),
    "reduce_max": _reduced(np.max),
    "reduce_min": _reduced(np.min),
    "reduce_prod": _reduced(np.prod),
    "reduce_window_sum": _window(np.sum, 0.0),
    "reduce_window_max": _window(np.max, -np.inf),
    "reduce_and": _reduced(np.all),
    "reduce_or": _reduced(np.any),
    "cumsum": _cumulated(np.add),
    "cummax": _cumulated(np.maximum),
    "broadcast_in_dim": _broadcast,
    "reshape": _reshape,
    "transpose": lambda eqn, x: np.transpose(x, eqn.params["permutation"]),
    "squeeze": lambda eqn, x: np.squeeze(x, tuple(eqn.params["dimensions"])),
    "expand_dims": lambda eqn, x: np.expand_dims(x, tuple(eqn.params["dimensions"])),
    "rev": lambda eqn, x: np.flip(x, tuple(eqn.params["dimensions"])),
    "concatenate": lambda eqn, *xs: np.concatenate(xs, axis=eqn.params["dimension"]),
    "stack": lambda eqn, *xs: np.stack(xs, axis=eqn.params["axis"]),
    "convert_element_type": lambda eqn, x: np.asarray(x).astype(eqn.params["new_dtype"]),
    "select_n": _select,
    "dot_general": _dot,
    "conv_general_dilated": _conv,
    "pad": _pad,
    "slice": _slice,
    "split": _split,
    "iota": _iota,
}


def _scan(eqn: Any, *operands: Array) -> list[Array]:
    p = eqn.params
    n_consts, n_carry = compat.carry_of_scan(p)
    consts, carry = operands[:n_consts], list(operands[n_consts : n_consts + n_carry])
    xs = operands[n_consts + n_carry :]
    order = range(p["length"])
    rows = []
    for i in reversed(order) if p["reverse"] else order:
        outs = run(p["jaxpr"], [*consts, *carry, *[x[i] for x in xs]])
        carry, row = outs[:n_carry], outs[n_carry:]
        rows.append(row)
    if p["reverse"]:
        rows.reverse()
    return [*carry, *[np.stack(column) for column in zip(*rows, strict=True)]]


def _while(eqn: Any, *operands: Array) -> list[Array]:
    p = eqn.params
    n_cond, n_body = p["cond_nconsts"], p["body_nconsts"]
    of_cond, of_body = operands[:n_cond], operands[n_cond : n_cond + n_body]
    carry = list(operands[n_cond + n_body :])
    while run(p["cond_jaxpr"], [*of_cond, *carry])[0]:
        carry = run(p["body_jaxpr"], [*of_body, *carry])
    return carry


def _cond(eqn: Any, which: Array, *operands: Array) -> list[Array]:
    branches = eqn.params["branches"]
    return run(branches[min(max(int(which), 0), len(branches) - 1)], operands)


_LOOPS = {"scan": _scan, "while": _while, "cond": _cond}


def run(jaxpr: Any, operands: Sequence[Array]) -> list[Array]:
    """The results of a jaxpr, in NumPy.

    Args:
      jaxpr: Closed.
      operands: Arrays.

    Returns:
      Arrays.
    """
    inner = compat.open_jaxpr(jaxpr)
    env: dict[Any, Array] = dict(
        zip(inner.constvars, map(np.asarray, compat.consts_of(jaxpr)), strict=True)
    )
    env.update(zip(inner.invars, operands, strict=True))

    def read(atom: Any) -> Array:
        return (
            np.asarray(atom.val, atom.aval.dtype) if isinstance(atom, compat.Literal) else env[atom]
        )

    for eqn in inner.eqns:
        ins = [read(atom) for atom in eqn.invars]
        name = eqn.primitive.name
        body = next(
            (eqn.params[k] for k in ("jaxpr", "call_jaxpr", "fun_jaxpr") if k in eqn.params), None
        )
        if name in _LOOPS:
            outs = _LOOPS[name](eqn, *ins)
        elif body is not None:
            outs = run(body, ins)
        else:
            outs = _RULES.get(name, _jax)(eqn, *ins)
        if not isinstance(outs, list | tuple):
            outs = [outs]
        env.update(zip(eqn.outvars, outs, strict=True))
    return [read(atom) for atom in inner.outvars]


def traced(fn: Callable[..., Any], *args: Any) -> Callable[..., list[Array]]:
    """The function in NumPy and in double precision, for arguments of these shapes."""
    with jax.enable_x64(True):
        closed = jax.make_jaxpr(lambda *given: fn(*given))(*args)  # noqa: PLW0108 - traced anew each time

    def apply(*args: Any) -> list[Array]:
        with jax.enable_x64(True), np.errstate(all="ignore"):
            return run(closed, [np.asarray(x) for x in jax.tree.leaves(args)])

    return apply
