"""A record as text."""

from benchmarks.record import LINEAR, Growth, Record, Row


def page(record: Record, *, picture: str = "") -> str:
    """A page with the table and the picture, if there is one, and how it was made."""
    shown = f"\n\n![The same as a picture]({picture})" if picture else ""
    return (
        "# What the package costs\n\n`python -m benchmarks` wrote this page, from one run in which "
        "all that is compared took\nturns. A ratio is to what its row names under *of*.\n\n"
        f"{markdown(record)}{shown}\n"
    )


def markdown(record: Record) -> str:
    """The table of a record, under a line that says where and with what it was made."""
    lines = [
        _environment(record.environment),
        "",
        "| what | on | takes | of | ratio | bar |",
        "| --- | --- | --: | --- | --: | --- |",
    ]
    before = None
    for row in record.rows:
        lines.append(_row(row, "" if row.on == before else row.on))
        before = row.on
    lines += [_growth(growth) for growth in record.growths]
    return "\n".join(lines)


def _environment(kept: dict) -> str:
    names = {"python": "Python", "jax": "JAX", "flax": "Flax", "optax": "Optax"}
    versions = (f"{names.get(key, key)} {kept[key]}" for key in (*names, "kfac-jax") if kept[key])
    shortened = ", shortened run" if kept["quick"] else ""
    return f"On {kept['device']} ({kept['cpus']} CPUs), {', '.join(versions)}{shortened}:"


def _row(row: Row, on: str) -> str:
    what = f"{row.what}, to compile" if row.experiment == "compilation" else row.what
    note = f" ({row.note})" if row.note and row.value is not None else row.note
    takes = ("" if row.value is None else f"{_number(row.value)} {row.unit}") + note
    ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
    bounded = row.ratio if row.against else row.value
    bar = "" if row.limit is None else _bar(bounded, row.limit)
    return f"| {what} | {on} | {takes} | {row.against} | {ratio} | {bar} |"


def _growth(growth: Growth) -> str:
    low, high = growth.sizes[0], growth.sizes[-1]
    first, last = (_number(1e3 * growth.seconds[i]) for i in (0, -1))
    on = f"{low:,} to {high:,} {growth.of}"
    ratio = f"n^{growth.exponent:.2f}"
    return f"| growth of {growth.what} | {on} | {first} to {last} ms |  | {ratio} | " + (
        f"{_bar(growth.exponent, LINEAR)} |"
    )


def _bar(found: float | None, limit: float) -> str:
    if found is None:
        return f"≤ {_number(limit)}: not measured"
    return f"≤ {_number(limit)}: {'met' if found <= limit else '**not met**'}"


def _number(value: float) -> str:
    """Three digits, or all those before the point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
