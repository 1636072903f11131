"""Equinox: from a model, which is a pytree with more than arrays in it, to its parameters."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from optax_bnmask import compat
from optax_bnmask.analysis import Analysis
from optax_bnmask.arguments import is_array, is_of, wrong_kind
from optax_bnmask.frameworks.call import Call
from optax_bnmask.frameworks.confirm import confirmed


def analyze_equinox(
    fn: Callable[..., Any],
    model: Any,  # noqa: ANN401 - any pytree
    *args: Any,  # noqa: ANN401 - whatever the function takes
    has_aux: bool = False,
    **kwargs: Any,  # noqa: ANN401 - whatever the function takes
) -> Analysis:
    """`analyze` for an Equinox model, completed by the roles that its `eqx.nn.State` shows.

    The parameters are the model's arrays of floating dtype, as ``eqx.filter(model,
    eqx.is_inexact_array)`` has them: the tree that the optimizer gets. All else of the model, its
    other arrays among it, stays as it is.

    Args:
      fn: ``fn(model, *args, **kwargs)``, as for `eqx.filter_grad`, such as ``lambda model, x:
        jax.vmap(model)(x)``: Equinox's layers take one example.
      model: The model; an abstract one, as from `eqx.filter_eval_shape`, and an ensemble stacked by
        `eqx.filter_vmap` do as well.
      *args: The inputs: arrays or `jax.ShapeDtypeStruct`s, and pytrees of them such as an
        `eqx.nn.State`; anything else is passed as it is.
      has_aux: Whether `fn` returns a pair of which only the first counts, as in `analyze`: the new
        state belongs into the second.
      **kwargs: More inputs by name.

    Returns:
      The `Analysis`, its evidence the program and the structure.

    Raises:
      StructureError: As `analyze`.
      TypeError: `fn` is no function, or `model` holds no array of floating dtype.

    Example:
      >>> import equinox as eqx, jax
      >>> import optax_bnmask as bnmask
      >>> class Net(eqx.Module):
      ...     dense: eqx.nn.Linear
      ...     norm: eqx.nn.BatchNorm
      ...     def __call__(self, x, state):
      ...         x, state = self.norm(self.dense(x), state)
      ...         return jax.nn.relu(x), state
      >>> key = jax.random.key(0)
      >>> norm = lambda: eqx.nn.BatchNorm(8, axis_name="batch", mode="batch")
      >>> make = lambda: Net(eqx.nn.Linear(3, 8, key=key), norm())
      >>> net, state = eqx.nn.make_with_state(make)()
      >>> def fn(net, x, state):
      ...     return jax.vmap(net, (0, None), (0, None), axis_name="batch")(x, state)
      >>> x = jax.ShapeDtypeStruct((32, 3), "float32")
      >>> analysis = bnmask.analyze_equinox(fn, net, x, state, has_aux=True)
      >>> analysis["dense/weight"].invariant_axes, str(analysis["norm/weight"].role)
      ((0,), 'norm_scale')
    """
    return confirmed(equinox_call(fn, model, args, kwargs, has_aux=has_aux))


def _holds_arrays(fn: Any) -> bool:  # noqa: ANN401 - any callable
    """Whether a callable is a model: a module with arrays of floating dtype in it.

    What `eqx.filter_jit` makes of a function is a module too, but without arrays.
    """
    leaves = jax.tree.leaves(fn) if is_of(fn, "equinox", "Module") else ()
    return any(is_array(leaf) and compat.is_inexact(leaf.dtype) for leaf in leaves)


def _is_part(model: Any) -> bool:  # noqa: ANN401 - any pytree
    """Whether a model may be what `eqx.filter` left of it, or a pair from `eqx.partition`."""
    leaves = jax.tree.leaves(model, is_leaf=lambda node: node is None)
    return isinstance(model, tuple) or any(leaf is None for leaf in leaves)


def equinox_call(
    fn: Callable[..., Any],
    model: Any,  # noqa: ANN401 - as in `analyze_equinox`
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *,
    has_aux: bool,
) -> Call:
    """The `Call` of a function of a model: its arrays of floating dtype are the parameters."""
    innermost = inspect.unwrap(fn) if callable(fn) else fn
    if not callable(fn) or _holds_arrays(innermost):
        raise wrong_kind(
            "fn",
            "a function of the model, such as `lambda model, x: jax.vmap(model)(x)`",
            innermost,
            "The order is `fn, model, *args`.",
        )
    leaves, structure = jax.tree.flatten(model)
    is_param = [is_array(leaf) and compat.is_inexact(leaf.dtype) for leaf in leaves]
    if not any(is_param):
        raise wrong_kind(
            "model",
            "a pytree with arrays of floating dtype",
            model,
            "The order is `fn, model, *args`.",
        )
    rest = [None if own else leaf for leaf, own in zip(leaves, is_param, strict=True)]
    pairs = zip(leaves, is_param, strict=True)
    params = jax.tree.unflatten(structure, [leaf if own else None for leaf, own in pairs])

    # Positional only, so that arguments of the function's own may have these names too.
    def called(params: Any, /, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        arrays = structure.flatten_up_to(params)
        whole = [a if own else r for a, r, own in zip(arrays, rest, is_param, strict=True)]
        try:
            return fn(jax.tree.unflatten(structure, whole), *args, **kwargs)
        except Exception as error:
            if _is_part(model):
                error.add_note(
                    "`fn` gets `model` as it was passed, and takes the whole model: not what "
                    "`eqx.filter` or `eqx.partition` make of it. Its arrays of floating dtype are "
                    "chosen here."
                )
            raise

    states = [each for each in args if is_of(each, "equinox.nn", "State")]
    return Call(called, params, (), args, kwargs, states[0] if states else None, has_aux)
