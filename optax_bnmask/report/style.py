"""The one style sheet of every HTML report.

The colours are a blue and an orange that stay apart without colour vision, and each goes with a
word and a mark. All selectors are under ``.bnmask``, so that a notebook's page keeps its own look.
"""

from typing import Final

STYLE: Final = """\
.bnmask {
  --ground: #ffffff; --ink: #1b1f24; --faint: #5b6470; --line: #d5dae0; --band: #f4f6f8;
  --blue: #00558c; --orange: #8f4a00;
  background: var(--ground); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
  box-sizing: border-box; max-width: 1200px; margin: 0 auto; padding: 1.5rem;
}
@media (prefers-color-scheme: dark) {
  .bnmask {
    --ground: #14171b; --ink: #e4e7eb; --faint: #9aa4b0; --line: #343b44; --band: #1c2127;
    --blue: #6cb6ef; --orange: #f0a54a;
  }
  body:has(> .bnmask) { background: #14171b; }
}
body:has(> .bnmask) { margin: 0; }
.bnmask h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 .75rem; }
.bnmask h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
.bnmask .summary p { margin: 0 0 .2rem; max-width: 75ch; }
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
.bnmask span.yes { color: var(--blue); font-weight: 600; }
.bnmask span.yes::before { content: "\\25CF\\00A0"; }
.bnmask span.no { color: var(--orange); font-weight: 600; }
.bnmask span.no::before { content: "\\25CB\\00A0"; }
.bnmask span.open { font-style: italic; }
.bnmask ul { margin: 0; padding-left: 1.2rem; }
.bnmask li { margin: .2rem 0; overflow-wrap: anywhere; }
.bnmask .figure { overflow-x: auto; }
.bnmask img { display: block; width: 100%; min-width: 760px; background: #ffffff; }
@media (max-width: 700px) {
  .bnmask { padding: 1rem; }
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
