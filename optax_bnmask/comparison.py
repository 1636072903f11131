"""What changed between two reports: for whoever keeps one of them in a repository."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from optax_bnmask.analysis import Analysis
from optax_bnmask.errors import StructureError
from optax_bnmask.families import folded_lines
from optax_bnmask.mask import Mask
from optax_bnmask.paths import printable
from optax_bnmask.wording import json_text

Known = Analysis | Mask | tuple[Analysis, Mask]
"""What can be compared: what is known, what was decided, or both."""

_Facts = Mapping[str, Mapping[str, Any]]
"""By path, the facts about the leaf, by name: ``{"role": "weight", "decays": "yes"}``."""


@dataclasses.dataclass(frozen=True, slots=True)
class Change:
    """One fact about a leaf that differs between the old and the new.

    Attributes:
      path: The leaf.
      what: ``"shape"``, ``"dtype"``, ``"role"``, ``"scale"``, ``"invariant_axes"`` or ``"decays"``.
      old: What was said.
      new: What is said now.
    """

    path: str
    what: str
    old: str
    new: str

    def __str__(self) -> str:
        """One line for a person."""
        return f"{self.path}: {self.what} {self.old} -> {self.new}"


@dataclasses.dataclass(frozen=True, slots=True)
class Difference:
    """What changed.

    Attributes:
      added: The paths that only the new one has, in its order.
      removed: The paths that only the old one has, in its order.
      changed: What is said differently of the leaves that both have.
    """

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: tuple[Change, ...] = ()

    @property
    def same(self) -> bool:
        """Whether nothing changed."""
        return not (self.added or self.removed or self.changed)

    def to_text(self) -> str:
        """One line for each change; `+` and `-` before what was added and removed.

        Changes that differ only in a number, as those of repeated blocks do, are one line.
        """
        lines = [
            *(f"+ {printable(path)}" for path in self.added),
            *(f"- {printable(path)}" for path in self.removed),
            *(f"~ {printable(str(change))}" for change in self.changed),
        ]
        return "\n".join(folded_lines(lines)) or "No difference."

    def to_json(self) -> str:
        """The difference as JSON; its ``"schema"`` is ``"optax_bnmask/difference/1"``."""
        record = {
            "schema": "optax_bnmask/difference/1",
            "same": self.same,
            "added": list(self.added),
            "removed": list(self.removed),
            "changed": [dataclasses.asdict(change) for change in self.changed],
        }
        return json_text(record)

    def __str__(self) -> str:
        """The lines of `to_text`."""
        return self.to_text()


def compare(old: Known, new: Known) -> Difference:
    """What changed between two analyses, two masks, or two pairs of both.

    Leaves are matched by path. Their `reason` is not compared, nor are notes and assumptions: they
    are prose and places in files. The order of the leaves is not either.

    Args:
      old: An `Analysis`, a `Mask`, or a pair of both.
      new: Another of the same kind.

    Returns:
      A `Difference`.

    Raises:
      StructureError: They are not of the same kind.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax_bnmask as bnmask
      >>> params = {"head": {"kernel": jnp.ones((4, 2))}, "norm": {"scale": jnp.ones(4)}}
      >>> old = bnmask.analyze_structure(params)
      >>> new = bnmask.analyze_structure({"norm": {"scale": jnp.ones(8), "bias": jnp.ones(8)}})
      >>> print(compare(old, new))
      + norm/bias
      - head/kernel
      ~ norm/scale: shape (4,) -> (8,)
      >>> print(compare(old.decay_mask(), old.decay_mask(never=["head/*"])))
      ~ head/kernel: decays yes -> no
    """
    return compared(old, new, ("old", "new"))


def compared(old: Known, new: Known, names: tuple[str, str]) -> Difference:
    """Implements `compare`; error messages call the two by `names`."""
    before, after = _facts(old), _facts(new)
    told = [{name for facts in side.values() for name in facts} for side in (before, after)]
    if before and after and told[0] != told[1]:
        only = ", ".join(sorted(told[0] ^ told[1]))
        raise StructureError(
            f"`{names[0]}` and `{names[1]}` must say the same things of each leaf. Only one of "
            f"them says: {only}. Make both in the same way, with the same options."
        )
    return Difference(
        tuple(path for path in after if path not in before),
        tuple(path for path in before if path not in after),
        tuple(_changes(before, after)),
    )


def _changes(before: _Facts, after: _Facts) -> Iterable[Change]:
    """The changes of the leaves that both have."""
    for path, facts in before.items():
        for what, old in facts.items() if path in after else ():
            if old != (new := after[path][what]):
                yield Change(path, what, str(old), str(new))


def _facts(known: Known) -> _Facts:
    """What is said of each leaf, in words that can be compared."""
    match known:
        case Analysis():
            return {
                leaf.path: {
                    "shape": tuple(leaf.shape),
                    "dtype": str(leaf.dtype),
                    "role": leaf.role.value,
                    "scale": leaf.scale.value,
                    "invariant_axes": tuple(leaf.invariant_axes),
                }
                for leaf in known.leaves
            }
        case Mask():
            return {path: {"decays": "yes" if known[path] else "no"} for path in known}
        case (Analysis() as analysis, Mask() as mask):
            decisions = _facts(mask)
            return {path: {**facts, **decisions[path]} for path, facts in _facts(analysis).items()}
    raise StructureError(
        f"`old` and `new` must each be an `Analysis`, a `Mask`, or a pair of both. Found a "
        f"{type(known).__name__}. Read reports with `Analysis.from_json`."
    )
