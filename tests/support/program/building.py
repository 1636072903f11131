"""How a random network is put together: choices, parameters, and layers as plain functions."""

import dataclasses
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

Params = Mapping[str, Any]
Layer = Callable[[Params, Any], Any]
"""``layer(params, x)``; `params` holds its own leaves and those of others."""

EPS = 1e-12
"""Every epsilon in every network: taken as 0 by the analysis, and small enough to be so."""


class Choices(Protocol):
    """Where a generator gets its decisions from: a seed, or Hypothesis, which can shrink them."""

    def integer(self, low: int, high: int) -> int:
        """A number from `low` to `high`, both included; simpler ones are lower."""
        ...


@dataclasses.dataclass(frozen=True)
class Seeded:
    """Choices by a seed."""

    rng: np.random.Generator

    def integer(self, low: int, high: int) -> int:
        return int(self.rng.integers(low, high + 1))


@dataclasses.dataclass
class Builder:
    """What a network has so far.

    Attributes:
      choices: Where decisions come from.
      params: The values of its parameters, by path.
      own: For each weight or gain, the biases added to its own output.
      said: What it was built of, in order.
      prefix: Leading axes of every new parameter: the iterations of a scan.
    """

    choices: Choices
    params: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    own: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    said: list[str] = dataclasses.field(default_factory=list)
    prefix: tuple[int, ...] = ()
    depth: int = 0
    raw: Any = None
    count: list[int] = dataclasses.field(default_factory=lambda: [0])

    def pick(self, options: Sequence[Any]) -> Any:
        return options[self.choices.integer(0, len(options) - 1)]

    def chance(self, percent: int) -> bool:
        return self.choices.integer(0, 99) >= 100 - percent

    def layer(self, kind: str) -> str:
        """Says that a layer of this kind follows, and names it."""
        self.said.append(kind)
        self.count[0] += 1
        return f"{kind.split(':', maxsplit=1)[0].replace(' ', '_')}{self.count[0]}"

    def param(self, layer: str, name: str, shape: Sequence[int], kind: str) -> str:
        """A new parameter with a value that hides nothing."""
        path = f"{layer}/{name}"
        shape = (*self.prefix, *shape)
        rng = np.random.default_rng(zlib.crc32(f"{path}{shape}".encode()))
        if kind == "kernel":
            fan_in = max(1, int(np.prod(shape[len(self.prefix) : -1])))
            value = rng.normal(size=shape) * rng.uniform(0.8, 1.6) / np.sqrt(fan_in)
        elif kind == "gain":
            value = np.exp(0.3 * rng.normal(size=shape))
        elif kind == "slope":
            value = rng.uniform(0.1, 0.6, size=shape)
        else:
            value = rng.normal(size=shape) * 0.5
        self.params[path] = np.asarray(value)
        return path

    def weights(
        self, layer: str, shape: Sequence[int], bias: Sequence[int] | None, names: str = "kernel"
    ) -> tuple[str, str | None]:
        """A kernel and, if `bias` says its shape, a bias or, by chance, none."""
        kernel = self.param(layer, names, shape, "kernel")
        if bias is None or self.chance(40):
            return kernel, None
        path = self.param(layer, names.replace("kernel", "bias"), bias, "bias")
        self.own[kernel] = [path]
        return kernel, path


def plus_bias(y: Any, params: Params, bias: str | None) -> Any:
    return y if bias is None else y + params[bias]
