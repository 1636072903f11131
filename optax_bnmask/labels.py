"""A value for each leaf, aligned by path: what `Mask` is, and what `optax.partition` takes."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, product
from typing import Any, Final

import jax
import numpy as np

from optax_bnmask import arguments
from optax_bnmask.compat import without_collection
from optax_bnmask.errors import PathError
from optax_bnmask.paths import nearest, printable, tree_index
from optax_bnmask.vocabulary import Leaf
from optax_bnmask.wording import counted

PART: Final = "part along axis "
"""How the names of parts of a leaf begin, where `by_blocks` shows them as leaves."""

SHOWN: Final = 12
"""How many leaves a `repr` names, so that it fits a screen."""


def whole(path: str) -> str:
    """The path of a leaf, from that path or from the path of a part of the leaf."""
    return path.partition(f"/{PART}")[0]


Part = Mapping[int, tuple[slice, ...]]
"""By axis, the runs of indices that a part of a leaf consists of; all those of an omitted axis."""

Parts = Mapping[str, Part]

_NAMED: Final = 3
"""The name of a part lists so many of its runs and counts the rest; the first makes it unique."""


def parts_of(leaf: Leaf) -> Parts:
    """The parts of a leaf that `by_blocks` shows, by name; empty for an undivided leaf."""
    runs = {axis: _runs(leaf, axis) for axis in leaf.blocks}
    several = {axis: own for axis, own in runs.items() if len(own) > 1}
    out = {}
    for chosen in product(*several.values()):
        at = dict(zip(several, chosen, strict=True))
        out[PART + ", ".join(f"{axis} [{_named(own)}]" for axis, own in at.items())] = at
    return out if several else {}


def _runs(leaf: Leaf, axis: int) -> list[tuple[slice, ...]]:
    """For each part of an axis the runs of its indices, with neighbours put together."""
    blocks = leaf.blocks[axis]
    out: dict[int, list[slice]] = {}
    for block, number in zip(blocks, leaf.parts.get(axis, range(len(blocks))), strict=True):
        own = out.setdefault(number, [])
        start = own.pop().start if own and own[-1].stop == block.start else block.start
        own.append(slice(start, block.stop))
    return [tuple(own) for own in out.values()]


def _named(runs: Sequence[slice]) -> str:
    said = [f"{run.start}:{run.stop}" for run in runs[:_NAMED]]
    return ", ".join(said + [f"{len(runs) - _NAMED} more"] * (len(runs) > _NAMED))


def places(shape: Sequence[int], part: Part) -> Any:  # noqa: ANN401 - what NumPy and JAX index with
    """The index that takes a part out of an array: slices, or `np.ix_` if an axis has several."""
    if all(len(runs) == 1 for runs in part.values()):
        return tuple(part[a][0] if a in part else slice(None) for a in range(len(shape)))
    every = (part.get(a, (slice(0, n),)) for a, n in enumerate(shape))
    return np.ix_(*(np.concatenate([np.arange(r.start, r.stop) for r in runs]) for runs in every))


class _Label(str):
    """A label in a tree: `optax.masked` would take any string for True, and decay everything."""

    __slots__ = ()

    def __bool__(self) -> bool:
        raise TypeError(
            f"A label is no yes or no. Where {str(self)!r} was met, `mask` must hold a bool for "
            f"each leaf: pass `analysis.decay_mask()` or `analysis.select(...)` as the mask, and "
            f"`Labels` to `optax.partition`."
        )


class Labels:
    """A label for each leaf: a callable for `optax.partition`, and a value.

    Calling it with a pytree gives the tree of labels in the tree's own containers, leaf by leaf by
    canonical path. It never looks at the leaves, so it serves under `jit`, on updates as on params,
    and on trees with `optax.MaskedNode` holes. Equal by content, hashable, picklable.
    """

    __slots__ = ("_by_path", "_last")
    _by_path: dict[str, Any]
    _last: tuple[Any, list[Any]] | None
    """A cache: the structure of the last tree that this was called with, and its labels. An
    optimizer calls in `init` and whenever a step is traced, with trees of one structure, which
    determines the paths of all leaves."""

    def __init__(self, by_path: Mapping[str, Any]) -> None:
        object.__setattr__(self, "_by_path", self._guarded(arguments.by_path(by_path, "by_path")))
        object.__setattr__(self, "_last", None)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"`{type(self).__name__}` is frozen; make a new one instead.")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"`{type(self).__name__}` is frozen; make a new one instead.")

    def __reduce__(self) -> tuple[type, tuple[dict[str, Any]]]:
        return type(self), (self._by_path,)

    def __call__(self, tree: Any) -> Any:  # noqa: ANN401 - any pytree in, the same out
        """The tree with each leaf replaced by its label.

        Args:
          tree: Any pytree whose leaves this knows by path, or a part of it.

        Returns:
          A pytree of the same structure.

        Raises:
          PathError: The tree has a leaf that this does not know.
        """
        structure, last = jax.tree.structure(tree), self._last
        if last is None or last[0] != structure:
            last = structure, self._values(tree)
            object.__setattr__(self, "_last", last)
        with without_collection():
            return jax.tree.unflatten(structure, last[1])

    @staticmethod
    def _guarded(by_path: Mapping[str, Any]) -> dict[str, Any]:
        """The labels, with strings wrapped so that to use one as a bool raises."""
        return {p: _Label(v) if isinstance(v, str) else v for p, v in by_path.items()}

    def _values(self, tree: Any) -> list[Any]:  # noqa: ANN401 - any pytree
        """The labels of the leaves of a tree, in JAX's order."""
        paths = tree_index(tree, "tree").leaves
        known = self._by_path
        try:
            return [known[path] for path in paths]
        except KeyError:
            return [self._of_part(path, tree) for path in paths]

    def _of_part(self, path: str, tree: Any) -> Any:  # noqa: ANN401 - a label
        """The label of a leaf, or of the leaf that it is a part of; an error if there is none."""
        known = self._by_path
        try:
            return known[whole(path)]
        except KeyError:
            if not path:
                raise PathError(
                    f"A `{type(self).__name__}` must be called with the tree of its leaves. It got "
                    f"a single {type(tree).__name__}. {_why_single(tree)}"
                ) from None
            raise PathError(
                f"A `{type(self).__name__}` can only be applied to leaves that it was made for. It "
                f"met {path!r}, which is none of its {len(self._by_path)} leaves"
                f"{nearest(path, self._by_path)}. Make it anew from the params that the optimizer "
                f"sees."
            ) from None

    def summary(self, params: Any = None) -> str:  # noqa: ANN401 - any pytree
        """One line for a training log: how many leaves each label has, and how many parameters.

        Args:
          params: The tree that this was made for, of arrays or `jax.ShapeDtypeStruct`s; without it
            leaves are counted, and parameters are not.

        Returns:
          The line.

        Example:
          >>> import jax.numpy as jnp
          >>> import optax_bnmask as bnmask
          >>> params = {"dense": {"kernel": jnp.ones((2, 3))}, "norm": {"scale": jnp.ones(3)}}
          >>> bnmask.decay_mask(params).summary(params)
          'decays: 1 leaf, 6 parameters; exempt: 1 leaf, 3 parameters'
        """
        paths = self if params is None else tree_index(params).leaves
        groups: dict[Any, list[str]] = {}
        for path in paths:
            groups.setdefault(self[path], []).append(path)
        said = []
        for label, members in groups.items():
            size = counted(len(members), "leaf", "leaves")
            if params is not None:
                size += f", {sum(np.size(paths[path]) for path in members):,} parameters"
            said.append(f"{self._name(label)}: {size}")
        return "; ".join(said)

    @staticmethod
    def _name(label: Any) -> str:  # noqa: ANN401 - a label
        return str(label)

    def __getitem__(self, path: str) -> Any:  # noqa: ANN401 - a bool or a label
        """The label of the leaf of that canonical path."""
        try:
            return self._by_path[path]
        except KeyError:
            raise PathError(
                f"`path` must name a leaf. There is no leaf {path!r}{nearest(path, self._by_path)}."
            ) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_path)

    def __len__(self) -> int:
        return len(self._by_path)

    def __contains__(self, path: object) -> bool:
        return path in self._by_path

    def __bool__(self) -> bool:
        raise TypeError(
            f"A `{type(self).__name__}` is not one yes or no but a value for each leaf, and cannot "
            f"stand where a bool is wanted. Where a tree is wanted, call it: `mask(params)`. As "
            f"`mask` of an optimizer it goes as it is, `mask=bnmask.decay_mask(params)`; a "
            f"function there must return the tree, `decay_mask(params)(params)`."
        )

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self._by_path == other._by_path

    def __hash__(self) -> int:
        return hash((type(self), frozenset(self._by_path.items())))

    def __repr__(self) -> str:
        shown = islice(self._by_path.items(), SHOWN)
        lines = "".join(f"\n  {printable(path)}: {label!r}" for path, label in shown)
        more = f"\n  and {len(self) - SHOWN} more" if len(self) > SHOWN else ""
        return f"{type(self).__name__}({lines}{more}\n)"


def _why_single(tree: Any) -> str:  # noqa: ANN401 - an array, or a number
    """How labels may have come to be called with one array, and the way out."""
    if np.ndim(tree):
        return (
            "`optax.flatten`, and whatever else joins all leaves to one, leaves no leaves to tell "
            "apart: mask outside of it."
        )
    return (
        "Optax calls with the step count what stands in the place of a number, such as "
        "`weight_decay`: pass it as `mask`. And so `optax.inject_hyperparams` calls what is not "
        'declared static: pass `static_args=("mask",)` there, or whatever the argument is called.'
    )
