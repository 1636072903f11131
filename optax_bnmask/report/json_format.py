"""An analysis as JSON and back: every field, in a schema with a version."""

import contextlib
import functools
import json
import math
import re
from collections import Counter
from fractions import Fraction
from typing import Any, Final

import jax
import jax.numpy as jnp

from optax_bnmask.errors import StructureError
from optax_bnmask.record import Assumption, Record, require_analysis
from optax_bnmask.report.fields import Fields
from optax_bnmask.vocabulary import (
    CANCELLATIONS,
    Block,
    Cancellation,
    Dimensions,
    Evidence,
    Leaf,
    Position,
    Role,
    Scale,
)
from optax_bnmask.wording import json_text

SCHEMA: Final = "optax_bnmask/analysis/1"
"""Goes up when a field changes its meaning or goes away, not when one is added."""

_PRNGS: Final = ("threefry2x32", "rbg", "unsafe_rbg")
_LARGEST: Final = 2**63 - 1
"""No array has more entries than an index can count."""
_ASSUMPTIONS: Final = ("epsilon", "infinity", "guard", "zeros")


def to_json(analysis: Record) -> str:
    """The analysis as JSON.

    Exponents of symmetries are strings, ``"1/2"``, which `fractions.Fraction` reads. The leaves
    stand in the order of the params; sets are sorted. The same analysis gives the same bytes in
    every process.

    Args:
      analysis: What is known of each leaf.

    Returns:
      One JSON object whose ``"schema"`` is ``"optax_bnmask/analysis/1"``.

    Example:
      >>> import json
      >>> import jax.numpy as jnp
      >>> import optax_bnmask as bnmask
      >>> analysis = bnmask.analyze_structure({"dense": {"kernel": jnp.ones((2, 3))}})
      >>> json.loads(to_json(analysis))["leaves"][0]["role"]
      'weight'
    """
    return json_text(as_dict(analysis))


def as_dict(analysis: Record) -> dict[str, Any]:
    """The object that `to_json` writes."""
    require_analysis(analysis)
    return {
        "schema": SCHEMA,
        "evidence": sorted(evidence.value for evidence in analysis.evidence),
        "leaves": [_leaf(leaf) for leaf in analysis.leaves],
        "symmetries": [
            {path: str(exponent) for path, exponent in sorted(symmetry.items())}
            for symmetry in analysis.symmetries
        ],
        "groups": [sorted(group) for group in analysis.groups],
        "assumptions": [
            {
                "kind": assumption.kind,
                "value": _number(assumption.value),
                "primitive": assumption.primitive,
                "where": assumption.where,
            }
            for assumption in analysis.assumptions
        ],
        "unhandled": dict(sorted(analysis.unhandled.items())),
        "notes": list(analysis.notes),
    }


def _leaf(leaf: Leaf) -> dict[str, Any]:
    return {
        "path": leaf.path,
        "shape": [int(length) for length in leaf.shape],
        "dtype": str(leaf.dtype),
        "size": leaf.size,
        "role": leaf.role.value,
        "scale": leaf.scale.value,
        "invariant_axes": [int(axis) for axis in leaf.invariant_axes],
        "group": leaf.group,
        "reason": leaf.reason,
        "dimensions": leaf.dimensions and leaf.dimensions._asdict(),
        "blocks": {str(axis): blocks for axis, blocks in leaf.blocks.items()},
        "invariant_blocks": {str(axis): own for axis, own in leaf.invariant_blocks.items()},
        "position": leaf.position and leaf.position.value,
        "reached": leaf.reached,
        "dead": leaf.dead and leaf.dead._asdict(),
        "parts": {str(axis): numbers for axis, numbers in leaf.parts.items()},
        "confirmed": leaf.confirmed,
    }


def _number(value: float) -> float | str:
    """JSON has no infinity and no NaN: they are written as ``"inf"``, ``"-inf"``, ``"nan"``."""
    value = float(value)
    return value if math.isfinite(value) else str(value)


def fields_of(text: str) -> dict[str, Any]:
    """The fields of the analysis that `to_json` wrote: `Analysis.from_json` makes one of them.

    Fields that the schema does not have are passed over: a later version may add some.

    Args:
      text: One JSON object, as `to_json` writes it.

    Returns:
      The arguments of a `Record`, by name. The traced program is not in the text.

    Raises:
      StructureError: The text is no JSON, of another schema, or not as the schema has it.
    """
    try:
        found = json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        raise StructureError(
            f"`text` must be JSON as `to_json` writes it. Reading it failed: {error}. Was the "
            f"file cut off, or is it another?"
        ) from error
    fields = Fields(found, "the whole")
    if (schema := fields.of(str, "schema")) != SCHEMA:
        raise StructureError(
            f"`text` must be of the schema {SCHEMA!r}. It is of {schema!r}. Read it with the "
            f"version of optax_bnmask that wrote it, or write it anew with this one."
        )
    groups = [fields.checked(list, group, "groups") for group in fields.of(list, "groups")]
    unhandled = fields.of(dict, "unhandled")
    if any(isinstance(count, int) and count < 0 for count in unhandled.values()):
        raise fields.wrong("hold no negative number", unhandled, "unhandled")
    out: dict[str, Any] = {
        "leaves": tuple(_leaf_of(leaf) for leaf in fields.objects("leaves")),
        "evidence": frozenset(
            fields.member(Evidence, name, "evidence") for name in fields.each(str, "evidence")
        ),
        "symmetries": tuple(_symmetry_of(each) for each in fields.objects("symmetries")),
        "groups": tuple(frozenset(fields.checked(str, p, "groups") for p in g) for g in groups),
        "assumptions": tuple(_assumption_of(each) for each in fields.objects("assumptions")),
        "unhandled": {n: fields.checked(int, k, "unhandled") for n, k in unhandled.items()},
        "notes": tuple(fields.each(str, "notes")),
    }
    _check_names(fields, Record(**out))
    return out


def _leaf_of(fields: Fields) -> Leaf:
    """The leaf that `_leaf` wrote; its size is not read, as it follows from the shape."""
    group = fields.record.get("group")
    leaf = Leaf(
        fields.of(str, "path"),
        fields.lengths("shape"),
        _dtype_of(fields),
        fields.member(Role, fields.of(str, "role"), "role"),
        fields.member(Scale, fields.of(str, "scale"), "scale"),
        fields.lengths("invariant_axes"),
        None if group is None else fields.of(int, "group"),
        fields.of(str, "reason"),
        _dimensions_of(fields),
        _blocks_of(fields, "blocks"),
        _blocks_of(fields, "invariant_blocks"),
        _position_of(fields),
        _flag_of(fields, "reached", otherwise=True),
        _cancellation_of(fields),
        _parts_of(fields),
        _flag_of(fields, "confirmed", otherwise=False),
    )
    _check_sizes(fields, leaf)
    return leaf


def _flag_of(fields: Fields, name: str, *, otherwise: bool) -> bool:
    """A field that is true or false, and its value in older texts, which lack it."""
    found = fields.record.get(name, otherwise)
    if not isinstance(found, bool):
        raise fields.wrong("be true or false", found, name)
    return found


def _check_sizes(fields: Fields, leaf: Leaf) -> None:
    """Fails unless the leaf's shape is possible, and all that its fields say of axes fits it."""
    if math.prod(leaf.shape) > _LARGEST:
        raise fields.wrong(f"hold at most {_LARGEST:,} entries", leaf.shape, "shape")
    every = [a for d in leaf.dimensions or () for a in d]
    if len(set(every)) < len(every):
        raise fields.wrong("name each axis once", every, "dimensions")
    parts = {"blocks": leaf.blocks, "invariant_blocks": leaf.invariant_blocks}
    axes = {*leaf.invariant_axes, *every}
    axes = axes.union(*parts.values())
    if any(axis >= len(leaf.shape) for axis in axes):
        raise fields.wrong(
            f"have the axes {sorted(axes)}, of which more is said", leaf.shape, "shape"
        )
    if any(len(own) != len(leaf.blocks.get(axis, ())) for axis, own in leaf.parts.items()):
        raise fields.wrong("have a number for each block", leaf.parts, "parts")
    for field, found in parts.items():
        ends = [(b, leaf.shape[axis]) for axis, blocks in found.items() for b in blocks]
        if any(
            not (b.start < b.stop <= n and b.inner >= 1 and (b.stop - b.start) % b.inner == 0)
            for b, n in ends
        ):
            raise fields.wrong("lie within their axes", found, field)


def _cancellation_of(fields: Fields) -> Cancellation | None:
    """The field `dead`: why no output depends on the leaf; older texts lack it."""
    found = fields.record.get("dead")
    if found is None:
        return None
    inner = Fields(found, "`dead`")
    kind = inner.of(str, "kind")
    if kind not in CANCELLATIONS:
        raise inner.wrong(f"be one of {', '.join(map(repr, CANCELLATIONS))}", kind, "kind")
    return Cancellation(kind, inner.of(str, "where"))


def _dimensions_of(fields: Fields) -> Dimensions | None:
    """The field `dimensions`; older texts lack it."""
    found = fields.record.get("dimensions")
    if found is None:
        return None
    inner = Fields(found, "`dimensions`")
    return Dimensions(*(inner.lengths(name) for name in Dimensions._fields))


def _blocks_of(fields: Fields, name: str) -> dict[int, tuple[Block, ...]]:
    """The field `blocks` or `invariant_blocks`, by axis; older texts lack both."""
    found = fields.checked(dict, fields.record.get(name, {}), name)
    out = {}
    for axis, blocks in found.items():
        each = fields.checked(list, blocks, name)
        rows = [Fields({"block": row}, f"`{name}`").lengths("block") for row in each]
        if not str(axis).isdecimal() or any(len(row) != len(Block._fields) for row in rows):
            raise fields.wrong("hold rows of start, stop and inner by axis", found, name)
        out[int(axis)] = tuple(Block(*row) for row in rows)
    return out


def _parts_of(fields: Fields) -> dict[int, tuple[int, ...]]:
    """The field `parts`: which blocks make one matrix; older texts lack it."""
    found = fields.checked(dict, fields.record.get("parts", {}), "parts")
    if not all(str(axis).isdecimal() for axis in found):
        raise fields.wrong("hold a list by axis", found, "parts")
    inner = Fields(found, "`parts`")
    return {int(axis): inner.lengths(axis) for axis in found}


def _position_of(fields: Fields) -> Position | None:
    """The field `position`; older texts lack it."""
    found = fields.record.get("position")
    return None if found is None else fields.member(Position, found, "position")


def _dtype_of(fields: Fields) -> Any:  # noqa: ANN401 - a dtype, extended ones included
    """The dtype of that name; any other string is refused, as NumPy would read records from it."""
    name = fields.of(str, "dtype")
    if name in _extended():
        return _extended()[name]
    if re.fullmatch(r"[a-z]\w*", name):
        with contextlib.suppress(TypeError):
            return jnp.dtype(name)
    raise fields.wrong("be a dtype that this JAX knows", name, "dtype")


@functools.cache
def _extended() -> dict[str, Any]:
    """The dtypes that NumPy cannot find by name: those of random keys, and the tangents' float0."""
    keys = [jax.eval_shape(functools.partial(jax.random.key, 0, impl=impl)) for impl in _PRNGS]
    return {str(dtype): dtype for dtype in (*(key.dtype for key in keys), jax.dtypes.float0)}


def _symmetry_of(fields: Fields) -> dict[str, Fraction]:
    """Exponents, read from ``"3"`` or ``"-1/2"``; `Fraction` alone would take ``"1e999999999"``."""
    exponents = {path: fields.checked(str, x, path) for path, x in fields.record.items()}
    for path, exponent in exponents.items():
        if not re.fullmatch(r"-?[0-9]{1,99}(/[1-9][0-9]{0,99})?", exponent):
            raise fields.wrong("be an exponent such as '1/2'", exponent, path)
    return {path: Fraction(exponent) for path, exponent in exponents.items()}


def _assumption_of(fields: Fields) -> Assumption:
    kind, value = fields.of(str, "kind"), fields.record.get("value")
    if kind not in _ASSUMPTIONS:
        raise fields.wrong(f"be one of {', '.join(map(repr, _ASSUMPTIONS))}", kind, "kind")
    if isinstance(value, bool) or not (
        isinstance(value, int | float) or value in ("inf", "-inf", "nan")
    ):
        raise fields.wrong("be a number", value, "value")
    return Assumption(kind, float(value), fields.of(str, "primitive"), fields.of(str, "where"))


def _check_names(fields: Fields, analysis: Record) -> None:
    """Fails unless paths differ, and all groups and symmetries are of leaves that there are."""
    if twice := [p for p, n in Counter(leaf.path for leaf in analysis.leaves).items() if n > 1]:
        raise fields.wrong("name each leaf once", twice[0], "leaves")
    for field, sets in (("groups", analysis.groups), ("symmetries", analysis.symmetries)):
        for path in sorted(frozenset().union(*sets)):
            if path not in analysis:
                raise fields.wrong("name leaves only", path, field)
    for leaf in analysis.leaves:
        if leaf.group is not None and not 0 <= leaf.group < len(analysis.groups):
            raise fields.wrong(f"have a group for {leaf.path!r}", leaf.group, "groups")
