"""Exact linear algebra over unknown exponents: forms, profiles, and equations solved as they come.

A *form* ``{unknown: coefficient}`` is a linear form over the rationals. An unknown is a number, or
a vector of numbers, one for each index of some axis; a *view* of a vector repeats each of its
entries `inner` times and the whole as often as needed, ``i -> v[(i // inner) % size]``. A *profile*
is how a degree varies along an axis: segments ``(length, form)``, where the form may hold scalars
and views whose period divides the length, or is `None` where the values are constants that have
every degree at once. An equation ``form = 0`` is solved for one unknown at once, and every other
form learns of it when it is next resolved.

Where the exact solution would not be a sum of views, the unknowns are restricted to be uniform.
That can only lose symmetries, never invent one.
"""

from itertools import pairwise
from typing import NamedTuple, cast

from optax_bnmask.program.forms import NOTHING, Form, Number, Profile, plus, quotient

_MOST_SEGMENTS = 512


class View(NamedTuple):
    """A vector unknown seen with each entry repeated `inner` times."""

    vector: int
    inner: int


class Unknowns:
    """The unknown exponents of one analysis, and what is known of them.

    Attributes:
      size: The number of entries of each unknown; 1 for a number.
      solved: What the solved unknowns stand for: a form for a number, a profile for a view.
    """

    def __init__(self) -> None:
        self.size: list[int] = []
        self.solved: dict[int, Form | Profile] = {}
        self._views: dict[int, View] = {}
        self._of_vector: dict[int, dict[int, int]] = {}
        self._gauge: set[int] = set()

    def copy(self) -> "Unknowns":
        """An independent copy, to try further equations on."""
        other = Unknowns()
        other.size = list(self.size)
        other.solved = dict(self.solved)
        other._views = dict(self._views)
        other._of_vector = {v: dict(views) for v, views in self._of_vector.items()}
        other._gauge = set(self._gauge)
        return other

    def scalar(self) -> int:
        """A new unknown number."""
        self.size.append(1)
        return len(self.size) - 1

    def vector(self, size: int, *, gauge: bool = False) -> int:
        """A new unknown with `size` entries.

        Args:
          size: The number of entries.
          gauge: Whether the unknown only ever appears beside a number of its own with the same
            coefficient, so that its mean may be taken to be 0.

        Returns:
          The unknown.
        """
        if size == 1:
            return self.scalar()
        self.size.append(size)
        v = len(self.size) - 1
        self._views[v] = View(v, 1)
        self._of_vector[v] = {1: v}
        if gauge:
            self._gauge.add(v)
        return v

    def is_gauge(self, key: int) -> bool:
        """Whether the mean of a vector may be taken to be 0; see `vector`."""
        return self._views[key].vector in self._gauge

    def view(self, key: int, inner: int) -> int:
        """The unknown `key` with each entry repeated `inner` times."""
        if inner == 1 or self.size[key] == 1:
            return key
        vector, already = self._views[key]
        inner *= already
        views = self._of_vector[vector]
        if inner not in views:
            self.size.append(self.size[vector])
            new = len(self.size) - 1
            views[inner] = new
            self._views[new] = View(vector, inner)
            if vector in self.solved:
                self.solved[new] = self._repeated(self._profile_of(vector), inner)
        return views[inner]

    def inner(self, key: int) -> int:
        """How often the view `key` repeats each entry."""
        return self._views[key].inner

    def source(self, key: int) -> int:
        """The unknown that `key` is a view of."""
        return key if self.size[key] == 1 else self._views[key].vector

    def period(self, key: int) -> int:
        """After how many indices the view `key` starts anew."""
        return self.size[key] * self._views[key].inner

    def is_uniform(self, form: Form) -> bool:
        """Whether the form holds numbers only."""
        size = self.size
        return all(size[key] == 1 for key in form)

    def resolve(self, form: Form) -> Form:
        """A form of numbers, in terms of the unknowns that are still free."""
        solved = self.solved
        for key in form:
            if key in solved:
                break
        else:
            return form
        out: dict[int, Number] = {}
        for key, c in form.items():
            if key in solved:
                for other, k in self._settled(key).items():
                    out[other] = out.get(other, 0) + c * k
            else:
                out[key] = out.get(key, 0) + c
        return {key: c for key, c in out.items() if c}

    def _settled(self, key: int) -> Form:
        """The form that a solved number stands for, resolved once and for all; no recursion."""
        solved = cast("dict[int, Form]", self.solved)
        stack = [key]
        while stack:
            top = stack[-1]
            form = solved[top]
            waiting = [k for k in form if k in solved and any(j in solved for j in solved[k])]
            if waiting:
                stack += waiting
                continue
            stack.pop()
            if any(k in solved for k in form):
                out: Form = {}
                for k, c in form.items():
                    out = plus(out, solved[k], c) if k in solved else plus(out, {k: c})
                solved[top] = out
        return solved[key]

    def resolve_along(self, profile: Profile) -> Profile:
        """A profile in terms of the unknowns that are still free; may have more segments."""
        solved = self.solved
        start = profile
        while any(form and any(key in solved for key in form) for _, form in profile):
            out: Profile = []
            for length, form in profile:
                if not form or not any(key in solved for key in form):
                    out.append((length, form))
                else:
                    out += self._expanded(length, form)
            profile = self.merged(out)
        if profile is not start and len(start) == 1 and start[0][1] and len(start[0][1]) == 1:
            ((key, c),) = start[0][1].items()
            if c == 1 and self.size[key] > 1 and self.period(key) == start[0][0]:
                solved[key] = profile  # the next reader takes one step instead of many
        return profile

    def _profile_of(self, view: int) -> Profile:
        """What a solved view stands for."""
        return cast("Profile", self.solved[view])

    def _expanded(self, length: int, form: Form) -> Profile:
        """One segment with its solved unknowns replaced once."""
        solved, size = self.solved, self.size
        plain: Form = {}
        profiles: list[tuple[Profile, Number]] = []
        for key, c in form.items():
            if key not in solved:
                plain = plus(plain, {key: c})
            elif size[key] == 1:
                plain = plus(plain, self._settled(key), c)
            elif len(self._profile_of(key)) == 1:
                plain = plus(plain, self._profile_of(key)[0][1] or NOTHING, c)
            else:
                profiles.append((self._profile_of(key), c))
        out: Profile = [(length, plain)]
        for profile, c in profiles:
            copies = length // sum(n for n, _ in profile)
            if copies * len(profile) > _MOST_SEGMENTS:
                flat: Profile = [(length, self.flattened(profile))]
                out = self.combined(out, flat, c)
            else:
                out = self.combined(out, profile * copies, c)
        return out

    def combined(self, a: Profile, b: Profile, k: Number = 1) -> Profile:
        """``a + k*b`` segment by segment; a constant of every degree stays one."""
        out: Profile = []
        for length, f, g in self.aligned(a, b):
            out.append((length, None if f is None or g is None else plus(f, g, k)))
        return out

    def aligned(self, a: Profile, b: Profile) -> list[tuple[int, Form | None, Form | None]]:
        """Two profiles of one length, cut at each other's borders."""
        if len(a) == 1 and len(b) == 1:
            return [(a[0][0], a[0][1], b[0][1])]
        borders = sorted({*_borders(a), *_borders(b)})
        a, b = self.cut(a, borders), self.cut(b, borders)
        if len(a) != len(b):  # cutting one may have split unknowns of the other
            return self.aligned(self.resolve_along(a), self.resolve_along(b))
        return [(n, f, g) for (n, f), (_, g) in zip(a, b, strict=True)]

    def cut(self, profile: Profile, borders: list[int]) -> Profile:
        """The profile with a segment border at each of `borders` (sorted, the end included)."""
        out: Profile = []
        start = 0
        for length, form in profile:
            inside = [b - start for b in borders if start < b < start + length]
            edges = [0, *inside, length]
            for lo, hi in pairwise(edges):
                out.append((hi - lo, form if not inside else self._part(form, length, lo, hi)))
            start += length
        return out

    def _part(self, form: Form | None, length: int, lo: int, hi: int) -> Form | None:
        """The form of a segment on its indices ``lo:hi`` alone."""
        if form is None:
            return None
        out: Form = {}
        for key, c in form.items():
            out = plus(out, self._piece(key, length, lo, hi), c)
        return out

    def _piece(self, key: int, length: int, lo: int, hi: int) -> Form:
        """The view `key` of a segment of that length on the indices ``lo:hi``."""
        if self.size[key] == 1:
            return {key: 1}
        if key in self.solved:
            parts = self.slice(self.resolve_along([(length, {key: 1})]), lo, hi)
            return self.flattened(parts) if len(parts) > 1 else (parts[0][1] or NOTHING)
        vector, inner = self._views[key]
        period = self.period(key)
        if lo % period == 0 and (hi - lo) % period == 0:
            return {key: 1}
        first, last = lo % period, lo % period + hi - lo
        if first % inner or last % inner or last > period:
            return self._made_uniform(vector)
        middle = self._split(vector, first // inner, last // inner)
        return {self.view(middle, inner): 1}

    def slice(self, profile: Profile, lo: int, hi: int) -> Profile:
        """The profile on the indices ``lo:hi`` alone."""
        total = sum(n for n, _ in profile)
        parts = self.cut(profile, sorted({lo, hi, total}))
        out: Profile = []
        start = 0
        for length, form in parts:
            if lo <= start < hi:
                out.append((length, form))
            start += length
        return out

    def _split(self, vector: int, lo: int, hi: int) -> int:
        """Takes a vector apart at two places and returns its middle part."""
        edges = sorted({0, lo, hi, self.size[vector]})
        parts: Profile = []
        middle = -1
        for a, b in pairwise(edges):
            part = self.vector(b - a)
            parts.append((b - a, {part: 1}))
            if a == lo:
                middle = part
        self._solve_vector(vector, parts)
        return middle

    def merged(self, profile: Profile) -> Profile:
        """The profile with equal neighbours joined, where they are uniform."""
        if len(profile) == 1:
            return profile
        out: Profile = []
        for length, form in profile:
            if out and out[-1][1] == form and (form is None or self.is_uniform(form)):
                out[-1] = (out[-1][0] + length, form)
            else:
                out.append((length, form))
        return out

    def repeated(self, profile: Profile, inner: int) -> Profile:
        """The profile with each index repeated `inner` times."""
        return self._repeated(profile, inner) if inner > 1 else profile

    def _repeated(self, profile: Profile, inner: int) -> Profile:
        return [
            (n * inner, None if f is None else {self.view(k, inner): c for k, c in f.items()})
            for n, f in profile
        ]

    def tiled(self, profile: Profile, copies: int) -> Profile:
        """The profile, `copies` times one after the other."""
        if copies == 1:
            return profile
        if len(profile) == 1:
            return [(profile[0][0] * copies, profile[0][1])]
        if copies * len(profile) > _MOST_SEGMENTS:
            return [(sum(n for n, _ in profile) * copies, self.flattened(profile))]
        return self.merged(profile * copies)

    def equate_to_zero(self, form: Form) -> None:
        """Imposes ``form = 0`` on a form of numbers."""
        form = self.resolve(form)
        if not form:
            return
        rising = [key for key, c in form.items() if c > 0]
        falling = [key for key, c in form.items() if c < 0]
        # Eliminate from the longer side, so that what was a long form becomes a short one, and
        # there what was met last, of which the fewest forms know.
        sides = (rising, falling) if len(rising) != len(falling) else (rising + falling,)
        pivot = max(max(sides, key=len))
        self.solved[pivot] = self._without(form, pivot)

    def equate_along_to_zero(self, length: int, form: Form) -> None:
        """Imposes ``form = 0`` at every index of a segment."""
        parts = self.resolve_along([(length, form)])
        if len(parts) == 1:
            self._equate_segment(parts[0][1] or NOTHING)
            return
        for n, part in parts:  # each may solve unknowns that the next ones hold
            self.equate_along_to_zero(n, part or NOTHING)

    def _equate_segment(self, form: Form) -> None:
        keys = [key for key in form if self.size[key] > 1]
        if not keys:
            self.equate_to_zero(form)
            return
        if len(keys) < len(form) and all(map(self.is_gauge, keys)):
            # Their means are 0, so that the numbers beside them must vanish by themselves.
            self.equate_to_zero({key: c for key, c in form.items() if key not in keys})
            form = {key: form[key] for key in keys}
        low = min(self.inner(key) for key in keys)
        high = max(self.period(key) for key in keys)
        wide = [k for k in keys if self.inner(k) == low and self.period(k) == high]
        if wide and all(self._divides(key, low, high) for key in keys):
            pivot = max(wide)
            rest = self._without(form, pivot)
            self._solve_vector(
                self._views[pivot].vector,
                [(self.size[pivot], {self.inside(k, low): c for k, c in rest.items()})],
            )
            return
        self._equate_clusters(form, keys)

    def _equate_clusters(self, form: Form, keys: list[int]) -> None:
        """Views of disjoint digits of the index add up to 0 only if each is uniform."""
        uniform: Form = {key: c for key, c in form.items() if self.size[key] == 1}
        clusters: list[tuple[int, list[int]]] = []
        for key in sorted(keys, key=lambda k: (self.inner(k), k)):
            if clusters and self.inner(key) < clusters[-1][0]:
                high, members = clusters[-1]
                clusters[-1] = (max(high, self.period(key)), [*members, key])
            else:
                clusters.append((self.period(key), [key]))
        if len(clusters) == 1:  # no view covers the others: restrict all to numbers
            for key in keys:
                uniform = plus(uniform, self._made_uniform(self._views[key].vector), form[key])
            self.equate_to_zero(uniform)
            return
        for period, members in clusters:
            part = {key: form[key] for key in members}
            uniform = plus(uniform, self.flattened([(period, part)]))
        self.equate_to_zero(uniform)

    def flattened(self, profile: Profile) -> Form:
        """The number that a profile is, once it is made uniform along its whole length."""
        result: Form | None = None
        for length, form in self.resolve_along(profile):
            if form is None:
                continue
            level = self.resolve(self._flat_segment(length, form))
            if result is None:
                result = level
            else:
                self.equate_to_zero(plus(level, result, -1))
        return self.resolve(result) if result else NOTHING

    def _flat_segment(self, length: int, form: Form) -> Form:
        uniform: Form = {}
        vectors: Form = {}
        for key, c in form.items():
            if key in self.solved:  # an earlier segment has just solved it
                return self.flattened(self.resolve_along([(length, form)]))
            (uniform if self.size[key] == 1 else vectors)[key] = c
        if not vectors:
            return uniform
        if len(vectors) == 1:
            ((key, c),) = vectors.items()
            return plus(uniform, self._made_uniform(self._views[key].vector), c)
        level: Form = {} if all(map(self.is_gauge, vectors)) else {self.scalar(): 1}
        self.equate_along_to_zero(length, plus(vectors, level, -1))
        return plus(uniform, level)

    def _made_uniform(self, vector: int) -> Form:
        """Restricts a vector to be one number; to 0 where another number stands beside it."""
        if vector in self.solved:
            return self.flattened(self.resolve_along([(self.size[vector], {vector: 1})]))
        level: Form = {} if vector in self._gauge else {self.scalar(): 1}
        self._solve_vector(vector, [(self.size[vector], level)])
        return level

    def restrict_to_uniform(self, view: int) -> None:
        """Restricts the vector behind a view to be one number."""
        self._made_uniform(self._views[view].vector)

    def restrict(self, view: int, parts: Form) -> None:
        """Restricts the vector behind a view to a sum of views of its own length."""
        vector = self._views[view].vector
        self._solve_vector(vector, [(self.size[vector], parts)])

    def _solve_vector(self, vector: int, profile: Profile) -> None:
        for inner, view in self._of_vector[vector].items():
            self.solved[view] = profile if inner == 1 else self._repeated(profile, inner)

    def _divides(self, key: int, low: int, high: int) -> bool:
        return self.inner(key) % low == 0 and high % self.period(key) == 0

    def inside(self, key: int, low: int) -> int:
        """The view `key` as seen from a vector whose own entries are repeated `low` times."""
        if self.size[key] == 1 or low == 1:
            return key
        vector, inner = self._views[key]
        return self.view(vector, inner // low)

    @staticmethod
    def _without(form: Form, pivot: int) -> Form:
        """``pivot`` in terms of the others, from ``form = 0``."""
        k = form[pivot]
        if k in (1, -1):
            return {key: -c * k for key, c in form.items() if key != pivot}
        return {key: quotient(-c, k) for key, c in form.items() if key != pivot}


def _borders(profile: Profile) -> list[int]:
    out: list[int] = []
    end = 0
    for length, _ in profile:
        end += length
        out.append(end)
    return out
