"""The examples, which are not installed: they lie in the clone that the package came from."""

import importlib
import json
import sys
from importlib.metadata import distribution
from pathlib import Path
from types import ModuleType
from urllib.parse import urlsplit
from urllib.request import url2pathname

from optax_bnmask.errors import StructureError


def example(name: str) -> ModuleType:
    """An example, as a module.

    Args:
      name: Its folder in ``examples``.

    Returns:
      The module.

    Raises:
      StructureError: The package was not installed from a clone, or the clone is gone.
    """
    for root in (_clone(), Path.cwd()):
        if root is not None and (root / "examples" / name / "__init__.py").exists():
            sys.path.insert(0, str(root))
            try:
                return importlib.import_module(f"examples.{name}")
            finally:
                sys.path.remove(str(root))
    raise StructureError(
        f"The examples must lie where the package was installed from, or in the working directory. "
        f"There is no folder 'examples/{name}' in either. Run this in a clone of the repository."
    )


def _clone() -> Path | None:
    """The folder that the package was installed from, as its installer noted (PEP 610)."""
    noted = distribution("optax-bnmask").read_text("direct_url.json")
    url = urlsplit(json.loads(noted)["url"] if noted else "")
    return Path(url2pathname(url.path)) if url.scheme == "file" else None
