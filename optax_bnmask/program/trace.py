"""From a function and its parameters to the program that computes its outputs."""

import contextlib
import dataclasses
import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optax_bnmask import compat
from optax_bnmask.errors import StructureError
from optax_bnmask.paths import layout


@dataclasses.dataclass(frozen=True, slots=True)
class Program:
    """A traced function without its dead code.

    Attributes:
      jaxpr: The open jaxpr; its inputs are the live leaves and then the other live inputs.
      consts: The values of its constant inputs.
      paths: The canonical names of all leaves of the params.
      shapes: Their shapes.
      dtypes: Their dtypes.
      live: Which leaves some output depends on.
      inputs: For each input of the jaxpr, the index of its leaf, or `None` for other arguments.
      argument_paths: For each input that is no leaf, its name among the arguments.
    """

    jaxpr: Any
    consts: Sequence[Any]
    paths: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[Any, ...]
    live: tuple[bool, ...]
    inputs: tuple[int | None, ...]
    argument_paths: tuple[str, ...]


def traced(
    fn: Callable[..., Any],
    params: Any,  # noqa: ANN401 - any pytree
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> Program:
    """Traces ``fn(params, *args, **kwargs)`` from shapes alone and drops what no output needs.

    Args:
      fn: The function.
      params: Its parameters: any pytree of arrays or `jax.ShapeDtypeStruct`s.
      args: Its other arguments; arrays and `jax.ShapeDtypeStruct`s are traced, all else is static.
      kwargs: The same by name.

    Returns:
      The `Program`.

    Raises:
      StructureError: No output is of floating dtype, or none depends on `params`.
    """
    leaves = layout(params, "params").leaves
    flat_params, params_def = jax.tree.flatten(params)
    _require_arrays(leaves)
    keyed, rest_def = jax.tree_util.tree_flatten_with_path((tuple(args), dict(kwargs)))
    dynamic = [(keys, value) for keys, value in keyed if _is_array(value)]
    static = [None if _is_array(value) else value for _, value in keyed]

    def flat(param_leaves: Sequence[Any], arrays: Sequence[Any]) -> list[Any]:
        given = iter(arrays)
        filled = [
            next(given) if _is_array(value) else fixed
            for (_, value), fixed in zip(keyed, static, strict=True)
        ]
        in_args, in_kwargs = jax.tree.unflatten(rest_def, filled)
        out = fn(jax.tree.unflatten(params_def, param_leaves), *in_args, **in_kwargs)
        return [x for x in jax.tree.leaves(out) if _is_float(x)]

    closed = jax.make_jaxpr(flat)(
        [_abstract(x) for x in flat_params], [_abstract(x) for _, x in dynamic]
    )
    n_outputs = len(compat.open_jaxpr(closed).outvars)
    if not n_outputs:
        raise StructureError(
            "`fn` must return at least one array of floating dtype. It returned none. Return the "
            "logits or the loss whose invariance is in question."
        )
    with without_collection():
        jaxpr, used = compat.live_part(closed, [True] * n_outputs)
    live = tuple(used[: len(flat_params)])
    if not any(live):
        raise StructureError(
            f"The outputs of `fn` must depend on `params`. They depend on none of its "
            f"{len(live)} leaves. Does `fn` use its first argument?"
        )
    numbers = [*range(len(flat_params)), *([None] * len(dynamic))]
    names = [
        jax.tree_util.keystr(keys[1:] if len(keys) > 1 else keys, simple=True, separator="/")
        for keys, _ in dynamic
    ]
    return Program(
        jaxpr,
        compat.consts_of(closed),
        tuple(leaves),
        tuple(np.shape(x) for x in flat_params),
        tuple(getattr(x, "dtype", None) or jnp.result_type(x) for x in flat_params),
        live,
        tuple(number for number, is_used in zip(numbers, used, strict=True) if is_used),
        tuple(n for n, is_used in zip(names, used[len(flat_params) :], strict=True) if is_used),
    )


@contextlib.contextmanager
def without_collection() -> Iterator[None]:
    """Keeps the garbage collector from walking all of JAX's objects in the midst of the work.

    It makes many small objects and no cycles; one full collection costs as much as it does.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _is_array(value: object) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")


def _abstract(value: Any) -> Any:  # noqa: ANN401 - any array
    """The shape and dtype of an array, never the array: nothing may be computed with it.

    How it lies on a mesh is a part of the types that the function is traced with where the axes of
    the mesh are explicit, and only there.
    """
    if isinstance(value, (int, float, complex)):
        return jax.ShapeDtypeStruct((), jnp.result_type(value))
    if isinstance(value, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=value.sharding)
    typed = jax.typeof(value).sharding if isinstance(value, jax.Array) else None
    if typed is None or not any(typed.spec):
        return jax.ShapeDtypeStruct(value.shape, value.dtype)
    return jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=typed)


def _is_float(value: Any) -> bool:  # noqa: ANN401 - any output
    dtype = getattr(value, "dtype", None)
    return bool(jnp.issubdtype(jnp.result_type(value) if dtype is None else dtype, np.inexact))


def _require_arrays(leaves: Mapping[str, Any]) -> None:
    for path, leaf in leaves.items():
        if not _is_array(leaf) and not isinstance(leaf, (int, float, complex)):
            raise StructureError(
                f"Every leaf of `params` must be an array or have a shape and a dtype. {path!r} is "
                f"a {type(leaf).__name__}. Leave it out of the tree first and close over it."
            )
