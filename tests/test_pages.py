"""The README and the pages of the site: every example runs, in order, and prints what is said."""

import json
import re
from pathlib import Path
from typing import NamedTuple

import jax
import pytest

import optax_bnmask

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]


class Example(NamedTuple):
    line: int
    code: str
    printed: str | None


def examples(text):
    """The blocks of Python that are no doctests, each with the block of text right after it."""
    pattern = re.compile(r"^```python\n(?!>>> )(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.M | re.S)
    for match in pattern.finditer(text):
        yield Example(text.count("\n", 0, match.start()) + 2, match[1], match[2])


WITH_EXAMPLES = [page for page in PAGES if any(examples(page.read_text(encoding="utf-8")))]


@pytest.mark.parametrize("page", WITH_EXAMPLES, ids=lambda page: page.stem)
def test_examples_run_from_top_to_bottom_and_print_what_the_page_says(page, capsys):
    names = {"__name__": "__main__"}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # JAX's defaults
        for example in examples(page.read_text(encoding="utf-8")):
            exec(compile("\n" * (example.line - 1) + example.code, page.name, "exec"), names)
            assert capsys.readouterr().out == (example.printed or ""), f"line {example.line}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_no_example_escapes_the_tests(page):
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^```(?:python|pycon)\n(>>> )?", text, re.M)
    assert len(list(examples(text))) == blocks.count("")
    if page.name == "README.md":  # not among the files whose doctests are run
        assert ">>>" not in text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_to_files_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!http)([^)#]+)[^)]*\)", text):
        copied = ROOT / target if target.startswith("notebooks/") else page  # by docs/conf.py
        assert (page.parent / target).exists() or copied.exists(), target


def test_every_public_name_is_in_the_reference_once():
    text = (DOCS / "api.md").read_text(encoding="utf-8")
    shown = re.findall(r"^\.\. auto\w+:: ([\w.]+)", text, re.M)
    of_package = "optax_bnmask.checkpoints.analyze_checkpoint"  # imported only by those who use it
    assert sorted(shown) == sorted([*optax_bnmask.__all__, of_package])


def test_every_page_is_in_the_table_of_contents():
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    tables = re.findall(r"```{toctree}\n(.*?)```", index, re.S)
    listed = {
        name for table in tables for name in re.findall(r"^(?:.* <)?([\w/]+)>?$", table, re.M)
    }
    notebooks = {f"notebooks/{path.stem}" for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert {page.stem for page in DOCS.glob("*.md")} - {"index"} | notebooks <= listed


def test_figures_from_the_notebook_are_those_that_it_shows():
    source = (ROOT / "notebooks" / "why_not_decay_batch_norm.ipynb").read_text(encoding="utf-8")
    cells = json.loads(source)["cells"]
    shown = "".join("".join(o.get("text", "")) for c in cells for o in c.get("outputs", ()))
    readme, choose, verify = (
        " ".join(path.read_text(encoding="utf-8").split())
        for path in (ROOT / "README.md", DOCS / "choose.md", DOCS / "verify.md")
    )
    low, high = re.findall(r"to (\S+)-(\S+) of its size without", shown)[0]
    (left,) = re.findall(r"0\.005: ([\d.]+)", shown)
    (moved,) = re.findall(r", ([\d.]+) at 1e-4", shown)
    assert f"shrinks it to {low} to {high} of its size" in readme
    assert f"shrinks to between {low} and {high} of its size" in choose
    assert f"{float(left):.2f} of what pulls at γ is the data's" in choose
    assert f"a factor of 10,000 changed the output of a small network by {moved} of its" in verify
