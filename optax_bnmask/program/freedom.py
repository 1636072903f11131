"""Where along its axes a leaf may be scaled by itself: questions to one null space."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from optax_bnmask.program.equations import NOTHING, Components, Form, System, plus, subsets
from optax_bnmask.program.exponents import WHOLE, Degree
from optax_bnmask.program.indices import Segments, size_of, starts_of
from optax_bnmask.vocabulary import Block


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    """A segment of one axis of a leaf.

    Attributes:
      start: Its first index.
      size: Its number of indices.
      components: What its exponents have beyond the leaf's: a mean, and what varies within it.
      atoms: The sizes of the atoms that it is a product of.
    """

    start: int
    size: int
    components: Components
    atoms: tuple[int, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class LeafExponents:
    """The exponents of a leaf: one for the whole, and one more for each index of each axis.

    Attributes:
      level: The exponent of the whole.
      axes: For each axis its parts, one after the other; no axes where it varies along none.
    """

    level: Form
    axes: tuple[tuple[Part, ...], ...]

    def varying(self) -> Iterator[Form]:
        """The forms that are all 0 if and only if the exponent is the same at every index."""
        return (f for parts in self.axes for part in parts for f in part.components.values())


def leaf_exponents(system: System, degree: Degree, axes: Sequence[Segments]) -> LeafExponents:
    """The exponents of a leaf in terms of the unknowns that are free.

    Args:
      system: The unknowns, solved.
      degree: That of the leaf: one cell, with components along one axis at a time.
      axes: The segments of its axes.
    """
    ((_, components),) = degree.items()
    free = {c: g for c, f in (components or {}).items() if (g := system.resolve(f))}
    level = free.pop((), NOTHING)
    if not free:
        return LeafExponents(level, ())
    parts = (tuple(_parts(system, free, p, s)) for p, s in enumerate(axes))
    return LeafExponents(level, tuple(parts))


def _parts(system: System, free: Components, axis: int, segments: Segments) -> Iterator[Part]:
    """The parts of an axis, by those components of a leaf that are not 0."""
    whole = free.get(((axis, WHOLE),))
    if whole:
        own = [
            {c: g for c, f in of_one.items() if (g := system.resolve(f))}
            for of_one in system.apart(whole, segments)
        ]
    else:
        mine = {tuple((0, k) for _, k in c): f for c, f in free.items() if c[0][0] == axis}
        own = [mine] * len(segments)
    for segment, start, found in zip(segments, starts_of(segments), own, strict=True):
        yield Part(start, size_of(segment), found, tuple(a.size for a in segment))


def free_parts(
    leaves: Mapping[int, LeafExponents], biases: Sequence[Iterable[int]]
) -> dict[int, dict[int, list[Block]]]:
    """Where along their axes leaves may be scaled by themselves, with the biases they own.

    Args:
      leaves: The exponents of the live leaves, by number.
      biases: For each leaf, the biases added to its own output.

    Returns:
      For each leaf, and each of its axes along which that is known, the parts that may be scaled
      without the rest, and within them the runs that may be scaled each by itself: runs of 1 where
      every index may.
    """
    holders = _forms_by_unknown(leaves)
    out: dict[int, dict[int, list[Block]]] = {}
    for i, leaf in leaves.items():
        if not any(part.components for parts in leaf.axes for part in parts):
            continue  # it scales as a whole or not at all, which is no question of parts
        alone = _without_others(holders, leaf, {i, *biases[i]})
        even = alone.copy()
        for form in leaf.varying():
            even.zero(form)
        is_whole_free = bool(even.resolve(leaf.level))
        for axis, parts in enumerate(leaf.axes):
            if len(parts) > 1:
                free = _free(alone, leaf, axis)
            else:
                free = parts if is_whole_free and parts[0].size > 1 else ()
            ranges = [Block(p.start, p.start + p.size, _block(alone, leaf, p)) for p in free]
            if ranges:
                out.setdefault(i, {})[axis] = ranges
    return out


def _forms_by_unknown(leaves: Mapping[int, LeafExponents]) -> dict[int, list[tuple[int, Form]]]:
    """For each unknown the forms that have it, as pairs ``(leaf, form)``; short forms first."""
    holders: dict[int, list[tuple[int, Form]]] = {}
    for i, leaf in leaves.items():
        for form in (leaf.level, *leaf.varying()):
            for unknown in form:
                holders.setdefault(unknown, []).append((i, form))
    for held in holders.values():
        held.sort(key=lambda item: len(item[1]))
    return holders


def _without_others(
    holders: Mapping[int, list[tuple[int, Form]]],
    leaf: LeafExponents,
    allowed: set[int],
) -> System:
    """A system in which the exponents of all leaves but the allowed ones are 0.

    Only equations with an unknown that need not be 0 are looked at, starting from the leaf's own:
    whatever else there is can be 0. Short forms come first in `holders`, since an unknown that is
    some other leaf's exponent is 0, and leads no farther.
    """
    alone = System()
    waiting = [u for form in (leaf.level, *leaf.varying()) for u in form]
    seen = set(waiting)
    while waiting:
        unknown = waiting.pop()
        for i, form in holders[unknown]:
            if not alone.resolve({unknown: 1}):
                break
            if i not in allowed:
                alone.zero(form)
                new = form.keys() - seen
                seen |= new
                waiting += new
    return alone


def _free(alone: System, leaf: LeafExponents, axis: int) -> Iterator[Part]:
    """The parts of an axis that may be scaled evenly and without the rest."""
    even = alone.copy()
    for q, parts in enumerate(leaf.axes):
        for component, form in (item for part in parts for item in part.components.items()):
            if component or q != axis:
                even.zero(form)
    parts = leaf.axes[axis]
    means = [even.resolve(plus(leaf.level, p.components.get((), {}))) for p in parts]
    alike = Counter(frozenset(mean.items()) for mean in means)
    for t, (part, mean) in enumerate(zip(parts, means, strict=True)):
        if not mean or alike[frozenset(mean.items())] > 1:  # 0, or the same as another part's
            continue
        trial = even.copy()
        for other in (*means[:t], *means[t + 1 :]):
            trial.zero(other)
        if trial.resolve(mean):
            yield part


def _block(alone: System, leaf: LeafExponents, part: Part) -> int:
    """The size of the smallest blocks within a part that may each be scaled by themselves.

    Blocks of a product of atoms are told apart by its first few atoms: all components over these
    must be free, each by itself.
    """
    block = part.size
    for n, size in enumerate(part.atoms, start=1):
        new = [c for c in subsets(n, smallest=1) if n - 1 in c]
        if not all(_varies_freely(alone, leaf, part, c) for c in new):
            break
        block //= size
    return block


def _varies_freely(alone: System, leaf: LeafExponents, part: Part, atoms: tuple[int, ...]) -> bool:
    """Whether a part may vary along some of its atoms while nothing else scales."""
    component = tuple((0, k) for k in atoms)
    form = part.components.get(component)
    if not form:
        return False
    trial = alone.copy()
    trial.zero(leaf.level)
    for parts in leaf.axes:
        for other in parts:
            for c, f in other.components.items():
                if other is not part or c != component:
                    trial.zero(f)
    return bool(trial.resolve(form))
