"""The command line: help with examples, a version, sentences instead of tracebacks."""

import os
import re
import resource
import subprocess
import sys
from importlib.metadata import version

import pytest
from click.testing import CliRunner

import optax_bnmask_cli as cli
from optax_bnmask_cli.app import app

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
    [("click", "click"), ("rich.console", "rich"), ("sklearn.datasets", "scikit-learn")],
)
def test_a_missing_extra_is_a_sentence_with_the_pip_command(monkeypatch, capsys, module, package):
    def missing(**_):
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)

    monkeypatch.setattr("optax_bnmask_cli.app.app", missing)
    with pytest.raises(SystemExit, match="2"):
        cli.main()
    said = capsys.readouterr().err
    assert re.fullmatch(rf"This command needs {package}, .* -m pip install {package}\n", said)


def test_a_missing_module_of_our_own_is_not_blamed_on_an_extra(monkeypatch, capsys):
    def missing(**_):
        raise ModuleNotFoundError("No module named 'nonsense'", name="nonsense")

    monkeypatch.setattr("optax_bnmask_cli.app.app", missing)
    with pytest.raises(SystemExit, match="3"):
        cli.main()
    assert "ModuleNotFoundError: No module named 'nonsense'" in capsys.readouterr().err


def test_without_click_the_command_line_still_speaks():
    code = (
        "import sys; sys.modules['click'] = None\n"
        "from optax_bnmask_cli import main; sys.argv = ['optax-bnmask', 'demo']; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "This command needs click, which is not installed" in done.stderr
    assert "Traceback" not in done.stderr


def test_import_of_the_package_imports_nothing_of_the_command_line():
    code = (
        "import sys, optax_bnmask\n"
        "print(sorted({'click', 'rich', 'matplotlib', 'sklearn', 'optax_bnmask_cli'}\n"
        "    & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before = subprocess.run(
        [sys.executable, "-c", "import sys, jax, optax\nprint('rich' in sys.modules)"],
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
    code = "from optax_bnmask_cli import main\nmain()"
    shown = subprocess.run(
        [sys.executable, "-c", code, "--show-completion", shell],
        capture_output=True,
        text=True,
        check=False,
    )
    assert shown.returncode == 0, shown.stderr
    assert f"_OPTAX_BNMASK_COMPLETE={shell}_complete" in shown.stdout


HELP = """
import sys
from optax_bnmask_cli import main
try:
    main()
finally:
    print(sorted({"jax", "rich", "numpy", "optax_bnmask"} & set(sys.modules)), file=sys.stderr)
"""


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_and_completion_import_no_jax(command):
    completion = {
        "_OPTAX_BNMASK_COMPLETE": "bash_complete",
        "COMP_WORDS": f"optax-bnmask {command} --",
        "COMP_CWORD": "2" if command else "1",
    }
    for arguments, more in (([command] * bool(command) + ["--help"], {}), ([], completion)):
        done = subprocess.run(
            [sys.executable, "-c", HELP, *arguments],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | more,
        )
        assert "--help" in done.stdout
        assert done.stderr == "[]\n"


def test_help_takes_less_than_a_fifth_of_a_second_of_the_processor():
    def cost():
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        code = "from optax_bnmask_cli import main\nmain()"
        subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(cost() for _ in range(5)) < 0.2


@pytest.mark.parametrize("command", [[], *([each] for each in COMMANDS)])
def test_help_fits_eighty_columns(command):
    environment = {"COLUMNS": "80", "TERM": "dumb"}
    output = runner.invoke(app, [*command, "--help"], env=environment).output
    assert max(map(len, output.splitlines())) <= 80
    assert "`" not in output
