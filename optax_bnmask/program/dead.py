"""Dead leaves, whose value does not matter: where in the program what is added to them cancels.

A function that does not depend on a leaf is the function with that leaf at 0. So the passes after
this one read a dead leaf as a constant 0: a kernel whose bias is dead may be scaled alone.
"""

from collections.abc import Iterator

from optax_bnmask.program.equations import System
from optax_bnmask.program.exponents import Degrees
from optax_bnmask.program.freedom import LeafExponents, leaf_exponents
from optax_bnmask.program.indices import Atom, Segments
from optax_bnmask.program.registry import Kind
from optax_bnmask.program.shifts.changes import starts_of
from optax_bnmask.program.shifts.reading import Shifts
from optax_bnmask.program.tape import COLLECT, MOVE, Equation
from optax_bnmask.record import Assumption
from optax_bnmask.vocabulary import Cancellation

_REDUCED = {
    "reduce_sum": "mean",
    "psum": "mean",
    "psum_invariant": "mean",
    "reduce_max": "maximum",
    "pmax": "maximum",
}
_PASSED = (Kind.CAST, Kind.VIEW, Kind.QUOTIENT, Kind.PRODUCT, Kind.SELECT, Kind.EXTREMUM)


def cancellations(shifts: Shifts) -> dict[int, Cancellation]:
    """For each dead leaf, the first equation at which what is added to it cancels, and how."""
    found: dict[int, Cancellation] = {}
    dead = set(shifts.dead)
    for e, sources in shifts.cancelled if dead else ():
        new = [x for x, _ in starts_of(s for s in sources if s.square is None) if x in dead]
        if why := [x for x in new if x not in found]:
            found |= dict.fromkeys(why, Cancellation(_kind(shifts, e), e.where))
    return {x: found.get(x, Cancellation("difference", "")) for x in dead}


def _kind(shifts: Shifts, e: Equation) -> str:
    """How changes cancel at an equation, such as "mean" if a mean is subtracted."""
    if e.kind is Kind.SUM:
        of_operands = [_reduced(shifts, x) for x in reversed(e.ins)]
        return next((what for what in of_operands if what), "difference")
    return "zero" if e.kind in (Kind.PRODUCT, Kind.QUOTIENT) else "comparison"


def _reduced(shifts: Shifts, x: int) -> str | None:
    """What a value is behind broadcasts and constant factors: a mean, a maximum, or neither."""
    while (e := shifts.tape.writers.get(x)) is not None:
        name = e.name if e.op is COLLECT else getattr(e.op, "name", "")
        if name in _REDUCED:
            return _REDUCED[name]
        if e.op is not MOVE and e.kind not in _PASSED:
            return None
        changing = [y for y in e.ins if shifts.of(y)]
        if len(changing) != 1:
            return None
        (x,) = changing
    return None


def assumptions(shifts: Shifts) -> Iterator[Assumption]:
    """The approximations that dead leaves hang on."""
    for t in shifts.assumed():
        yield Assumption("infinity", t.number, str(t.equation.op), t.equation.where)


def free_exponents(system: System, shape: tuple[int, ...]) -> LeafExponents:
    """The exponents of a dead leaf of that shape: new unknowns, on which nothing is imposed."""
    segments: list[Segments] = [((Atom(n),) if n > 1 else (),) for n in shape]
    return leaf_exponents(system, Degrees(system).leaf(segments), segments)
