"""The errors this library raises: each is also the builtin a caller would expect."""

from itertools import takewhile


class StructureError(ValueError):
    """The trees do not fit together: the message names the leaf and the way out."""


class PathError(ValueError, KeyError):
    """A path or a glob that matches no leaf."""

    def __str__(self) -> str:
        """The sentence itself; `KeyError` would show its `repr`."""
        return str(self.args[0]) if self.args else ""


class CategoryError(ValueError):
    """A category that does not exist, or needs evidence that the analysis lacks."""


class VerificationError(AssertionError):
    """A claim that did not hold numerically."""


def first_line(error: BaseException) -> str:
    """The first line of another library's error, for quoting it in one of ours.

    Lines below it that are indented belong to it, as where JAX breaks a line before a key path.
    """
    first, *below = str(error).strip().splitlines() or [""]
    indented = takewhile(lambda line: line[:1].isspace(), below)
    return " ".join([first, *map(str.strip, indented)])
