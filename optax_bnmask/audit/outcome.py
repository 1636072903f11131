"""What an audit found, and how it is shown: every leaf with its rate beside what is advised."""

import dataclasses
import warnings
from collections.abc import Collection, Mapping, Set
from typing import Final

from optax_bnmask.analysis import Analysis
from optax_bnmask.families import families
from optax_bnmask.mask import Mask
from optax_bnmask.report.content import decision_cell, role_cell
from optax_bnmask.report.document import Cell, Column, Document, Items, Table, Tone
from optax_bnmask.report.html_page import html_of
from optax_bnmask.report.text import text_of
from optax_bnmask.vocabulary import NORMS, Role
from optax_bnmask.wording import json_text

AUDIT_SCHEMA: Final = "optax_bnmask/audit/1"
"""Goes up when a field changes its meaning or goes away, not when one is added."""

MAY_BE_EXEMPT: Final = NORMS | {Role.BIAS, Role.GAIN}
"""Roles of which nothing is said where they do not decay: recipes differ."""

_COLUMNS: Final = (
    Column("path"),
    Column("role"),
    Column("loses in a step", number=True),
    Column("decays"),
    Column("advised"),
)


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong with what decays, or that could not be told.

    Attributes:
      severity: ``"error"``; ``"warning"``; or ``"note"``, of what an audit cannot vouch for.
      kind: Errors: ``"growth"`` (a leaf or a part of it is pushed away from 0), ``"erased"`` (it
        decays and gets no gradient, or so do some of its rows; a warning where single entries do),
        ``"climbs"`` (its raw gradient is added to it; a warning where it is not the raw one),
        ``"norm_decayed"``, ``"everything_decayed"``, ``"nothing_decayed"``, ``"inverted"``,
        ``"weight_exempt"``, ``"exempt_decayed"`` (in a category of `exempt`) and
        ``"undetermined"``. Warnings: ``"coupled"`` (not in proportion to the leaf),
        ``"lost"`` (less than the leaf's dtype can tell), ``"pulled_elsewhere"`` (to values other
        than 0), ``"recalled"`` (to the values that it started from), ``"group_split"`` and
        ``"invariant_split"`` (some of those that belong together), ``"hardly_anything_decayed"``,
        ``"unequal_rates"``, ``"uneven_rates"`` (of parts of one leaf). ``"unknown_decayed"``: a
        warning if most that decays is of unknown role, otherwise a note.
      paths: The leaves it is about, in the order of the params.
      message: What was found, what it does, and the way out, in words.
    """

    severity: str
    kind: str
    paths: tuple[str, ...]
    message: str

    def __str__(self) -> str:
        """One line for a person."""
        return f"{self.severity}: {self.message}"


@dataclasses.dataclass(frozen=True, slots=True)
class Audit:
    """What an optimizer decays, leaf by leaf, beside what the analysis advises.

    Attributes:
      rates: By path, the share of itself that a leaf loses in a step for no other reason than its
        own size: ``learning_rate * weight_decay`` of AdamW. 0 where it does not decay, negative
        where it grows. Of leaves in a finding ``"coupled"`` it is the share at size 1 alone;
        of those in ``"uneven_rates"`` that of the parts that lose most. Behind a trust ratio, as in
        LAMB, it hangs on the gradient, and is that under one whose entries are about 1.
      findings: What is wrong, the gravest first.
      analysis: What is known of each leaf.
      frozen: The leaves that neither decay nor any gradient moves.
      exempt: The categories that should not decay.
    """

    rates: Mapping[str, float]
    findings: tuple[Finding, ...]
    analysis: Analysis
    frozen: frozenset[str] = frozenset()
    exempt: tuple[str, ...] = ("norm",)

    @property
    def decayed(self) -> frozenset[str]:
        """The paths of the leaves that decay."""
        return frozenset(path for path, rate in self.rates.items() if rate > 0)

    @property
    def determined(self) -> bool:
        """Whether it could be told, of every leaf, what becomes of it."""
        return not any(finding.kind == "undetermined" for finding in self.findings)

    @property
    def ok(self) -> bool:
        """Whether no finding is an error; where nothing could be told, one is."""
        return not any(finding.severity == "error" for finding in self.findings)

    def __repr__(self) -> str:
        """One line; `to_text` says it all."""
        kinds = ", ".join(finding.kind for finding in self.findings) or "nothing wrong"
        return f"Audit({len(self.decayed)} of {len(self.rates)} leaves decay; {kinds})"

    def to_text(self) -> str:
        """The findings, and an aligned table of every leaf; blocks that repeat are one line."""
        return text_of(audit_document(self))

    def to_html(self) -> str:
        """The findings and the table as one self-contained HTML page."""
        return html_of(audit_document(self))

    def to_json(self) -> str:
        """The findings and the rates as JSON; its ``"schema"`` is ``"optax_bnmask/audit/1"``."""
        record = {
            "schema": AUDIT_SCHEMA,
            "ok": self.ok,
            "findings": [
                {
                    "severity": finding.severity,
                    "kind": finding.kind,
                    "paths": list(finding.paths),
                    "message": finding.message,
                }
                for finding in self.findings
            ],
            "rates": dict(self.rates),
            "frozen": sorted(self.frozen),
            "exempt": list(self.exempt),
        }
        return json_text(record)

    def __str__(self) -> str:
        """The table of `to_text`."""
        return self.to_text()

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return self.to_html()


def audit_document(audit: Audit) -> Document:
    """The report on an audit."""
    leaves = len(audit.rates)
    summary = f"{len(audit.decayed)} of {leaves} leaves decay."
    findings = Items("Findings", tuple(map(str, audit.findings)) or ("none",))
    return Document("What decays", (f"{summary} {_verdict(audit)}",), (findings, _table(audit)))


def _verdict(audit: Audit) -> str:
    """One sentence; what could not be told is not called free of errors."""
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
    decays, leaf = rate > 0, audit.analysis[path]
    wrong = decays != advised and path in named
    policy = "yes" if advised else "no"
    if advised and not (decays or wrong) and leaf.role in MAY_BE_EXEMPT:
        policy = "either"
    if path in audit.frozen:
        decision = Cell("frozen", Tone.OPEN)
    else:
        decision = Cell("grows", Tone.OPEN) if rate < 0 else decision_cell(decays=decays)
    return (
        role_cell(leaf),
        Cell(f"{rate:.3g}"),
        decision,
        Cell(f"{policy} !" if wrong else policy),
    )


def wanted_mask(analysis: Analysis, exempt: Collection[str]) -> Mask:
    """What should decay, without the warning that is for whoever makes the mask."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return analysis.decay_mask(exempt=exempt)
