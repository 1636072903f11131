"""What a report holds, before anyone decides how it looks: a title and a few kinds of block."""

import dataclasses
import enum

from optax_bnmask.mask import Mask
from optax_bnmask.record import Record


class Tone(enum.StrEnum):
    """What a cell means beyond its words; a renderer may colour it, the words must do alone."""

    PLAIN = "plain"
    YES = "yes"
    NO = "no"
    OPEN = "open"


@dataclasses.dataclass(frozen=True, slots=True)
class Cell:
    """One cell of a table."""

    text: str
    tone: Tone = Tone.PLAIN


@dataclasses.dataclass(frozen=True, slots=True)
class Column:
    """One column of a table: its heading, whether it holds numbers, whether it holds prose."""

    name: str
    number: bool = False
    prose: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Table:
    """Rows under columns; every row is as long as `columns`."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Leaves:
    """The leaves of an analysis: a table, or a tree to open and close where there can be one.

    Attributes:
      analysis: What is known of each leaf.
      mask: What was decided, if anything was.
      collapse: Whether blocks that repeat but for a number are shown once.
    """

    analysis: Record
    mask: Mask | None = None
    collapse: bool = True


@dataclasses.dataclass(frozen=True, slots=True)
class Items:
    """A titled list of sentences."""

    title: str
    items: tuple[str, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Figure:
    """A picture of one or more panels, with the words for those who cannot see it.

    Attributes:
      title: Its heading.
      panels: Each an `<svg>`, which may use the colours of the page, as ``var(--blue)``.
      alt: The words.
    """

    title: str
    panels: tuple[str, ...]
    alt: str


Block = Leaves | Table | Items | Figure


@dataclasses.dataclass(frozen=True, slots=True)
class Document:
    """A report: the intermediate form from which text, HTML and the terminal's view are made."""

    title: str
    summary: tuple[str, ...]
    blocks: tuple[Block, ...]
