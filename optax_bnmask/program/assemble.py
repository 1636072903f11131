"""Read a traced program twice, and put together what was found."""

import warnings
from collections.abc import Mapping, Sequence, Set
from fractions import Fraction
from math import prod
from typing import Any

import jax.numpy as jnp
import numpy as np

from optax_bnmask import compat
from optax_bnmask.analysis import Analysis, Assumption, Evidence, Leaf, Role, Scale
from optax_bnmask.program.context import Site, Symmetry
from optax_bnmask.program.degree import ZERO, Degree, Key
from optax_bnmask.program.explain import Explainer
from optax_bnmask.program.interpreter import walk
from optax_bnmask.program.parts import free_parts
from optax_bnmask.program.roles import Local
from optax_bnmask.program.rules import families
from optax_bnmask.program.symmetries import Symmetries, leaf_degree, symmetries
from optax_bnmask.program.trace import Program, without_collection
from optax_bnmask.program.unknowns import Unknowns

_FAMILIES = families.FAMILIES
"""Imported so that the table of rules is full."""


def analysis_of(program: Program) -> Analysis:
    """What two readings of a traced program tell of its parameters."""
    with without_collection():
        return _analysis_of(program)


def _analysis_of(program: Program) -> Analysis:
    reading, degrees = _read_symmetries(program)
    local = _read_roles(program)
    biases = [
        [b for b in bs if b in degrees and local.role(b) in (Role.BIAS, Role.NORM_BIAS)]
        for bs in local.biases
    ]
    found = symmetries(reading.unknowns, degrees, biases, len(program.paths))
    parts = free_parts(reading.unknowns, degrees, biases)
    leaves = tuple(
        _leaf(program, i, found, local, parts.get(i, {})) for i in range(len(program.paths))
    )
    names = program.paths
    return Analysis(
        leaves,
        frozenset({Evidence.PROGRAM}),
        symmetries=tuple(
            {names[i]: Fraction(c) for i, c in sorted(vector.items())} for vector in found.basis
        ),
        groups=tuple(frozenset(names[i] for i in group) for group in found.groups),
        assumptions=_assumptions(reading),
        unhandled=dict(sorted(reading.unhandled.items())),
        notes=tuple(_running_statistics(program)),
        proof=Explainer(program, found, biases),
    )


def _read_symmetries(program: Program) -> tuple[Symmetry, dict[int, Degree]]:
    """The reading that imposes all equations, the outputs' among them, and what it leaves free."""
    reading = Symmetry(Unknowns())
    degrees = {
        i: leaf_degree(reading.unknowns, program.shapes[i])
        for i in _in_order_of_use(program)
        if _is_trained(program.dtypes[i])
    }
    ins = [ZERO if i is None else degrees.get(i, ZERO) for i in program.inputs]
    outs = walk(reading, program.jaxpr, ins, program.consts)
    reading.pin(None, outs)
    return reading, reading.layouts.settled(degrees)


def _in_order_of_use(program: Program) -> list[int]:
    """The live leaves, in the order in which the program first reads them."""
    leaf_of = dict(zip(program.jaxpr.invars, program.inputs, strict=True))
    read = (atom for eqn in program.jaxpr.eqns for atom in eqn.invars)
    used = [leaf_of.get(atom) for atom in read if not isinstance(atom, compat.Literal)]
    return [i for i in dict.fromkeys((*used, *program.inputs)) if i is not None]


def _read_roles(program: Program) -> Local:
    """The reading that imposes nothing and follows the leaves."""
    local = Local([prod(shape) for shape in program.shapes])
    ins = [
        local.leaf(i)
        if i is not None and _is_trained(program.dtypes[i])
        else local.argument(scales=_is_trained(variable.aval.dtype))
        for i, variable in zip(program.inputs, program.jaxpr.invars, strict=True)
    ]
    walk(local, program.jaxpr, ins, program.consts)
    return local


def _is_trained(dtype: Any) -> bool:  # noqa: ANN401 - a dtype, extended ones included
    return bool(jnp.issubdtype(dtype, np.inexact))


def _leaf(
    program: Program,
    i: int,
    found: Symmetries,
    local: Local,
    parts: Mapping[Key, Sequence[tuple[int, int, bool]]],
) -> Leaf:
    """Everything known of one leaf."""
    path, shape, dtype = program.paths[i], program.shapes[i], program.dtypes[i]
    if not _is_trained(dtype):
        reason = "not of floating dtype: no optimizer moves it"
        return Leaf(path, shape, dtype, Role.UNKNOWN, Scale.UNKNOWN, reason=reason)
    if not program.live[i]:
        return Leaf(path, shape, dtype, Role.UNUSED, Scale.UNUSED, reason="no output depends on it")
    scale = found.scale[i]
    axes = tuple(
        sorted(
            key[0][0]
            for key, ranges in parts.items()
            if scale is Scale.INVARIANT and len(key) == 1 and _covers(ranges, key[0][1])
        )
    )
    reason = "; ".join(
        part
        for part in (_use(local, i), _scale(program, i, found), _in_part(scale, axes, parts))
        if part
    )
    return Leaf(path, shape, dtype, local.role(i), scale, axes, found.group[i], reason)


def _covers(ranges: Sequence[tuple[int, int, bool]], size: int) -> bool:
    """Whether every index of an axis is in a range of singles."""
    return all(single for _, _, single in ranges) and sum(b - a for a, b, _ in ranges) == size


_USES = {
    Role.WEIGHT: "contracted",
    Role.EMBEDDING: "looked up",
    Role.GAIN: "multiplied",
    Role.BIAS: "added",
    Role.NORM_SCALE: "multiplied onto what a normaliser puts out",
    Role.NORM_BIAS: "added to what a normaliser puts out",
}


def _use(local: Local, i: int) -> str:
    """In what way the leaf is used, and where first."""
    roles = local.uses[i].roles
    if not roles:
        return "none of the uses that have a name"
    uses = [f"{_words(role, site)} at {site}" for role, site in roles.items()]
    if local.uses[i].shifted:
        uses[0] += " after a constant is added to it (zero-centred)"
    return " and ".join(uses)


def _words(role: Role, site: Site) -> str:
    """How a leaf in that role is used."""
    if role is Role.EMBEDDING and site.eqn.primitive.name != "gather":
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


def _in_part(
    scale: Scale, axes: Sequence[int], parts: Mapping[Key, Sequence[tuple[int, int, bool]]]
) -> str:
    """Which parts of the leaf may be scaled without the rest, where that is not whole axes."""
    said = []
    for key, ranges in parts.items():
        if len(key) > 1 or key[0][0] in axes:
            continue
        axis, size = key[0]
        places = ", ".join(f"{a}:{b}" for a, b, _ in _joined(ranges))
        if _joined(ranges) == [(0, size, True)] and scale is not Scale.INVARIANT:
            said.append(f"each index of axis {axis} may be scaled alone")
        elif scale is Scale.INVARIANT:
            said.append(f"along axis {axis} in blocks only")
        else:
            said.append(f"the scale of indices {places} of axis {axis} (of {size}) is hidden")
    return "; ".join(said)


def _joined(ranges: Sequence[tuple[int, int, bool]]) -> list[tuple[int, int, bool]]:
    """Ranges with neighbours of one kind put together."""
    out: list[tuple[int, int, bool]] = []
    for a, b, single in ranges:
        if out and out[-1][1] == a and out[-1][2] == single:
            out[-1] = (out[-1][0], b, single)
        else:
            out.append((a, b, single))
    return out


def _assumptions(reading: Symmetry) -> tuple[Assumption, ...]:
    """The approximations that mattered: those made for values that do scale."""
    out = set()
    for kind, value, site, d in reading.assumptions:
        if not reading.layouts.resolved(d).is_zero:
            out.add(Assumption(kind, value, site.eqn.primitive.name, str(site)))
    return tuple(sorted(out))


_RUNNING = "runs on its running statistics"


def _running_statistics(program: Program) -> list[str]:
    """A sentence for each module whose running mean and var the outputs read."""
    # An NNX Variable's array is its `value`, which is no part of its name.
    paths = [path.removesuffix("/value") for path in program.argument_paths]
    read = set(paths)
    scopes = {path.rpartition("/")[0] for path in program.paths}
    out = []
    for path in paths:
        scope, _, name = path.rpartition("/")
        if name == "mean" and f"{scope}/var" in read:
            out.append(
                f"the normaliser at {_within(scope, scopes)!r} {_RUNNING} here: trace the function "
                f"as it is trained, or its parameters and the weights before it look sensitive"
            )
    return out


def _within(scope: str, scopes: Set[str]) -> str:
    """The name of a scope of an argument, without the argument's own name if the params tell it."""
    parts = scope.split("/")
    tails = ("/".join(parts[n:]) for n in range(len(parts)))
    return next((tail for tail in tails if tail in scopes), scope)


def warn_of_running_statistics(analysis: Analysis) -> None:
    """Warns of every normaliser that was traced in inference mode."""
    said = [note for note in analysis.notes if _RUNNING in note]
    if said:
        more = f" (and {len(said) - 1} more, see `Analysis.notes`)" if len(said) > 1 else ""
        warnings.warn(f"{said[0]}{more}", UserWarning, stacklevel=3)
