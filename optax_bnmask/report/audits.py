"""An `Audit`, shown: what was found, and every leaf with its rate beside what is advised."""

import json
from typing import Final

from optax_bnmask.audit.outcome import Audit
from optax_bnmask.report.content import decision_cell, role_cell
from optax_bnmask.report.document import Cell, Column, Document, Items, Table, Tone
from optax_bnmask.report.html import html_of
from optax_bnmask.report.text import text_of

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
    """The same as one self-contained HTML page."""
    return html_of(audit_document(audit))


def audit_to_json(audit: Audit) -> str:
    """The same as JSON; its ``"schema"`` is ``"optax_bnmask/audit/1"``."""
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
    }
    return json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False)


def audit_document(audit: Audit) -> Document:
    """The report on an audit."""
    leaves = len(audit.rates)
    summary = f"{len(audit.decayed)} of {leaves} leaves decay."
    verdict = "No errors." if audit.ok else "What decays is wrong."
    findings = Items("Findings", tuple(map(str, audit.findings)) or ("none",))
    return Document("What decays", (f"{summary} {verdict}",), (findings, _table(audit)))


def _table(audit: Audit) -> Table:
    advised = audit.analysis.decay_mask()
    named = {path for finding in audit.findings for path in finding.paths}
    rows = []
    for path, rate in audit.rates.items():
        decays, wanted = rate > 0, advised[path]
        wrong = decays != wanted and path in named
        rows.append(
            (
                Cell(path),
                role_cell(audit.analysis[path]),
                Cell(f"{rate:.3g}"),
                Cell("frozen", Tone.OPEN) if path in audit.frozen else decision_cell(decays=decays),
                Cell(("yes" if wanted else "no") + (" !" if wrong else "")),
            )
        )
    return Table("Leaves", _COLUMNS, tuple(rows))
