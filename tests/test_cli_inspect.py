"""`optax-bnmask inspect`: every kind of factory, every format, and errors that are sentences."""

import json

import jax
import pytest
from click.testing import CliRunner

from optax_bnmask.categories import CATEGORIES
from optax_bnmask_cli.app import app

pytestmark = pytest.mark.usefixtures("modules_of_a_user")


@pytest.fixture(autouse=True)
def _promotion_as_frameworks_need_it():
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


def inspect(factory, *arguments):
    return CliRunner().invoke(app, ["inspect", factory, *arguments])


def document(factory, *arguments):
    """What `--format json` puts on the standard output, and nothing else does."""
    result = inspect(factory, *arguments, "--format", "json")
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    return json.loads(result.stdout)


def findings(factory, *arguments):
    """The role and the scale of each leaf."""
    leaves = document(factory, *arguments)["leaves"]
    return {leaf["path"]: (leaf["role"], leaf["scale"]) for leaf in leaves}


NORMALISED = {
    "dense/kernel": ("weight", "invariant"),
    "head/bias": ("bias", "sensitive"),
    "head/kernel": ("weight", "sensitive"),
    "norm/bias": ("norm_bias", "sensitive"),
    "norm/scale": ("norm_scale", "sensitive"),
}


@pytest.mark.parametrize("name", ["linen", "linen_instance"])
def test_a_linen_module_is_traced_whether_made_or_found(name):
    found = findings(f"inspected:{name}", "--input", "16,4", "--arg", "train=True")
    assert found == NORMALISED


def test_an_nnx_module_is_traced():
    assert findings("inspected:nnx_model", "--input", "16,4") == NORMALISED


def test_a_pair_of_function_and_params_is_traced():
    found = findings("inspected:pair", "--input", "16,4")
    assert found == {"head": ("weight", "sensitive"), "kernel": ("weight", "invariant")}


def test_an_argument_reaches_the_function_as_a_literal():
    result = inspect("inspected:pair", "--input", "16,4", "--arg", "power=3", "--explain", "kernel")
    assert "integer_pow: scales by c**3" in result.stdout


@pytest.mark.parametrize("word", ["True", "true"])
def test_true_may_be_spelt_as_in_a_shell(word):
    assert findings("inspected:linen", "--input", "16,4", "--arg", f"train={word}") == NORMALISED


def test_what_a_factory_prints_is_kept_out_of_json():
    result = inspect("inspected:talks", "--input", "16,4", "--format", "json")
    assert len(json.loads(result.stdout)["leaves"]) == 2
    assert result.stderr == "loading\n"


def test_exempt_may_be_given_twice():
    once = document(
        "inspected:linen", "--input", "16,4", "--arg", "train=True", "--exempt", "norm,bias"
    )
    twice = document(
        *("inspected:linen", "--input", "16,4", "--arg", "train=True"),
        *("--exempt", "norm", "--exempt", "bias"),
    )
    assert twice["decays"] == once["decays"]
    assert [path for path, decays in once["decays"].items() if decays] == [
        "dense/kernel",
        "head/kernel",
    ]


def test_exempt_may_name_a_preset():
    model = ("inspected:linen", "--input", "16,4", "--arg", "train=True")
    by_name = document(*model, "--exempt", "standard")
    assert by_name["decays"] == document(*model, "--exempt", "norm,bias")["decays"]


@pytest.mark.parametrize("command", ["inspect", "audit"])
def test_help_lists_every_category_and_preset(command):
    said = CliRunner().invoke(app, [command, "--help"]).stdout
    listed = set(" ".join(said.split()).replace(",", " ").split())
    assert {*CATEGORIES, "STANDARD", "STRICT", "WIDE"} <= listed


def test_an_input_may_name_its_dtype():
    assert findings("inspected:lookup", "--input", "3:int32") == {
        "table": ("embedding", "sensitive")
    }


def test_nothing_is_allocated():
    """The kernel alone would take four tebibytes."""
    leaves = document("inspected:four_tebibytes", "--input", "16,1048576")["leaves"]
    kernel = next(leaf for leaf in leaves if leaf["path"] == "kernel")
    assert kernel["shape"] == [1 << 20, 1 << 20]
    assert kernel["scale"] == "invariant"


def test_text_is_the_default():
    result = inspect("inspected:pair", "--input", "16,4")
    assert result.exit_code == 0
    assert result.stdout.startswith("2 leaves, 48 parameters, by program.\n")


def test_html_is_a_document():
    result = inspect("inspected:pair", "--input", "16,4", "--format", "html")
    assert result.exit_code == 0
    assert result.stdout.startswith("<!DOCTYPE html>")


def test_explain_shows_the_chains_of_the_leaves_it_matches_only():
    result = inspect("inspected:pair", "--input", "16,4", "--explain", "k*")
    assert result.exit_code == 0
    assert result.stdout.startswith("kernel times c:\n")
    assert "mul: here the scale cancels" in result.stdout
    assert "head times c" not in result.stdout


def test_explain_may_be_given_twice():
    arguments = ("--explain", "kernel", "--explain", "head")
    result = inspect("inspected:pair", "--input", "16,4", *arguments)
    assert [line for line in result.stdout.splitlines() if line.endswith(" times c:")] == [
        "head times c:",
        "kernel times c:",
    ]


def test_inference_mode_is_a_warning_beside_the_report():
    result = inspect("inspected:linen", "--input", "16,4", "--format", "json")
    assert result.exit_code == 0
    assert "Warning: the normaliser at 'norm' runs on its running statistics" in result.stderr
    assert len(json.loads(result.stdout)["leaves"]) == len(NORMALISED)


@pytest.mark.parametrize(
    ("factory", "arguments", "said"),
    [
        ("inspected", [], "Found 'inspected', which has no colon and does not exist"),
        ("inspected.linen", [], "Write 'inspected:linen', if that is what you mean"),
        ("tests/inspected.py:linen", [], "Write 'tests.inspected:linen', if that is what you mean"),
        ("inspected:linenn", [], "no attribute 'linenn'; the nearest are 'linen'"),
        ("inspected.py:linen", [], "Write 'inspected', without the ending"),
        ("inspected", ["--input", "2"], "Found 'inspected', which has no colon and does not exist"),
        ("absent.npz", [], "does not exist. Is that the path of the checkpoint?"),
        (":linen", [], "given as 'package.module:factory'. Found ':linen'"),
        ("inspected:", [], "given as 'package.module:factory'. Found 'inspected:'"),
        ("inspected:absent", [], "'inspected' has no attribute 'absent'"),
        ("no_such_module:model", [], "No module is called 'no_such_module'"),
        ("inspected:number", [], "must be a function of no arguments"),
        ("inspected:nothing_known", [], "It made 'a string'"),
        ("inspected:swapped", ["--input", "4,4"], "(fn, params). It made (dict, function)"),
        ("inspected:with_a_width", ["--input", "4,4"], "no arguments. It takes 'width'. Write"),
        ("inspected:module_and_variables", ["--input", "4,4"], "It made (Linen, dict)"),
        ("inspected:shapes_as_tuples", ["--input", "4,4"], "Found 4 integers and no array"),
        ("inspected:words_among_params", ["--input", "4,4"], "'head' is a str"),
        ("inspected.py", ["--input", "4,4"], "Write 'inspected:FACTORY'"),
        ("inspected:pair", ["--arg", "power=2", "--arg", "power=3"], "'power' is given twice"),
        ("inspected:linen()", [], "Write 'inspected:linen', if that is what you mean"),
        ("inspected:pair", ["--exempt", "STANDRD", "--input", "16,4"], "Found 'STANDRD'"),
        ("inspected:pair", [], "With no inputs at all it raised TypeError"),
        ("inspected:raises", [], "raised KeyError: 'no weights', at inspected.py:"),
        ("inspected:pair", ["--input", "16,9"], "With 16,9 it raised TypeError"),
        ("inspected:pair", ["--input", "16,9"], "with its dtype if that is not float32"),
        ("inspected:exits", [], "raised SystemExit: 3, at inspected.py:"),
        ("inspected:pair", ["--input", "16,x"], "An input is given as its sizes"),
        ("inspected:pair", ["--input", "0,4"], "each at least 1"),
        ("inspected:pair", ["--input", "-1,4"], "each at least 1"),
        ("inspected:pair", ["--input", "16,4:float33"], "Found '16,4:float33'"),
        ("inspected:pair", ["--input", "16,4", "--arg", "3"], "given as 'name=value'"),
        ("inspected:pair", ["--input", "16,4", "--explain", "nope*"], "'nope*' matches none"),
        ("inspected:pair", ["--explain", "*", "--exempt", "norm"], "Found it beside --exempt"),
        ("inspected:pair", ["--explain", "*", "--format", "json"], "beside --format json"),
    ],
)
def test_bad_input_is_a_sentence_on_stderr(factory, arguments, said):
    result = inspect(factory, *arguments)
    assert result.exit_code == 2
    assert isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert said in result.stderr
    assert "Traceback" not in result.stderr
