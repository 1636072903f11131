"""Where the axes of a leaf are in a value, and what a contraction does to each of them.

A kernel (12, 32) reshaped to (12, 4, 8) has the *places* ``({0}, {1}, {1})``: the second and the
third axis of the value are parts of the leaf's axis 1. Multiplied with data of shape (5, 12, 1, 8)
it is broadcast to (5, 12, 4, 8), with the places ``({}, {0}, {1}, {1})``: along the first axis it
is the same.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

from optax_bnmask import compat
from optax_bnmask.program.indices import Segments, size_of, starts_of
from optax_bnmask.program.maps import regrouped
from optax_bnmask.program.registry import Map
from optax_bnmask.program.tape import CONTRACT, Equation, Tape
from optax_bnmask.vocabulary import Block, Dimensions

Places = tuple[frozenset[int], ...]
"""For each axis of a value, hidden ones last, the axes of the leaf that it is a part of."""

T = TypeVar("T")

_RAGGED = compat.primitive("ragged_dot_general_p")
_NOWHERE: frozenset[Any] = frozenset()


class Meeting(NamedTuple):
    """What a contraction does to the axes of a leaf.

    Attributes:
      reduction: The axes that are summed over.
      output: Those that only this operand gives to the result.
      batch: Those along which the operands are matched index by index, loops included.
      is_same: Whether it is the same along some axis that is summed over, or is an output: then
        it is not the leaf that is contracted, but something that it was multiplied onto.
      sizes: How many entries are summed over, and put out, at each index of the batch.
    """

    reduction: frozenset[int]
    output: frozenset[int]
    batch: frozenset[int]
    is_same: bool
    sizes: tuple[int, int]


def meeting(
    tape: Tape,
    e: Equation,
    k: int,
    places: Places,
    maps: tuple[Map, Map],
    *,
    repeated: Collection[int] = (),
) -> Meeting:
    """What a contraction does to the axes of a leaf that is seen in its operand `k`.

    Args:
      tape: The program.
      e: The contraction.
      k: Which operand.
      places: Where the axes of the leaf are in it.
      maps: Which axis of that operand, and which of the other, is which of the result.
      repeated: The axes along which the operand is nothing but repeated.
    """
    to, matched = maps[0], set(maps[1].values())
    shown, sizes = len(tape.shapes[e.ins[k]]), tape.full[e.ins[k]]
    apart = _groups(e) if k == 1 else ()
    found: dict[str, frozenset[int]] = dict.fromkeys(("reduction", "output", "batch"), _NOWHERE)
    entries, is_same = {"reduction": 1, "output": 1, "batch": 1}, False
    for a, (n, own) in enumerate(zip(sizes, places, strict=True)):
        what = "reduction" if a not in to else "batch" if to[a] in matched else "output"
        what = "batch" if a >= shown or a in apart else what
        found[what] |= own
        entries[what] *= n if own else 1
        is_same |= (
            n > 1 and not own and not (what == "batch" or (what == "output" and a in repeated))
        )
    rows = 1 if k == 1 and _is_depthwise(tape, e) else entries["reduction"]
    return Meeting(**found, is_same=is_same, sizes=(rows, entries["output"]))


def _is_depthwise(tape: Tape, e: Equation) -> bool:
    """Whether each output of a grouped convolution sees one channel: its filters are no matrix."""
    if e.op is not CONTRACT:
        return False
    out_feature, in_feature, *_ = e.source.params["dimension_numbers"].rhs_spec
    groups_before = out_feature < in_feature  # the tape has an axis for them
    return tape.shapes[e.ins[1]][in_feature + groups_before] == 1


def _groups(e: Equation) -> Sequence[int]:
    """The axes of the right operand that index one matrix for each group of rows."""
    return compat.ragged_numbers(e.params)[1] if e.op is _RAGGED else ()


def moved(places: tuple[frozenset[T], ...], to: Map, rank: int) -> tuple[frozenset[T], ...]:
    """What is known of each axis once axis ``a`` is axis ``to[a]`` of `rank`."""
    out = [_NOWHERE] * rank
    for a, own in enumerate(places):
        if own and a in to:
            out[to[a]] = out[to[a]] | own if out[to[a]] else own
    return tuple(out)


def reshaped(
    places: tuple[frozenset[T], ...], old: Sequence[int], new: Sequence[int]
) -> tuple[frozenset[T], ...]:
    """What is known of each axis after a reshape of the visible ones."""
    out = [_NOWHERE] * len(new)
    for inside, outside in regrouped(old, new):
        own = _NOWHERE.union(*(places[a] for a in inside))
        large = [a for a in outside if new[a] > 1] or outside
        for a in large:
            out[a] = own
    return (*out, *places[len(old) :])


def dimensions_of(
    meetings: Iterable[Meeting | None], shape: Sequence[int], batch: Collection[int]
) -> Dimensions | None:
    """The axes of a leaf as those of a matrix, if all its contractions agree that it is one.

    Args:
      meetings: Its contractions; `None` for one of which no more is known.
      shape: Its shape.
      batch: Further axes that index independent matrices.
    """
    found = {None if m is None else _dimensions(m, shape, batch) for m in meetings}
    return found.pop() if len(found) == 1 else None


def _dimensions(m: Meeting, shape: Sequence[int], batch: Collection[int]) -> Dimensions | None:
    """The dimensions by one contraction; `None` if it does not make a matrix of the leaf.

    It does not if it sums over a part of an axis and puts another part out, or if rows or columns
    have one entry.
    """
    output = m.output - frozenset(batch) or m.output
    if m.reduction & m.output or min(m.sizes) == 1:
        return None
    rest = set(range(len(shape))) - m.reduction - output
    return Dimensions(*(tuple(sorted(axes)) for axes in (m.reduction, output, rest)))


def blocks(axes: Sequence[Segments]) -> dict[int, tuple[Block, ...]]:
    """The parts of each axis of a leaf that the program treats apart, from its index sets."""
    out = {}
    for axis, segments in enumerate(axes):
        if len(segments) > 1 or len(segments[0]) > 1:
            ends = zip(segments, starts_of(segments), strict=True)
            out[axis] = tuple(
                Block(int(start), int(start + size_of(s)), int(s[-1].size) if s else 1)
                for s, start in ends
            )
    return out
