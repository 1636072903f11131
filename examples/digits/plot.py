"""The picture of the policies: accuracy by seed, the gains by epoch, the rates by channel."""

import io
from collections.abc import Sequence
from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from examples.digits.outcome import Outcome

_LOOKS: Final = (("#d55e00", "o", "--"), ("#0072b2", "s", "-"))
"""Colours that stay apart without colour vision, each with a mark and a line of its own."""


def png_of(outcomes: Sequence[Outcome]) -> bytes:
    """Three panels, as the bytes of a PNG."""
    figure = Figure(figsize=(12, 4), layout="constrained")
    accuracy, gains, rates = figure.subplots(1, 3)
    _accuracy(accuracy, outcomes)
    for outcome, (colour, mark, line) in zip(outcomes, _LOOKS, strict=True):
        _band(gains, outcome.gains, colour, line, outcome.policy)
        ordered = np.sort(np.ravel(outcome.effective))
        share = np.arange(1, len(ordered) + 1) / len(ordered)
        rates.plot(
            ordered, share, color=colour, linestyle=line, linewidth=2, marker=mark, markevery=0.2
        )
    gains.set(title="Mean |γ| (band: standard error)", xlabel="epoch", ylabel="mean |γ|")
    gains.legend(frameon=False)
    rates.set(
        title="η_eff/η of γ after training",
        xlabel="g / (g + λ|γ|)",
        ylabel="share of channels at or below",
        xlim=(-0.03, 1.03),
        ylim=(0, 1.02),
    )
    for panel in (accuracy, gains, rates):
        panel.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _accuracy(panel: Axes, outcomes: Sequence[Outcome]) -> None:
    """One line for each seed, from policy to policy, and the means."""
    both = np.stack([100 * outcome.accuracy for outcome in outcomes])
    places = np.arange(len(outcomes))
    panel.plot(places, both, color="#9a9a9a", linewidth=1, zorder=1)
    for place, values, (colour, mark, _) in zip(places, both, _LOOKS, strict=True):
        panel.scatter(np.full(len(values), place), values, color=colour, marker=mark, zorder=2)
        panel.hlines(np.mean(values), place - 0.15, place + 0.15, color=colour, linewidth=3)
    panel.set_xticks(places, [outcome.policy for outcome in outcomes])
    panel.set(title="Test accuracy (lines join a seed)", ylabel="%", xlim=(-0.5, 1.5))


def _band(panel: Axes, values: np.ndarray, colour: str, line: str, label: str) -> None:
    """The mean over seeds by epoch, in a band of its standard error."""
    mean = np.mean(values, axis=1)
    error = np.std(values, axis=1, ddof=1) / np.sqrt(values.shape[1])
    epochs = np.arange(1, len(mean) + 1)
    panel.plot(epochs, mean, color=colour, linestyle=line, linewidth=2, label=label)
    panel.fill_between(epochs, mean - error, mean + error, color=colour, alpha=0.2, lw=0)
