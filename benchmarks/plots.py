"""A record as a picture: a panel for each experiment, and one for each kind of growth."""

from pathlib import Path

from benchmarks.record import Record

OURS, OTHERS = "#1f6f8b", "#b9b9b9"
COLOURS, MARKERS = ("#1f6f8b", "#d1602b"), ("o", "s")
NOT_OURS = (
    *("path_aware_map", "ModelParamTraversal", "regexes", "ndim", "jax.make_jaxpr", "kfac-jax"),
    *("AdamW", "with a mask by hand", "AdamP", "the floor"),
)
PANELS = {
    ("mask", "ms"): "A mask",
    ("analysis", "s"): "An analysis",
    ("step", "ms"): "A step of the optimizer",
    ("compilation", "s"): "Compiling that step",
}


def picture(record: Record, path: Path) -> str:
    """Draws what was measured: no panel without figures, and no picture without panels.

    Returns:
      The name of the file, if there is one.
    """
    import matplotlib as mpl  # noqa: PLC0415 - only the picture needs it

    mpl.use("agg")
    import matplotlib.pyplot as plt  # noqa: PLC0415

    bars = {
        title: found
        for (experiment, unit), title in PANELS.items()
        if (found := _rows(record, experiment, unit))
    }
    kinds = list(dict.fromkeys(growth.of for growth in record.growths))
    panels = len(bars) + len(kinds)
    if not panels:
        return ""
    columns = min(2, panels)
    high = -(-panels // columns)
    figure, axes = plt.subplots(high, columns, figsize=(7.5 * columns, 4.6 * high), squeeze=False)
    axes = axes.flatten()
    for axis, (title, rows) in zip(axes, bars.items(), strict=False):
        _bars(axis, title, rows)
    for axis, of in zip(axes[len(bars) :], kinds, strict=False):
        _lines(axis, of, [growth for growth in record.growths if growth.of == of])
    for axis in axes[panels:]:
        axis.remove()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path.name


def _rows(record, experiment, unit):
    return [
        row
        for row in record.rows
        if (row.experiment, row.unit) == (experiment, unit) and row.value is not None
    ]


def _bars(axis, title, rows):
    """A bar for each row; below each other, in groups by what they were measured on."""
    groups = list(dict.fromkeys(row.on for row in rows))
    places = [i + 0.8 * groups.index(row.on) for i, row in enumerate(rows)]
    colours = [OTHERS if row.what.strip("`").startswith(NOT_OURS) else OURS for row in rows]
    drawn = axis.barh(places, [row.value for row in rows], color=colours)
    labels = [
        f"{row.value:.3g} {row.unit}" + (f" ({row.ratio:.2f})" if row.ratio is not None else "")
        for row in rows
    ]
    axis.bar_label(drawn, labels, padding=3, fontsize=9)
    axis.set_yticks(places, [row.what.replace("`", "") for row in rows], fontsize=9)
    axis.invert_yaxis()
    axis.margins(x=0.28)
    if len(groups) > 1:
        for group in groups:
            place = min(p for p, row in zip(places, rows, strict=True) if row.on == group)
            axis.text(0, place - 0.5, group, fontsize=9, style="italic", va="bottom")
    axis.set_title(title if len(groups) > 1 else f"{title}: {groups[0]}", fontsize=11)
    against = dict.fromkeys(row.against.replace("`", "") for row in rows if row.against)
    axis.set_xlabel(
        f"time in {rows[0].unit} (in brackets: ratio to {' or '.join(against)})", fontsize=9
    )
    axis.spines[["top", "right"]].set_visible(False)


def _lines(axis, of, growths):
    for growth, colour, marker in zip(growths, COLOURS, MARKERS, strict=False):
        name = f"{growth.what.replace('`', '')}: n^{growth.exponent:.2f}"
        axis.loglog(growth.sizes, growth.seconds, color=colour, marker=marker, label=name)
    axis.set_xlabel(f"number of {of}")
    axis.set_ylabel("time in s")
    axis.set_title(f"Growth with the {of}", fontsize=11)
    axis.grid(which="major", color="#e4e4e4")
    axis.legend(fontsize=9)
    axis.spines[["top", "right"]].set_visible(False)
