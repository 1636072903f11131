"""Flax NNX: from a module to a function of its parameters."""

from collections.abc import Mapping, Sequence
from typing import Any

from optax_bnmask.analysis import Analysis
from optax_bnmask.arguments import wrong_kind
from optax_bnmask.frameworks.call import Call
from optax_bnmask.frameworks.confirm import confirmed


def analyze_nnx(module: Any, *args: Any, **kwargs: Any) -> Analysis:  # noqa: ANN401 - any module
    """`analyze` for an NNX module, with what its `BatchStat`s tell beside it.

    The module is called as ``module(*args, **kwargs)`` on a copy; set it to training mode first
    (``module.train()``).

    Args:
      module: An `nnx.Module`; an abstract one, as from `nnx.eval_shape`, does.
      *args: The inputs: arrays or `jax.ShapeDtypeStruct`s; anything else is passed as it is.
      **kwargs: The same by name.

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
    return confirmed(nnx_call(module, args, kwargs))


def nnx_call(module: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call:  # noqa: ANN401
    """An NNX module as a function of its `nnx.Param`s, all its other variables being a state."""
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

    # What a module's own arguments are called must not matter.
    def fn(params: Any, others: Any, /, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        return nnx.merge(graph, params, others)(*args, **kwargs)

    return Call(fn, params, (others,), args, kwargs, stats)
