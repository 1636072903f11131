"""The leaves by scope as HTML: what can be folded is a `<details>`, which needs no script."""

import functools
import html
import re
from collections import Counter
from collections.abc import Sequence
from importlib import resources
from typing import Final

from optax_bnmask.mask import Mask
from optax_bnmask.paths import printable
from optax_bnmask.record import Record, in_words
from optax_bnmask.report.content import SCALE_TONES
from optax_bnmask.report.document import Tone
from optax_bnmask.report.repetition import scale_words
from optax_bnmask.report.scopes import Row, Scope, scope_tree
from optax_bnmask.vocabulary import Role, Scale
from optax_bnmask.wording import counted, percent

_AT_ONCE = 40
"""Scopes are open from the root down as long as no more lines than this are seen at once."""

MARKS: Final = {
    Role.WEIGHT: "■",
    Role.EMBEDDING: "▤",
    Role.GAIN: "\u00d7",
    Role.BIAS: "+",
    Role.NORM_SCALE: "γ",
    Role.NORM_BIAS: "β",
    Role.UNUSED: "-",
    Role.UNKNOWN: "?",
}
"""What tells the roles apart besides their word and their colour."""

_FIND: Final = """\
<div class="find" hidden>
<label>Find <input type="search" placeholder="conv, invariant, role:bias" \
autocomplete="off" spellcheck="false"></label>
<button type="button" value="open">open all</button>
<button type="button" value="close">close all</button>
<output></output>
</div>
"""


def leaf_section(analysis: Record, mask: Mask | None = None) -> str:
    """The section of a report that shows the leaves.

    Args:
      analysis: What is known of each leaf.
      mask: What was decided.

    Returns:
      A `<section>`, with the script that makes its search work.
    """
    root = scope_tree(analysis, mask)
    total = sum(leaf.size for leaf in analysis.leaves)
    depth = _open_depth(root)
    inside = "".join(_one(each, total, depth) for each in root.inside)
    scales = any(leaf.scale is not Scale.UNKNOWN for leaf in analysis.leaves)
    return (
        f'<section class="leaves">\n<h2>Leaves</h2>\n{_legend(analysis, total)}{_FIND}'
        f'{_note(root)}<div class="tree{"" if scales else " noscale"}">\n'
        f"{_heads(root.rows(), mask)}{inside}</div>\n<script>\n"
        f"{asset('script.js')}</script>\n</section>\n"
    )


def _heads(rows: Sequence[Row], mask: Mask | None) -> str:
    """The headings of the columns, hidden from screen readers, as each line is clear without."""
    times = any(len(row.leaves) > 1 for row in rows)
    columns = {
        "shape": "shape",
        "count": "count" if times else "",
        "size": "total size" if times else "size",
        "role": "role",
        "scale": "scale",
    }
    columns |= {"decay": "decay"} if mask is not None else {}
    heads = " ".join(f'<span class="{name}">{head}</span>' for name, head in columns.items())
    return (
        f'<div class="heads" aria-hidden="true"><span class="path">path</span> '
        f'<span class="facts">{heads}</span></div>\n'
    )


def _legend(analysis: Record, total: int) -> str:
    """What each mark stands for, and how much of the model it is."""
    counts, sizes = Counter[Role](), Counter[Role]()
    for leaf in analysis.leaves:
        counts[leaf.role] += 1
        sizes[leaf.role] += leaf.size
    items = "".join(
        f"<li>{_role(role)} {counted(counts[role], 'leaf', 'leaves')}, "
        f"{percent(sizes[role], total)}</li>\n"
        for role in Role
        if counts[role]
    )
    return f'<ul class="legend">\n{items}</ul>\n'


def _note(root: Scope) -> str:
    """A note on lines that stand for many leaves, and on explanations that were left out."""
    rows = root.rows()
    said = []
    if any(len(row.leaves) > 1 for row in rows):
        said.append(
            "Leaves that differ only in a number of their path are one line, <code>{0,2..5}</code> "
            "for 0, 2, 3, 4 and 5; the reason and the explanation there are the first one's."
        )
    if any(row.explanation for row in rows) and not all(row.explanation for row in rows):
        said.append(
            "Only the largest lines are explained here; <code>analysis.explain(path)</code> "
            "explains every leaf."
        )
    return f'<p class="note">{" ".join(said)}</p>\n' if said else ""


def _open_depth(root: Scope) -> int:
    """How many levels of scopes are open at first."""
    depth, level, seen = 0, list(root.inside), len(root.inside)
    while level:
        level = [inner for each in level if isinstance(each, Scope) for inner in each.inside]
        seen += len(level)
        if seen > _AT_ONCE:
            break
        depth += 1
    return depth


def _one(each: Row | Scope, total: int, depth: int) -> str:
    return _row(each) if isinstance(each, Row) else _scope(each, total, depth)


def _scope(scope: Scope, total: int, depth: int) -> str:
    rows = scope.rows()
    leaves, size = sum(len(row.leaves) for row in rows), sum(row.size for row in rows)
    told = [counted(leaves, "leaf", "leaves"), f"{size:,} parameters", percent(size, total)]
    if rows[0].decays is not None:
        decayed = sum(row.size for row in rows if row.decays)
        told.append(f"{percent(decayed, size)} of it decays")
    times = f' <span class="times">\u00d7 {scope.times:,}</span>' if scope.times > 1 else ""
    inside = "".join(_one(inner, total, depth - 1) for inner in scope.inside)
    return (
        f'<details class="scope"{" open" if depth > 0 else ""}><summary>'
        f'<span class="path">{escaped(scope.name)}/</span>{times} '
        f'<span class="totals">{" · ".join(told)}</span></summary>\n'
        f'<div class="inside">\n{inside}</div></details>\n'
    )


def _row(row: Row) -> str:
    """A line, and below it, folded, the reason, the explanation and the paths."""
    leaf, count = row.leaves[0], len(row.leaves)
    times = f"\u00d7 {count:,}" if count > 1 else ""
    cells = [
        f'<span class="shape">{escaped(str(leaf.shape))}</span>',
        f'<span class="count">{times}</span>',
        f'<span class="size">{row.size:,}</span>',
        _role(leaf.role),
    ]
    tone = SCALE_TONES.get(leaf.scale, Tone.OPEN)
    cells.append(f'<span class="scale {tone}">{escaped(scale_words(row.leaves))}</span>')
    if row.decays is not None:
        tone, word = (Tone.YES, "decays") if row.decays else (Tone.NO, "exempt")
        cells.append(f'<span class="decay {tone}">{word}</span>')
    return (
        f'<details class="leaf"><summary><span class="path">{escaped(row.name)}</span> '
        f'<span class="facts">{" ".join(cells)}</span></summary>\n'
        f'<div class="more">\n{_more(row)}</div></details>\n'
    )


def _more(row: Row) -> str:
    leaf, count = row.leaves[0], len(row.leaves)
    axes = f"; invariant along axes {leaf.invariant_axes}" if leaf.invariant_axes else ""
    reason = f"{leaf.reason[:1].upper()}{leaf.reason[1:]}. " if leaf.reason else ""
    parts = [f"<p>{prose(f'{reason}{leaf.dtype}{axes}.')}</p>\n"]
    if row.explanation:
        lines = "\n".join(map(escaped, row.explanation.splitlines()))
        parts.append(f"<pre>{lines}</pre>\n")
    else:
        parts += [f"<p>{escaped(line)}</p>\n" for line in in_words(leaf)]
    items = "".join(f"<li>{escaped(leaf.path)}</li>" for leaf in row.leaves)
    head = "Path" if count == 1 else f"All {count:,} paths"
    parts.append(f'<p>{head}:</p><ul class="members">{items}</ul>\n')
    return "".join(parts)


@functools.cache
def asset(name: str) -> str:
    """The text of a file that every page holds a copy of."""
    return resources.files("optax_bnmask.report").joinpath(name).read_text(encoding="utf-8")


def escaped(text: str) -> str:
    """Text as HTML that shows it: no markup, and nothing that a page cannot be encoded with."""
    return html.escape(printable(text))


def prose(text: str) -> str:
    """A sentence as HTML: what stands between backticks, as code."""
    return re.sub("`([^`]+)`", r"<code>\1</code>", escaped(text))


def _role(role: Role) -> str:
    mark = f'<i aria-hidden="true">{MARKS[role]}</i>'
    return f'<span class="role {role.value}">{mark} {role.value}</span>'
