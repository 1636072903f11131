"""`optax-bnmask diff`: two reports, read from their files."""

import json
from pathlib import Path
from typing import Any

from optax_bnmask.analysis import Analysis
from optax_bnmask.comparison import Difference, Known, compared
from optax_bnmask.errors import StructureError
from optax_bnmask.mask import Mask


def difference(old: Path, new: Path) -> Difference:
    """What changed from one report to another.

    Args:
      old: A file that `inspect` or `audit` wrote with ``--format json``, or an object that says for
        each path whether it decays.
      new: Another of the same kind.

    Returns:
      The `Difference`.

    Raises:
      StructureError: A file cannot be read, or they do not say the same things.
    """
    return compared(_read(old), _read(new), (str(old), str(new)))


def _read(path: Path) -> Known:
    """What a file says."""
    try:
        text = path.read_text(encoding="utf-8")
        record: Any = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        if isinstance(error, UnicodeDecodeError):
            reason = "it is no text, but perhaps a checkpoint"
        raise StructureError(
            f"`{path}` must be a report in JSON. Reading it failed: {reason}. Write one with "
            f"`optax-bnmask inspect ... --format json`."
        ) from error
    fields: dict[str, Any] = record if isinstance(record, dict) else {}
    schema = fields.get("schema")
    if schema == "optax_bnmask/audit/1" and isinstance(rates := fields.get("rates"), dict):
        numbers = all(isinstance(rate, int | float) for rate in rates.values())
        return _mask(path, {name: rate > 0 for name, rate in rates.items()} if numbers else rates)
    if schema is None:
        return _mask(path, fields)
    analysis = Analysis.from_json(text)
    if "decays" not in fields:
        return analysis
    mask = _mask(path, fields["decays"])
    if set(mask) != {leaf.path for leaf in analysis.leaves}:
        raise StructureError(
            f"`{path}` must decide on every leaf that it lists. Its 'decays' and its 'leaves' "
            f"differ. Was it changed since it was written?"
        )
    return analysis, mask


def _mask(path: Path, decays: object) -> Mask:
    """A mask from an object of booleans by path."""
    if not isinstance(decays, dict) or not decays or {type(d) for d in decays.values()} != {bool}:
        raise StructureError(
            f"`{path}` must be a report in JSON, or an object of true and false by path. It is "
            f"neither. Write one with `optax-bnmask inspect ... --format json`."
        )
    return Mask(decays)
