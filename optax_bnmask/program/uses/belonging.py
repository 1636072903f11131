"""Which data belong to a leaf: masks, noise and perturbations that are arguments of the program.

In ``x @ (w * mask + sigma * normal(key, w.shape))`` the mask and the noise meet nothing but `w`, in
its own shape, before it meets `x`. They are no data that `w` is applied to. The same may be said of
`x` in ``(x + positions) @ w``, if it has the shape of the positions, without a batch. So data that
are added belong to a leaf only if some leaf that was changed in this way is then contracted with
other data, or looked up by them. Data that are multiplied do if any leaf is, and if they have two
axes or more: gains, of one axis, are multiplied with much else.
"""

from collections.abc import Collection, Set

from optax_bnmask import compat
from optax_bnmask.program.facts import Facts
from optax_bnmask.program.registry import Kind
from optax_bnmask.program.tape import Equation

_ENTRYWISE = {Kind.PRODUCT, Kind.SUM, Kind.EXTREMUM, Kind.SELECT}
"""Where data may meet a leaf of their shape."""
_ALONE = {
    *_ENTRYWISE,
    *(Kind.VIEW, Kind.CAST, Kind.POWER, Kind.NONLINEAR, Kind.COMPARISON, Kind.UNSCALED),
}
"""What may be done to data that belong to a leaf, before: not a reduction of data, nor a lookup."""
_ROOTS = {compat.primitive(f"{name}_p") for name in ("sqrt", "rsqrt", "cbrt", "pow")}
"""Nor roots: they are made of statistics, as of the running variance beside a gain."""
_BITS = compat.primitive("bitcast_convert_type_p")
"""Random floats are made of random bits."""
_APPLIED = {Kind.CONTRACTION, Kind.LOOKUP}


def belonging(facts: Facts) -> Set[int]:
    """The values that are data, but belong to a leaf of the same shape.

    Args:
      facts: What is known of the values.

    Returns:
      These values, those that they are computed from included.
    """
    if not any(_meets(facts, e) for e in facts.tape.equations if e.kind in _ENTRYWISE):
        return frozenset()
    leaf_functions, own = _all_own(facts, _ENTRYWISE)
    if _is_applied(facts, leaf_functions, own, changed=True):
        return own
    leaf_functions, own = _all_own(facts, _ENTRYWISE - {Kind.SUM}, least=2)
    return own if _is_applied(facts, leaf_functions, own) else frozenset()


def _all_own(facts: Facts, kinds: Set[Kind], least: int = 0) -> tuple[bytearray, Set[int]]:
    """The functions of leaves and their own data alone; and their own data, of so many axes.

    These are all data, less those found to meet something else, until no more are found: so in
    ``w * m + m`` the `m` may meet itself.
    """
    tape, depends, data = facts.tape, facts.depends, facts.depends_on_data
    own: Set[int] = {x for x in _given(facts) if len(tape.shapes[x]) >= least}
    while True:
        leaf_functions = bytearray(depends)
        for e in tape.equations:
            if depends[e.out]:
                ins = (
                    (leaf_functions[x] if depends[x] else x in own or not data[x]) for x in e.ins
                )
                leaf_functions[e.out] = all(ins)
        found = own & _found(facts, leaf_functions, kinds)
        if found == own:
            return leaf_functions, own
        own = found


def _meets(facts: Facts, e: Equation) -> bool:
    """Whether an equation, entry by entry, may be where data meet what is a leaf's own."""
    full, depends, data = facts.tape.full, facts.depends, facts.depends_on_data
    for x in e.ins:
        if data[x] and not depends[x]:
            return any(depends[y] and full[y] == full[x] for y in e.ins)
    return False


def _given(facts: Facts) -> set[int]:
    """Arguments and random numbers, and what is made of them entry by entry."""
    depends, data = facts.depends, facts.depends_on_data
    out = {x for x in facts.tape.ins if data[x]}
    for e in facts.tape.equations:
        entrywise = (e.kind in _ALONE and e.op not in _ROOTS) or e.op is _BITS
        given = entrywise and all(x in out or not data[x] for x in e.ins)
        if (given or e.kind is Kind.UNSCALED) and data[e.out] and not depends[e.out]:
            out.add(e.out)
    return out


def _found(facts: Facts, leaf_functions: bytearray, kinds: Set[Kind]) -> Set[int]:
    """The data all of whose uses lead to values of their shape in `leaf_functions`."""
    tape, depends, data = facts.tape, facts.depends, facts.depends_on_data
    used, lost = set[int](), set(tape.outs)
    for e in reversed(tape.equations):
        if depends[e.out]:
            fits = e.kind in kinds and _beside(facts, e, leaf_functions)
        else:
            fits = e.kind in _ALONE and e.op not in _ROOTS and e.out in used and e.out not in lost
        for x in e.ins:
            if data[x] and not depends[x]:
                (used if fits else lost).add(x)
    return used - lost


def _beside(facts: Facts, e: Equation, leaf_functions: bytearray) -> bool:
    """Whether all that an equation reads are leaves and data of their shape, and numbers."""
    tape, depends, data = facts.tape, facts.depends, facts.depends_on_data
    shape = {tape.full[x] for x in e.ins if data[x] or depends[x]}
    return len(shape) == 1 and all(leaf_functions[x] for x in e.ins if depends[x])


def _is_applied(
    facts: Facts, leaf_functions: bytearray, own: Collection[int], *, changed: bool = False
) -> bool:
    """Whether some leaf is contracted with, or looked up by, data that belong to none.

    Args:
      facts: What is known of the values.
      leaf_functions: The functions of leaves and of what belongs to them.
      own: The data that belong to leaves.
      changed: Whether to count only leaves that `own` data went into, entry by entry.
    """
    depends, data = facts.depends, facts.depends_on_data
    leaves = _entry_by_entry(facts, own) if changed else leaf_functions
    return any(
        any(depends[x] and leaves[x] and (data[x] or not changed) for x in e.ins)
        and any(data[x] and x not in own and not leaf_functions[x] for x in e.ins)
        for e in facts.tape.equations
        if e.kind in _APPLIED
    )


def _entry_by_entry(facts: Facts, own: Collection[int]) -> bytearray:
    """The functions, entry by entry, of leaves and of what belongs to them."""
    depends, data = facts.depends, facts.depends_on_data
    out = bytearray(len(depends))
    for x in facts.leaves:
        out[x] = 1
    for e in facts.tape.equations:
        if depends[e.out] and e.kind in _ALONE:
            out[e.out] = all(out[x] if depends[x] else x in own or not data[x] for x in e.ins)
    return out
