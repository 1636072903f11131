"""The README: every example runs, prints what the page says, and the two commands are whole."""

import re
import tomllib
from pathlib import Path
from typing import NamedTuple

import jax
import pytest

import optax_bnmask

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


class Example(NamedTuple):
    line: int
    code: str
    printed: str | None


def _examples():
    pattern = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.M | re.S)
    for match in pattern.finditer(README):
        yield Example(README.count("\n", 0, match.start()) + 2, match[1], match[2])


EXAMPLES = list(_examples())


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: f"line {example.line}")
def test_example_runs_as_pasted_and_prints_what_the_page_says(example, capsys):
    code = compile("\n" * (example.line - 1) + example.code, "README.md", "exec")
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # JAX's defaults
        exec(code, {"__name__": "__main__"})
    assert capsys.readouterr().out == (example.printed or "")


def test_no_example_escapes_the_test():
    assert len(EXAMPLES) == README.count("```python\n") > 0
    assert sum(example.printed is not None for example in EXAMPLES) == README.count("```text\n")
    assert ">>>" not in README


@pytest.mark.parametrize("tool", ["optax-bnmask demo", "python -m pytest -n 2"])
def test_each_command_is_one_line_that_makes_its_own_environment(tool):
    extra = "demo" if "demo" in tool else "test"
    (command,) = re.findall(rf"^python3 -m venv \.venv && .*{tool}$", README, re.M)
    assert re.search(rf"\.venv/bin/pip install .*'\.\[{extra}\]'", command)


def test_every_public_name_is_at_a_glance():
    glance = README[README.index("## The API at a glance") :]
    glance = glance[: glance.index("\n## ")]
    shown = {
        "Assumption",
        "Evidence",
        "Role",
        "Scale",
        "VerificationError",
    }  # the types of a leaf's fields
    asked = [name for name in optax_bnmask.__all__ if name not in shown]
    assert [name for name in asked if not re.search(rf"`{name}\b", glance)] == []


def test_limits_name_the_versions_the_package_asks_for():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    limits = README[README.index("## Limits") :]
    assert "jax>=0.10,<0.13" in project["dependencies"]
    assert "JAX 0.10 to 0.12" in limits
    assert f"Python {project['requires-python'].removeprefix('>=')} or later" in limits


def test_links_to_files_lead_somewhere():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
