"""From a function and its parameters to the program that computes its outputs."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optax_bnmask import compat
from optax_bnmask.arguments import is_array, is_of, wrong_kind
from optax_bnmask.errors import StructureError
from optax_bnmask.paths import tree_index
from optax_bnmask.program.failed_call import note_on_failure
from optax_bnmask.running_statistics import (
    refuse_averages,
    refuse_shapes,
    refuse_state,
    refuse_variables,
)


@dataclasses.dataclass(frozen=True, slots=True)
class Program:
    """A traced function.

    Attributes:
      jaxpr: The jaxpr; its inputs are the leaves and then the other arrays.
      consts: The values of its constant inputs.
      paths: The canonical names of all leaves of the params.
      shapes: Their shapes.
      dtypes: Their dtypes.
      inputs: For each input of the jaxpr, the index of its leaf, or `None` for other arguments.
      argument_paths: For each input that is no leaf, its name among the arguments.
      output_paths: For each output, its name.
      keywords: The names of the arguments that were given by name.
      has_aux: Whether the function returns a pair of which only the first is an output.
    """

    jaxpr: Any
    consts: Sequence[Any]
    paths: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[Any, ...]
    inputs: tuple[int | None, ...]
    argument_paths: tuple[str, ...]
    output_paths: tuple[str, ...]
    keywords: frozenset[str] = frozenset()
    has_aux: bool = False


def traced(
    fn: Callable[..., Any],
    params: Any,  # noqa: ANN401 - any pytree
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *,
    has_aux: bool = False,
) -> Program:
    """Traces ``fn(params, *args, **kwargs)`` from shapes alone.

    Args:
      fn: The function.
      params: Its parameters: any pytree of arrays or `jax.ShapeDtypeStruct`s.
      args: Its other arguments; arrays and `jax.ShapeDtypeStruct`s are traced, all else is static.
      kwargs: Its other arguments by name, arrays likewise traced.
      has_aux: Whether `fn` returns a pair, the second of which is no output.

    Returns:
      The `Program`.

    Raises:
      StructureError: No output is of floating dtype, or none depends on `params`.
      TypeError: `fn` is no function.
    """
    _require_function(fn, params)
    refuse_state(params, "params")
    refuse_variables(params, None)
    tree = tree_index(params, "params")
    refuse_shapes(tree)
    refuse_averages(tree)
    leaves = tree.leaves
    flat_params, params_def = jax.tree.flatten(params)
    _require_arrays(leaves)
    keyed, rest_def = jax.tree_util.tree_flatten_with_path((tuple(args), dict(kwargs)))
    dynamic = [(keys, value) for keys, value in keyed if is_array(value)]
    _require_entries(keyed)
    static = [None if is_array(value) else value for _, value in keyed]

    def flat(param_leaves: Sequence[Any], arrays: Sequence[Any]) -> list[Any]:
        given = iter(arrays)
        filled = [
            next(given) if is_array(value) else fixed
            for (_, value), fixed in zip(keyed, static, strict=True)
        ]
        in_args, in_kwargs = jax.tree.unflatten(rest_def, filled)
        out = fn(jax.tree.unflatten(params_def, param_leaves), *in_args, **in_kwargs)
        if has_aux:
            out, _ = _pair(out)
        flattened = jax.tree_util.tree_flatten_with_path(out)[0]
        numbers = [(keys, _without_type(x)) for keys, x in flattened]
        found = [(keys, x) for keys, x in numbers if _is_number(x)]
        names[:] = [_name(keys) for keys, _ in found]
        return [x for _, x in found]

    names: list[str] = []
    try:
        closed = jax.make_jaxpr(flat)(
            [_abstract(x) for x in flat_params], [_abstract(x) for _, x in dynamic]
        )
    except StructureError:
        raise
    except Exception as error:  # of the user's own code, and best read as it is
        error.add_note(note_on_failure(leaves, args, kwargs))
        raise
    if not any(compat.is_inexact(v.aval.dtype) for v in compat.open_jaxpr(closed).outvars):
        raise StructureError(
            "`fn` must return at least one array of floating dtype. It returned none. Return the "
            "logits or the loss whose invariance is in question."
        )
    return Program(
        closed,
        compat.consts_of(closed),
        tuple(leaves),
        tuple(np.shape(x) for x in flat_params),
        tuple(getattr(x, "dtype", None) or jnp.result_type(x) for x in flat_params),
        (*range(len(flat_params)), *([None] * len(dynamic))),
        tuple(_name(keys[1:] if len(keys) > 1 else keys) for keys, _ in dynamic),
        tuple(names),
        frozenset(kwargs),
        has_aux,
    )


def _require_function(fn: Any, params: Any) -> None:  # noqa: ANN401 - whatever was passed
    """Fails on what is no function of parameters, `jax.jit` and its kin around it or not."""
    fn = inspect.unwrap(fn, stop=inspect.ismethod) if callable(fn) else fn
    for module, name in (("flax.linen", "linen"), ("flax.nnx", "nnx")):
        if is_of(fn, module, "Module"):
            raise wrong_kind(
                "fn",
                "a function `fn(params, *args)`",
                fn,
                f"For a module use `bnmask.analyze_{name}` or `verify_{name}`.",
            )
    owner, name = getattr(fn, "__self__", None), getattr(fn, "__name__", "")
    whole = isinstance(params, Mapping) and "params" in params
    if name == "apply" and not whole and is_of(owner, "flax.linen", "Module"):
        raise wrong_kind(
            "fn",
            "a function `fn(params, *args)`",
            fn,
            "A module's `apply` takes variables: pass the module to `bnmask.analyze_linen` or "
            '`verify_linen`, or `lambda params, x: module.apply({"params": params}, x)`.',
        )
    if isinstance(fn, type) or not callable(fn):
        raise wrong_kind(
            "fn", "a function `fn(params, *args)`", fn, "The order is `fn, params, *args`."
        )


def _require_entries(keyed: Sequence[tuple[Any, Any]]) -> None:
    """Fails on an argument that is a class, or an array without entries, which proves anything."""
    for keys, value in keyed:
        name = _name(keys[1:] if len(keys) > 1 else keys)
        if isinstance(value, type) and is_array(value):
            raise wrong_kind(
                f"argument {name}", "an array", value, "Give its shape and its dtype, too."
            )
        if is_array(value) and 0 in value.shape:
            raise StructureError(
                f"Every argument of `fn` must hold an entry. Argument {name!r} has the shape "
                f"{tuple(value.shape)}. Give the shapes of a batch as it is trained."
            )


def _name(keys: Any) -> str:  # noqa: ANN401 - the key path of a pytree
    return jax.tree_util.keystr(keys, simple=True, separator="/")


def _pair(out: Any) -> tuple[Any, Any]:  # noqa: ANN401 - whatever `fn` returned
    """The pair ``(output, aux)`` that `fn` returned; fails if it is none."""
    if not isinstance(out, tuple) or len(out) != 2:
        raise StructureError(
            f"With `has_aux=True`, `fn` must return a pair `(output, aux)`. It returned "
            f"{'a tuple of ' + str(len(out)) if isinstance(out, tuple) else type(out).__name__}. "
            f"Return the two as a tuple, or leave `has_aux` out."
        )
    return out


def _abstract(value: Any) -> Any:  # noqa: ANN401 - any array
    """The `jax.ShapeDtypeStruct` of an array: nothing may be computed with its values.

    The sharding of an array is kept only on a mesh with explicit axes, where JAX makes it a part of
    the type of a traced value.
    """
    if isinstance(value, (int, float, complex)):
        return jax.ShapeDtypeStruct((), jnp.result_type(value))
    if isinstance(value, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=value.sharding)
    typed = jax.typeof(value).sharding if isinstance(value, jax.Array) else None
    if isinstance(value, np.ndarray | np.generic):  # float64 is taken for float32, as JAX does
        return jax.ShapeDtypeStruct(value.shape, jax.dtypes.canonicalize_dtype(value.dtype))
    if typed is None or not any(typed.spec):
        return jax.ShapeDtypeStruct(value.shape, value.dtype)
    return jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=typed)


def _without_type(value: Any) -> Any:  # noqa: ANN401 - any output
    """A random key as the numbers that it is made of; any other output as it is."""
    dtype = getattr(value, "dtype", None)
    is_key = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    return jax.random.key_data(value) if is_key else value


def _is_number(value: Any) -> bool:  # noqa: ANN401 - any output
    """Whether an output is an array of numbers or truth values; strings are none."""
    if isinstance(value, (bool, int, float, complex)):
        return True
    dtype = getattr(value, "dtype", None)
    return dtype is not None and bool(
        jnp.issubdtype(dtype, np.number) or jnp.issubdtype(dtype, np.bool_)
    )


def _require_arrays(leaves: Mapping[str, Any]) -> None:
    if not leaves:
        raise StructureError(
            "`params` must hold an array. Found none. Pass the tree that the optimizer updates."
        )
    for path, leaf in leaves.items():
        if not is_array(leaf) and not isinstance(leaf, (int, float, complex)):
            raise StructureError(
                f"Every leaf of `params` must be an array or have a shape and a dtype. {path!r} is "
                f"a {type(leaf).__name__}. Leave it out of the tree first and close over it; for "
                f"Equinox there is `bnmask.analyze_equinox`."
            )
    dtypes = {str(jnp.result_type(leaf)) for leaf in leaves.values()}
    if not any(compat.is_inexact(jnp.dtype(dtype)) for dtype in dtypes):
        raise StructureError(
            f"`params` must hold an array of floating dtype: no optimizer moves others. Found only "
            f"{', '.join(sorted(dtypes))}. Pass the tree that the optimizer updates, in the dtypes "
            f"in which it does."
        )
