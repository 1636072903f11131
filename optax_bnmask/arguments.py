"""Checks of users' arguments: each raises an error that says what to pass instead."""

import functools
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sized
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def wrong_kind(argument: str, must: str, found: object, way_out: str) -> TypeError:
    """The error for an argument of another kind.

    Args:
      argument: Its name in the function that the user called.
      must: What it must be, after "must be".
      found: What was passed.
      way_out: A sentence on what to pass instead.

    Returns:
      The error, for the caller to raise.
    """
    return TypeError(f"`{argument}` must be {must}. Found {described(found)}. {way_out}")


def described(value: object) -> str:
    """What a value is, in a few words: ``the class Net``, ``a dict``, ``3``."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if value is None or isinstance(value, bool | int | float | str):
        return repr(value)
    name = type(value).__name__
    return f"{'an' if name[0] in 'AEIOUaeiou' else 'a'} {name}"


def strings(value: Any, argument: str) -> tuple[str, ...]:  # noqa: ANN401 - what a user passed
    """A collection of strings, or one string, as a tuple.

    Raises:
      TypeError: It is something else, such as a mapping, whose values would be ignored.
    """
    if isinstance(value, str):
        return (value,)
    is_collection = isinstance(value, Iterable) and not isinstance(value, Mapping)
    items: tuple[Any, ...] = tuple(value) if is_collection else (value,)
    wrong = [item for item in items if not isinstance(item, str)]
    if wrong:
        raise wrong_kind(
            argument,
            "a string or a collection of strings",
            wrong[0],
            f"Pass `{argument}=(...)` with names in quotes.",
        )
    return items


def by_path(value: Any, argument: str) -> Mapping[str, Any]:  # noqa: ANN401 - as above
    """A mapping from canonical paths.

    Raises:
      TypeError: It is something else.
    """
    strange = [value]
    if isinstance(value, Mapping):
        strange = [path for path in value if not isinstance(path, str)]
    if strange:
        raise wrong_kind(
            argument,
            "a mapping from the paths of leaves",
            strange[0],
            "A path is the keys of a leaf joined by '/', such as 'block1/conv/kernel'.",
        )
    return value


def require_rate(rate: Any, argument: str) -> None:  # noqa: ANN401 - as above
    """Fails unless the argument is a size, or a schedule: a function from a step's count to sizes.

    Raises:
      TypeError: It is something else, such as a string or None.
      ValueError: It is negative or not finite.
    """
    if not callable(rate) or isinstance(rate, Sized):  # a `Mask` is callable, and no schedule
        require_size(rate, argument, "a number or a schedule, such as `optax.linear_schedule`'s")


def require_size(size: Any, argument: str, must: str = "a number") -> None:  # noqa: ANN401 - as above
    """Fails unless the argument is a finite number from 0 up, or an array or tracer of one.

    Raises:
      TypeError: It is something else.
      ValueError: It is negative or not finite.
    """
    if is_array(size) and size.shape:
        raise wrong_kind(argument, must, size, "One number is an array of shape ().")
    if isinstance(size, bool) or not (is_array(size) or isinstance(size, int | float)):
        raise wrong_kind(argument, must, size, "Pass the number itself.")
    number = number_of(size)
    if number is not None and not 0 <= number < math.inf:
        raise ValueError(
            f"`{argument}` must be finite and at least 0. Found {number:.6g}. Which way a step "
            f"goes is settled elsewhere."
        )


def number_of(size: Any) -> float | None:  # noqa: ANN401 - a number, or an array of shape ()
    """The number that an argument is; `None` of a tracer or a shape, and of anything else."""
    if not (is_array(size) or isinstance(size, int | float)):
        return None
    try:
        return float(size)
    except TypeError:  # JAX's errors for tracers are TypeErrors
        return None


def require_flag(flag: Any, argument: str) -> None:  # noqa: ANN401 - as above
    """Fails unless the argument is True or False.

    Raises:
      TypeError: It is something else, of which Python would ask whether it is true.
    """
    if not isinstance(flag, bool):
        raise wrong_kind(argument, "True or False", flag, "Leave it out for the default.")


def keywords_alone(method: Callable[P, T]) -> Callable[P, T]:
    """A method that explains itself where it is called with the params, or with names.

    That is what Optax does where the method was passed and not what it returns, as by
    ``mask=analysis.decay_mask``.
    """

    @functools.wraps(method)
    def called(*args: P.args, **kwargs: P.kwargs) -> T:
        if len(args) > 1:
            name = method.__name__
            raise wrong_kind(
                f"analysis.{name}",
                "called with keywords alone, or without arguments",
                args[1],
                f"Pass on what `analysis.{name}()` returns: Optax calls that with the params.",
            )
        return method(*args, **kwargs)

    return called


def require_optimizer(tx: Any, argument: str, order: str) -> None:  # noqa: ANN401 - as above
    """Fails unless the argument is an Optax optimizer.

    Raises:
      TypeError: It is something else, such as `optax.adam` itself, not called.
    """
    if not callable(getattr(tx, "init", None)) or not callable(getattr(tx, "update", None)):
        raise wrong_kind(
            argument,
            "an `optax.GradientTransformation`",
            tx,
            f"Call what makes one, as in `optax.sgd(0.1)`. The order is `{order}`.",
        )


def is_of(value: object, module: str, name: str) -> bool:
    """Whether a value is of a framework's class, without importing the framework."""
    kind = getattr(sys.modules.get(module), name, None)
    return kind is not None and isinstance(value, kind)


def is_array(value: object) -> bool:
    """Whether a value is an array, or stands for one by its shape and dtype."""
    return hasattr(value, "shape") and hasattr(value, "dtype")
