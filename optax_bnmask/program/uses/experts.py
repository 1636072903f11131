"""What each expert of a mixture owns beside its matrix: a bias, a gain, looked up by the router."""

from optax_bnmask.program.tape import Equation
from optax_bnmask.program.uses.record import Record
from optax_bnmask.program.uses.views import Combined, View
from optax_bnmask.vocabulary import Role


def revote_chosen(record: Record, e: Equation, operands: tuple[View, View], role: Role) -> None:
    """Gives a table that a router looked up its role as bias or gain, in the place of embedding.

    In ``ragged_dot(x, w, sizes) + b[expert]`` of a mixture `b` is a bias: leaves, those of the
    router, made the choice, and `w` has a matrix for each row of `b`. A single number for each,
    ``gate * scale[expert]``, is a gain.
    """
    for table, other in (operands, operands[::-1]):
        if not table.combined or table.combined.keys() != table.owners:
            continue  # it is more than what was looked up
        for number, met in table.combined.items():
            by_leaves = any(record.depends_on_others(x, number) for x in met.at.ins)
            if met.role is not Role.EMBEDDING or number in other.combined or not by_leaves:
                continue
            weights = _with_a_matrix_for_each(record, number, met, other)
            single = record.shapes[number] == _choices(record, number, met)
            if weights or (single and role is Role.GAIN):
                record.revote([number], Role.EMBEDDING, role, e)
            if role is Role.BIAS:
                for weight in weights:
                    record.biases[weight].add(number)


def _choices(record: Record, number: int, met: Combined) -> tuple[int, ...]:
    """The lengths of the axes that a table was looked up along."""
    kept = {a for own in met.places for a in own if a >= 0}
    return tuple(n for a, n in enumerate(record.shapes[number]) if a not in kept)


def _with_a_matrix_for_each(record: Record, number: int, met: Combined, other: View) -> set[int]:
    """The weights with a matrix for each row of a table, and whose output its rows vary along."""
    axes = [a for a, own in enumerate(met.places) if max(own, default=-1) >= 0]
    made_by = {leaf for a in axes if other.features for leaf, _ in other.features[a]}
    choices = set(_choices(record, number, met))
    out = set[int]()
    for weight in made_by - {number}:
        matrix = record.dimensions(weight)
        if matrix and choices and choices <= {record.shapes[weight][a] for a in matrix.batch}:
            out.add(weight)
    return out
