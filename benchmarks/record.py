"""What a run has measured, as a value and as JSON: rows, growths, and the limits on them.

Exponents are not kept but fitted to the points that are.
"""

import dataclasses
import json
import os
import platform
from importlib import metadata

import jax
import numpy as np

LINEAR = 1.1
PACKAGES = ("jax", "flax", "optax", "kfac-jax")


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """One figure.

    Attributes:
      experiment: Which experiment it is of.
      on: What it was measured on.
      what: What was measured.
      value: The figure, or `None` if it could not be measured; `note` says why.
      unit: The unit of `value`.
      against: What of the same experiment and `on` it is compared with, or nothing.
      ratio: `value` to that of `against`.
      limit: What the ratio, or without `against` the value, must not exceed.
      note: What else there is to say.
    """

    experiment: str
    on: str
    what: str
    value: float | None
    unit: str
    against: str = ""
    ratio: float | None = None
    limit: float | None = None
    note: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Growth:
    """The seconds that the same work takes at several sizes, and what they grow with."""

    what: str
    of: str
    sizes: tuple[int, ...]
    seconds: tuple[float, ...]

    @property
    def exponent(self) -> float:
        """The k of ``seconds = c * size**k``, by least squares in both logarithms."""
        return float(np.polyfit(np.log(self.sizes), np.log(self.seconds), 1)[0])


@dataclasses.dataclass(frozen=True, slots=True)
class Bar:
    """A limit and what was found; nothing was found if it could not be measured."""

    name: str
    found: float | None
    limit: float

    @property
    def met(self) -> bool | None:
        """Whether what was found is within the limit; `None` where nothing was."""
        return None if self.found is None else self.found <= self.limit


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """A run: where it was made, and all that it measured."""

    environment: dict
    rows: tuple[Row, ...]
    growths: tuple[Growth, ...]

    def bars(self) -> list[Bar]:
        """All that this record is held to."""
        bars = [
            Bar(f"{row.what} ({row.on})", row.ratio if row.against else row.value, row.limit)
            for row in self.rows
            if row.limit is not None
        ]
        return bars + [Bar(f"exponent of {g.what}", g.exponent, LINEAR) for g in self.growths]

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Record":
        kept = json.loads(text)
        growths = (
            {name: tuple(v) if isinstance(v, list) else v for name, v in growth.items()}
            for growth in kept["growths"]
        )
        return cls(
            kept["environment"],
            tuple(Row(**row) for row in kept["rows"]),
            tuple(Growth(**growth) for growth in growths),
        )


def compared(rows) -> tuple[Row, ...]:
    """The rows with their ratios: each to the row of the same experiment that it is against."""
    rows = tuple(rows)
    values = {(row.experiment, row.on, row.what): row.value for row in rows}

    def ratio(row):
        base = values[row.experiment, row.on, row.against]
        return None if row.value is None or base is None else row.value / base

    return tuple(dataclasses.replace(row, ratio=ratio(row)) if row.against else row for row in rows)


def environment(*, quick: bool) -> dict:
    """The device and the versions that figures depend on."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "device": jax.devices()[0].device_kind,
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        **versions,
        "quick": quick,
    }
