"""What devices tell each other in a compiled program."""

import collections
import math
import re

_KINDS = (
    *("all-gather", "all-reduce", "all-to-all", "collective-broadcast", "collective-permute"),
    *("ragged-all-to-all", "reduce-scatter"),
)
_COLLECTIVE = re.compile(
    rf"^\s*(?:ROOT )?%?\S+ = (.*?) ({'|'.join(_KINDS)})(?:-start)?\(", re.MULTILINE
)
_ARRAY = re.compile(r"\w+\[([\d,]*)\]")


def collectives(text):
    """How often each kind of collective moves an array of each shape: ``{(kind, shape): n}``.

    XLA sends several arrays in one operation where it can; here each counts.
    """
    return collections.Counter(
        (kind, tuple(int(n) for n in shape.split(",") if n))
        for arrays, kind in _COLLECTIVE.findall(text)
        for shape in _ARRAY.findall(arrays)
    )


def entries(found):
    """How many numbers some collectives move."""
    return sum(n * math.prod(shape) for (_, shape), n in found.items())
