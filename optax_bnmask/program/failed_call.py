"""What to say of a call of the user's function that could not be traced."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from optax_bnmask.arguments import described, is_array
from optax_bnmask.errors import StructureError
from optax_bnmask.paths import tree_index
from optax_bnmask.wording import counted


def note_on_failure(
    leaves: Mapping[str, Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> str:
    """A note for an error raised while tracing: what the function was called with.

    Args:
      leaves: The parameters by path.
      args: The other arguments.
      kwargs: The other arguments by name.

    Returns:
      Sentences; where an argument repeats the parameters, the first one says so.
    """

    def shown(value: Any) -> str:  # noqa: ANN401 - any argument
        if is_array(value):
            return f"{value.dtype}{list(value.shape)}"
        return described(value)

    given = [*map(shown, args), *(f"{name}={shown(value)}" for name, value in kwargs.items())]
    return " ".join(
        [
            *_repeated(leaves, [*args, *kwargs.values()]),
            f"This was raised when the function was traced: called with the parameters, "
            f"{counted(len(leaves), 'leaf', 'leaves')}, and then ({', '.join(given)}). Arrays are "
            f"given as arrays or as `jax.ShapeDtypeStruct(shape, dtype)`; all else is passed on "
            f"as it is.",
        ]
    )


def _repeated(leaves: Mapping[str, Any], values: Sequence[Any]) -> Iterator[str]:
    """A sentence on each argument that holds all leaves of the parameters once more."""
    if "" in leaves:  # one array, like which any other may be
        return
    for value in values:
        if is_array(value):
            continue
        try:
            own = tree_index(value).leaves
        except StructureError:
            continue
        if all(path in own and _shape(own[path]) == _shape(leaf) for path, leaf in leaves.items()):
            yield (
                f"Among the arguments is {described(value)} with all leaves of the parameters, "
                f"which are given already: leave it out."
            )


def _shape(value: Any) -> Any:  # noqa: ANN401 - any leaf
    return getattr(value, "shape", ())
