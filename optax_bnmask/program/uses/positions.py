"""Where in the flow of the data a leaf stands: at their entry, at the output, or in between."""

from optax_bnmask import compat
from optax_bnmask.program.dependence import dependents, needed
from optax_bnmask.program.registry import Kind
from optax_bnmask.program.tape import Equation
from optax_bnmask.program.uses.record import Record
from optax_bnmask.vocabulary import Position, Role

_GATHER = compat.primitive("gather_p")
_BESIDE = {Role.GAIN, Role.BIAS, Role.NORM_SCALE, Role.NORM_BIAS}
"""The roles of leaves that scale and shift the input and leave it the input."""


def positions(record: Record) -> list[Position | None]:
    """The position of each weight and each embedding; none of other leaves.

    A weight is a head if no other weight is applied to what comes of it, at the input if what it is
    contracted with depends on no weight and no embedding, and hidden otherwise. An embedding that
    data choose from is at the input; one that is there whatever they are, a token or a table of
    positions, is learned.
    """
    before, after = _before_weights(record), _after_weights(record)
    return [_position(record, number, before, after) for number in range(len(record.seen))]


def _position(record: Record, number: int, before: bytearray, after: bytearray) -> Position | None:
    seen, role = record.seen[number], record.role(number)
    if role is Role.EMBEDDING:
        e = seen.roles[role]
        if any(not before[x] for x in seen.outputs):
            return Position.HEAD
        return Position.INPUT if _is_chosen_by_data(record, e) else Position.LEARNED
    if role is not Role.WEIGHT or not seen.outputs:
        return None
    if _is_head(record, number, before):
        return Position.HEAD
    return Position.HIDDEN if any(after[x] for x in seen.data) else Position.INPUT


def _is_head(record: Record, number: int, before: bytearray) -> bool:
    """Whether no other weight is applied to the outputs of a weight.

    Beside its output to the program, one under spectral normalisation has its norm, by which it
    divides itself.
    """
    outputs = record.seen[number].outputs
    if all(before[x] for x in outputs):
        return False
    if any(before[x] for x in outputs):
        before = _before_weights(record, but=number)
    return not any(before[x] for x in outputs)


def _is_chosen_by_data(record: Record, e: Equation) -> bool:
    """Whether an embedding is looked up by data, not by constants, nor joined to data."""
    if e.op is _GATHER:
        return bool(record.facts.depends_on_data[e.ins[1]])
    return e.kind is Kind.CONTRACTION


def _after_weights(record: Record) -> bytearray:
    """A 1 for each value that depends on a leaf which is neither a gain nor a bias.

    Input that a norm with a gain and a bias has scaled is input all the same.
    """
    leaves = record.tape.leaves.items()
    return dependents(record.tape, [x for x, i in leaves if record.role(i) not in _BESIDE])


def _before_weights(record: Record, but: int = -1) -> bytearray:
    """A 1 for each value that some weight, `but` for one, is applied to, or to what comes of it."""
    applied = {x for i, seen in enumerate(record.seen) for x in seen.outputs if i != but}
    given = (x for e in record.tape.equations if e.out in applied for x in e.ins)
    return needed(record.tape, given)
