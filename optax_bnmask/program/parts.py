"""Which parts of a leaf may be scaled without the rest: the axes and segments of its own."""

from collections.abc import Iterable, Mapping, Sequence

from optax_bnmask.program.cones import null_space
from optax_bnmask.program.degree import Degree, Key
from optax_bnmask.program.forms import NOTHING, Form
from optax_bnmask.program.unknowns import Unknowns


def free_parts(
    unknowns: Unknowns, degrees: Mapping[int, Degree], biases: Sequence[Iterable[int]]
) -> dict[int, dict[Key, list[tuple[int, int, bool]]]]:
    """Where along their axes leaves may be scaled by themselves.

    Args:
      unknowns: The exponents, solved as far as the program demands.
      degrees: The settled degrees of the live leaves, by number.
      biases: For each leaf, the biases added to its own output.

    Returns:
      For each leaf and each of its axes along which that is known, the ranges ``(start, stop,
      single)`` that may be scaled without the rest; `single` if every index of the range may be
      scaled on its own.
    """
    parts = _Parts(unknowns, degrees)
    out: dict[int, dict[Key, list[tuple[int, int, bool]]]] = {}
    for i, d in degrees.items():
        allowed = {i, *biases[i]}
        for axes, profile in d.along.items():
            start = 0
            for place, (length, form) in enumerate(profile):
                if form and (found := parts.freedom((i, axes, place), length, form, allowed)):
                    ranges = out.setdefault(i, {}).setdefault(axes, [])
                    ranges.append((start, start + length, found == "single"))
                start += length
    return out


Place = tuple[int, Key | None, int]
"""A leaf, the axes of one of its profiles (`None` for the level), and a segment of it."""


class _Parts:
    """Which unknowns scale which parts of which leaves.

    Attributes:
      used: For each unknown, the parts that it scales, and by what power through which view.
      forms: For each leaf, the forms of its parts.
    """

    def __init__(self, unknowns: Unknowns, resolved: Mapping[int, Degree]) -> None:
        self.unknowns = unknowns
        self.used: dict[int, dict[Place, Form]] = {}
        self.forms: dict[int, list[Form]] = {i: [] for i in resolved}
        for i, d in resolved.items():
            self._use((i, None, 0), d.level or NOTHING)
            for axes, profile in d.along.items():
                for place, (_, form) in enumerate(profile):
                    self._use((i, axes, place), form or NOTHING)

    def _use(self, place: Place, form: Form) -> None:
        self.forms[place[0]].append(form)
        for key, c in form.items():
            uses = self.used.setdefault(self.unknowns.source(key), {})
            uses.setdefault(place, {})[key] = c

    def freedom(self, mine: Place, length: int, form: Form, allowed: set[int]) -> str:
        """How a part may be scaled alone: ``"single"`` index by index, ``"block"``, or ``""``."""
        size = self.unknowns.size
        singles = {key for key in form if size[key] == length}
        if singles and self._is_free(mine, self._beside(mine, singles, allowed, length), allowed):
            return "single"
        return (
            "block" if self._is_free(mine, [self.unknowns.source(k) for k in form], allowed) else ""
        )

    def _beside(self, mine: Place, keys: set[int], allowed: set[int], length: int) -> list[int]:
        """The unknowns of one length that scale a part or the biases added to its output."""
        found = set(keys)
        for i in allowed - {mine[0]}:
            for form in self.forms[i]:
                found |= {key for key in form if self.unknowns.size[key] == length}
        return sorted({self.unknowns.source(key) for key in found})

    def _is_free(self, mine: Place, sources: Sequence[int], allowed: set[int]) -> bool:
        """Whether some of the unknowns can scale the part and otherwise only biases of its own."""
        outside: dict[tuple[Place, int], Form] = {}
        inside: dict[Place, Form] = {}
        for source in sources:
            for place, form in self.used[source].items():
                if place == mine or (place[0] in allowed and place[0] != mine[0]):
                    inside.setdefault(place, {})[source] = sum(form.values())
                else:
                    for key, c in form.items():
                        inner = 1 if self.unknowns.size[key] == 1 else self.unknowns.inner(key)
                        outside.setdefault((place, inner), {})[source] = c
        for point in null_space(list(sources), list(outside.values())):
            levels = {
                place: sum(c * point.get(source, 0) for source, c in form.items())
                for place, form in inside.items()
            }
            sign = levels.get(mine, 0)
            if sign and all(sign * level >= 0 for level in levels.values()):
                return True
        return False
