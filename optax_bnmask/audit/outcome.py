"""What an audit found."""

import dataclasses
from collections.abc import Mapping

from optax_bnmask.analysis import Analysis


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong with what decays, or that could not be told.

    Attributes:
      severity: ``"error"``; ``"warning"``; or ``"note"``, of what an audit cannot vouch for.
      kind: Errors: ``"growth"`` (pushed away from 0), ``"erased"`` (decays and gets no gradient),
        ``"climbs"`` (its raw gradient is added to it; a warning where it is not the raw one),
        ``"norm_decayed"``, ``"everything_decayed"``, ``"nothing_decayed"``, ``"inverted"``,
        ``"weight_exempt"``, ``"exempt_decayed"`` (in a category of `exempt`) and
        ``"undetermined"``. Warnings: ``"coupled"`` (not in proportion to the leaf),
        ``"lost"`` (less than the leaf's dtype can tell), ``"pulled_elsewhere"`` (to values other
        than 0), ``"recalled"`` (to the values that it started from), ``"group_split"`` and
        ``"invariant_split"`` (some of those that belong together), ``"hardly_anything_decayed"``,
        ``"unequal_rates"``. ``"unknown_decayed"``: a warning if most that decays is of unknown
        role, otherwise a note.
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
        where it grows. Of leaves in a finding ``"coupled"`` it is the share at size 1 alone.
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
        from optax_bnmask.report.audits import audit_to_text  # noqa: PLC0415 - a layer above

        return audit_to_text(self)

    def to_html(self) -> str:
        """The findings and the table as one self-contained HTML page."""
        from optax_bnmask.report.audits import audit_to_html  # noqa: PLC0415 - a layer above

        return audit_to_html(self)

    def to_json(self) -> str:
        """The findings and the rates as JSON, with a versioned schema."""
        from optax_bnmask.report.audits import audit_to_json  # noqa: PLC0415 - a layer above

        return audit_to_json(self)

    def __str__(self) -> str:
        """The table of `to_text`."""
        return self.to_text()

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return self.to_html()
