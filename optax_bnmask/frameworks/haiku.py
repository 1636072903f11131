"""Haiku: from a transformed function to a function of its parameters."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from optax_bnmask.analysis import Analysis
from optax_bnmask.arguments import wrong_kind
from optax_bnmask.errors import StructureError
from optax_bnmask.frameworks.call import Call
from optax_bnmask.frameworks.confirm import confirmed


def analyze_haiku(
    transformed: Any,  # noqa: ANN401 - what `hk.transform` and its kin return
    params: Any,  # noqa: ANN401 - Haiku's nested mapping
    *args: Any,  # noqa: ANN401 - whatever the function takes
    state: Any = None,  # noqa: ANN401 - Haiku's nested mapping
    rng: Any = None,  # noqa: ANN401 - a key of either kind
    has_aux: bool = False,
    **kwargs: Any,  # noqa: ANN401 - whatever the function takes
) -> Analysis:
    """`analyze` for a function that Haiku transformed, completed by the roles its state shows.

    Only the output counts, not the new state. Pass what makes it run as in training
    (``is_training=True``): a normaliser on its running statistics hides nothing, and is warned of.

    Args:
      transformed: What `hk.transform` or `hk.transform_with_state` returned, also through
        `hk.without_apply_rng`.
      params: Its parameters; abstract ones, as from ``jax.eval_shape(net.init, key, x)``, do.
      *args: The inputs: arrays or `jax.ShapeDtypeStruct`s; anything else is passed as it is.
      state: Its state, if it has one.
      rng: The key for `apply`, if that takes one; without it one is made up.
      has_aux: Whether the function returns a pair of which only the first counts, as in `analyze`.
      **kwargs: More inputs by name.

    Returns:
      The `Analysis`, its evidence the program and the structure.

    Raises:
      StructureError: `state` is missing, or given where none is kept; or as `analyze`.
      TypeError: `transformed` is not what `hk.transform` or its kin returned.

    Example:
      >>> import haiku as hk, jax
      >>> import optax_bnmask as bnmask
      >>> def net(x):
      ...     norm = hk.LayerNorm(-1, True, True, name="post")
      ...     return jax.nn.relu(norm(hk.Linear(8, with_bias=False, name="dense")(x)))
      >>> net = hk.transform(net)
      >>> x = jax.ShapeDtypeStruct((32, 3), "float32")
      >>> params = jax.eval_shape(net.init, jax.random.key(0), x)
      >>> analysis = bnmask.analyze_haiku(net, params, x)
      >>> str(analysis["dense/w"].scale), str(analysis["post/offset"].role)
      ('invariant', 'norm_bias')
    """
    call = haiku_call(transformed, params, args, kwargs, state=state, rng=rng, has_aux=has_aux)
    return confirmed(call)


def haiku_call(
    transformed: Any,  # noqa: ANN401 - as in `analyze_haiku`
    params: Any,  # noqa: ANN401 - as in `analyze_haiku`
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *,
    state: Any,  # noqa: ANN401 - as in `analyze_haiku`
    rng: Any,  # noqa: ANN401 - a key
    has_aux: bool,
) -> Call:
    """The `Call` of a transformed function; Haiku's state and the key are `Call.state`."""
    apply = getattr(transformed, "apply", None)
    # By their names, since Haiku need not be there: both are named tuples of `init` and `apply`.
    kind = type(transformed).__name__
    if not callable(apply) or kind not in ("Transformed", "TransformedWithState"):
        raise wrong_kind(
            "transformed",
            "what `hk.transform` or `hk.transform_with_state` returned",
            transformed,
            "The order is `transformed, params, *args`. For a function there is `bnmask.analyze`.",
        )
    keeps_state = kind == "TransformedWithState"
    if keeps_state == (state is None):
        wanted = "be the state beside the params" if keeps_state else "be left out"
        raise StructureError(
            f"`state` must {wanted} for a `{kind}`. Found {type(state).__name__}. It is the second "
            f"of what `init` of a `hk.transform_with_state` returns."
        )
    takes_rng = "rng" in inspect.signature(apply).parameters
    if rng is None:
        rng = jax.eval_shape(lambda: jax.random.PRNGKey(0))
    before = (state,) if keeps_state else ()
    keys = (rng,) if takes_rng else ()
    n = len(before) + len(keys)

    # Positional only, so that arguments of the function's own may have this name too.
    def fn(params: Any, /, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        out = apply(params, *args[:n], *args[n:], **kwargs)
        return out[0] if keeps_state else out

    return Call(fn, params, (*before, *keys), args, kwargs, state, has_aux)
