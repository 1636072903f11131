"""Flax NNX: from a module to a function of its parameters."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from optax_bnmask.analysis import Analysis
from optax_bnmask.arguments import wrong_kind
from optax_bnmask.frameworks.call import Call
from optax_bnmask.frameworks.confirm import confirmed


def analyze_nnx(
    module: Any,  # noqa: ANN401 - any module
    *args: Any,  # noqa: ANN401 - whatever the module takes
    method: str | Callable[..., Any] | None = None,
    has_aux: bool = False,
    **kwargs: Any,  # noqa: ANN401 - whatever the module takes
) -> Analysis:
    """`analyze` for an NNX module, completed by the roles that its `BatchStat`s show.

    The module is called as ``module(*args, **kwargs)`` on a copy; set it to training mode first
    (``module.train()``).

    Args:
      module: An `nnx.Module`; an abstract one, as from `nnx.eval_shape`, does.
      *args: The inputs: arrays or `jax.ShapeDtypeStruct`s; anything else is passed as it is.
      method: What is called in the place of the module: the name of a method, or a function of the
        module and the inputs, such as a loss.
      has_aux: Whether it returns a pair of which only the first counts, as in `analyze`.
      **kwargs: More inputs by name.

    Returns:
      The `Analysis` of its `nnx.Param`s, its evidence the program and the structure.

    Raises:
      StructureError: As `analyze`.
      TypeError: `module` is no NNX module.

    Example:
      >>> from flax import nnx
      >>> import jax
      >>> import optax_bnmask as bnmask
      >>> rngs = nnx.Rngs(0)
      >>> net = nnx.Sequential(nnx.Linear(3, 8, rngs=rngs), nnx.BatchNorm(8, rngs=rngs), nnx.relu)
      >>> x = jax.ShapeDtypeStruct((32, 3), "float32")
      >>> analysis = bnmask.analyze_nnx(net, x)
      >>> analysis["layers/0/kernel"].scale, analysis["layers/1/scale"].role
      (<Scale.INVARIANT: 'invariant'>, <Role.NORM_SCALE: 'norm_scale'>)
    """
    return confirmed(nnx_call(module, args, kwargs, method=method, has_aux=has_aux))


def nnx_call(
    module: Any,  # noqa: ANN401 - as in `analyze_nnx`
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *,
    method: str | Callable[..., Any] | None = None,
    has_aux: bool = False,
) -> Call:
    """The `Call` of an NNX module; all variables but its `nnx.Param`s are `Call.state`."""
    from flax import nnx  # noqa: PLC0415 - not imported by `import flax`, nor by us

    if not isinstance(module, nnx.Module):
        raise wrong_kind(
            "module",
            "an `nnx.Module`, made and not only its class",
            module,
            "The order is `module, *args`. For Linen there is `bnmask.analyze_linen`, for a "
            "function `bnmask.analyze`.",
        )
    graph, params, others = nnx.split(module, nnx.Param, ...)
    stats = nnx.filter_state(others, nnx.BatchStat)

    # Positional only, so that arguments of the module's own may have these names too.
    def fn(params: Any, others: Any, /, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        merged = nnx.merge(graph, params, others)
        called = functools.partial(method, merged) if callable(method) else merged
        if isinstance(method, str):
            called = getattr(merged, method)
        return called(*args, **kwargs)

    return Call(fn, params, (others,), args, kwargs, stats, has_aux)
