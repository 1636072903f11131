"""How numbers, lists and names are put into words: one way, for every sentence and report."""

import json
import re
from typing import Any


def counted(number: int, one: str, many: str) -> str:
    """A number with its noun in singular or plural: ``1 leaf``, ``2,048 leaves``."""
    return f"{number:,} {one if number == 1 else many}"


def percent(part: float, whole: float) -> str:
    """The text of `part` as a percentage of `whole`; 0 % if `whole` is 0."""
    return f"{100 * part / whole if whole else 0:.1f} %"


def json_text(record: dict[str, Any]) -> str:
    """An object as JSON for files that people keep: indented, names as they are, no NaN.

    Lone surrogates, which UTF-8 cannot encode, are written as JSON's escapes.
    """
    text = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False)
    return re.sub("[\ud800-\udfff]", lambda found: f"\\u{ord(found[0]):04x}", text)
