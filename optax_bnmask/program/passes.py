"""The passes in order, and what they found put together."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

from optax_bnmask import compat
from optax_bnmask.analysis import Analysis
from optax_bnmask.errors import StructureError
from optax_bnmask.program.dead import assumptions, cancellations, free_exponents
from optax_bnmask.program.demands import Axes
from optax_bnmask.program.explain import Explainer
from optax_bnmask.program.facts import Facts
from optax_bnmask.program.freedom import LeafExponents, free_parts, leaf_exponents
from optax_bnmask.program.misuse import notes_on_misuse
from optax_bnmask.program.rules import load
from optax_bnmask.program.running import means_of_one, running_statistics
from optax_bnmask.program.shifts import Shifts
from optax_bnmask.program.shifts.candidates import Candidates
from optax_bnmask.program.solve import Solution
from optax_bnmask.program.symmetries import Symmetries, symmetries
from optax_bnmask.program.tape import Equation, Tape
from optax_bnmask.program.trace import Program
from optax_bnmask.program.uses.dimensions import blocks
from optax_bnmask.program.uses.parts import parts as parts_of
from optax_bnmask.program.uses.positions import positions
from optax_bnmask.program.uses.reading import uses as uses_of
from optax_bnmask.program.uses.record import Record
from optax_bnmask.record import Assumption
from optax_bnmask.vocabulary import Block, Cancellation, Evidence, Leaf, Role, Scale

_GATHER = compat.primitive("gather_p")

_USES = {
    Role.WEIGHT: "contracted",
    Role.EMBEDDING: "looked up",
    Role.GAIN: "multiplied",
    Role.BIAS: "added",
    Role.NORM_SCALE: "multiplied onto what a normaliser puts out",
    Role.NORM_BIAS: "added to what a normaliser puts out",
}


def analysis_of(program: Program) -> Analysis:
    """What the passes over a traced program tell of its parameters."""
    load()
    with compat.without_collection():
        return _analysis_of(program)


def _analysis_of(program: Program) -> Analysis:
    tape = Tape(program)
    if not tape.leaves:
        raise StructureError(
            f"The outputs of `fn` must depend on `params`. They depend on none of its "
            f"{len(program.paths)} leaves. Does `fn` use its first argument?"
        )
    everything = Facts(tape)
    uses = uses_of(everything, program.inputs, program.shapes)
    shifts = Shifts(uses.flat, Candidates(everything, uses, uses.flat).anything())
    dead = cancellations(shifts)
    facts = Facts(tape, zeros=dead) if dead else everything
    axes = Axes(facts)
    known = {i: x for x, i in zip(tape.ins, program.inputs, strict=True) if i is not None}
    alive = {i for i, x in known.items() if tape.live[x]}
    biases = [
        [b for b in bs if b in alive and uses.role(b) in (Role.BIAS, Role.NORM_BIAS)]
        for bs in uses.biases
    ]

    def found_by(solution: Solution) -> tuple[Symmetries, dict[int, LeafExponents]]:
        solution.finish()
        system = solution.system
        exponents = {
            tape.leaves[x]: leaf_exponents(system, solution.degrees[x], segments)
            for x, segments in axes.of_leaves.items()
        }
        exponents |= {
            tape.leaves[x]: free_exponents(system, tape.shapes[x])
            for x in dead
            if 0 not in tape.shapes[x]
        }
        return symmetries(solution.system, exponents, biases, len(program.paths)), exponents

    solution = Solution(axes)
    solution.read(tape.outs)
    solution.pin(tape.outs)
    found, exponents = found_by(solution)
    free = free_parts(exponents, biases)
    names = program.paths
    where = positions(uses)
    cut = {x: blocks(segments) for x, segments in axes.of_leaves.items()}
    together = parts_of(everything, cut)

    def of_axes(i: int) -> dict[str, Any]:
        x = known[i]
        return {
            "dimensions": uses.dimensions(i),
            "blocks": cut.get(x, {}),
            "parts": together.get(x, {}),
            "invariant_blocks": _invariant_blocks(
                found.scale[i], program.shapes[i], free.get(i, {})
            ),
            "position": where[i],
            "reached": bool(uses.reached[x]) or not tape.floats[x],
            "dead": dead.get(x),
        }

    running = running_statistics(program, tape, uses.given)
    return Analysis(
        tuple(
            _leaf(program, i, found, uses, free.get(i, {}), is_live=i in alive, **of_axes(i))
            for i in range(len(names))
        ),
        frozenset({Evidence.PROGRAM}),
        symmetries=tuple(
            {names[i]: Fraction(c) for i, c in sorted(vector.items())} for vector in found.basis
        ),
        groups=tuple(frozenset(names[i] for i in group) for group in found.groups),
        assumptions=_assumptions(solution, shifts),
        unhandled=dict(sorted(solution.unhandled.items())),
        notes=(
            *_narrowing_outputs(program, axes, found, found_by),
            *map(str, running),
            *means_of_one(tape),
            *notes_on_misuse(program, tape, uses),
        ),
        proof=Explainer(
            program,
            found,
            biases,
            {tape.leaves[x]: why for x, why in dead.items()},
            _zero_centred(uses, len(names)),
            tuple(running),
        ),
    )


def _narrowing_outputs(
    program: Program,
    axes: Axes,
    found: Symmetries,
    found_by: Callable[[Solution], tuple[Symmetries, Any]],
) -> list[str]:
    """A sentence for each output that makes leaves matter which those before it leave free.

    Args:
      program: The function.
      axes: The axes of its values.
      found: What all outputs leave free.
      found_by: Takes a `Solution` to the symmetries that it leaves free so far.
    """
    outs = axes.tape.outs
    if len(outs) == 1:
        return []
    solution = Solution(axes)
    solution.read(outs[:1])
    solution.pin(outs[:1])
    before, _ = found_by(solution)
    said = []
    references = ["a mutable reference"] * (len(outs) - len(program.output_paths))
    for x, name in zip(outs[1:], (*program.output_paths[1:], *references), strict=True):
        if before.scale == found.scale:
            break
        solution.read([x])
        solution.pin([x])
        after, _ = found_by(solution)
        lost = [
            path
            for path, a, b in zip(program.paths, before.scale, after.scale, strict=True)
            if a is not b and a in (Scale.INVARIANT, Scale.JOINT) and b is not Scale.INVARIANT
        ]
        if lost:
            more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
            said.append(
                f"the scale of {lost[0]!r}{more} matters for the output {name!r} and not for those "
                f"before it: if {name!r} is no output but something beside it, such as a metric or "
                f"a new state, set it apart with `has_aux=True`"
            )
        before = after
    return said


def _leaf(
    program: Program,
    i: int,
    found: Symmetries,
    uses: Record,
    free: Mapping[int, Sequence[Block]],
    *,
    is_live: bool,
    **of_axes: Any,  # noqa: ANN401 - fields of `Leaf`
) -> Leaf:
    """Everything known of one leaf."""
    path, shape, dtype = program.paths[i], program.shapes[i], program.dtypes[i]
    if not compat.is_inexact(dtype):
        reason = "not of floating dtype: no optimizer moves it"
        return Leaf(path, shape, dtype, Role.UNKNOWN, Scale.UNKNOWN, reason=reason, **of_axes)
    if not is_live:
        of_axes["dead"] = unread = Cancellation("unread", "")
        return Leaf(path, shape, dtype, Role.UNUSED, Scale.UNUSED, reason=str(unread), **of_axes)
    scale = found.scale[i]
    alone = sorted(free) if scale is Scale.INVARIANT else ()
    axes = tuple([axis for axis in alone if _covers(free[axis], shape[axis])])
    said = [_use(uses, i)]
    if why := of_axes["dead"]:
        said.append(f"its value does not matter: {why}")
    else:
        said += [_scale(program, i, found), *_in_part(scale, shape, of_axes["invariant_blocks"])]
    reason, group = "; ".join(said), found.group[i]
    return Leaf(path, shape, dtype, uses.role(i), scale, axes, group, reason, **of_axes)


def _covers(ranges: Sequence[Block], size: int) -> bool:
    """Whether every index of an axis may be scaled by itself."""
    return all(r.inner == 1 for r in ranges) and sum(r.stop - r.start for r in ranges) == size


def _use(uses: Record, i: int) -> str:
    """In what way the leaf is used, and where first."""
    roles = uses.seen[i].roles
    if not roles:
        return "none of the uses that have a name"
    said = [f"{_words(role, e)} at {e.where}" for role, e in roles.items()]
    if uses.seen[i].shifted:
        said[0] += " after a constant is added to it (zero-centred)"
    return " and ".join(said)


def _zero_centred(uses: Record, n_leaves: int) -> frozenset[int]:
    """The leaves that are used as ``constant + leaf``."""
    return frozenset(i for i in range(n_leaves) if uses.seen[i].shifted)


def _words(role: Role, e: Equation) -> str:
    """How a leaf in that role is used."""
    if role is Role.EMBEDDING and e.op is not _GATHER:
        return "joined to the data as a learned input"
    return _USES[role]


def _scale(program: Program, i: int, found: Symmetries) -> str:
    """What is known of the leaf's scale."""
    scale = found.scale[i]
    if scale is Scale.INVARIANT:
        others = ", ".join(repr(program.paths[j]) for j in found.witness[i] if j != i)
        return f"a normaliser hides its scale{f', with that of {others}' if others else ''}"
    if scale is Scale.JOINT:
        number = found.group[i]
        group = found.groups[number] if number is not None else ()
        others = [program.paths[j] for j in group[:4] if j != i][:3]
        some = ", ".join(map(repr, others)) + (", ..." if len(group) > 4 else "")
        n = "1 other" if len(group) == 2 else f"{len(group) - 1} others"
        return f"its scale is hidden only together with that of {n}: {some}"
    return "its scale reaches the outputs"


def _invariant_blocks(
    scale: Scale, shape: Sequence[int], parts: Mapping[int, Sequence[Block]]
) -> dict[int, tuple[Block, ...]]:
    """The parts of each axis that may be scaled without the rest, where that is not every index."""
    return {
        axis: tuple(Block(*map(int, block)) for block in ranges)
        for axis, ranges in sorted(parts.items())
        if [*ranges] != [(0, shape[axis], shape[axis])]
        and not (scale is Scale.INVARIANT and _covers(ranges, shape[axis]))
    }


def _in_part(
    scale: Scale, shape: Sequence[int], parts: Mapping[int, Sequence[Block]]
) -> Iterator[str]:
    """Which parts of the leaf may be scaled without the rest, in words."""
    for axis, ranges in parts.items():
        if scale is Scale.INVARIANT:
            yield f"along axis {axis} in blocks only"
        elif _covers(ranges, shape[axis]):
            yield f"each index of axis {axis} may be scaled alone"
        else:
            places = ", ".join(f"{a}:{b}" for a, b in _joined(ranges))
            yield f"the scale of indices {places} of axis {axis} (of {shape[axis]}) is hidden"


def _joined(ranges: Sequence[Block]) -> list[tuple[int, int]]:
    """The indices of some ranges, with neighbours put together."""
    out: list[tuple[int, int]] = []
    for a, b, _ in ranges:
        if out and out[-1][1] == a:
            out[-1] = (out[-1][0], b)
        else:
            out.append((a, b))
    return out


def _assumptions(solution: Solution, shifts: Shifts) -> tuple[Assumption, ...]:
    """The approximations that mattered: beside values that scale, or for a dead leaf."""
    out = {
        Assumption(t.kind, t.value, str(t.equation.op), t.equation.where)
        for t in solution.taken
        if t.degree is None or not solution.is_zero(t.degree)
    }
    return tuple(sorted(out | set(assumptions(shifts))))
