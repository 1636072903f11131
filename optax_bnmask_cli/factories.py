"""Imports the functions that a command is told to call, from the working directory first."""

import difflib
import importlib
import inspect
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from optax_bnmask.arguments import is_of
from optax_bnmask.errors import StructureError, first_line
from optax_bnmask.paths import nearest


def imported_factory(factory: str) -> Callable[[], Any]:
    """The function that ``package.module:factory`` names; the working directory is searched first.

    Args:
      factory: The name.

    Returns:
      The function; one that returns the module where a Linen module itself is named.

    Raises:
      StructureError: There is none of that name, or its module cannot be imported.
    """
    module_name, colon, name = factory.partition(":")
    if not colon or not all(part.isidentifier() for part in f"{module_name}.{name}".split(".")):
        raise StructureError(
            f"What to look at is given as 'package.module:factory'. Found {factory!r}. "
            f"{spelling_advice(factory)}"
        )
    made: Any = _imported(module_name)
    for part in name.split("."):
        if not hasattr(made, part):
            raise StructureError(
                f"There must be something called {factory!r}. {module_name!r} has no attribute "
                f"{part!r}{_nearest(part, made)}."
            )
        made = getattr(made, part)
    if is_of(made, "flax.linen", "Module"):
        return lambda: made
    if not callable(made):
        raise StructureError(
            f"{factory!r} must be a function of no arguments that makes the model, or a Linen "
            f"module. It is a {type(made).__name__}. Wrap it in a function."
        )
    _require_no_arguments(factory, made)
    return made


def _require_no_arguments(factory: str, made: Callable[..., Any]) -> None:
    """Fails on what cannot be called without arguments."""
    try:
        signature = inspect.signature(made)
    except (TypeError, ValueError):  # what is no function of Python's has no signature
        return
    various = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [
        name
        for name, one in signature.parameters.items()
        if one.default is one.empty and one.kind not in various
    ]
    if needed:
        raise StructureError(
            f"{factory!r} must be a function of no arguments. It takes "
            f"{' and '.join(map(repr, needed))}. Write one that calls it with what it needs."
        )


_FILES: Final = (".npz", ".npy", ".safetensors", ".msgpack")
"""The endings of files that are checkpoints."""

_HERE: Final = Path(__file__).parent


def spelling_advice(subject: str) -> str:
    """How to spell what was meant by something that names no factory."""
    if ":" not in subject and subject.endswith(".py"):
        module = subject.removesuffix(".py").replace("/", ".").strip(".")
        return f"Write '{module}:FACTORY', FACTORY being the function in it to call."
    module, colon, name = subject.removesuffix("()").partition(":")
    if not colon and Path(subject).suffix in _FILES:
        return "Is that the path of the checkpoint?"
    if not colon:
        module, _, name = module.rpartition(".")
    spelt = f"{module.removesuffix('.py').replace('/', '.').strip('.')}:{name}"
    if spelt != subject and all(part.isidentifier() for part in spelt.replace(":", ".").split(".")):
        return f"Write {spelt!r}, if that is what you mean."
    return "Put a colon between the module and the function in it."


def described_error(error: BaseException) -> str:
    """What a user's code raised, and at which of its lines."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [
        frame
        for frame in frames
        if not frame.filename.startswith(sys.prefix) and Path(frame.filename).parent != _HERE
    ]
    others = own or [frame for frame in frames if Path(frame.filename).parent != _HERE]
    at = ""
    if others:
        last = others[-1]
        at = f", at {Path(last.filename).name}:{last.lineno} ({last.name})"
    return f"raised {type(error).__name__}: {first_line(error).rstrip('.')}{at}"


def _imported(name: str) -> ModuleType:
    """The module of that name."""
    sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:  # anything may come out of a user's module
        if isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}."):
            raise StructureError(
                f"There must be a module {name!r}. No module is called {error.name!r}. "
                f"{_where(name)}"
            ) from error
        raise StructureError(
            f"{name!r} must be a module that can be imported. It {described_error(error)}. --debug "
            f"shows the whole traceback."
        ) from error
    finally:
        sys.path.pop(0)


def _where(name: str) -> str:
    """What may be wrong with the name of a module that is not there."""
    if name.endswith(".py"):
        return f"Write {name.removesuffix('.py')!r}, without the ending."
    return "Is the package installed, or the command run where it lies?"


def _nearest(name: str, holder: object) -> str:
    """The functions of a module that are most like a name, if any are."""
    names = [n for n, value in vars(holder).items() if callable(value) and not n.startswith("_")]
    return nearest(name, difflib.get_close_matches(name, names))
