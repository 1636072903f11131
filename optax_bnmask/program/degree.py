"""Degrees: how a value scales with the parameters, index by index where that differs.

The degree of a value is a number, a linear form in the unknown exponents, plus profiles: for some
of its axes (or for some axes read together, row by row) how the degree varies along them. Most
values have no profile. Axes are named by their position; a negative name stands for an axis that
the value does not show: the iterations of the loop, or the devices, that it lives in.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

from optax_bnmask.program.forms import NOTHING, Form, Profile

Key = tuple[tuple[int, int], ...]
"""Axes that a profile varies along, row by row, each with its length: ``((axis, length), ...)``."""


class Degree:
    """How a value scales, and the little that is known of the value itself.

    Attributes:
      level: The degree that all entries share, or `None` for a constant that has every degree at
        once: a zero, an infinity.
      along: The profiles on top of it, by the axes that they vary along.
      const: The number that all entries are, if that is known.
      mark: Flags: `NONNEG` for a value known to be >= 0, `CLIPPED` for one that may be 0 at will,
        `NONZERO` / `ZERO_TEST` for a predicate that is true / false unless some value is 0, `HUGE`
        for a constant so large that it stands for infinity, `PACKED` for an LU factorisation.
      tag: What a reading of the program wants to remember of the value.
    """

    __slots__ = ("along", "const", "level", "mark", "tag")

    def __init__(
        self,
        level: Form | None,
        along: Mapping[Key, Profile] | None = None,
        *,
        const: float | None = None,
        mark: int = 0,
        tag: Any = None,  # noqa: ANN401 - each reading has its own
    ) -> None:
        self.level = level
        self.along = along or {}
        self.const = const
        self.mark = mark
        self.tag = tag

    def known(
        self,
        *,
        const: float | None = None,
        mark: int = 0,
        tag: Any = None,  # noqa: ANN401
    ) -> "Degree":
        """The same degree with this known of the value."""
        return Degree(self.level, self.along, const=const, mark=mark, tag=tag)

    def moved(self, where: Callable[[int], int]) -> "Degree":
        """The degree of the value once its axis ``a`` has become the axis ``where(a)``."""
        if not self.along:
            return self.bare()
        return Degree(
            self.level,
            {tuple((where(a), n) for a, n in key): p for key, p in self.along.items()},
        )

    @property
    def is_any(self) -> bool:
        """Whether the value is a constant that has every degree at once."""
        return self.level is None

    @property
    def is_zero(self) -> bool:
        """Whether the value plainly does not scale, before anything is solved."""
        return not self.level and not self.along and self.level is not None

    def bare(self) -> "Degree":
        """The degree without what is known of the value."""
        if self.const is None and not self.mark and self.tag is None:
            return self
        return Degree(self.level, self.along)

    def __repr__(self) -> str:
        return f"Degree({self.level}, {self.along})" if self.along else f"Degree({self.level})"


NONNEG: Final = 1
CLIPPED: Final = 2
NONZERO: Final = 4
ZERO_TEST: Final = 8
HUGE: Final = 16
PACKED: Final = 32

ZERO: Final = Degree(NOTHING)
ANY: Final = Degree(None)
