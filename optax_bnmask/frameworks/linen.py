"""Flax Linen: from a module and its variables to a function of its parameters."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from optax_bnmask.analysis import Analysis
from optax_bnmask.arguments import is_of, wrong_kind
from optax_bnmask.errors import StructureError
from optax_bnmask.frameworks.call import Call
from optax_bnmask.frameworks.confirm import confirmed


def analyze_linen(
    module: Any,  # noqa: ANN401 - a Linen module; Linen's own type says no more
    variables: Mapping[str, Any],
    *args: Any,  # noqa: ANN401 - whatever the module takes
    rngs: Any = None,  # noqa: ANN401 - as in `apply`
    method: str | Callable[..., Any] | None = None,
    has_aux: bool = False,
    **kwargs: Any,  # noqa: ANN401 - whatever the module takes
) -> Analysis:
    """`analyze` for a Linen module, completed by the roles that its `batch_stats` show.

    The module is applied with all its other collections mutable, and only its output counts. Pass
    what makes it run as in training (``train=True``, ``use_running_average=False``): a normaliser
    that runs on its running statistics hides nothing, and is warned of.

    Args:
      module: The module.
      variables: Its variables, ``{"params": ..., "batch_stats": ...}``; abstract ones, as from
        ``jax.eval_shape(module.init, key, x)``, do.
      *args: The inputs: arrays or `jax.ShapeDtypeStruct`s; anything else is passed as it is.
      rngs: As in ``module.apply``; by default a key for ``"dropout"``.
      method: As in ``module.apply``.
      has_aux: Whether it returns a pair of which only the first counts, as in `analyze`.
      **kwargs: More inputs by name.

    Returns:
      The `Analysis`, its evidence the program and the structure. Where they differ on a BatchNorm,
      a note says so, and the leaf keeps the role that its statistics give it.

    Raises:
      StructureError: `variables` has no ``"params"``, or what `analyze` raises.
      TypeError: `module` is no Linen module.

    Example:
      >>> import flax.linen as nn, jax
      >>> import optax_bnmask as bnmask
      >>> norm = nn.BatchNorm(use_running_average=False)
      >>> net = nn.Sequential([nn.Conv(8, (3, 3)), norm, nn.relu])
      >>> x = jax.ShapeDtypeStruct((2, 8, 8, 3), "float32")
      >>> variables = jax.eval_shape(net.init, jax.random.key(0), x)
      >>> bnmask.analyze_linen(net, variables, x)["layers_0/kernel"].scale
      <Scale.INVARIANT: 'invariant'>
    """
    how = {"rngs": rngs, "method": method, "has_aux": has_aux}
    return confirmed(linen_call(module, variables, args, kwargs, **how))


def linen_call(
    module: Any,  # noqa: ANN401 - as in `analyze_linen`
    variables: Mapping[str, Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *,
    rngs: Any,  # noqa: ANN401 - as in `apply`
    method: str | Callable[..., Any] | None,
    has_aux: bool = False,
) -> Call:
    """The `Call` of a Linen module; its other collections and the keys are `Call.state`."""
    if not is_of(module, "flax.linen", "Module"):
        raise wrong_kind(
            "module",
            "a Linen module, made and not only its class",
            module,
            "The order is `module, variables, *args`. For NNX there is `bnmask.analyze_nnx`, for a "
            "function `bnmask.analyze`.",
        )
    if not isinstance(variables, Mapping) or "params" not in variables:
        found = ", ".join(map(repr, variables)) if isinstance(variables, Mapping) else "no mapping"
        raise StructureError(
            f"`variables` must hold the collection 'params'. Found {found}. Pass the whole of what "
            f"`module.init` returned, not `variables['params']`."
        )
    if "mutable" in kwargs:
        raise wrong_kind(
            "mutable",
            "left out",
            kwargs["mutable"],
            "All collections beside 'params' may change, and what they change to is no output.",
        )
    params = variables["params"]
    others = {name: tree for name, tree in variables.items() if name != "params"}
    if rngs is None:
        rngs = {"dropout": jax.eval_shape(lambda: jax.random.key(0))}

    # Positional only, so that arguments of the module's own may have these names too.
    def fn(params: Any, others: Any, rngs: Any, /, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        how = {"rngs": rngs, "method": method, **kwargs}
        try:
            return module.apply({"params": params, **others}, *args, mutable=[*others], **how)[0]
        except Exception as error:
            if missing := _missing(module, others, args, how):
                raise StructureError(
                    f"`variables` must hold every collection that the module reads. Found 'params' "
                    f"and no {' and no '.join(map(repr, missing))}, which its `init` makes. Pass "
                    f"the whole of what `module.init` returned."
                ) from error
            raise

    return Call(fn, params, (others, rngs), args, kwargs, others.get("batch_stats"), has_aux)


def _missing(
    module: Any,  # noqa: ANN401 - as in `analyze_linen`
    others: Mapping[str, Any],
    args: Sequence[Any],
    how: Mapping[str, Any],
) -> list[str]:
    """The collections that `init` makes, called as `apply` was, and that are not there.

    One of them may be among the arguments, where the module takes it for data.
    """
    key = jax.eval_shape(lambda: jax.random.key(0))
    keys = how["rngs"] if isinstance(how["rngs"], Mapping) else {}
    rest = {name: value for name, value in how.items() if name != "rngs"}

    for given in (args, [x for x in args if not isinstance(x, Mapping)]):

        def made(keys: Any, given: Sequence[Any] = given) -> Any:  # noqa: ANN401 - variables
            return module.init(keys, *given, **rest)

        try:
            whole = jax.eval_shape(made, {"params": key, **keys})
        except Exception:  # the module does not run on these, whatever it raises
            continue
        return sorted(whole.keys() - others.keys() - {"params"})
    return []
