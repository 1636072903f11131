"""Where in the flow of the data a leaf stands: at their entry, at the output, or in between."""

from optax_bnmask import compat
from optax_bnmask.analysis import Position, Role
from optax_bnmask.program.registry import RULES, Kind
from optax_bnmask.program.tape import CARRIED, Equation
from optax_bnmask.program.uses.record import Record

_GATHER = compat.primitive("gather_p")


def positions(record: Record) -> list[Position | None]:
    """The position of each weight and each embedding; none of other leaves.

    A weight is a head if no other weight is applied to what comes of it, at the input if what it is
    contracted with knows no leaf, and hidden otherwise. An embedding that data choose from is at
    the input; one that is there whatever they are, a token or a table of positions, is learned.
    """
    before = _before_weights(record)
    return [_position(record, number, before) for number in range(len(record.seen))]


def _position(record: Record, number: int, before: set[int]) -> Position | None:
    seen, role = record.seen[number], record.role(number)
    if role is Role.EMBEDDING:
        e = seen.roles[role]
        if any(x not in before for x in seen.outputs):
            return Position.HEAD
        return Position.INPUT if _is_chosen_by_data(record, e) else Position.LEARNED
    if role is not Role.WEIGHT or not seen.outputs:
        return None
    if all(x not in before for x in seen.outputs):
        return Position.HEAD
    return Position.HIDDEN if seen.meets_leaves else Position.INPUT


def _is_chosen_by_data(record: Record, e: Equation) -> bool:
    """Whether an embedding is looked up by data, not by constants, nor joined to data."""
    if e.op is _GATHER:
        return e.ins[1] in record.views
    return e.op in RULES and RULES[e.op].kind is Kind.CONTRACTION


def _before_weights(record: Record) -> set[int]:
    """The values that some weight is applied to, or to what comes of them."""
    tape = record.tape
    applied = {x for seen in record.seen for x in seen.outputs}
    handed_on = {e.ins[0]: e.ins[1] for e in tape.equations if e.op is CARRIED}
    before, size = set[int](), -1
    while size != len(before):
        size = len(before)
        for e in reversed(tape.equations):
            if e.out in before or e.out in applied:
                before.update(e.ins)
                if e.out in before and e.out in handed_on:
                    before.add(handed_on[e.out])
        if not handed_on:
            break
    return before
