"""`verify` for models of Linen, NNX, Haiku and Equinox, by the arguments of `analyze_linen` etc."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, overload

from optax_bnmask.analysis import Analysis
from optax_bnmask.frameworks.call import Call
from optax_bnmask.frameworks.confirm import confirmed
from optax_bnmask.frameworks.equinox import equinox_call
from optax_bnmask.frameworks.haiku import haiku_call
from optax_bnmask.frameworks.linen import linen_call
from optax_bnmask.frameworks.nnx import nnx_call
from optax_bnmask.verify.outcome import Verification
from optax_bnmask.verify.pipeline import keywords, verification_of


@overload
def verify_linen(
    module: Any,  # noqa: ANN401 - as in `analyze_linen`
    variables: Mapping[str, Any],
    /,
    *args: Any,  # noqa: ANN401 - whatever the module takes
    key: Any,  # noqa: ANN401 - a key of either kind
    factor: float = 256.0,
    rngs: Any = None,  # noqa: ANN401 - as in `apply`
    method: str | Callable[..., Any] | None = None,
    has_aux: bool = False,
    **kwargs: Any,  # noqa: ANN401 - whatever the module takes
) -> Verification: ...


@overload
def verify_linen(
    analysis: Analysis,
    module: Any,  # noqa: ANN401 - as in `analyze_linen`
    variables: Mapping[str, Any],
    /,
    *args: Any,  # noqa: ANN401 - whatever the module takes
    key: Any,  # noqa: ANN401 - a key of either kind
    factor: float = 256.0,
    rngs: Any = None,  # noqa: ANN401 - as in `apply`
    method: str | Callable[..., Any] | None = None,
    has_aux: bool = False,
    **kwargs: Any,  # noqa: ANN401 - whatever the module takes
) -> Verification: ...


def verify_linen(
    *given: Any,
    key: Any,
    factor: float = 256.0,
    rngs: Any = None,
    method: str | Callable[..., Any] | None = None,
    has_aux: bool = False,
    **kwargs: Any,
) -> Verification:
    """`verify` for a Linen module: ``verify_linen([analysis,] module, variables, *args, key=...)``.

    Args:
      *given: The analysis to verify, as from `analyze_linen`; without one, the module is analysed
        first. Then what `analyze_linen` takes: the module, its variables, its inputs.
      key: As in `verify`. A module that takes a `key` of its own gets this one.
      factor: As in `verify`.
      rngs: As in `analyze_linen`: the same random numbers in every evaluation.
      method: As in `analyze_linen`.
      has_aux: As in `analyze_linen`.
      **kwargs: The module's other arguments by name.

    Returns:
      The `Verification`.

    Raises:
      VerificationError: A claim fails.
      StructureError: As `analyze_linen` and `verify`.

    Example:
      >>> import flax.linen as nn, jax
      >>> import optax_bnmask as bnmask
      >>> norm = nn.BatchNorm(use_running_average=False)
      >>> net = nn.Sequential([nn.Dense(8), norm, nn.tanh])
      >>> x = jax.random.normal(jax.random.key(0), (16, 3))
      >>> variables = net.init(jax.random.key(1), x)
      >>> bnmask.verify_linen(net, variables, x, key=jax.random.key(2)).dead_biases
      ('layers_0/bias',)
    """
    analysis, (module, variables, *args) = _split(
        given, 2, "`verify_linen` must be given a module, its variables"
    )
    called = method if callable(method) else getattr(module, method or "__call__", None)
    if _takes_key(analysis, called):
        kwargs["key"] = key
    how = {"rngs": rngs, "method": method, "has_aux": has_aux}
    call = linen_call(module, variables, args, kwargs, **how)
    return _verified(analysis, call, key=key, factor=factor)


@overload
def verify_nnx(
    module: Any,  # noqa: ANN401 - any module
    /,
    *args: Any,  # noqa: ANN401 - whatever the module takes
    key: Any,  # noqa: ANN401 - a key of either kind
    factor: float = 256.0,
    method: str | Callable[..., Any] | None = None,
    has_aux: bool = False,
    **kwargs: Any,  # noqa: ANN401 - whatever the module takes
) -> Verification: ...


@overload
def verify_nnx(
    analysis: Analysis,
    module: Any,  # noqa: ANN401 - any module
    /,
    *args: Any,  # noqa: ANN401 - whatever the module takes
    key: Any,  # noqa: ANN401 - a key of either kind
    factor: float = 256.0,
    method: str | Callable[..., Any] | None = None,
    has_aux: bool = False,
    **kwargs: Any,  # noqa: ANN401 - whatever the module takes
) -> Verification: ...


def verify_nnx(
    *given: Any,
    key: Any,
    factor: float = 256.0,
    method: str | Callable[..., Any] | None = None,
    has_aux: bool = False,
    **kwargs: Any,
) -> Verification:
    """`verify` for an NNX module: ``verify_nnx([analysis,] module, *args, key=...)``.

    The module is left as it is: its statistics and the counts of its keys do not move.

    Args:
      *given: The analysis to verify, as from `analyze_nnx`; without one, the module is analysed
        first. Then what `analyze_nnx` takes: the module, its inputs.
      key: As in `verify`. A module that takes a `key` of its own gets this one.
      factor: As in `verify`.
      method: As in `analyze_nnx`.
      has_aux: As in `analyze_nnx`.
      **kwargs: The module's other arguments by name.

    Returns:
      The `Verification`.

    Raises:
      VerificationError: A claim fails.
      StructureError: As `analyze_nnx` and `verify`.

    Example:
      >>> from flax import nnx
      >>> import jax
      >>> import optax_bnmask as bnmask
      >>> rngs = nnx.Rngs(0)
      >>> net = nnx.Sequential(nnx.Linear(3, 8, rngs=rngs), nnx.BatchNorm(8, rngs=rngs), nnx.tanh)
      >>> x = jax.ShapeDtypeStruct((32, 3), "float32")
      >>> analysis = bnmask.analyze_nnx(net, x)
      >>> bnmask.verify_nnx(analysis, net, x, key=jax.random.key(0)).dead_biases
      ('layers/0/bias',)
    """
    analysis, (module, *args) = _split(given, 1, "`verify_nnx` must be given a module")
    called = method if callable(method) else getattr(module, method or "__call__", None)
    if _takes_key(analysis, called):
        kwargs["key"] = key
    call = nnx_call(module, args, kwargs, method=method, has_aux=has_aux)
    return _verified(analysis, call, key=key, factor=factor)


@overload
def verify_haiku(
    transformed: Any,  # noqa: ANN401 - as in `analyze_haiku`
    params: Any,  # noqa: ANN401 - as in `analyze_haiku`
    /,
    *args: Any,  # noqa: ANN401 - whatever the function takes
    key: Any,  # noqa: ANN401 - a key of either kind
    factor: float = 256.0,
    state: Any = None,  # noqa: ANN401 - Haiku's nested mapping
    rng: Any = None,  # noqa: ANN401 - a key of either kind
    has_aux: bool = False,
    **kwargs: Any,  # noqa: ANN401 - whatever the function takes
) -> Verification: ...


@overload
def verify_haiku(
    analysis: Analysis,
    transformed: Any,  # noqa: ANN401 - as in `analyze_haiku`
    params: Any,  # noqa: ANN401 - as in `analyze_haiku`
    /,
    *args: Any,  # noqa: ANN401 - whatever the function takes
    key: Any,  # noqa: ANN401 - a key of either kind
    factor: float = 256.0,
    state: Any = None,  # noqa: ANN401 - Haiku's nested mapping
    rng: Any = None,  # noqa: ANN401 - a key of either kind
    has_aux: bool = False,
    **kwargs: Any,  # noqa: ANN401 - whatever the function takes
) -> Verification: ...


def verify_haiku(
    *given: Any,
    key: Any,
    factor: float = 256.0,
    state: Any = None,
    rng: Any = None,
    has_aux: bool = False,
    **kwargs: Any,
) -> Verification:
    """`verify` for Haiku: ``verify_haiku([analysis,] transformed, params, *args, key=...)``.

    Args:
      *given: The analysis to verify, as from `analyze_haiku`; without one, the function is analysed
        first. Then what `analyze_haiku` takes: what was transformed, its parameters, its inputs.
      key: As in `verify`.
      factor: As in `verify`.
      state: As in `analyze_haiku`.
      rng: As in `analyze_haiku`: the same random numbers in every evaluation.
      has_aux: As in `analyze_haiku`.
      **kwargs: The function's other arguments by name.

    Returns:
      The `Verification`.

    Raises:
      VerificationError: A claim fails.
      StructureError: As `analyze_haiku` and `verify`.

    Example:
      >>> import haiku as hk, jax
      >>> import optax_bnmask as bnmask
      >>> def net(x):
      ...     norm = hk.LayerNorm(-1, True, True, name="post")
      ...     return norm(jax.nn.relu(hk.Linear(8, name="dense")(x)))
      >>> net = hk.without_apply_rng(hk.transform(net))
      >>> x = jax.random.normal(jax.random.key(0), (16, 3))
      >>> params = net.init(jax.random.key(1), x)
      >>> bnmask.verify_haiku(net, params, x, key=jax.random.key(2)).ok
      True
    """
    analysis, (net, params, *args) = _split(
        given, 2, "`verify_haiku` must be given what was transformed, its params"
    )
    call = haiku_call(net, params, args, kwargs, state=state, rng=rng, has_aux=has_aux)
    return _verified(analysis, call, key=key, factor=factor)


@overload
def verify_equinox(
    fn: Callable[..., Any],
    model: Any,  # noqa: ANN401 - any pytree
    /,
    *args: Any,  # noqa: ANN401 - whatever the function takes
    key: Any,  # noqa: ANN401 - a key of either kind
    factor: float = 256.0,
    has_aux: bool = False,
    **kwargs: Any,  # noqa: ANN401 - whatever the function takes
) -> Verification: ...


@overload
def verify_equinox(
    analysis: Analysis,
    fn: Callable[..., Any],
    model: Any,  # noqa: ANN401 - any pytree
    /,
    *args: Any,  # noqa: ANN401 - whatever the function takes
    key: Any,  # noqa: ANN401 - a key of either kind
    factor: float = 256.0,
    has_aux: bool = False,
    **kwargs: Any,  # noqa: ANN401 - whatever the function takes
) -> Verification: ...


def verify_equinox(
    *given: Any,
    key: Any,
    factor: float = 256.0,
    has_aux: bool = False,
    **kwargs: Any,
) -> Verification:
    """`verify` for an Equinox model: ``verify_equinox([analysis,] fn, model, *args, key=...)``.

    Args:
      *given: The analysis to verify, as from `analyze_equinox`; without one, the model is analysed
        first. Then what `analyze_equinox` takes: a function of the model, the model, its inputs.
      key: As in `verify`. A function that takes a `key` of its own gets this one.
      factor: As in `verify`.
      has_aux: As in `analyze_equinox`.
      **kwargs: The function's other arguments by name.

    Returns:
      The `Verification`.

    Raises:
      VerificationError: A claim fails.
      StructureError: As `analyze_equinox` and `verify`.

    Example:
      >>> import equinox as eqx, jax
      >>> import optax_bnmask as bnmask
      >>> dense = eqx.nn.Linear(3, 8, key=jax.random.key(0))
      >>> net = eqx.nn.Sequential([dense, eqx.nn.LayerNorm(8)])
      >>> x = jax.random.normal(jax.random.key(1), (16, 3))
      >>> fn = lambda net, x: jax.vmap(net)(x)
      >>> bnmask.verify_equinox(fn, net, x, key=jax.random.key(2)).ok
      True
    """
    analysis, (fn, model, *args) = _split(
        given, 2, "`verify_equinox` must be given a function, its model"
    )
    if _takes_key(analysis, fn):
        kwargs["key"] = key
    call = equinox_call(fn, model, args, kwargs, has_aux=has_aux)
    return _verified(analysis, call, key=key, factor=factor)


def _split(given: Sequence[Any], least: int, must: str) -> tuple[Analysis | None, Sequence[Any]]:
    """The analysis, if the first argument is one, and the rest; fails on fewer than `least`."""
    is_first = bool(given) and isinstance(given[0], Analysis)
    analysis, rest = (given[0], given[1:]) if is_first else (None, given)
    if any(isinstance(each, Analysis) for each in rest):
        raise TypeError(f"{must} after the analysis. Found an Analysis behind it. Put it first.")
    if len(rest) < least:
        raise TypeError(
            f"{must} and what the module takes, after the analysis if there is one. Found "
            f"{len(given)} arguments by position."
        )
    return analysis, rest


def _takes_key(analysis: Analysis | None, called: Any) -> bool:  # noqa: ANN401 - any callable
    """Whether a model was analysed with a `key`, or has such an argument where it was not yet."""
    if analysis is not None:
        return "key" in keywords(analysis)
    try:
        return "key" in inspect.signature(called).parameters
    except (TypeError, ValueError):  # what is no function of Python's has no signature
        return False


def _verified(analysis: Analysis | None, call: Call, **how: Any) -> Verification:  # noqa: ANN401
    """Verifies a model, analysing it first if that was not done."""
    analysis = confirmed(call) if analysis is None else analysis
    args, state = (*call.state, *call.args), call.state
    return verification_of(analysis, call.fn, call.params, args, call.kwargs, state=state, **how)
