"""Arrays that are joined for one operation only and cut apart behind it, written apart.

Two statistics are stacked so that devices exchange them at once: ``m, s = psum(stack([m, s])) / n``
is written as ``m, s = psum(m) / n, psum(s) / n``. What is known of each is then known behind it.
"""

import dataclasses
from collections.abc import Mapping
from itertools import accumulate
from typing import Any, Final

from optax_bnmask import compat
from optax_bnmask.program.tape import COLLECT, MOVE, Equation, Tape

_JOIN: Final = compat.primitive("concatenate_p")
_SUM: Final = compat.primitive("reduce_sum_p")
_ENTRYWISE: Final = {
    compat.primitive(f"{name}_p")
    for name in ("neg", "mul", "div", "convert_element_type", "copy", "stop_gradient")
}
_NEAR: Final = 16
"""So many equations back the join is looked for."""


def slice_of_concatenation(tape: Tape, x: int, axis: int, span: tuple[int, int]) -> int | None:
    """A slice of a value, computed from the one array that was joined just there.

    Args:
      tape: The tape as far as it is written.
      x: The value.
      axis: One of its axes.
      span: The first index along it, and that behind the last.

    Returns:
      The slice as a value; `None` if no one array was joined there.
    """
    recent = {e.out: e for e in tape.equations[-_NEAR:]}
    chain: list[tuple[Equation, int]] = []
    while (e := recent.get(x)) is not None and e.op is not _JOIN:
        before = _axis_before(tape, e, axis)
        if before is None:
            return None
        chain.append((e, axis))
        x, axis = e.ins[0], before
    if e is None or e.params["dimension"] != axis:
        return None
    ends = list(accumulate(tape.shapes[y][axis] for y in e.ins))
    pieces = dict(zip(zip([0, *ends[:-1]], ends, strict=True), e.ins, strict=True))
    piece = pieces.get(span)
    if piece is None:
        return None
    for e, a in reversed(chain):
        shape = list(tape.shapes[e.out])
        shape[a] = span[1] - span[0]
        out = tape.add(shape, tape.hidden[e.out], floats=tape.floats[e.out])
        tape.equations.append(dataclasses.replace(e, ins=(piece, *e.ins[1:]), out=out))
        piece = out
    return piece


def _axis_before(tape: Tape, e: Equation, axis: int) -> int | None:
    """The axis of the first operand that is `axis` of the result, if no entries mix along it.

    Returns:
      `None` for operations that are not written apart.
    """
    if e.op is MOVE or e.op is COLLECT:
        to: Mapping[Any, int] = e.params["to"]
        shown = range(len(tape.shapes[e.ins[0]]))
        return next((a for a in shown if to.get(a) == axis), None)
    if e.op is _SUM:
        kept = [a for a in range(len(tape.shapes[e.ins[0]])) if a not in e.params["axes"]]
        return kept[axis]
    if e.op in _ENTRYWISE and not any(tape.shapes[y] for y in e.ins[1:]):
        return axis
    return None
