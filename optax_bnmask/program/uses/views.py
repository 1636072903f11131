"""What is remembered of a value on the way from the leaves to the data, and what of a leaf."""

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from optax_bnmask.program.tape import Equation
from optax_bnmask.program.uses.dimensions import Meeting, Places
from optax_bnmask.vocabulary import Role

NONE: frozenset[int] = frozenset()

Origins = tuple[frozenset[tuple[int, int]], ...]
"""For each axis of a value the axes of leaves that it is an output of, as ``(leaf, axis)``."""

_MOST = 8
"""So many of them are kept for each axis: a sum over all layers is an output of all of these."""

_NO_LEAVES: Mapping[int, Places] = {}


class Combined(NamedTuple):
    """A leaf that has met data entry by entry, and may still turn out to be a weight.

    Attributes:
      places: Where its axes are.
      role: What it is if nothing more happens to it, where that is known.
      at: The equation that made it so.
      modulated: Whether the data were the same along an axis of it, as styles of its inputs are.
    """

    places: Places
    role: Role | None
    at: Equation
    modulated: bool = False


class Factor(NamedTuple):
    """A leaf that a value is linear in, being a product of it and data.

    Attributes:
      places: Where its axes are.
      pieces: The slices of the leaf that have been added up so far.
      at: The data.
      of: The data before they were shifted along an axis.
      combined: What it is unless more is found.
    """

    places: Places
    pieces: frozenset[int]
    at: int
    of: int
    combined: Combined


class View(NamedTuple):
    """What is remembered of a value.

    Attributes:
      leaves: The leaves of which alone the value is a function, entry by entry, and where their
        axes are; none once it has met the data.
      combined: The leaves that have met data entry by entry, but no contraction yet.
      factors: Of these, the ones that the value is linear in.
      features: Of data, for each axis the axes of leaves whose outputs these entries are, as pairs
        ``(leaf, axis)``. Along an axis that no leaf made, data are at different positions. Not kept
        of statistics, which are combined with what they are of.
      broad: Whether it is the same along some axis.
      data: Whether the value depends on anything but leaves and constants.
      contracted: Whether leaves were, for it, be it with each other: what is added is a bias.
      normed: 0; 1 after a gauge has cancelled; 2 when a gain has followed.
      cancelled: The unknown scales that it was normalised by.
      gains: The gains folded into the value since its last contraction.
      owners: The leaves whose output the value is: weights and gains whose bias may follow.
      shifted: Whether the leaf is seen with a constant added to it, ``1 + scale``.
      centred: Whether the value is a difference from something given, ``x - mean``.
      root: 1 for a square root of something given, -1 for an inverse one, and for what gains make
        of them.
      fixed: For an array that the program is closed over, its size. It may be data, or belong to a
        leaf, as a mask does; beside a leaf that is no smaller it is taken to be the latter.
      piece: The slice of a leaf that it is; -1 for a whole one.
    """

    leaves: Mapping[int, Places] = _NO_LEAVES
    combined: Mapping[int, Combined] = {}
    factors: Mapping[int, Factor] = {}
    features: Origins = ()
    broad: bool = False
    data: bool = True
    contracted: bool = False
    normed: int = 0
    cancelled: frozenset[int] = NONE
    gains: frozenset[int] = NONE
    owners: frozenset[int] = NONE
    shifted: bool = False
    centred: bool = False
    root: int = 0
    fixed: int = 0
    piece: int = -1

    @property
    def is_pure(self) -> bool:
        """Whether the value is leaves and constants alone, never contracted."""
        return not self.data and not self.contracted


DATA = View()

_view = functools.partial(tuple.__new__, View)
"""A `View` of all fields in their order, in half the time that naming them takes."""


def renamed(view: View, rename: Callable[[Any], Any], *, broad: bool) -> View:
    """The view of a value with other axes.

    Args:
      view: As it was.
      rename: Takes what is known of each old axis, a tuple, to that of the new axes.
      broad: Whether it is the same along some axis now.
    """
    leaves, combined, factors, features = view[:4]
    if not (leaves or combined or factors or features) and broad == view.broad:
        return view
    moved = (
        {n: rename(p) for n, p in leaves.items()} if leaves else _NO_LEAVES,
        {n: Combined(rename(m.places), *m[1:]) for n, m in combined.items()} if combined else {},
        {n: Factor(rename(f.places), *f[1:]) for n, f in factors.items()} if factors else {},
        rename(features) if features else (),
        broad,
    )
    return _view(moved + view[5:])


def merged(
    views: Sequence[View],
    *,
    factors: Mapping[int, Factor] = {},
    normed: int = 0,
    cancelled: frozenset[int] = NONE,
    owners: frozenset[int] = NONE,
    shifted: bool = False,
    centred: bool = False,
    root: int = 0,
) -> View:
    """The view of what is computed from several values entry by entry.

    Functions of leaves alone are still those leaves. What else is normalised, say, or an owner's
    output, each operation knows for itself and says by name, as in `View`.
    """
    data = contracted = False
    broad, gains = True, NONE
    combined: list[Mapping[int, Combined]] = []
    features: list[Origins] = []
    for v in views:  # most have few of these
        data, contracted, broad = data or v.data, contracted or v.contracted, broad and v.broad
        if v.gains:
            gains |= v.gains
        if v.combined:
            combined.append(v.combined)
        if v.features:
            features.append(v.features)
    leaves = _NO_LEAVES if data or contracted else leaves_of(views)
    met = together(combined) if combined else {}, factors
    made = features_of(features) if features else ()
    kept = broad, data, contracted, normed, cancelled, gains, owners, shifted, centred, root
    return _view((leaves, *met, made, *kept, DATA.fixed, DATA.piece))


def features_of(values: Iterable[Origins]) -> Origins:
    """The union of the `Origins` of values that are combined entry by entry."""
    out: Origins = ()
    for other in values:
        if not out or not other or out is other:
            out = out or other
        elif out != other:
            pairs = zip(out, other, strict=True)
            out = tuple(a | b if a != b and len(a) + len(b) <= _MOST else a or b for a, b in pairs)
    return out


def made_by(number: int, places: Places, axes: Collection[int] | None = None) -> Origins:
    """The `Origins` of a value that one leaf made, from the places of its axes: all, or some."""
    return tuple(
        [
            frozenset([(number, p) for p in own if p >= 0] if axes is None or a in axes else ())
            for a, own in enumerate(places)
        ]
    )


def all_of(places: Iterable[frozenset[int]]) -> frozenset[int]:
    """The axes of a leaf that are anywhere in some places."""
    return NONE.union(*places)


def together(mappings: Iterable[Mapping[int, Any]]) -> Mapping[int, Any]:
    """Mappings by leaf, merged; for a leaf in several of them the first one counts."""
    found = [m for m in mappings if m]
    if len(found) < 2:
        return found[0] if found else {}
    return {n: value for m in reversed(found) for n, value in m.items()}


def leaves_of(views: Iterable[View]) -> Mapping[int, Places]:
    """The leaves of several views that are combined entry by entry, and where their axes are.

    In ``w + w.T`` both axes of the result are parts of both axes of `w`.
    """
    found = [v.leaves for v in views if v.leaves]
    if len(found) < 2:
        return found[0] if found else {}
    out = dict(found[0])
    for leaves in found[1:]:
        for number, places in leaves.items():
            own = out.setdefault(number, places)
            if own != places:
                out[number] = tuple(a | b for a, b in zip(own, places, strict=True))
    return out


@dataclasses.dataclass(slots=True)
class Seen:
    """What was seen of one leaf.

    Attributes:
      roles: Every role that it was seen in, and the equation of the first time.
      meetings: How it was contracted, each time; `None` where that was a sum of products.
      batch: Its axes that other weights, a matrix for each index, go on with: experts.
      outputs: The values that are sums of its products with data.
      data: Those of these data that depend on other leaves.
      trains: Whether a gradient comes back through these values. If it does through any, those
        through which none comes are left out.
      shifted: Whether it was multiplied as ``constant + leaf``.
      axes: Along how many axes it varied when it was last multiplied onto something.
    """

    roles: dict[Role, Equation] = dataclasses.field(default_factory=dict)
    meetings: list[Meeting | None] = dataclasses.field(default_factory=list)
    batch: set[int] = dataclasses.field(default_factory=set)
    outputs: list[int] = dataclasses.field(default_factory=list)
    data: list[int] = dataclasses.field(default_factory=list)
    trains: bool = False
    shifted: bool = False
    axes: int = 0


PRECEDENCE = (
    Role.EMBEDDING,
    Role.WEIGHT,
    Role.NORM_SCALE,
    Role.NORM_BIAS,
    Role.GAIN,
    Role.BIAS,
)
