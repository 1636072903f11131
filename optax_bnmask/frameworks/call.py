"""A framework's model as a function of its parameters and all that it is called with."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True, slots=True)
class Call:
    """A call ``fn(params, *state, *args, **kwargs)``.

    Attributes:
      fn: The function.
      params: Its parameters.
      state: What else the framework keeps for the model: statistics, keys.
      args: The user's arguments.
      kwargs: The user's keyword arguments.
      statistics: The running statistics of its normalisers, or `None`.
      has_aux: Whether the function returns a pair of which only the first counts.
    """

    fn: Callable[..., Any]
    params: Any
    state: Sequence[Any]
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    statistics: Any
    has_aux: bool = False
