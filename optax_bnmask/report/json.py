"""An analysis as JSON: every field, in a schema with a version."""

import json
import math
from typing import Any, Final

from optax_bnmask.analysis import Analysis, Leaf

SCHEMA: Final = "optax_bnmask/analysis/1"
"""Goes up when a field changes its meaning or goes away, not when one is added."""


def to_json(analysis: Analysis) -> str:
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
    return json.dumps(record(analysis), indent=2, ensure_ascii=False, allow_nan=False)


def record(analysis: Analysis) -> dict[str, Any]:
    """The object that `to_json` writes."""
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
    }


def _number(value: float) -> float | str:
    """JSON has no infinity and no NaN: they are written as ``"inf"``, ``"-inf"``, ``"nan"``."""
    value = float(value)
    return value if math.isfinite(value) else str(value)
