"""Degrees through reshapes: axes that are split, joined, or both, row by row."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile

from optax_bnmask.program.axes import is_run, regrouped
from optax_bnmask.program.degree import ANY, Degree, Key
from optax_bnmask.program.forms import NOTHING, Profile, plus
from optax_bnmask.program.layout import Layouts


def reshaped(layouts: Layouts, d: Degree, old: Sequence[int], new: Sequence[int]) -> Degree:
    """The degree of the value reshaped from `old` to `new`, row by row."""
    if not d.along:
        return d.bare()
    if 0 in new:
        return ANY
    groups = list(regrouped(old, new))
    where = _renamed(groups, old, new)
    kept = [key for key in d.along if all(a < 0 or a in where for a, _ in key)]
    along = {tuple((where.get(a, a), n) for a, n in key): d.along[key] for key in kept}
    d = Degree(d.level, {key: p for key, p in d.along.items() if key not in kept})
    group_of = {a: g for g, (inside, _) in enumerate(groups) for a in inside}
    fronts = _fronts(d.along, group_of)
    d = layouts.separated(d, [k for k in d.along if not _stays(k, group_of, fronts)])
    level = d.level or NOTHING
    parts = [{key: p for key, p in d.along.items() if key[-1][0] < 0}]
    for number, (inside, outside) in enumerate(groups):
        front = fronts.get(number, ())
        wide = (*front, *((a, old[a]) for a in inside if old[a] > 1))
        target = (*front, *((a, new[a]) for a in outside if new[a] > 1))
        mine = Degree(NOTHING, {k: p for k, p in d.along.items() if k[-1][0] in inside})
        if any(not is_run(k, wide) for k in mine.along):
            mine = layouts.separated(mine, mine.along)
        level = plus(level, mine.level or NOTHING)
        parts.append(_regrouped_as(layouts, target, mine, wide))
    for key, profile in (item for part in parts for item in part.items()):
        if key:
            layouts.add(along, key, profile)
        else:
            level = plus(level, profile[0][1] or NOTHING)
    return layouts.tidy(level, along)


def _regrouped_as(layouts: Layouts, target: Key, d: Degree, wide: Key) -> dict[Key, Profile]:
    """The profiles along parts of `wide`, once these axes are read as those of `target`."""
    whole: Profile | None = None
    for key, profile in d.along.items():
        flat = layouts.embedded(key, layouts.unknowns.resolve_along(profile), wide)
        whole = flat if whole is None else layouts.unknowns.combined(whole, flat)
    if whole is None:
        return {}
    return layouts.narrowed(target, layouts.unknowns.resolve_along(whole))


def blocks(layouts: Layouts, d: Degree, axis: int, shape: Sequence[int], groups: int) -> Degree:
    """The degree restricted to be uniform within each of `groups` blocks of an axis.

    Returns:
      The degree of a value that has `groups` entries along that axis, one a block.
    """
    size = shape[axis]
    split = (*shape[:axis], groups, size // groups, *shape[axis + 1 :])
    d = layouts.uniform(reshaped(layouts, d, shape, split), (axis + 1,))
    return d.moved(lambda a: a - 1 if a > axis else a)


def unblocked(layouts: Layouts, d: Degree, axis: int, shape: Sequence[int], block: int) -> Degree:
    """The degree of the value with each entry of `axis` repeated `block` times."""
    split = (*shape[: axis + 1], block, *shape[axis + 1 :])
    d = d.moved(lambda a: a + 1 if a > axis else a)
    whole = (*shape[:axis], shape[axis] * block, *shape[axis + 1 :])
    return reshaped(layouts, d, split, whole)


def _renamed(
    groups: Sequence[tuple[Sequence[int], Sequence[int]]], old: Sequence[int], new: Sequence[int]
) -> dict[int, int]:
    """The axes that a reshape leaves whole, and where it puts them: beside them are only ones."""
    pairs = [
        ([a for a in inside if old[a] > 1], [a for a in outside if new[a] > 1])
        for inside, outside in groups
    ]
    return {a[0]: b[0] for a, b in pairs if len(a) == len(b) == 1}


def _front(key: Key) -> Key:
    """The hidden axes that a key starts with."""
    return tuple(takewhile(lambda part: part[0] < 0, key))


def _fronts(keys: Iterable[Key], group_of: Mapping[int, int]) -> dict[int, Key]:
    """The hidden axes that each group of axes is read together with, before them."""
    fronts: dict[int, Key] = {}
    for key in keys:
        front, (last, _) = _front(key), key[-1]
        if front and last >= 0:
            fronts.setdefault(group_of[last], front)
    return fronts


def _stays(key: Key, group_of: Mapping[int, int], fronts: Mapping[int, Key]) -> bool:
    """Whether a key is of one group of axes, after the hidden axes of that group or none."""
    front = _front(key)
    shown = [a for a, _ in key[len(front) :]]
    if not shown or min(shown) < 0 or len({group_of[a] for a in shown}) > 1:
        return not shown
    return not front or front == fronts[group_of[shown[0]]]
