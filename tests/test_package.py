"""The package as it is released: its version, its metadata, and what importing it imports."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import optax_bnmask
from optax_bnmask import compat

ROOT = Path(__file__).parents[1]


def test_version_is_that_of_the_citation_and_has_its_changes():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.findall(r"^## \[(.*?)\]", changes, re.M)
    assert re.findall(r"^version: (.*)$", citation, re.M) == [optax_bnmask.__version__]
    assert versions[0] == "Unreleased"
    assert versions[1] == optax_bnmask.__version__


def test_owner_is_a_placeholder_in_one_place():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert all("OWNER" in url for url in project["urls"].values())
    pages = [
        *ROOT.glob("*.md"),
        *ROOT.glob("*.cff"),
        *ROOT.glob("docs/*.*"),
        *ROOT.glob("*/*.ipynb"),
    ]
    code = [*(ROOT / "optax_bnmask").rglob("*.py"), *(ROOT / ".github").rglob("*.yml")]
    assert [p.name for p in (*pages, *code) if "/OWNER" in p.read_text(encoding="utf-8")] == []


def test_import_brings_no_framework_that_the_user_has_not_imported():
    others = {"chex", "click", "equinox", "flax", "haiku", "matplotlib", "orbax", "rich", "typer"}
    code = f"import sys, optax_bnmask; print(*sorted({others} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_jax_without_a_primitive_that_a_rule_is_of_is_told_in_words(monkeypatch):
    monkeypatch.setattr(compat, "_homes", tuple)
    with pytest.raises(ImportError, match=r"none called `add_p`.*newer optax_bnmask"):
        compat.primitive("add_p")
