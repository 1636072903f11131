"""The demo's report, as a `Document` for every renderer."""

from collections.abc import Callable, Sequence

import numpy as np

from examples.digits.outcome import Outcome, comparison, estimate
from examples.digits.plot import svgs_of
from examples.digits.train import Recipe
from optax_bnmask.analysis import Analysis
from optax_bnmask.mask import Mask
from optax_bnmask.report.document import Cell, Column, Document, Figure, Items, Leaves, Table
from optax_bnmask.vocabulary import Evidence, Role, Scale


def document_of(
    structure: Analysis, program: Analysis, mask: Mask, recipe: Recipe, outcomes: Sequence[Outcome]
) -> Document:
    """Everything the demo has to tell: the result, the picture, then what the mask rests on.

    Args:
      structure: What the trees of params and statistics tell of the network's leaves.
      program: What the traced program tells of them.
      mask: The mask of the second policy.
      recipe: How both were trained.
      outcomes: The two policies, the masked one last.

    Returns:
      A `Document`.
    """
    seeds = len(outcomes[0].accuracy)
    return Document(
        "Weight decay on everything, or with the mask",
        (
            f"A ResNet with BatchNorm on scikit-learn's handwritten digits: {seeds} seeds for each "
            f"policy, {recipe.epochs} epochs, SGD with momentum {recipe.momentum:g}, learning rate "
            f"{recipe.learning_rate:g}, weight decay λ = {recipe.weight_decay:g}.",
        ),
        (
            Items("What the seeds say", tuple(sentences(outcomes))),
            Figure("Accuracy, γ, and its learning rate", svgs_of(outcomes), _words(outcomes)),
            policy_table(outcomes),
            evidence_table(structure, program),
            Leaves(program, mask),
        ),
    )


def evidence_table(structure: Analysis, program: Analysis) -> Table:
    """What the trees alone tell of the leaves, beside what the program proves of them."""

    def told(name: str, count: Callable[[Analysis], int | None]) -> tuple[Cell, ...]:
        counts = (count(analysis) for analysis in (structure, program))
        return (Cell(name), *(Cell("not told" if n is None else f"{n:,}") for n in counts))

    def with_role(*roles: Role) -> Callable[[Analysis], int]:
        return lambda analysis: sum(leaf.role in roles for leaf in analysis.leaves)

    def with_scale(scale: Scale) -> Callable[[Analysis], int | None]:
        return lambda analysis: (
            sum(leaf.scale is scale for leaf in analysis.leaves)
            if Evidence.PROGRAM in analysis.evidence
            else None
        )

    rows = (
        told("γ and β of normalisers", with_role(Role.NORM_SCALE, Role.NORM_BIAS)),
        told("weights", with_role(Role.WEIGHT)),
        told("of unknown role", with_role(Role.UNKNOWN)),
        told("whose scale changes nothing", with_scale(Scale.INVARIANT)),
        told("whose scale changes nothing, with others'", with_scale(Scale.JOINT)),
        told("whose scale matters", with_scale(Scale.SENSITIVE)),
    )
    columns = (Column("leaves"), Column("by structure", number=True), Column("proved", number=True))
    return Table("What is known of the leaves", columns, rows)


def policy_table(outcomes: Sequence[Outcome]) -> Table:
    """One row for each quantity: both policies, and their difference taken seed by seed."""
    rows = (
        _row("test accuracy, %", [100 * outcome.accuracy for outcome in outcomes], ".2f"),
        _row("training loss", [outcome.losses[-1] for outcome in outcomes], ".5f"),
        _row("mean |γ|", [outcome.gains[-1] for outcome in outcomes], ".5f"),
        _row("mean g, in 1e-5", [1e5 * np.mean(o.gradients, axis=1) for o in outcomes], ".2f"),
        _row("mean η_eff/η", [np.mean(outcome.effective, axis=1) for outcome in outcomes], ".3f"),
        _row(
            "median η_eff/η", [np.median(outcome.effective, axis=1) for outcome in outcomes], ".3f"
        ),
    )
    names = (*(outcome.policy for outcome in outcomes), "difference")
    columns = (Column(""), *(Column(name, number=True) for name in names))
    return Table(
        "Policies: mean ± standard error over seeds, differences seed by seed", columns, rows
    )


def sentences(outcomes: Sequence[Outcome]) -> list[str]:
    """What the differences, taken seed by seed, show and do not show."""
    plain, masked = outcomes
    gain = estimate(100 * (masked.accuracy - plain.accuracy))
    size = estimate(masked.gains[-1] - plain.gains[-1])
    return [
        comparison("Test accuracy, mask minus everything", gain, "+.2f", " points"),
        comparison("Mean |γ|, mask minus everything", size, "+.5f"),
        "η_eff/η = g / (g + λ|γ|), where g = |dL/dγ| of the data loss after training, for each "
        "channel and batch, then averaged over the batches. Without decay on γ it is 1 by "
        "definition, whatever g is.",
    ]


def _row(name: str, values: Sequence[np.ndarray], spec: str) -> tuple[Cell, ...]:
    """A quantity of each policy, and the last policy's less the first's."""
    difference = estimate(values[-1] - values[0])
    return (
        Cell(name),
        *(Cell(f"{estimate(each):{spec}}") for each in values),
        Cell(f"{difference:+{spec}}"),
    )


def _words(outcomes: Sequence[Outcome]) -> str:
    """The plot for those who cannot see it."""
    told = "; ".join(
        f"{outcome.policy}: accuracy {estimate(100 * outcome.accuracy):.2f} %, mean |γ| "
        f"{outcome.gains[0].mean():.3f} after the first epoch and {outcome.gains[-1].mean():.3f} "
        f"after the last"
        for outcome in outcomes
    )
    return f"Test accuracy by seed, mean |γ| by epoch, and η_eff/η by channel. {told}."
