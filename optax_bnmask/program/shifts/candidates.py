"""Leaves that reach an output past every operation in which what is added to them could go away.

They matter, and need not be followed. In a transformer the biases of keys can only reach the output
through the softmax, which subtracts a maximum; those of all other layers are added to the stream,
which ends in the logits, and so are most gains and kernels. What reaches a nonlinearity so, a GELU
or a ReLU, goes away nowhere either.

It is a guess on the cautious side: a leaf that is left out is not called dead.
"""

import math
from collections.abc import Collection, Sequence
from typing import Final

from optax_bnmask import compat
from optax_bnmask.program.facts import Facts
from optax_bnmask.program.registry import RULES, Kind
from optax_bnmask.program.shifts.changes import Start
from optax_bnmask.program.shifts.flatness import Flatness
from optax_bnmask.program.tape import Equation
from optax_bnmask.program.uses.record import Record

_ADD, _NEG = compat.primitive("add_p"), compat.primitive("neg_p")
_ORDERING: Final = {
    compat.primitive(f"{name}_p") for name in ("argmax", "argmin", "sort", "top_k", "is_finite")
}
_SEEN_THROUGH: Final = {Kind.VIEW, Kind.CAST}
_SCALING: Final = {Kind.PRODUCT, Kind.QUOTIENT}
_CANCELLING: Final = {Kind.COMPARISON, Kind.UNSCALED}
_BENDING: Final = {Kind.EXTREMUM, Kind.NONLINEAR}
_PASSING: Final = {*Kind} - _SCALING - _CANCELLING - {Kind.SUM}
"""Kinds, but for `_ORDERING`, in whose results a change of an operand is seen, whatever it is."""


class Candidates:
    """What may be added to leaves, for all that can be told without following it.

    Args:
      facts: What is known of the values.
      uses: How the leaves are used, for the axes that they make.
      flat: The axes along which values do not vary.
    """

    def __init__(self, facts: Facts, uses: Record, flat: Flatness) -> None:
        self._facts, self._uses = facts, uses
        tape = facts.tape
        self._ends, self._passes = list(tape.outs), bytearray(len(tape.shapes))
        self._sums: list[Equation] = []
        pure = {*facts.leaves, *tape.literals}
        for e in tape.equations:
            if pure.issuperset(e.ins):  # computed from leaves alone, and the same for all data
                pure.add(e.out)
            kind = RULES[e.op].kind if e.op in RULES else Kind.OPAQUE
            if (kind in _PASSING and e.op not in _ORDERING) or not _may_cancel(facts, e, kind):
                self._passes[e.out] = 1
                bends = kind in _BENDING and _is_nonlinear(facts, e, kind)
                if bends and not (e.out in pure or _is_flat(flat, e.out)):
                    self._ends += e.ins
            elif kind is Kind.SUM:
                self._sums.append(e)

    def anything(self) -> list[Start]:
        """The leaves to which anything may be added.

        What is subtracted by a normaliser over features does not cancel it: what is added to these
        is not the same along them.
        """
        passes, tape = bytearray(self._passes), self._facts.tape
        for e in self._sums:
            passes[e.out] = any(_reduces_features(self._facts, self._uses, x) for x in e.ins)
        reaching, shapes = tape.needed(self._ends, passes), tape.shapes
        return [
            (x, None)
            for x in self._facts.leaves
            # What has one entry along an axis may be the same along it where others are not.
            if not reaching[x] or not shapes[x] or 1 in shapes[x]
        ]

    def along_axes(self, dead: Collection[int]) -> list[list[Start]]:
        """For each leaf that may matter, what is the same along one of its axes.

        Of a leaf that is contracted these are the axes that appear in the result. What is the same
        along the last axis is apart from the rest: in a variance over features, heads that are
        shifted would hide that features may be.
        """
        tape, last, others = self._facts.tape, list[Start](), list[Start]()
        reaching = tape.needed(self._ends, self._passes)
        for x in self._facts.leaves:
            if reaching[x] or x in dead:
                continue
            made = self._uses.dimensions(tape.leaves[x])
            for axis, n in enumerate(tape.shapes[x]):
                if n > 1 and (made is None or axis in made.output):
                    (last if axis == len(tape.shapes[x]) - 1 else others).append((x, axis))
        return [last, others]


def _is_nonlinear(facts: Facts, e: Equation, kind: Kind) -> bool:
    """Whether nothing is left of a change that is the same along axes, but where values are too."""
    if kind is Kind.EXTREMUM and len(e.ins) == 2:
        numbers = [number for x in e.ins if (number := facts.numbers[x]) is not None]
        return any(map(math.isfinite, numbers))
    return kind is Kind.NONLINEAR and bool(facts.depends[e.out])


def _is_flat(flat: Flatness, x: int) -> bool:
    """Whether a value is the same along some axis."""
    pairs = zip(flat.facts.tape.full[x], flat.of(x), strict=True)
    return any(same and n > 1 for n, same in pairs)


def _may_cancel(facts: Facts, e: Equation, kind: Kind) -> bool:
    """Whether changes of different operands may cancel, or have no effect."""
    if kind in _SCALING:
        return any(facts.numbers[x] == 0 for x in e.ins)
    if kind is Kind.SUM:
        return all(facts.depends[x] for x in e.ins) and (
            e.op is not _ADD or any(_is_negative(facts, x) for x in e.ins)
        )
    return kind in _CANCELLING or e.op in _ORDERING


def _behind(facts: Facts, x: int) -> Equation | None:
    """What writes a value, seen through views and factors that are numbers."""
    while (e := facts.tape.writers.get(x)) is not None and e.op in RULES:
        kind = RULES[e.op].kind
        if kind in _SEEN_THROUGH or e.op is _NEG:
            x = e.ins[0]
        elif kind in _SCALING and (scaled := [y for y in e.ins if facts.numbers[y] is None]):
            if len(scaled) > 1:
                return e
            (x,) = scaled
        else:
            return e
    return e


def _is_negative(facts: Facts, x: int) -> bool:
    """Whether a value is the negative of something, or may be for what its factors tell."""
    while (e := facts.tape.writers.get(x)) is not None and e.op in RULES:
        kind = RULES[e.op].kind
        if e.op is _NEG or (kind in _SCALING and any((facts.numbers[y] or 0) < 0 for y in e.ins)):
            return True
        if kind not in _SEEN_THROUGH:
            return False
        x = e.ins[0]
    return False


def _reduces_features(facts: Facts, uses: Record, x: int) -> bool:
    """Whether a value is a reduction of something along an axis that is an output of leaves."""
    e = _behind(facts, x)
    if e is None or e.op not in RULES or RULES[e.op].kind is not Kind.REDUCTION:
        return False
    view, axes = uses.views.get(e.ins[0]), e.params.get("axes", ())
    made: Sequence[object] = view.features if view else ()
    shape = facts.tape.full[e.ins[0]]
    return any(a < len(made) and made[a] and shape[a] > 1 for a in axes)
