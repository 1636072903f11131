"""Leaves that reach an output past every operation in which what is added to them could go away.

They matter, and need not be followed. In a transformer the biases of keys can only reach the output
through the softmax, which subtracts a maximum; those of all other layers are added to the stream,
which ends in the logits, and so are most gains and kernels.

It is a guess on the cautious side: a leaf that is taken for exposed is not called dead.
"""

from collections.abc import Sequence
from typing import Final

from optax_bnmask import compat
from optax_bnmask.program.facts import Facts
from optax_bnmask.program.registry import RULES, Kind
from optax_bnmask.program.tape import Equation
from optax_bnmask.program.uses.record import Record

_ADD, _NEG = compat.primitive("add_p"), compat.primitive("neg_p")
_ORDERING: Final = {
    compat.primitive(f"{name}_p") for name in ("argmax", "argmin", "sort", "top_k", "is_finite")
}
_SEEN_THROUGH: Final = {Kind.VIEW, Kind.CAST}
_SCALING: Final = {Kind.PRODUCT, Kind.QUOTIENT}
_CANCELLING: Final = {Kind.COMPARISON, Kind.UNSCALED}


def exposed(facts: Facts, uses: Record) -> set[int]:
    """The live leaves that need not be followed.

    Args:
      facts: What is known of the values.
      uses: How the leaves are used, for the axes that they make.
    """
    tape = facts.tape
    passes = bytearray(len(tape.shapes))
    for e in tape.equations:
        passes[e.out] = not _may_cancel(facts, uses, e)
    reaching = tape.needed(tape.outs, passes)
    # What has one entry along an axis may be the same along it where others are not.
    return {x for x in tape.leaves if reaching[x] and tape.shapes[x] and 1 not in tape.shapes[x]}


def _may_cancel(facts: Facts, uses: Record, e: Equation) -> bool:
    """Whether changes of different operands may cancel, or have no effect."""
    kind = RULES[e.op].kind if e.op in RULES else Kind.OPAQUE
    if kind in _SCALING:
        return any(facts.numbers[x] == 0 for x in e.ins)
    if kind is Kind.SUM:
        return all(facts.depends[x] for x in e.ins) and _may_be_a_difference(facts, uses, e)
    return kind in _CANCELLING or e.op in _ORDERING


def _may_be_a_difference(facts: Facts, uses: Record, e: Equation) -> bool:
    """Whether a sum of values that depend on leaves subtracts from one what the other holds too.

    A normaliser over features does not: what is added to these is not the same along them.
    """
    if e.op is _ADD and not any(_is_negative(facts, x) for x in e.ins):
        return False
    return not any(_reduces_features(facts, uses, x) for x in e.ins)


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
