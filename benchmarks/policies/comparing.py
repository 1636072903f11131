"""From scores to a table: means with confidence intervals, and paired tests."""

import dataclasses
import json

import numpy as np
from scipy import stats

from benchmarks.policies.policies import POLICIES, REFERENCE

CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True, slots=True)
class Result:
    """One policy with one optimizer on one task, at the rates that validation chose.

    `angle` is the peak angle where the policy has one, and 0 elsewhere.
    """

    task: str
    optimizer: str
    policy: str
    learning_rate: float
    weight_decay: float
    at_edge: tuple[str, ...]
    accuracies: tuple[float, ...]
    cross_entropies: tuple[float, ...]
    angle: float = 0.0


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """What a table shows of a result; in percent and percentage points."""

    result: Result
    mean: float
    margin: float
    difference: float
    difference_margin: float
    p_value: float


def load(paths) -> list[Result]:
    """The results in some files that a run has written."""
    records = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    return [
        Result(**{k: tuple(v) if isinstance(v, list) else v for k, v in result.items()})
        for record in records
        for result in record["results"]
    ]


def margin_of(values) -> float:
    """Half of Student's confidence interval of the mean."""
    quantile = stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)
    return float(quantile * stats.sem(values))


def adjusted(p_values):
    """Holm's correction: the chance of a single false alarm among all tests, not in each."""
    p_values = np.asarray(p_values)
    order = np.argsort(p_values)
    steps = p_values[order] * np.arange(len(p_values), 0, -1)
    corrected = np.empty_like(p_values)
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return corrected


def rows(results) -> list[Row]:
    """Every result against the reference policy of its task and optimizer, paired by seed.

    The p-values are of Student's paired t-test, by Holm's correction for all comparisons of the
    table. Where the reference was not run, differences and p-values are NaN.
    """
    references = {(r.task, r.optimizer): r.accuracies for r in results if r.policy == REFERENCE}
    nothing = np.full(1, np.nan)
    gains = [
        100 * (np.array(r.accuracies) - references.get((r.task, r.optimizer), nothing))
        for r in results
    ]
    compared = [
        i
        for i, r in enumerate(results)
        if r.policy != REFERENCE and (r.task, r.optimizer) in references
    ]
    raw = [stats.ttest_1samp(gains[i], 0).pvalue if gains[i].any() else 1.0 for i in compared]
    p_values = dict(zip(compared, adjusted(raw), strict=True))
    return [
        Row(
            r,
            float(100 * np.mean(r.accuracies)),
            margin_of(100 * np.array(r.accuracies)),
            float(gains[i].mean()),
            margin_of(gains[i]),
            float(p_values.get(i, np.nan)),
        )
        for i, r in enumerate(results)
    ]


def markdown(results) -> str:
    """The table: a line for each policy that was run, a column for each task and optimizer."""
    columns = list(dict.fromkeys((r.task, r.optimizer) for r in results))
    cells = {(r.result.task, r.result.optimizer, r.result.policy): r for r in rows(results)}
    head = "| policy | " + " | ".join(f"{task}, {name}" for task, name in columns) + " |"
    lines = [head, "| --- |" + " --: |" * len(columns)]
    run = {result.policy for result in results}
    for policy in (policy for policy in POLICIES if policy in run):
        row = (cells.get((*column, policy)) for column in columns)
        shown = " | ".join("not run" if cell is None else _cell(cell) for cell in row)
        lines.append(f"| {policy} | {shown} |")
    return "\n".join(lines)


def _cell(row: Row) -> str:
    text = f"{row.mean:.2f} ± {row.margin:.2f}"
    if row.result.policy == REFERENCE or np.isnan(row.difference):
        return text
    change = f"{row.difference:+.2f} ± {row.difference_margin:.2f}"
    return f"{text} (**{change}**)" if row.p_value < 1 - CONFIDENCE else f"{text} ({change})"


def chosen_rates(results) -> str:
    """What validation chose, and where that is at an edge of what was swept."""
    lines = [
        "| task | optimizer | policy | learning rate | decay | angle | at an edge |",
        "|" + " --- |" * 7,
    ]
    lines += [
        f"| {r.task} | {r.optimizer} | {r.policy} | {r.learning_rate:g} | {r.weight_decay:g} | "
        f"{r.angle:g} | {', '.join(r.at_edge) or 'no'} |"
        for r in results
    ]
    return "\n".join(lines)
