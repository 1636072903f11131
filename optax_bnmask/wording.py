"""How numbers, lists and names are put into words: one way, for every sentence and report."""

import json
import re
from typing import Any


def counted(number: int, one: str, many: str) -> str:
    """A number and the word for what there are so many of: ``1 leaf``, ``2,048 leaves``."""
    return f"{number:,} {one if number == 1 else many}"


def percent(part: float, whole: float) -> str:
    """A share of a whole; of nothing it is 0."""
    return f"{100 * part / whole if whole else 0:.1f} %"


def json_text(record: dict[str, Any]) -> str:
    """An object as JSON for files that people keep: indented, names as they are, no NaN.

    Lone surrogates, which no encoding of text has, are spelt as JSON spells them.
    """
    text = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False)
    return re.sub("[\ud800-\udfff]", lambda found: f"\\u{ord(found[0]):04x}", text)
