"""Keys of profiles, and the axes in them."""

from collections.abc import Collection, Iterable, Sequence

from optax_bnmask.program.degree import Degree, Key
from optax_bnmask.program.forms import Number, Profile, times


def scaled(profile: Profile, k: Number) -> Profile:
    """``k * profile``."""
    return profile if k == 1 else [(n, None if f is None else times(f, k)) for n, f in profile]


def touches(d: Degree, axes: Collection[int]) -> bool:
    """Whether the degree varies along any of `axes`."""
    return bool(d.along) and any(touches_key(key, axes) for key in d.along)


def touches_key(key: Key, axes: Collection[int]) -> bool:
    """Whether a key has any of `axes`."""
    return any(a in axes for a, _ in key)


def is_run(key: Key, wide: Key) -> bool:
    """Whether the axes of `key` stand next to each other, in order, in `wide`."""
    return key[0] in wide and wide[wide.index(key[0]) :][: len(key)] == key


def is_part(key: Key, axes: Collection[int]) -> bool:
    """Whether a key has more axes than one, and any of `axes`."""
    return len(key) > 1 and touches_key(key, axes)


def strides(key: Key) -> list[tuple[int, int]]:
    """``(stride, size)`` of each axis of a key."""
    out: list[tuple[int, int]] = []
    stride = 1
    for _, size in reversed(key):
        out.append((stride, size))
        stride *= size
    return out[::-1]


def regrouped(
    old: Sequence[int], new: Sequence[int]
) -> Iterable[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The smallest groups of axes that a reshape turns into each other."""
    i = j = 0
    while i < len(old) or j < len(new):
        inside: list[int] = []
        outside: list[int] = []
        left = right = 1
        while True:
            if left <= right and i < len(old) and (left < right or not inside):
                left *= old[i]
                inside.append(i)
                i += 1
            elif j < len(new) and (right < left or not outside):
                right *= new[j]
                outside.append(j)
                j += 1
            else:
                break
            if left == right and inside and outside:
                break
        yield tuple(inside), tuple(outside)
