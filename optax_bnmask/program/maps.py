"""Which axes of an operand are which of the result: by the law of an equation, and in a reshape."""

from collections.abc import Iterable, Sequence
from typing import Any

from optax_bnmask.program.registry import SAME, Kind, Map
from optax_bnmask.program.tape import COLLECT, MOVE, Equation, Tape


def operand_map(tape: Tape, e: Equation, k: int, m: Any) -> Map:  # noqa: ANN401 - see below
    """Which axis of an operand is which of the result, hidden ones included.

    Args:
      tape: The program.
      e: The equation.
      k: Which operand.
      m: Its map of visible axes, as the law has it: see `Law.map_of`.
    """
    if m is None or e.op in (MOVE, COLLECT):  # whose maps have the hidden axes already
        return m or {}
    x = e.ins[k]
    shown, wide = len(tape.shapes[x]), len(tape.shapes[e.out])
    if m is SAME and shown == wide:  # axes of length 1 may grow, or be joined
        pairs = zip(tape.full[x], tape.full[e.out], strict=False)
        joined = e.kind is Kind.JOIN
        return {a: a for a, (old, new) in enumerate(pairs) if old == new or joined}
    visible = {} if m is SAME else m  # none of a number beside an array
    if not tape.hidden[x]:
        return visible
    return {**visible, **{shown + j: wide + j for j in range(len(tape.hidden[x]))}}


def regrouped(
    old: Sequence[int], new: Sequence[int]
) -> Iterable[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The smallest groups of axes that a reshape turns into each other.

    (32, 7, 7, 8) to (1568, 8) has ``((0, 1, 2), (0,))`` and ``((3,), (1,))``.
    """
    i = j = 0
    while i < len(old) or j < len(new):
        inside: list[int] = []
        outside: list[int] = []
        left = right = 1
        while True:
            if left <= right and i < len(old) and (left < right or not inside):
                left *= old[i]
                inside.append(i)
                i += 1
            elif j < len(new) and (right < left or not outside):
                right *= new[j]
                outside.append(j)
                j += 1
            else:
                break
            if left == right and inside and outside:
                break
        yield tuple(inside), tuple(outside)
