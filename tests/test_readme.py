"""The README: short, with two commands that are whole, and the versions that are asked for."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("tool", ["optax-bnmask demo", "python -m pytest -n 2"])
def test_each_command_is_one_line_that_makes_its_own_environment(tool):
    extra = "demo" if "demo" in tool else "test"
    (command,) = re.findall(rf"^python3 -m venv \.venv && .*{tool}$", README, re.M)
    assert re.search(rf"\.venv/bin/pip install .*'\.\[{extra}\]'", command)


def test_limits_name_the_versions_the_package_asks_for():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = dict(dependency.split(">=") for dependency in project["dependencies"])
    limits = README[README.index("## Limits") :]
    assert f"JAX {asked['jax']} to " in limits
    assert f"Optax {asked['optax']} or later, Flax {asked['flax']} or later" in limits
    assert f"Python {project['requires-python'].removeprefix('>=')} or later" in limits


def test_is_read_in_two_minutes():
    assert 6_000 < len(README.encode()) < 8_000


def test_nothing_is_installed_by_a_name_that_is_not_published():
    pages = [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("notebooks/*.ipynb")]
    asked = {
        (page.name, command)
        for page in pages
        for command in re.findall(r"pip install ([^&#\n]*)", page.read_text(encoding="utf-8"))
    }
    assert asked
    assert not [command for command in asked if re.search(r"optax[-_]bnmask", command[1])]
