"""An analysis as JSON and back: every field, in a schema with a version."""

import dataclasses
import json
import math
from collections import Counter
from typing import Any, Final

from optax_bnmask.arguments import described
from optax_bnmask.errors import StructureError
from optax_bnmask.record import Record, require_analysis
from optax_bnmask.report.json_types import checked, decoded, one_of, wrong
from optax_bnmask.vocabulary import CANCELLATIONS, Leaf
from optax_bnmask.wording import json_text

SCHEMA: Final = "optax_bnmask/analysis/1"
"""Goes up when a field changes its meaning or goes away, not when one is added."""

_LARGEST: Final = 2**63 - 1
"""No array has more entries than an index can count."""
_ASSUMPTIONS: Final = ("epsilon", "infinity", "guard", "zeros")
_FIELDS: Final = frozenset(field.name for field in dataclasses.fields(Record) if field.compare)


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

    Fields that the schema does not have are passed over: a later version may add some. Those with a
    default may be missing: older versions lack some.

    Args:
      text: One JSON object, as `to_json` writes it.

    Returns:
      The arguments of a `Record`, by name. The traced program is not in the text.

    Raises:
      StructureError: The text is no JSON, of another schema, or not as the schema has it.
    """
    whole = checked(dict, _loaded(text))
    if "schema" not in whole:
        raise wrong("have a field `schema`", sorted(whole))
    if (schema := checked(str, whole["schema"], "schema")) != SCHEMA:
        if not schema.startswith(SCHEMA.rstrip("0123456789")):
            raise StructureError(
                f"`text` must be of the schema {SCHEMA!r}, an analysis. It is of {schema!r}, "
                f"another report. Pass what `Analysis.to_json` or `optax-bnmask inspect` wrote."
            )
        raise StructureError(
            f"`text` must be of the schema {SCHEMA!r}. It is of {schema!r}. Read it with the "
            f"version of optax_bnmask that wrote it, or write it anew with this one."
        )
    record = decoded(Record, whole)
    _check_names(record)
    for number, leaf in enumerate(record.leaves):
        _check_leaf(leaf, f"leaves[{number}]")
    for number, assumption in enumerate(record.assumptions):
        if assumption.kind not in _ASSUMPTIONS:
            raise wrong(one_of(_ASSUMPTIONS), assumption.kind, f"assumptions[{number}].kind")
    return {name: getattr(record, name) for name in whole if name in _FIELDS}


def _loaded(text: Any) -> Any:  # noqa: ANN401 - whatever was passed, and what JSON may hold
    """What a text in JSON says."""
    if not isinstance(text, str | bytes | bytearray):
        raise StructureError(
            f"`text` must be JSON as `to_json` writes it. Found {described(text)}, and it must be "
            f"str. Of a file pass the content, as `pathlib.Path(...).read_text()` gives it."
        )
    try:
        return json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        raise StructureError(
            f"`text` must be JSON as `to_json` writes it. Reading it failed: {error}. Was the "
            f"file cut off, or is it another?"
        ) from error


def _check_names(record: Record) -> None:
    """Fails unless paths differ, and all groups and symmetries are of leaves that there are."""
    if twice := [p for p, n in Counter(leaf.path for leaf in record.leaves).items() if n > 1]:
        raise wrong("name each leaf once", twice[0], "leaves")
    for field, sets in (("groups", record.groups), ("symmetries", record.symmetries)):
        for path in sorted(frozenset().union(*sets)):
            if path not in record:
                raise wrong("name leaves only", path, field)
    for leaf in record.leaves:
        if leaf.group is not None and leaf.group >= len(record.groups):
            raise wrong(f"have a group for {leaf.path!r}", leaf.group, "groups")


def _check_leaf(leaf: Leaf, name: str) -> None:
    """Fails unless the leaf's shape is possible, and all that its fields say of axes fits it."""
    if math.prod(leaf.shape) > _LARGEST:
        raise wrong(f"hold at most {_LARGEST:,} entries", leaf.shape, f"{name}.shape")
    if leaf.dead is not None and leaf.dead.kind not in CANCELLATIONS:
        raise wrong(one_of(CANCELLATIONS), leaf.dead.kind, f"{name}.dead.kind")
    every = [a for d in leaf.dimensions or () for a in d]
    if len(set(every)) < len(every):
        raise wrong("name each axis once", every, f"{name}.dimensions")
    parts = {"blocks": leaf.blocks, "invariant_blocks": leaf.invariant_blocks}
    axes = {*leaf.invariant_axes, *every}
    axes = axes.union(*parts.values())
    if any(axis >= len(leaf.shape) for axis in axes):
        raise wrong(
            f"have the axes {sorted(axes)}, of which more is said", leaf.shape, f"{name}.shape"
        )
    if any(len(own) != len(leaf.blocks.get(axis, ())) for axis, own in leaf.parts.items()):
        raise wrong("have a number for each block", leaf.parts, f"{name}.parts")
    for field, found in parts.items():
        ends = [(b, leaf.shape[axis]) for axis, blocks in found.items() for b in blocks]
        if any(
            not (b.start < b.stop <= n and b.inner >= 1 and (b.stop - b.start) % b.inner == 0)
            for b, n in ends
        ):
            raise wrong("lie within their axes", found, f"{name}.{field}")
