"""Where the command ``optax-bnmask`` begins: `import optax_bnmask` is put off until it is needed.

A module of a package cannot be imported without the package, and importing this one imports JAX.
That is a second in which ``--help`` and each press of the tab key would say nothing. So the package
is put in place unopened: its modules can be imported, and the first use of a name of its own opens
it. Every command that does something opens it first.
"""

import importlib
import importlib.util
import sys
from types import ModuleType

_PACKAGE = "optax_bnmask"


class _Unopened(ModuleType):
    """A package whose `__init__` has not run yet."""

    def __getattr__(self, name: str) -> object:
        """Runs it, at the first name that is not there without it."""
        spec = self.__spec__
        if spec is None or spec.loader is None or (name.startswith("__") and name != "__all__"):
            raise AttributeError(name)
        object.__setattr__(self, "__class__", ModuleType)
        spec.loader.exec_module(self)
        return getattr(self, name)


def main() -> None:
    """Runs the command line."""
    if _PACKAGE not in sys.modules:
        spec = importlib.util.find_spec(_PACKAGE)
        if spec is None:
            sys.exit("The package `optax_bnmask` must be installed beside its command. Install it.")
        package = importlib.util.module_from_spec(spec)
        package.__class__ = _Unopened
        sys.modules[_PACKAGE] = package
    # `from optax_bnmask import cli` would look for a name in the package, and so open it
    importlib.import_module(f"{_PACKAGE}.cli").main()
