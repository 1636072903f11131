"""`optax-bnmask inspect`: what is known of a model, traced from shapes alone, or a checkpoint."""

import ast
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from optax_bnmask.analysis import Analysis
from optax_bnmask.arguments import described, is_array, is_of
from optax_bnmask.checkpoints import analyze_checkpoint
from optax_bnmask.errors import StructureError
from optax_bnmask.frameworks.linen import analyze_linen
from optax_bnmask.frameworks.nnx import analyze_nnx
from optax_bnmask.program import analyze
from optax_bnmask_cli.factories import described_error, imported_factory, spelling_advice


def inspected(
    subject: str,
    inputs: Sequence[str],
    arguments: Sequence[str],
    *,
    params: str | None,
    stats: str | None,
) -> Analysis:
    """The analysis of the checkpoint of that path, or of what ``package.module:factory`` makes.

    Nothing is allocated: the factory runs under `jax.eval_shape`.

    Args:
      subject: Where a checkpoint is; or where to find a function of no arguments that returns a
        Linen module, an NNX module, or a pair ``(fn, params)`` of a function
        ``fn(params, *inputs)`` and its parameters. A Linen module itself will do.
      inputs: The shapes of the inputs, ``"8,224,224,3"``, float32 unless ``"8,128:int32"`` says
        otherwise.
      arguments: What else the model is called with, ``"train=True"``, Python literals.
      params: Where in a checkpoint the params are.
      stats: Where in a checkpoint the running statistics are.

    Returns:
      The `Analysis`.

    Raises:
      StructureError: There is no such thing, the factory returns something else, an input or
        argument cannot be read, or an option means nothing here.
    """
    exists = Path(subject).exists() and not subject.endswith(".py")
    if exists or ":" in subject:
        _refuse_stray(exists, [*inputs, *arguments], [params, stats])
    if exists:
        return analyze_checkpoint(subject, params=params, stats=stats)
    if ":" not in subject:
        what = "is a module" if subject.endswith(".py") else "does not exist"
        raise StructureError(
            f"What to look at is given as 'package.module:factory' or as the path of a checkpoint. "
            f"Found {subject!r}, which has no colon and {what}. {spelling_advice(subject)}"
        )
    return _traced(subject, inputs, arguments)


def _refuse_stray(
    is_checkpoint: bool,  # noqa: FBT001 - what the rest is judged by
    of_models: Sequence[str],
    of_checkpoints: Sequence[str | None],
) -> None:
    """Fails on options for models if the subject is a checkpoint, and the other way round."""
    if is_checkpoint and of_models:
        raise StructureError(
            "--input and --arg are for a model. A checkpoint has no program to be given them. "
            "Leave them out, or name MODULE:FACTORY."
        )
    if not is_checkpoint and any(place is not None for place in of_checkpoints):
        raise StructureError(
            "--params and --stats are for a checkpoint. A model brings its own. Leave them out, or "
            "name the path of a checkpoint."
        )


def _traced(factory: str, inputs: Sequence[str], arguments: Sequence[str]) -> Analysis:
    """The analysis of what a factory makes."""
    make = imported_factory(factory)
    arrays = [_shape(text) for text in inputs]
    named: dict[str, Any] = {}
    for name, value in map(_argument, arguments):
        if name in named:
            raise StructureError(
                f"Each --arg must name another argument. {name!r} is given twice. Leave one out."
            )
        named[name] = value
    try:
        return _analysis(factory, make, arrays, named)
    except StructureError:
        raise
    except (Exception, SystemExit) as error:
        given = ", ".join([*inputs, *arguments]) or "no inputs at all"
        raise StructureError(
            f"{factory!r} must make a model that runs on what the command gives it. With {given} "
            f"it {described_error(error)}. Give an --input for each of its arguments, with its "
            f"dtype if that is not float32 (2,16:int32), and an --arg for what else it needs; "
            f"--debug shows the whole traceback."
        ) from error


def _analysis(
    factory: str,
    make: Callable[[], Any],
    arrays: Sequence[jax.ShapeDtypeStruct],
    named: Mapping[str, Any],
) -> Analysis:
    """The analysis by the function for what the factory makes: a pair, a Linen or an NNX module."""
    made = _made(make)
    if _is_pair(made):
        return analyze(made[0], made[1], *arrays, **named)
    if is_of(made, "flax.linen", "Module"):
        keys = {name: jax.eval_shape(lambda: jax.random.key(0)) for name in ("params", "dropout")}
        variables = jax.eval_shape(functools.partial(made.init, **named), keys, *arrays)
        return analyze_linen(made, variables, *arrays, **named)
    if is_of(made, "flax.nnx", "Module"):
        from flax import nnx  # noqa: PLC0415 - not imported by `import flax`, nor by us

        return analyze_nnx(nnx.eval_shape(make), *arrays, **named)
    raise StructureError(
        f"{factory!r} must make a Linen module, an NNX module, or a pair (fn, params). It made "
        f"{_in_words(made)}. Write a function of no arguments that returns one of these."
    )


def _is_pair(made: Any) -> bool:  # noqa: ANN401 - whatever the user's factory made
    """Whether this is a pair of a function and something else, its parameters."""
    if not isinstance(made, tuple) or len(made) != 2 or not callable(made[0]):
        return False
    return not any(is_of(made[0], name, "Module") for name in ("flax.linen", "flax.nnx"))


def _in_words(made: Any) -> str:  # noqa: ANN401 - as above
    """What a factory made; of a tuple, what its parts are."""
    if type(made) is not tuple:
        return described(made)
    return f"({', '.join(type(part).__name__ for part in made)})"


def _made(make: Callable[[], Any]) -> Any:  # noqa: ANN401 - whatever the user's factory makes
    """What the factory makes, with shapes in place of the arrays of params."""
    made: list[Any] = []

    def keep() -> list[Any]:
        made.append(make())
        leaves = jax.tree.leaves(made[0][1]) if _is_pair(made[0]) else ()
        return list(filter(is_array, leaves))

    shapes = iter(jax.eval_shape(keep))
    if not _is_pair(made[0]):
        return made[0]
    fn, params = made[0]
    leaves, structure = jax.tree.flatten(params)
    kept = [next(shapes) if is_array(leaf) else leaf for leaf in leaves]
    return fn, jax.tree.unflatten(structure, kept)


def _shape(text: str) -> jax.ShapeDtypeStruct:
    """An input from ``"8,224,224,3"`` or ``"8,128:int32"``."""
    sizes, _, dtype = text.partition(":")
    try:
        shape = tuple(int(size) for size in sizes.split(",") if size.strip())
        if min(shape, default=1) < 1:
            raise ValueError
        return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype or "float32"))
    except (TypeError, ValueError):
        raise StructureError(
            f"An input is given as its sizes, '8,224,224,3', each at least 1, and perhaps a dtype, "
            f"'8,128:int32'. Found {text!r}."
        ) from None


def _argument(text: str) -> tuple[str, Any]:
    """A named argument from ``"train=True"``; what is no literal is a string."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise StructureError(f"An argument is given as 'name=value', 'train=True'. Found {text!r}.")
    value = {"true": "True", "false": "False", "none": "None"}.get(value, value)
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value
