"""The picture of the policies: accuracy by seed, the gains by epoch, the rates by channel."""

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from examples.digits.outcome import Outcome

_LOOKS: Final = (("#d55e00", "o", "--"), ("#0072b2", "s", "-"))
"""Colours that stay apart without colour vision, each with a mark and a line of its own."""

_PAGE: Final[Mapping[str, str]] = {
    "#d55e00": "var(--orange)",
    "#0072b2": "var(--blue)",
    "#9a9a9a": "var(--faint)",
    "#1b1f24": "currentColor",
}
"""What stands for each colour within a page: the page's own, light or dark as it is."""

_STYLE: Final[Mapping[str, Any]] = {
    **dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), "#1b1f24"
    ),
    "svg.fonttype": "none",  # text that a page sets in its own font
    "svg.hashsalt": "digits",  # the same names in every run
}


def png_of(outcomes: Sequence[Outcome]) -> bytes:
    """All panels side by side, as the bytes of a PNG."""
    with mpl.rc_context(dict(_STYLE)):
        figure = Figure(figsize=(12, 4), layout="constrained")
        for axes, panel in zip(figure.subplots(1, len(_PANELS)), _PANELS, strict=True):
            panel(axes, outcomes)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def svgs_of(outcomes: Sequence[Outcome]) -> tuple[str, ...]:
    """Each panel as an `<svg>` in the colours of the page that it stands in."""
    return tuple(_svg(panel, outcomes) for panel in _PANELS)


def _svg(panel: Callable[[Axes, Sequence[Outcome]], None], outcomes: Sequence[Outcome]) -> str:
    with mpl.rc_context(dict(_STYLE)):
        figure = Figure(figsize=(4.2, 3.4), layout="constrained")
        panel(figure.subplots(), outcomes)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    for fixed, of_page in _PAGE.items():
        text = text.replace(fixed, of_page)
    return text[text.index("<svg") :]


def _accuracy(axes: Axes, outcomes: Sequence[Outcome]) -> None:
    """One line for each seed, from policy to policy, and the means.

    Each seed is a little further right than the one before, at both ends: equal ones hide nothing.
    """
    both = np.stack([100 * outcome.accuracy for outcome in outcomes])
    apart = np.linspace(-0.1, 0.1, both.shape[1])
    places = np.arange(len(outcomes))
    axes.plot(places[:, None] + apart, both, color="#9a9a9a", linewidth=1, zorder=1)
    for place, values, (colour, mark, _) in zip(places, both, _LOOKS, strict=True):
        axes.scatter(place + apart, values, color=colour, marker=mark, s=20, alpha=0.8, zorder=2)
        axes.hlines(np.mean(values), place - 0.2, place + 0.2, color=colour, linewidth=3)
    axes.set_xticks(places, [outcome.policy for outcome in outcomes])
    axes.set(title="Test accuracy (lines join a seed)", ylabel="%", xlim=(-0.5, 1.5))
    axes.spines[["top", "right"]].set_visible(False)


def _gains(axes: Axes, outcomes: Sequence[Outcome]) -> None:
    """The mean over seeds by epoch, in a band of its standard error."""
    for outcome, (colour, _, line) in zip(outcomes, _LOOKS, strict=True):
        mean = np.mean(outcome.gains, axis=1)
        error = np.std(outcome.gains, axis=1, ddof=1) / np.sqrt(outcome.gains.shape[1])
        epochs = np.arange(1, len(mean) + 1)
        axes.plot(epochs, mean, color=colour, linestyle=line, linewidth=2, label=outcome.policy)
        axes.fill_between(epochs, mean - error, mean + error, color=colour, alpha=0.2, lw=0)
    axes.legend(frameon=False)
    axes.set(title="Mean |γ| (band: standard error)", xlabel="epoch", ylabel="mean |γ|")
    axes.spines[["top", "right"]].set_visible(False)


def _rates(axes: Axes, outcomes: Sequence[Outcome]) -> None:
    """The share of channels at or below each effective rate."""
    for outcome, (colour, mark, line) in zip(outcomes, _LOOKS, strict=True):
        rates = np.sort(np.ravel(outcome.effective))
        share = np.arange(1, len(rates) + 1) / len(rates)
        looks = {"color": colour, "linestyle": line, "marker": mark, "label": outcome.policy}
        axes.plot(rates, share, linewidth=2, markevery=0.2, **looks)
    axes.set(
        title="η_eff/η of γ after training",
        xlabel="g / (g + λ|γ|)",
        ylabel="share of channels at or below",
        xlim=(-0.03, 1.03),
        ylim=(0, 1.02),
    )
    axes.spines[["top", "right"]].set_visible(False)


_PANELS: Final = (_accuracy, _gains, _rates)
