"""What was found of leaves and values so far, and the ways to add to it."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from optax_bnmask.program.facts import Facts
from optax_bnmask.program.flags import MAY_BE_0
from optax_bnmask.program.flatness import Flatness
from optax_bnmask.program.maps import operand_map
from optax_bnmask.program.registry import SAME, Kind, Law, Map
from optax_bnmask.program.tape import Equation
from optax_bnmask.program.uses.dimensions import (
    Meeting,
    Places,
    dimensions_of,
    meeting,
    moved,
)
from optax_bnmask.program.uses.gauges import Gauges
from optax_bnmask.program.uses.gradients import differentiable, reached
from optax_bnmask.program.uses.gradients import moved as moved_by_leaves
from optax_bnmask.program.uses.indicating import OneHotAxes
from optax_bnmask.program.uses.views import (
    PRECEDENCE,
    Combined,
    Origins,
    Seen,
    View,
    features_of,
    renamed,
)
from optax_bnmask.vocabulary import Dimensions, Role


class Record:
    """How the leaves of a program are used.

    Attributes:
      facts: What is known of the values.
      tape: The program.
      flat: The axes along which values do not vary.
      gauges: The local scale of the values.
      shapes: The shape of each leaf, by its number.
      seen: What was seen of each leaf.
      biases: For each leaf, the biases added to its own output.
      views: What is remembered of each value; nothing of constants.
      moves: For each value, whether a gradient connects it with a leaf.
      reached: For each value, whether a gradient connects it with an output.
      indicators: The values that are 1 where something has an index, and else 0, times a factor,
        with the axes along which that is so: see `indicating`.
      given: Where values that leaves were applied to are normalised by statistics that are given.
      e: The equation that is read.
      law: Its law; `PIN` if it has none.
    """

    e: Equation
    law: Law | None

    def __init__(self, facts: Facts, shapes: Sequence[Sequence[int]]) -> None:
        self.facts, self.tape, self.flat = facts, facts.tape, Flatness(facts)
        self.gauges = Gauges(facts)
        self.shapes, flows = shapes, differentiable(self.tape)
        self.moves, self.reached = moved_by_leaves(self.tape, flows), reached(self.tape, flows)
        self.seen = [Seen() for _ in shapes]
        self.biases: list[set[int]] = [set() for _ in shapes]
        self.views: dict[int, View] = {}
        self.indicators: dict[int, OneHotAxes] = {}
        self.given: list[Equation] = []
        self._maps: dict[int, Map] = {}

    def begin(self, e: Equation) -> None:
        """Turns to the next equation."""
        self.e, self.law = e, self.facts.law(e)
        self._maps.clear()

    def role(self, number: int) -> Role:
        """The role that a leaf was seen in; the first of `PRECEDENCE` if there are several."""
        roles = self.seen[number].roles
        for role in PRECEDENCE:
            if role in roles:
                return role
        return Role.UNKNOWN

    def dimensions(self, number: int) -> Dimensions | None:
        """Which axes of a leaf make a matrix of it."""
        seen = self.seen[number]
        return dimensions_of(seen.meetings, self.shapes[number], seen.batch)

    def vote(self, leaves: Iterable[int], role: Role, e: Equation) -> None:
        """Records a role of some leaves."""
        for number in leaves:
            self.seen[number].roles.setdefault(role, e)

    def revote(self, leaves: Iterable[int], old: Role, new: Role, e: Equation) -> None:
        """Takes back a role of some leaves for another."""
        for number in leaves:
            self.seen[number].roles.pop(old, None)
        self.vote(leaves, new, e)

    def promote(
        self,
        number: int,
        met: Combined | None,
        how: Meeting | None,
        e: Equation,
        data: Collection[int] = (),
    ) -> None:
        """Makes a weight of a leaf, whatever it was taken for when it met the data before.

        Args:
          number: The leaf.
          met: How it met the data before, if it did.
          how: What the equation does to its axes, if that is known.
          e: The equation.
          data: What it is contracted with, if that is not the operands of the equation.
        """
        roles = self.seen[number].roles
        if met and met.role and roles.get(met.role) is met.at:
            del roles[met.role]
        self.vote([number], Role.WEIGHT, e)
        seen = self.seen[number]
        trains = bool(self.reached[e.out])
        if trains and not seen.trains:  # beside a use that trains it, a power iteration is none
            seen.meetings.clear()
            seen.outputs.clear()
            seen.data.clear()
        if trains or not seen.trains:
            seen.trains = trains
            seen.meetings.append(how)
            seen.outputs.append(e.out)
            seen.data += [x for x in data or e.ins if self.depends_on_others(x, number)]

    def depends_on_others(self, x: int, number: int) -> bool:
        """Whether a value is computed from other leaves than that one."""
        view = self.views.get(x)
        return bool(self.facts.depends[x] and (view is None or number not in view.leaves))

    def own(self, places: Places, x: int) -> set[int]:
        """The visible axes of a value along which a leaf may vary."""
        return {a for a, n in enumerate(self.tape.shapes[x]) if n > 1 and places[a]}

    def to(self, k: int) -> Map:
        """Which axis of an operand is which of the result."""
        if k not in self._maps:
            self._maps[k] = operand_map(self.tape, self.e, k, (self.law or Law()).map_of(k))
        return self._maps[k]

    def meeting(self, k: int, places: Places, repeated: Collection[int] = ()) -> Meeting:
        """What the equation does to the axes of a leaf that is seen in its operand `k`."""
        maps = self.to(k), self.to(1 - k)
        return meeting(self.tape, self.e, k, places, maps, repeated=repeated)

    def meetings(self, k: int, leaves: Mapping[int, Places]) -> dict[int, Meeting]:
        """What the equation does to the axes of each of the leaves that its operand `k` is.

        Queries that are repeated for each example are contracted all the same. Not so a gain that
        was spread over a diagonal, which is 0 elsewhere.
        """
        repeated: Collection[int] = ()
        if leaves and not self.facts.flags[self.e.ins[k]] & MAY_BE_0:
            along = zip(*leaves.values(), strict=True)
            repeated = [a for a, places in enumerate(along) if not any(places)]
        return {n: self.meeting(k, places, repeated) for n, places in leaves.items()}

    def along(self, k: int) -> View | None:
        """The view of an operand along the axes of the result; none of a constant."""
        x, law = self.e.ins[k], self.law
        view = self.views.get(x)
        if view is None:
            return None
        if law is None:  # entry by entry, or nobody knows how
            return view if self.is_alike(x) else View(data=view.data, contracted=view.contracted)
        if law.maps is SAME and self.is_alike(x):
            return view
        return self._moved(k, view)

    def is_alike(self, x: int) -> bool:
        """Whether an operand has the axes of the result."""
        tape, out = self.tape, self.e.out
        return tape.shapes[x] == tape.shapes[out] and tape.hidden[x] == tape.hidden[out]

    def _moved(self, k: int, view: View) -> View:
        """The view of an operand whose axes are others than those of the result."""
        to, rank = self.to(k), len(self.tape.full[self.e.out])
        return renamed(
            view, lambda known: moved(known, to, rank), broad=view.broad or len(to) < rank
        )

    def all_along(self, first: int = 0, last: int | None = None) -> list[View]:
        """The views of some operands along the axes of the result, constants left out."""
        places = range(len(self.e.ins))[first:last]
        return [v for k in places if (v := self.along(k)) is not None]

    def unshifted(self, x: int) -> int:
        """The value whose entries a value holds, perhaps shifted along an axis and padded."""
        while (e := self.tape.writers.get(x)) is not None:
            data = {y for y in e.ins if y in self.views}
            if e.kind is Kind.JOIN and len(data) > 1:  # both ends of what was rolled
                data = {self.unshifted(y) for y in data}
            if e.kind not in (Kind.VIEW, Kind.CAST, Kind.JOIN) or len(data) != 1:
                break
            (x,) = data
        return x

    def features(self) -> Origins:
        """The `Origins` of the result: for each axis, the axes of leaves that made it."""
        views = [self.views.get(x) for x in self.e.ins]
        return features_of(
            self.moved(k, view.features) for k, view in enumerate(views) if view and view.features
        )

    def moved(self, k: int, known: tuple[frozenset[Any], ...]) -> tuple[frozenset[Any], ...]:
        """What is known of each axis of an operand along the axes of the result."""
        return moved(known, self.to(k), len(self.tape.full[self.e.out]))
