"""Which leaves may be dead: all but those with a path to an output on which no change can cancel.

Those matter, and need not be followed. In a transformer the biases of keys can only reach the
output through the softmax, which subtracts a maximum; those of all other layers are added to the
stream, which ends in the logits, and so are most gains and kernels. A path to a nonlinearity, a
GELU or a ReLU, counts like one to an output.

It is a guess on the cautious side: a leaf that is left out is not called dead.
"""

import math
from collections.abc import Collection, Sequence
from typing import Final

from optax_bnmask import compat
from optax_bnmask.program.dependence import needed
from optax_bnmask.program.facts import Facts
from optax_bnmask.program.flatness import Flatness
from optax_bnmask.program.registry import Kind
from optax_bnmask.program.shifts.changes import Perturbation
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
    """The starts (leaves, and what to add to them) that may have no effect, found cheaply.

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
            kind = e.kind
            if (kind in _PASSING and e.op not in _ORDERING) or not _may_cancel(facts, e, kind):
                self._passes[e.out] = 1
                bends = kind in _BENDING and _is_nonlinear(facts, e, kind)
                if bends and not (e.out in pure or _is_flat(flat, e.out)):
                    self._ends += e.ins
            elif kind is Kind.SUM:
                self._sums.append(e)

    def anything(self) -> list[Perturbation]:
        """``(leaf, None)`` for each leaf that may be dead.

        A mean over features that a normaliser subtracts is taken to cancel nothing: anything, added
        to a leaf, is not the same along the features.
        """
        passes, tape = bytearray(self._passes), self._facts.tape
        for e in self._sums:
            passes[e.out] = any(_reduces_features(self._facts, self._uses, x) for x in e.ins)
        reaching, shapes = needed(tape, self._ends, passes), tape.shapes
        return [
            (x, None)
            for x in self._facts.leaves
            # A leaf of length 1 along the features, or a scalar, may yet be the same along them.
            if not reaching[x] or not shapes[x] or 1 in shapes[x]
        ]

    def along_axes(self, dead: Collection[int]) -> list[list[Perturbation]]:
        """``(leaf, axis)`` for leaves that are not dead: those of last axes, and all others.

        Of a leaf that is contracted these are the axes that appear in the result. The two lists are
        to be read apart: a change that is constant along heads is lost in a variance over features,
        and would take with it one that is constant along the features.
        """
        tape, last, others = self._facts.tape, list[Perturbation](), list[Perturbation]()
        reaching = needed(tape, self._ends, self._passes)
        for x in self._facts.leaves:
            if reaching[x] or x in dead:
                continue
            made = self._uses.dimensions(tape.leaves[x])
            for axis, n in enumerate(tape.shapes[x]):
                if n > 1 and (made is None or axis in made.output):
                    (last if axis == len(tape.shapes[x]) - 1 else others).append((x, axis))
        return [last, others]


def _is_nonlinear(facts: Facts, e: Equation, kind: Kind) -> bool:
    """Whether an equation is a nonlinearity of leaves, or a `max` with a number, as a ReLU."""
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
            e.op is not _ADD
            or any(_is_negative(facts, x) for x in e.ins)
            or (
                all(facts.depends_on_data[x] for x in e.ins)
                and any(_means(facts, x) for x in e.ins)
            )
        )
    return kind in _CANCELLING or e.op in _ORDERING


def _behind(facts: Facts, x: int) -> Equation | None:
    """What writes a value, seen through views and factors that are numbers."""
    while (e := facts.tape.writers.get(x)) is not None:
        kind = e.kind
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
    """Whether a value, behind views, is negated or multiplied by a negative number."""
    while (e := facts.tape.writers.get(x)) is not None:
        kind = e.kind
        if e.op is _NEG or (kind in _SCALING and any((facts.numbers[y] or 0) < 0 for y in e.ins)):
            return True
        if kind not in _SEEN_THROUGH:
            return False
        x = e.ins[0]
    return False


def _reduces_features(facts: Facts, uses: Record, x: int) -> bool:
    """Whether a value is a reduction of something along an axis that is an output of leaves."""
    e = _behind(facts, x)
    for mean in [e] if e is not None and e.kind is Kind.REDUCTION else _means(facts, x):
        view, axes = uses.views.get(mean.ins[0]), mean.params.get("axes", ())
        made: Sequence[object] = view.features if view else ()
        shape = facts.tape.full[mean.ins[0]]
        if any(a < len(made) and made[a] and shape[a] > 1 for a in axes):
            return True
    return False


def _means(facts: Facts, x: int) -> list[Equation]:
    """The reductions that are factors in a value, or in summands of it: ``b - mean(x)*g``."""
    e = _behind(facts, x)
    summands = e.ins if e is not None and e.kind is Kind.SUM else (x,)
    found = [_behind(facts, y) for y in summands]
    factors = [e.ins if e and e.kind in _SCALING else () for e in found]
    behind = [_behind(facts, y) for ins in factors for y in ins]
    return [e for e in behind if e is not None and e.kind is Kind.REDUCTION]
