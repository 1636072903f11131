"""The command line: help with examples, a version, sentences instead of tracebacks."""

import os
import subprocess
import sys
from importlib.metadata import version

import pytest
from typer.testing import CliRunner

from optax_bnmask import cli
from optax_bnmask.cli.app import app

runner = CliRunner()


def test_version_is_the_installed_one():
    result = runner.invoke(app, ["--version"])
    assert result.exit_code == 0
    assert result.output == f"optax-bnmask {version('optax-bnmask')}\n"


@pytest.mark.parametrize("arguments", [[], ["--help"], ["demo", "--help"]])
def test_help_has_an_example(arguments):
    output = runner.invoke(app, arguments, env={"COLUMNS": "100", "TERM": "dumb"}).output
    assert "Usage: optax-bnmask" in output
    assert "optax-bnmask demo --seeds 8" in output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["demo", "--seeds", "1"], "Invalid value for '--seeds'"),
        (["demo", "--epochs", "0"], "Invalid value for '--epochs'"),
        (["demo", "--out", __file__], "is a file"),
        (["demonstrate"], "No such command 'demonstrate'"),
    ],
)
def test_bad_input_is_a_usage_error(arguments, said):
    result = runner.invoke(app, arguments, env={"COLUMNS": "200", "TERM": "dumb"})
    assert result.exit_code == 2
    assert said in result.output


@pytest.mark.parametrize(
    ("module", "package"),
    [("typer", "typer"), ("rich.console", "rich"), ("sklearn.datasets", "scikit-learn")],
)
def test_a_missing_extra_is_a_sentence_with_the_pip_command(monkeypatch, module, package):
    def missing():
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)

    monkeypatch.setattr("optax_bnmask.cli.app.app", missing)
    with pytest.raises(SystemExit, match=rf"needs {package}, which is not .* -m pip install"):
        cli.main()


def test_a_missing_module_of_our_own_is_not_blamed_on_an_extra(monkeypatch):
    def missing():
        raise ModuleNotFoundError("No module named 'nonsense'", name="nonsense")

    monkeypatch.setattr("optax_bnmask.cli.app.app", missing)
    with pytest.raises(ModuleNotFoundError, match="nonsense"):
        cli.main()


def test_without_typer_the_command_line_still_speaks():
    code = (
        "import sys; sys.modules['typer'] = None\n"
        "from optax_bnmask.cli import main; sys.argv = ['optax-bnmask', 'demo']; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "This command needs typer, which is not installed" in done.stderr
    assert "Traceback" not in done.stderr


def test_import_of_the_package_imports_nothing_of_the_command_line():
    code = (
        "import sys, optax_bnmask\n"
        "print(sorted({'typer', 'rich', 'matplotlib', 'sklearn', 'optax_bnmask.cli',\n"
        "    'optax_bnmask.demo', 'optax_bnmask.report'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before = subprocess.run(
        [sys.executable, "-c", "import sys, jax, flax, optax\nprint('rich' in sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    rich_anyway = before.stdout.strip() == "True"
    assert done.stdout.strip() == ("['rich']" if rich_anyway else "[]")


COMMANDS = ["demo", "inspect", "audit", "diff"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_examples_and_says_its_exit_codes(command):
    environment = {"COLUMNS": "120", "TERM": "dumb"}
    output = runner.invoke(app, [command, "--help"], env=environment).output
    assert f"optax-bnmask {command} " in output
    assert "Example" in output
    if command != "demo":
        assert "Exit code: 0 all is well, 1 " in output
        assert "2 bad input" in output


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_there_for_every_shell(shell):
    code = "from optax_bnmask.cli import main\nmain()"
    shown = subprocess.run(
        [sys.executable, "-c", code, "--show-completion", shell],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"},
    )
    assert shown.returncode == 0
    assert "_COMPLETE=complete_" in shown.stdout
