"""`optax-bnmask inspect` on checkpoints: the same command, told from a model by what is there."""

import json

import flax.serialization
import numpy as np
import pytest
from click.testing import CliRunner

from optax_bnmask_cli.app import app

pytestmark = pytest.mark.usefixtures("modules_of_a_user")

VARIABLES = {
    "params": {
        "conv": {"kernel": np.ones((3, 3, 1, 8), np.float32)},
        "post": {"bias": np.ones(8, np.float32), "scale": np.ones(8, np.float32)},
    },
    "batch_stats": {"post": {"mean": np.ones(8, np.float32), "var": np.ones(8, np.float32)}},
}


@pytest.fixture
def stored(tmp_path):
    (tmp_path / "model.msgpack").write_bytes(flax.serialization.to_bytes(VARIABLES))
    return str(tmp_path / "model.msgpack")


def inspect(*arguments):
    return CliRunner().invoke(app, ["inspect", *arguments])


def test_text_says_what_was_read_and_that_no_program_verified_it(stored):
    result = inspect(stored)
    assert result.exit_code == 0
    assert result.stdout.startswith("3 leaves, 88 parameters, by structure.\n")
    assert "- read from a checkpoint (Flax msgpack), params at 'params'" in result.stdout
    assert "- unverified by a program: " in result.stdout
    assert result.stderr == ""


def test_the_decision_is_shown_where_it_was_asked_for(stored):
    lines = inspect(stored, "--exempt", "norm,bias").stdout.splitlines()
    assert "Decayed: 1 leaf, 81.8 % of the parameters." in lines
    (heading,) = (line for line in lines if line.startswith("path "))
    assert "decays" in heading.split()
    assert "decays" not in inspect(stored).stdout


def test_json_carries_the_decision(stored):
    record = json.loads(inspect(stored, "--exempt", "norm", "--format", "json").stdout)
    assert record["decays"] == {"conv/kernel": True, "post/bias": False, "post/scale": False}
    assert "decays" not in json.loads(inspect(stored, "--format", "json").stdout)


def test_json_is_what_the_library_reads_back(stored):
    from optax_bnmask.analysis import Analysis
    from optax_bnmask.checkpoints import analyze_checkpoint

    for options in ([], ["--exempt", "norm"]):
        text = inspect(stored, "--format", "json", *options).stdout
        assert Analysis.from_json(text) == analyze_checkpoint(stored)


def test_html_is_a_document(stored):
    assert "<html" in inspect(stored, "--format", "html", "--exempt", "norm").stdout


def test_explain_gives_the_reasons(stored):
    result = inspect(stored, "--explain", "post/*")
    assert result.stdout.splitlines() == [
        "post/bias: norm_bias. a running mean and var of its shape are kept in its scope",
        "",
        "post/scale: norm_scale. a running mean and var of its shape are kept in its scope",
    ]


def test_places_are_options(stored):
    result = inspect(stored, "--params", "params/post", "--stats", "batch_stats/post")
    assert "params at 'params/post'; running statistics at 'batch_stats/post'" in result.stdout


def test_a_path_with_a_colon_that_exists_is_a_checkpoint(stored, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "step:7").write_bytes(flax.serialization.to_bytes(VARIABLES))
    assert inspect("step:7").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{}", "--input", "3,4"], "--input and --arg are for a model"),
        (["{}", "--arg", "train=True"], "--input and --arg are for a model"),
        (["inspected:pair", "--params", "a"], "--params and --stats are for a checkpoint"),
        (["inspected:pair", "--stats", "a"], "--params and --stats are for a checkpoint"),
        (["{}", "--params", "nowhere"], "No branch is called 'nowhere'"),
        (["{}", "--exempt", "norms"], "'norms'"),
        (["{}", "--exempt", "scale_invariant"], "scale_invariant"),
        (["{}", "--explain", "nope"], "'nope' matches none"),
        (
            ["no/such/checkpoint"],
            "Found 'no/such/checkpoint', which has no colon and does not exist",
        ),
        (["{}.json"], "begins with b'not a ch'"),
    ],
)
def test_bad_input_is_a_sentence_on_stderr(arguments, said, stored, tmp_path):
    (tmp_path / "model.msgpack.json").write_text("not a checkpoint")
    result = inspect(*(argument.format(stored) for argument in arguments))
    assert result.exit_code == 2
    assert isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert said in result.stderr
