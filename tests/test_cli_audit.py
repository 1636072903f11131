"""`optax-bnmask audit` and `diff`: exit codes that a CI can trust, errors that are sentences."""

import json

import jax
import numpy as np
import pytest
from click.testing import CliRunner

from optax_bnmask_cli.app import app

pytestmark = pytest.mark.usefixtures("modules_of_a_user")


@pytest.fixture(autouse=True)
def _promotion_as_frameworks_need_it():
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.parametrize(
    ("factory", "code", "said"),
    [
        ("masked", 0, "1 of 3 leaves decay. No errors."),
        ("masked_with_analysis", 0, "1 of 3 leaves decay. No errors."),
        ("masked_shapes", 0, "1 of 3 leaves decay. No errors."),
        ("unmasked", 1, "3 of 3 leaves decay. What decays is wrong."),
        ("broken_optimizer", 1, "What decays cannot be told. The optimizer raised ValueError: no"),
    ],
)
def test_the_exit_code_says_whether_what_decays_is_wrong(factory, code, said):
    result = run("audit", f"optimizers:{factory}")
    assert result.exit_code == code, result.output
    assert said in result.stdout
    assert result.stderr == ""


def test_strict_fails_on_warnings_too():
    assert run("audit", "optimizers:unequal").exit_code == 0
    assert run("audit", "optimizers:unequal", "--strict").exit_code == 1
    assert run("audit", "optimizers:masked", "--strict").exit_code == 0


def test_exempt_says_what_should_not_decay():
    assert run("audit", "optimizers:unmasked", "--exempt", "").exit_code == 0
    assert run("audit", "optimizers:unmasked", "--exempt", "bias").exit_code == 0
    assert run("audit", "optimizers:unmasked", "--exempt", "bias,norm").exit_code == 1
    assert run("audit", "optimizers:unmasked", "--exempt", "STANDARD").exit_code == 1
    wrong = run("audit", "optimizers:masked", "--exempt", "norms")
    assert (wrong.exit_code, "Found 'norms'" in wrong.stderr) == (2, True)


def test_formats():
    record = json.loads(run("audit", "optimizers:unmasked", "--format", "json").stdout)
    assert record["ok"] is False
    assert set(record["rates"]) == {"head/kernel", "norm/bias", "norm/scale"}
    assert "<html" in run("audit", "optimizers:unmasked", "--format", "html").stdout


@pytest.mark.parametrize(
    ("factory", "said"),
    [
        ("optimizers", "given as 'package.module:factory'. Found 'optimizers'"),
        ("optimizers:absent", "has no attribute 'absent'"),
        ("no_such_module:tx", "No module is called 'no_such_module'"),
        ("optimizers:optimizer_alone", "It returned (GradientTransformation"),
        ("optimizers:params_first", "It returned (dict, GradientTransformation"),
        ("optimizers:not_an_analysis", "It returned (GradientTransformation"),
        ("optimizers:raises", "and raised RuntimeError: no disk, at optimizers.py:"),
        ("optimizers:other_analysis", "must be those that `analysis` is of"),
    ],
)
def test_bad_input_is_a_sentence_on_stderr(factory, said):
    result = run("audit", factory)
    assert result.exit_code == 2
    assert isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert said in result.stderr


def test_a_module_that_cannot_be_imported_is_a_sentence(tmp_path, monkeypatch):
    (tmp_path / "raises_on_import.py").write_text("1 / 0")
    monkeypatch.chdir(tmp_path)
    result = run("audit", "raises_on_import:tx")
    assert result.exit_code == 2
    assert "It raised ZeroDivisionError: division by zero" in result.stderr


@pytest.fixture
def report(tmp_path):
    """Writes what a command prints, and gives the file's path."""

    def written(name, *arguments):
        path = tmp_path / f"{name}.json"
        path.write_text(run(*arguments, "--format", "json").stdout)
        return path

    return written


def inspected(*options):
    return ("inspect", "inspected:pair", "--input", "16,4", *options)


def test_a_golden_file_is_the_same_until_something_changes(report):
    golden = report("golden", *inspected())
    result = run("diff", golden, report("today", *inspected()))
    assert (result.exit_code, result.stdout) == (0, "No difference.\n")
    changed = report("changed", "inspect", "inspected:lookup", "--input", "3:int32")
    result = run("diff", golden, changed)
    assert result.exit_code == 1
    assert result.stdout.splitlines() == ["+ table", "- head", "- kernel"]


def test_a_changed_decision_is_a_difference(report):
    old = report("old", *inspected("--exempt", "norm"))
    new = report("new", *inspected("--exempt", "norm,scale_invariant"))
    result = run("diff", old, new)
    assert (result.exit_code, result.stdout) == (1, "~ kernel: decays yes -> no\n")


def test_audits_are_compared_by_what_decays(report):
    old, new = (report(name, "audit", f"optimizers:{name}") for name in ("masked", "unmasked"))
    result = run("diff", old, new)
    assert result.stdout.splitlines() == [
        "~ norm/bias: decays no -> yes",
        "~ norm/scale: decays no -> yes",
    ]


def test_masks_may_be_written_by_hand(tmp_path):
    (tmp_path / "old.json").write_text('{"a": true, "b": false}')
    (tmp_path / "new.json").write_text('{"a": true, "b": true, "c": true}')
    result = run("diff", tmp_path / "old.json", tmp_path / "new.json", "--format", "json")
    assert result.exit_code == 1
    record = json.loads(result.stdout)
    assert record["added"] == ["c"]
    assert record["changed"] == [{"path": "b", "what": "decays", "old": "no", "new": "yes"}]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "must be a report in JSON. Reading it failed"),
        ("[" * 100_000, "must be a report in JSON. Reading it failed"),
        ("[]", "It is neither"),
        ("{}", "It is neither"),
        ('{"a": 1}', "It is neither"),
        ('{"a": {"b": true}}', "It is neither"),
        ('{"schema": "another/1"}', "must be of the schema 'optax_bnmask/analysis/1'"),
        ('{"schema": "optax_bnmask/audit/1", "rates": {"a": "x"}}', "It is neither"),
        ('{"schema": "optax_bnmask/audit/1", "rates": []}', "must be of the schema"),
        ('{"schema": 3}', "`schema` of the whole must be a string"),
    ],
)
def test_a_file_that_is_no_report_is_a_sentence(text, said, tmp_path):
    (tmp_path / "old.json").write_text('{"a": true}')
    (tmp_path / "new.json").write_text(text)
    result = run("diff", tmp_path / "old.json", tmp_path / "new.json")
    assert result.exit_code == 2, result.output
    assert said in result.stderr
    assert result.stdout == ""


def test_a_checkpoint_in_the_place_of_a_report_is_named(tmp_path):
    np.savez(tmp_path / "model.npz", kernel=np.ones(3))
    (tmp_path / "mask.json").write_text('{"kernel": true}')
    result = run("diff", tmp_path / "model.npz", tmp_path / "mask.json")
    assert result.exit_code == 2, result.output
    assert "it is no text, but perhaps a checkpoint" in result.stderr


def test_files_that_say_different_things_are_named(report):
    result = run("diff", report("a", *inspected()), report("b", *inspected("--exempt", "norm")))
    assert result.exit_code == 2
    assert "a.json` and `" in result.stderr
    assert "Only one of them says: decays" in result.stderr


def test_a_decision_that_was_tampered_with_is_refused(report):
    path = report("a", *inspected("--exempt", "norm"))
    record = json.loads(path.read_text())
    del record["decays"]["head"]
    path.write_text(json.dumps(record))
    result = run("diff", path, path)
    assert result.exit_code == 2
    assert "must decide on every leaf that it lists" in result.stderr


def test_a_missing_file_is_a_sentence(tmp_path):
    result = run("diff", tmp_path / "gone.json", tmp_path / "gone.json")
    assert result.exit_code == 2
    assert "Reading it failed: No such file or directory" in result.stderr
