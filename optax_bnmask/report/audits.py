"""An `Audit`, shown: what was found, and every leaf with its rate beside what is advised."""

from collections.abc import Set
from typing import Final

from optax_bnmask.audit.auditing import wanted_mask
from optax_bnmask.audit.outcome import Audit
from optax_bnmask.families import families
from optax_bnmask.report.content import decision_cell, role_cell
from optax_bnmask.report.document import Cell, Column, Document, Items, Table, Tone
from optax_bnmask.report.html import html_of
from optax_bnmask.report.text import text_of
from optax_bnmask.wording import json_text

AUDIT_SCHEMA: Final = "optax_bnmask/audit/1"
"""Goes up when a field changes its meaning or goes away, not when one is added."""

_COLUMNS: Final = (
    Column("path"),
    Column("role"),
    Column("loses in a step", number=True),
    Column("decays"),
    Column("advised"),
)


def audit_to_text(audit: Audit) -> str:
    """The findings, and an aligned table of the leaves."""
    return text_of(audit_document(audit))


def audit_to_html(audit: Audit) -> str:
    """An audit as one self-contained HTML page."""
    return html_of(audit_document(audit))


def audit_to_json(audit: Audit) -> str:
    """An audit as JSON; its ``"schema"`` is ``"optax_bnmask/audit/1"``."""
    record = {
        "schema": AUDIT_SCHEMA,
        "ok": audit.ok,
        "findings": [
            {
                "severity": finding.severity,
                "kind": finding.kind,
                "paths": list(finding.paths),
                "message": finding.message,
            }
            for finding in audit.findings
        ],
        "rates": dict(audit.rates),
        "frozen": sorted(audit.frozen),
        "exempt": list(audit.exempt),
    }
    return json_text(record)


def audit_document(audit: Audit) -> Document:
    """The report on an audit."""
    leaves = len(audit.rates)
    summary = f"{len(audit.decayed)} of {leaves} leaves decay."
    findings = Items("Findings", tuple(map(str, audit.findings)) or ("none",))
    return Document("What decays", (f"{summary} {_verdict(audit)}",), (findings, _table(audit)))


def _verdict(audit: Audit) -> str:
    """One sentence: what is not known is not fine."""
    if not audit.determined:
        return "What decays could not be told."
    return "No errors." if audit.ok else "What decays is wrong."


def _table(audit: Audit) -> Table:
    """The leaves; those of repeated blocks that are treated alike are one line."""
    advised = wanted_mask(audit.analysis, audit.exempt)
    named = {path for finding in audit.findings for path in finding.paths}
    rows = {path: _row(audit, path, named, advised=advised[path]) for path in audit.rates}
    paths = list(rows)
    return Table(
        "Leaves",
        _COLUMNS,
        tuple(
            (Cell(family.pattern), *rows[paths[family.members[0]]])
            for family in families(paths, list(rows.values()))
        ),
    )


def _row(audit: Audit, path: str, named: Set[str], *, advised: bool) -> tuple[Cell, ...]:
    """What is shown of a leaf beside its path."""
    rate = audit.rates[path]
    decays = rate > 0
    wrong = decays != advised and path in named
    if path in audit.frozen:
        decision = Cell("frozen", Tone.OPEN)
    else:
        decision = Cell("grows", Tone.OPEN) if rate < 0 else decision_cell(decays=decays)
    return (
        role_cell(audit.analysis[path]),
        Cell(f"{rate:.3g}"),
        decision,
        Cell(("yes" if advised else "no") + (" !" if wrong else "")),
    )
