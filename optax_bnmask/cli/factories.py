"""The functions that a command is told to call: found from the working directory on."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from optax_bnmask.errors import StructureError, first_line


def found(factory: str) -> Callable[[], Any]:
    """The function that ``package.module:factory`` names, looked for from the working directory on.

    Args:
      factory: The name.

    Returns:
      The function; one that returns the module where a Linen module itself is named.

    Raises:
      StructureError: There is none of that name, or its module cannot be imported.
    """
    module_name, colon, name = factory.partition(":")
    if not colon or not module_name or not name:
        raise StructureError(
            f"What to look at is given as 'package.module:factory'. Found {factory!r}. Put a colon "
            f"between the module and the function in it."
        )
    sys.path.insert(0, str(Path.cwd()))
    try:
        made: Any = importlib.import_module(module_name)
        for part in name.split("."):
            made = getattr(made, part)
    except (ModuleNotFoundError, AttributeError) as error:
        raise StructureError(
            f"There must be something called {factory!r}. {error}. Is the package installed, or "
            f"the command run where it lies?"
        ) from error
    except Exception as error:  # anything may come out of a user's module
        said = first_line(error)
        raise StructureError(
            f"{module_name!r} must be a module that can be imported. It raised "
            f"{type(error).__name__}: {said}."
        ) from error
    finally:
        sys.path.pop(0)
    if is_of(made, "flax.linen", "Module"):
        return lambda: made
    if not callable(made):
        raise StructureError(
            f"{factory!r} must be a function of no arguments that makes the model, or a Linen "
            f"module. It is a {type(made).__name__}. Wrap it in a function."
        )
    return made


def is_of(value: object, module: str, name: str) -> bool:
    """Whether a value is of a framework's class, without importing the framework."""
    kind = getattr(sys.modules.get(module), name, None)
    return kind is not None and isinstance(value, kind)
