"""Degrees through the operations that cut and join arrays, and the keys that they vary along.

Everything here is exact where the result is again a sum of profiles; where it would not be, the
unknowns are restricted first (`Layouts.separated`, `Layouts.uniform`).
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from math import prod

from optax_bnmask.program.axes import (
    is_part,
    is_run,
    scaled,
    strides,
    touches,
    touches_key,
)
from optax_bnmask.program.degree import ANY, Degree, Key
from optax_bnmask.program.forms import NOTHING, Form, Number, Profile, plus, times
from optax_bnmask.program.unknowns import Unknowns


class Layouts:
    """The arithmetic of degrees with profiles, over one set of unknowns.

    Attributes:
      unknowns: The unknown exponents.
      level_of: What a profile becomes that must not vary; `Unknowns.flattened`, which imposes it,
        or something that imposes nothing.
    """

    def __init__(self, unknowns: Unknowns, level_of: Callable[[Profile], Form]) -> None:
        self.unknowns = unknowns
        self.level_of = level_of

    def resolved(self, d: Degree) -> Degree:
        """The degree in terms of the unknowns that are still free."""
        if d.level is None:
            return d
        level = self.unknowns.resolve(d.level)
        if not d.along:
            return d if level is d.level else Degree(level, const=d.const, mark=d.mark, tag=d.tag)
        along = {key: self.unknowns.resolve_along(p) for key, p in d.along.items()}
        return self.tidy(level, along).known(const=d.const, mark=d.mark, tag=d.tag)

    def settled(self, degrees: Mapping[int, Degree]) -> dict[int, Degree]:
        """The degrees resolved, until resolving one takes apart no unknown of another."""
        while True:
            before = len(self.unknowns.solved)
            resolved = {i: self.resolved(d) for i, d in degrees.items()}
            if len(self.unknowns.solved) == before:
                return resolved

    def tidy(self, level: Form, along: dict[Key, Profile]) -> Degree:
        """The degree with the profiles that do not vary folded into the level."""
        kept: dict[Key, Profile] = {}
        for key, profile in along.items():
            if len(profile) == 1:
                form = profile[0][1]
                if form is None:
                    return ANY
                if self.unknowns.is_uniform(form):
                    level = plus(level, form)
                    continue
            kept[key] = profile
        return Degree(level, kept)

    def product(self, a: Degree, b: Degree, k: Number = 1) -> Degree:
        """The degree of ``x * y**k`` entry by entry, for values of one shape."""
        if a.level is None or b.level is None:
            return ANY
        level = plus(a.level, b.level, k)
        if not a.along and not b.along:
            return Degree(level)
        a, b = self._onto_runs(a, b)
        along = dict(a.along)
        for key, profile in b.along.items():
            self.add(along, key, profile, k)
        return self.tidy(level, along)

    def power(self, d: Degree, k: Number) -> Degree:
        """The degree of ``x**k`` entry by entry."""
        if d.level is None:
            return ANY
        return Degree(times(d.level, k), {key: scaled(p, k) for key, p in d.along.items()})

    def add(self, along: dict[Key, Profile], key: Key, profile: Profile, k: Number = 1) -> None:
        """Adds ``k * profile`` to what there is at `key`."""
        if key in along:
            along[key] = self.unknowns.combined(along[key], profile, k)
        else:
            along[key] = scaled(profile, k)

    def uniform(self, d: Degree, axes: Collection[int]) -> Degree:
        """The degree restricted not to vary along any of `axes`."""
        if not touches(d, axes):
            return d
        x = d
        d = self.separated(d, [key for key in d.along if is_part(key, axes)])
        d = self.resolved(d)
        level, along = d.level or NOTHING, dict[Key, Profile]()
        for key, profile in d.along.items():
            if key[0][0] in axes:
                level = plus(level, self.level_of(profile))
            else:
                along[key] = profile
        return Degree(level, along, const=x.const, mark=x.mark, tag=x.tag)

    def level(self, d: Degree) -> Form:
        """The one number that the degree is, once it is restricted not to vary at all."""
        level = d.level or NOTHING
        for profile in d.along.values():
            level = plus(level, self.level_of(profile))
        return level

    def whole(self, d: Degree, key: Key, length: int) -> Profile:
        """The degree, level and all, as one profile along `key`."""
        blank: Profile = [(length, d.level or NOTHING)]
        return self.unknowns.combined(d.along[key], blank) if key in d.along else blank

    def separated(self, d: Degree, keys: Iterable[Key]) -> Degree:
        """The degree with the profiles at `keys` restricted to a sum of profiles, one an axis."""
        keys = [key for key in keys if len(key) > 1]
        if not keys:
            return d
        level, along = d.level or NOTHING, {k: p for k, p in d.along.items() if k not in keys}
        for key in keys:
            profile = self._by_axis(key, d.along[key])
            for single, part in self._row_by_row(key, profile).items():
                if single:
                    self.add(along, single, part)
                else:
                    level = plus(level, part[0][1] or NOTHING)
        return self.tidy(level, along)

    def _row_by_row(self, key: Key, profile: Profile) -> dict[Key, Profile]:
        """The profile, whose views are of one axis each, as a sum of profiles along one axis each.

        One of several segments, such as those of heads that were put one after the other, is made
        uniform within its rows, and may still differ from row to row of the first axis.
        """
        if len(profile) == 1:
            return self.narrowed(key, profile)
        (axis, _), *inside = key
        stride = prod(n for _, n in inside)
        if any(n % stride for n, _ in profile):
            return {(): [(prod(n for _, n in key), self.level_of(profile))]}
        rows: Profile = []
        for length, form in profile:
            n = length // stride
            if form is None:
                rows.append((n, None))
                continue
            first = ((axis, n),) if n > 1 else ()
            d = Degree(NOTHING, {(*first, *inside): [(length, form)]})
            d = self.uniform(d, [a for a, _ in inside])
            rows += self.unknowns.combined(d.along.get(first, [(n, NOTHING)]), [(n, d.level)])
        return {key[:1]: self.unknowns.merged(rows)}

    def _by_axis(self, key: Key, profile: Profile) -> Profile:
        """The profile with each of its views restricted to a sum of views along one axis each."""
        profile = self.unknowns.resolve_along(profile)
        while len(profile) == 1:
            views = [v for v in profile[0][1] or NOTHING if self.unknowns.size[v] > 1]
            mixed = next((v for v in views if self._axis_of(v, key) is None), None)
            if mixed is None:
                break
            self._separate(mixed, key)
            profile = self.unknowns.resolve_along(profile)
        return profile

    def _axis_of(self, view: int, key: Key) -> int | None:
        """The place in `key` of the one axis that the view varies along."""
        low, high = self.unknowns.inner(view), self.unknowns.period(view)
        for place, (stride, size) in enumerate(strides(key)):
            if low % stride == 0 and (stride * size) % high == 0 and low >= stride:
                return place
        return None

    def _separate(self, view: int, key: Key) -> None:
        """Restricts the vector behind a view to a sum over the axes that it varies along."""
        unknowns = self.unknowns
        low, high = unknowns.inner(view), unknowns.period(view)
        parts: Form = {}
        for stride, size in strides(key):
            first, last = max(low, stride), min(high, stride * size)
            if first >= last:
                continue
            if first % low or first % stride or last % first or (stride * size) % last:
                unknowns.restrict_to_uniform(view)
                return
            parts[
                unknowns.view(
                    unknowns.vector(last // first, gauge=unknowns.is_gauge(view)), first // low
                )
            ] = 1
        unknowns.restrict(view, parts)

    def narrowed(self, key: Key, profile: Profile) -> dict[Key, Profile]:
        """The profile as a sum of profiles along as few axes as it really varies along."""
        if len(key) == 1:
            return {key: profile}
        length = prod(n for _, n in key)
        if len(profile) > 1:
            stride = length // key[0][1]
            if all(
                n % stride == 0 and (f is None or self.unknowns.is_uniform(f)) for n, f in profile
            ):
                return {key[:1]: [(n // stride, f) for n, f in profile]}
            return {key: profile}
        out: dict[Key, Form] = {}
        steps = strides(key)
        for view, c in (profile[0][1] or NOTHING).items():
            if self.unknowns.size[view] == 1:
                out[()] = plus(out.get((), NOTHING), {view: c})
                continue
            place = self._axis_of(view, key)
            if place is None:
                out[key] = plus(out.get(key, NOTHING), {view: c})
            else:
                inside = self.unknowns.inside(view, steps[place][0])
                single = (key[place],)
                out[single] = plus(out.get(single, NOTHING), {inside: c})
        return {k: [(prod(n for _, n in k), form)] for k, form in out.items()}

    def embedded(self, key: Key, profile: Profile, wide: Key) -> Profile:
        """The profile at `key`, axes next to each other in `wide`, as one along all of `wide`."""
        start = wide.index(key[0])
        after = prod(n for _, n in wide[start + len(key) :])
        before = prod(n for _, n in wide[:start])
        return self.unknowns.tiled(self.unknowns.repeated(profile, after), before)

    def onto_common_keys(self, a: Degree, b: Degree) -> tuple[Degree, Degree]:
        """Two degrees of values of one shape, with the same or disjoint axes in all their keys."""
        a, b = self._onto_runs(a, b)
        for joint in (k for k in (*a.along, *b.along) if len(k) > 1):
            keys = dict.fromkeys((*a.along, *b.along))
            overlapping = [k for k in keys if k != joint and set(k) & set(joint)]
            if overlapping:
                a = self.separated(a, [k for k in (joint, *overlapping) if k in a.along])
                b = self.separated(b, [k for k in (joint, *overlapping) if k in b.along])
                return self.onto_common_keys(a, b)
        return a, b

    def _onto_runs(self, a: Degree, b: Degree) -> tuple[Degree, Degree]:
        """The same, as far as nothing needs to be restricted for it."""
        joint_keys = [k for d in (a, b) for k in d.along if len(k) > 1]
        if not joint_keys:
            return a, b
        for joint in sorted(set(joint_keys), key=lambda k: (-len(k), k)):
            keys = {*a.along, *b.along}
            overlapping = [k for k in keys if k != joint and set(k) & set(joint)]
            if joint in keys and overlapping and all(is_run(k, joint) for k in overlapping):
                a, b = self._widened(a, joint), self._widened(b, joint)
        return a, b

    def _widened(self, d: Degree, wide: Key) -> Degree:
        """The degree with all profiles along parts of `wide` in one along `wide`."""
        inside = [k for k in d.along if k != wide and set(k) <= set(wide)]
        if not inside:
            return d
        along = dict(d.along)
        for key in inside:
            part = self.embedded(key, along.pop(key), wide)
            self.add(along, wide, part)
        return Degree(d.level, along)

    def sliced(self, d: Degree, axis: int, size: int, lo: int, hi: int) -> Degree:
        """The degree of the value on the indices ``lo:hi`` of one axis."""
        if not touches(d, (axis,)) or (lo == 0 and hi == size):
            return d.bare()
        if hi <= lo:
            return ANY
        inner = [k for k in d.along if any(a == axis for a, _ in k[1:])]
        d = self.separated(d, inner)
        along: dict[Key, Profile] = {}
        level = d.level or NOTHING
        for key, profile in d.along.items():
            if key[0][0] != axis:
                self.add(along, key, profile)
                continue
            stride = prod(n for _, n in key[1:])
            part = self.unknowns.slice(
                self.unknowns.resolve_along(profile), lo * stride, hi * stride
            )
            new = ((axis, hi - lo), *key[1:]) if hi - lo > 1 else key[1:]
            if new:
                self.add(along, new, part)
            elif part[0][1] is None:
                return ANY
            else:
                level = plus(level, part[0][1])
        return self.tidy(level, along)

    def joined(
        self,
        parts: Sequence[tuple[Degree, int]],
        axis: int,
        shift: Callable[[Degree, Degree], Form],
    ) -> Degree:
        """The degree of values put one after the other along `axis`.

        Args:
          parts: The degree of each value and its length along `axis`.
          axis: The axis.
          shift: By how much two degrees differ, once they are made to differ by a number only.

        Returns:
          The degree, with a segment along `axis` for each value.
        """
        alone = ((axis, sum(n for _, n in parts)),)
        if (joint := self._joined_rows(parts, axis)) is not None:
            return joint
        base: Degree | None = None
        segments: Profile = []
        for part, n in parts:
            if part.level is None:
                segments.append((n, None))
                continue
            d = self.separated(part, [k for k in part.along if is_part(k, (axis,))])
            d = self._definite(d, axis)
            own = d.along.get(((axis, n),), [(n, NOTHING)])
            rest = Degree(d.level, {k: p for k, p in d.along.items() if k != ((axis, n),)})
            if base is None:
                base = rest
                segments += own
            else:
                by = shift(rest, base)
                segments += self.unknowns.combined(own, [(n, by)]) if by else own
        if base is None:
            return ANY
        merged = self.unknowns.merged(segments)
        if alone[0][1] == 1:
            return base
        return self.tidy(base.level or NOTHING, {**base.along, alone: merged})

    def _definite(self, d: Degree, axis: int) -> Degree:
        """One degree throughout where a profile along another axis has constants of every degree.

        What is joined to them along `axis` need not be constant there.
        """
        level, along = d.level or NOTHING, dict[Key, Profile]()
        for key, profile in d.along.items():
            if key[0][0] != axis and any(form is None for _, form in profile):
                level = plus(level, self.level_of(profile))
            else:
                along[key] = profile
        return Degree(level, along)

    def _joined_rows(self, parts: Sequence[tuple[Degree, int]], axis: int) -> Degree | None:
        """The same where the values vary, each in its own way, along one and the same other key."""
        keys = {key for d, _ in parts for key in d.along}
        if len(keys) != 1 or touches_key(next(iter(keys)), (axis,)):
            return None
        (key,) = keys
        length = prod(n for _, n in key)
        profiles = [d.along.get(key) for d, _ in parts if d.level is not None]
        if all(profile == profiles[0] for profile in profiles):
            return None
        rows: Profile = []
        for d, n in parts:
            if d.level is None:
                rows.append((n * length, None))
            else:
                rows += self.unknowns.tiled(self.whole(d, key, length), n)
        total = sum(n for _, n in parts)
        return Degree(NOTHING, {((axis, total), *key) if total > 1 else key: rows})
