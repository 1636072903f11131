"""The one style sheet of every HTML report.

The colours stay apart without colour vision as far as colours can, and each goes with a word and a
mark. All selectors are under ``.bnmask``, so that a notebook's page keeps its own look.
"""

from typing import Final

_LIGHT: Final = """\
    --ground: #ffffff; --ink: #1b1f24; --faint: #5b6470; --line: #d5dae0; --band: #f4f6f8;
    --blue: #00558c; --orange: #8f4a00; --green: #006b4f; --purple: #8a2f78; --grey: #5b6470;
    color-scheme: light;
"""

_DARK: Final = """\
    --ground: #14171b; --ink: #e4e7eb; --faint: #9aa4b0; --line: #343b44; --band: #1c2127;
    --blue: #6cb6ef; --orange: #f0a54a; --green: #41c79c; --purple: #e08fce; --grey: #9aa4b0;
    color-scheme: dark;
"""

_THEMES: Final = f"""\
.bnmask {{
{_LIGHT}}}
@media (prefers-color-scheme: dark) {{
  .bnmask {{
{_DARK}  }}
}}
[data-jp-theme-light="true"] .bnmask, html[theme="light"] .bnmask, .vscode-light .bnmask {{
{_LIGHT}}}
[data-jp-theme-light="false"] .bnmask, html[theme="dark"] .bnmask, .vscode-dark .bnmask {{
{_DARK}}}
"""
"""The reader's system decides, unless Jupyter, Colab or VS Code say what they look like."""

_BASE: Final = """\
.bnmask {
  background: var(--ground); color: var(--ink); text-align: left;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
  box-sizing: border-box; max-width: 1200px; margin: 0 auto; padding: 1.5rem;
}
@media (prefers-color-scheme: dark) {
  body:has(> .bnmask) { background: #14171b; }
}
body:has(> .bnmask) { margin: 0; }
.bnmask [hidden] { display: none !important; }
.bnmask h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 .75rem; color: inherit; }
.bnmask h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; color: inherit; }
.bnmask p { margin: 0 0 .5rem; }
.bnmask .summary p { margin: 0 0 .2rem; max-width: 75ch; }
.bnmask code, .bnmask pre {
  font: .9em/1.5 ui-monospace, Menlo, Consolas, monospace; color: inherit; background: var(--band);
}
.bnmask span.yes { color: var(--blue); font-weight: 600; }
.bnmask span.yes::before { content: "\\25CF\\00A0"; }
.bnmask span.no { color: var(--orange); font-weight: 600; }
.bnmask span.no::before { content: "\\25CB\\00A0"; }
.bnmask span.open { font-style: italic; }
.bnmask ul { margin: 0; padding-left: 1.2rem; }
.bnmask li { margin: .2rem 0; overflow-wrap: anywhere; }
.bnmask summary { cursor: pointer; }
.bnmask .panels { display: flex; flex-wrap: wrap; gap: 1rem; }
.bnmask .panels svg { flex: 1 1 18rem; min-width: 0; max-width: 30rem; height: auto; }
.bnmask .panels text { font-family: system-ui, -apple-system, sans-serif !important; }
@media (max-width: 700px) {
  .bnmask { padding: 1rem; }
}
"""

_TABLE: Final = """\
.bnmask table { border-collapse: collapse; width: 100%; color: inherit; font-size: .92rem; }
.bnmask th, .bnmask td {
  text-align: left; vertical-align: top; padding: .35rem 1rem .35rem 0;
  border-bottom: 1px solid var(--line); background: none;
}
.bnmask th { color: var(--faint); font-weight: 600; white-space: nowrap; }
.bnmask td { white-space: nowrap; font-variant-numeric: tabular-nums; }
.bnmask td:first-child { font-family: ui-monospace, Menlo, Consolas, monospace; min-width: 26ch; }
.bnmask td:first-child, .bnmask td.prose { white-space: normal; overflow-wrap: anywhere; }
.bnmask th.number, .bnmask td.number { text-align: right; }
.bnmask td.prose { color: var(--faint); min-width: 18ch; }
@media (max-width: 700px) {
  .bnmask thead { display: none; }
  .bnmask table, .bnmask tbody, .bnmask tr { display: block; }
  .bnmask tr { border-bottom: 1px solid var(--line); padding: .5rem 0; }
  .bnmask tr td, .bnmask td.number {
    display: grid; grid-template-columns: 5.5rem 1fr; border: 0; padding: 0;
    text-align: left; white-space: normal; overflow-wrap: anywhere;
  }
  .bnmask td::before {
    content: attr(data-head); color: var(--faint); padding-right: .5rem;
    font-family: system-ui, sans-serif; overflow-wrap: normal;
  }
  .bnmask tr td:empty { display: none; }
  .bnmask tr td:first-child { display: block; font-weight: 600; min-width: 0; }
  .bnmask td:first-child::before { content: none; }
}
"""

# Rows wrap; container queries would tell widths as well, but with them hiding a thousand rows took
# Chromium ten seconds.
_TREE: Final = """\
.bnmask .legend { list-style: none; padding: 0; margin: 0 0 .75rem; color: var(--faint); }
.bnmask .legend li { display: inline-block; margin: 0 1.5rem .2rem 0; }
.bnmask .note { color: var(--faint); max-width: 85ch; }
.bnmask .find { display: flex; flex-wrap: wrap; gap: .5rem; align-items: center; margin: .75rem 0; }
.bnmask .find label { flex: 0 1 26rem; display: flex; gap: .5rem; align-items: center; }
.bnmask .find input {
  flex: 1 1 8rem; min-width: 0; font: inherit; color: inherit; background: var(--ground);
  border: 1px solid var(--faint); border-radius: 4px; padding: .25rem .5rem; margin: 0;
}
.bnmask .find button {
  font: inherit; color: inherit; background: var(--band); border: 1px solid var(--line);
  border-radius: 4px; padding: .25rem .6rem; cursor: pointer; margin: 0;
}
.bnmask .find output { color: var(--faint); }
.bnmask .tree { border-top: 1px solid var(--line); font-variant-numeric: tabular-nums; }
.bnmask .heads, .bnmask .leaf > summary {
  display: flex; flex-wrap: wrap; gap: 0 .75rem; padding: .25rem 0; align-items: baseline;
}
.bnmask .facts { display: flex; flex-wrap: wrap; gap: 0 .75rem; max-width: 100%; }
.bnmask .heads > .path, .bnmask .leaf > summary > .path { flex: 1 1 14rem; min-width: 0; }
.bnmask .facts > .shape { flex: 0 0 9.5rem; }
.bnmask .facts > .count { flex: 0 0 3.5rem; }
.bnmask .facts > .size { flex: 0 0 6rem; }
.bnmask .facts > .role { flex: 0 0 7.5rem; }
.bnmask .facts > .scale { flex: 0 0 9rem; overflow-wrap: anywhere; }
.bnmask .noscale .scale { display: none; }
.bnmask .facts > .decay { flex: 0 0 5.5rem; }
.bnmask .heads { color: var(--faint); font-weight: 600; }
.bnmask .leaf, .bnmask .scope { margin: 0; padding: 0; border-top: 1px solid var(--line); }
.bnmask .heads + details { border-top: 0; }
.bnmask .scope > summary { padding: .25rem 0; overflow-wrap: anywhere; }
.bnmask .leaf > summary, .bnmask .scope > summary { list-style: none; margin: 0; }
.bnmask summary::-webkit-details-marker { display: none; }
.bnmask .tree summary:hover { background: var(--band); }
.bnmask .tree .path {
  overflow-wrap: anywhere; box-sizing: border-box; padding-left: 1.1rem; text-indent: -1.1rem;
}
.bnmask .tree summary > .path { font: .92em/1.5 ui-monospace, Menlo, Consolas, monospace; }
.bnmask .tree summary > .path::before {
  content: "\\25B8"; display: inline-block; width: 1.1rem; text-indent: 0; color: var(--faint);
}
.bnmask .tree details[open] > summary > .path::before { content: "\\25BE"; }
.bnmask .scope > summary > .path { font-weight: 600; display: inline-block; }
.bnmask .inside { margin-left: .5rem; padding-left: .8rem; border-left: 1px solid var(--line); }
.bnmask .totals, .bnmask .shape { color: var(--faint); }
.bnmask .times { font-weight: 600; }
.bnmask .tree .count, .bnmask .tree .size { text-align: right; }
.bnmask .more {
  margin: 0 0 .5rem 1.1rem; padding: .5rem .75rem; background: var(--band); overflow-wrap: anywhere;
}
.bnmask .more pre { margin: 0 0 .5rem; white-space: pre-wrap; overflow-wrap: anywhere; padding: 0; }
.bnmask .more p + ul { font: .85em/1.5 ui-monospace, Menlo, Consolas, monospace; }
.bnmask .members { max-height: 16rem; overflow-y: auto; }
.bnmask .members li { margin: 0; }
.bnmask .role { white-space: nowrap; font-weight: 600; color: var(--grey); }
.bnmask .role i { font-style: normal; display: inline-block; width: 1.1em; text-align: center; }
.bnmask .heads span { color: inherit; font-weight: 600; }
.bnmask .weight { color: var(--blue); }
.bnmask .embedding { color: var(--purple); }
.bnmask .norm_scale, .bnmask .norm_bias { color: var(--orange); }
.bnmask .gain, .bnmask .bias { color: var(--green); }
@media (max-width: 700px) {
  .bnmask .inside { margin-left: .2rem; padding-left: .5rem; }
  .bnmask .heads { display: none; }
  .bnmask .facts { padding-left: 1.1rem; }
  .bnmask .leaf .facts > * { flex: 0 0 auto; max-width: 100%; }
  .bnmask .facts > :empty { display: none; }
  .bnmask .scope > summary > .totals { display: block; padding-left: 1.1rem; }
  .bnmask .more { margin-left: 0; }
}
"""

STYLE: Final = _THEMES + _BASE + _TABLE + _TREE
