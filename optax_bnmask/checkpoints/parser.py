"""Reads JSON from files that are not trusted."""

import json
import stat
from pathlib import Path
from typing import Any

from optax_bnmask.checkpoints.stored import LARGEST_JSON, Kind, refuse, shown


class _TwiceError(ValueError):
    """A key that stands twice in one object."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys differ; `json` alone would keep the last and say nothing."""
    made = dict(pairs)
    if len(made) != len(pairs):
        seen: set[str] = set()
        raise _TwiceError(next(key for key, _ in pairs if key in seen or seen.add(key)))
    return made


def json_object(kind: Kind, text: bytes, what: str) -> dict[str, Any]:
    """The JSON object that some bytes are.

    Args:
      kind: The kind of checkpoint, for the error.
      text: The bytes.
      what: What they are, for the error.

    Returns:
      The object.

    Raises:
      StructureError: They are something else, are nested beyond what Python reads, hold a number
        that it does not, or one key twice.
    """
    try:
        found = json.loads(text, object_pairs_hook=_once)
    except _TwiceError as error:
        refuse(kind, f"{what} has the key {shown(error.args[0])} twice", "")
    except (ValueError, RecursionError) as error:
        said = "it is nested too deep" if isinstance(error, RecursionError) else str(error)
        refuse(kind, f"{what} must be JSON: {said[:120]}")
    if not isinstance(found, dict):
        refuse(kind, f"{what} must be a JSON object, and is {shown(found)}")
    return found


def small_file(kind: Kind, path: Path, root: Path, limit: int = LARGEST_JSON) -> bytes:
    """The bytes of a file of metadata within a checkpoint's directory.

    Args:
      kind: The kind of checkpoint, for the error.
      path: The file.
      root: The directory that it must lie in, once links are followed.
      limit: The most bytes that such a file has.

    Returns:
      Its bytes.

    Raises:
      StructureError: It is missing, too large, no plain file, or a link out of the directory.
    """
    name = shown(str(path.relative_to(root)))
    try:
        real = path.resolve(strict=True)
        if not real.is_relative_to(root.resolve()):
            refuse(kind, f"{name} is a link to a place outside of it", "Copy what it links to.")
        status = real.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe would keep us waiting for ever
            refuse(kind, f"{name} is no plain file")
        if status.st_size > limit:
            refuse(kind, f"{name} has {status.st_size:,} bytes, too many for metadata")
        with real.open("rb") as file:
            return file.read(limit)
    except (OSError, RuntimeError) as error:  # Python 3.11 and 3.12 raise the latter for a loop
        reason = getattr(error, "strerror", None) or str(error)
        refuse(kind, f"{name} cannot be read: {reason}")
