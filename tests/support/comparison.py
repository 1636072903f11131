"""Who gets which wrong: rules by name or shape against the mask from structure.

`python -m tests.support.comparison` writes both into `docs/`: the table of `rules.md`, and
`rules.svg`.
"""

import html
import re
from collections import Counter
from pathlib import Path

import optax_bnmask as bnmask
from optax_bnmask.paths import tree_index
from tests.support.fixtures import FIXTURES

NAMES = ("norm", "bn", "ln", "scale", "bias")


def by_rank(decays):
    """A rule that looks at a leaf's rank alone."""
    return lambda leaves: {path: decays(len(leaf.shape)) for path, leaf in leaves.items()}


def by_names(leaves):
    """No decay where the joined path contains one of the usual names."""
    return {
        path: not any(name in path.replace("/", "").lower() for name in NAMES) for path in leaves
    }


def by_parts(leaves):
    """The same list of names, but on whole parts of the path."""
    return {
        path: not any(part.lower() in NAMES for part in re.split(r"[/_\d]+", path))
        for path in leaves
    }


def by_kernel(leaves):
    """Decay for what is called a kernel."""
    return {path: bool(re.search(r"(^|/)kernel$", path)) for path in leaves}


def by_layer_norm_names(leaves):
    """The `decay_mask_fn` of many Flax examples: no biases, nothing of a LayerNorm's name."""
    flat = {path: tuple(path.split("/")) for path in leaves}
    spared = {
        keys[-2:]
        for keys in flat.values()
        if any(name in "".join(keys).lower() for name in ("layernorm", "layer_norm", "ln"))
    }
    return {path: keys[-1] != "bias" and keys[-2:] not in spared for path, keys in flat.items()}


def by_batchnorm_name(leaves):
    """Haiku's ImageNet example: decay for all but modules called batchnorm."""
    return {path: "batchnorm" not in path for path in leaves}


RULES = {
    "`ndim != 1`": by_rank(lambda rank: rank != 1),
    "`ndim > 1`": by_rank(lambda rank: rank > 1),
    "any of `norm bn ln scale bias` in the joined path": by_names,
    "the same names, as whole words": by_parts,
    "`/kernel$`": by_kernel,
    "`decay_mask_fn` of Flax examples (no `bias`, no LayerNorm by name)": by_layer_norm_names,
    "`'batchnorm' not in module_name`": by_batchnorm_name,
}
OURS = "**`decay_mask(..., exempt=STANDARD)`**"


def judged():
    """For each rule the leaves it gets wrong: ``{rule: [(fixture, path, what it is)]}``."""
    wrong = {rule: [] for rule in (*RULES, OURS)}
    total = 0
    for fixture in FIXTURES:
        params, stats = fixture.build()
        mask = bnmask.decay_mask(params, stats, exempt=bnmask.STANDARD)
        leaves = {path: leaf for path, leaf in tree_index(params).leaves.items() if path in mask}
        total += len(leaves)
        answers = {rule: decide(leaves) for rule, decide in RULES.items()}
        answers[OURS] = {path: mask[path] for path in leaves}
        for rule, decays in answers.items():
            wrong[rule] += [
                (fixture, path, fixture.truth(path))
                for path in leaves
                if decays[path] != (fixture.truth(path) == "weight")
            ]
    return wrong, total


def table():
    """The comparison as a Markdown table."""
    wrong, total = judged()
    lines = [
        f"| rule | wrong of {total} leaves | norms decayed | biases decayed | scalars decayed "
        "| weights spared | for example |",
        "| --- | --: | --: | --: | --: | --: | --- |",
    ]
    for rule, leaves in wrong.items():
        kinds = Counter(what for _, _, what in leaves)
        counts = " | ".join(str(kinds[what]) for what in ("norm", "bias", "scalar", "weight"))
        example = next((f"`{path}`, {fixture.name}" for fixture, path, _ in leaves), "")
        lines.append(f"| {rule} | {len(leaves)} | {counts} | {example} |")
    return "\n".join(lines)


COLOURS = {"right": "#d8dee4", "decayed": "#d55e00", "spared": "#0072b2"}  # told apart by all eyes
WIDTH, HEIGHT, GAP, PITCH = 7, 16, 5, 22
LEFT, TOP = 292, 28


def picture():
    """The comparison as an SVG: a row for each rule, a column for each leaf, coloured if wrong."""
    wrong, total = judged()
    names, columns, x, drawn = [], {}, LEFT, []
    for fixture in FIXTURES:
        paths = [*bnmask.decay_mask(*fixture.build())]
        names.append(fixture.name)
        drawn.append(text(x + len(paths) * WIDTH / 2, TOP - 8, str(len(names)), anchor="middle"))
        for path in paths:
            columns[fixture.name, path] = x
            x += WIDTH
        x += GAP
    right = x + 28
    drawn.append(text(right, TOP - 8, f"of {total}", anchor="end"))
    for row, (rule, leaves) in enumerate(wrong.items()):
        y, style = TOP + row * PITCH, {"anchor": "end", "bold": rule is OURS}
        drawn.append(text(LEFT - 10, y + 12, rule.partition(" (no")[0], **style))
        drawn.append(text(right, y + 12, str(len(leaves)), **style))
        errors = {(fixture.name, path): what for fixture, path, what in leaves}
        for leaf, at in columns.items():
            what = errors.get(leaf)
            kind = "right" if what is None else "spared" if what == "weight" else "decayed"
            drawn.append(box(at, y, WIDTH - 1, HEIGHT, kind))
    y = TOP + len(wrong) * PITCH + 14
    for at, kind, words in (
        (0, "decayed", "decays, should not"),
        (170, "spared", "does not decay, should"),
        (366, "right", "right"),
    ):
        drawn += box(LEFT + at, y - 10, 12, 12, kind), text(LEFT + at + 18, y, words)
    half = -(-len(names) // 2)
    for number, name in enumerate(names):
        column, row = divmod(number, half)
        drawn.append(text(400 * column + 20, y + 30 + 17 * row, f"{number + 1}  {name}"))
    width, height = right + 14, y + 30 + 17 * half
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'width="{width}" height="{height}" font-family="sans-serif" font-size="12">',
            f'<rect width="{width}" height="{height}" rx="6" fill="#ffffff"/>',
            *drawn,
            "</svg>\n",
        ]
    )


def box(x, y, width, height, kind):
    """A rectangle of an SVG."""
    return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" fill="{COLOURS[kind]}"/>'


def text(x, y, markdown, *, anchor="start", bold=False):
    """A line of an SVG, without the marks of Markdown."""
    words = html.escape(markdown.replace("`", "").replace("*", ""))
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x:g}" y="{y}" text-anchor="{anchor}" fill="#1f2328"{weight}>{words}</text>'


DOCS = Path(__file__).parents[2] / "docs"
PAGE, PICTURE = DOCS / "rules.md", DOCS / "rules.svg"
FRAME = re.compile(r"(?<=<!-- comparison -->\n).*?(?=\n\n)", re.S)

if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(FRAME.sub(lambda _: table(), page), encoding="utf-8")
