"""The demo: real digits, the network it trains, the measure it reports, and a short run."""

import functools
import io
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from click.testing import CliRunner
from matplotlib.figure import Figure
from rich.console import Console

import optax_bnmask as bnmask
from examples.digits import measure, plot
from examples.digits.data import digits
from examples.digits.model import ResNet, _by_products
from examples.digits.outcome import Estimate, Outcome, comparison, estimate
from examples.digits.train import Policy, Recipe, State, data_loss, optimizer
from optax_bnmask.report.document import Cell, Column, Document, Table
from optax_bnmask_cli.app import app
from optax_bnmask_cli.terminal import renderables

ALL = bnmask.Mask({"head/scale": True})


@pytest.fixture(scope="module")
def variables():
    init = jax.jit(functools.partial(ResNet().init, train=True))
    return init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))


def test_digits_are_held_out_evenly_and_apart():
    data = digits()
    assert data.train_images.shape == (1347, 8, 8, 1)
    assert data.test_images.shape == (450, 8, 8, 1)
    assert float(data.train_images.max()) == 1.0
    counts = np.bincount(np.asarray(data.test_labels), minlength=10)
    assert counts.min() >= 43
    train = {image.tobytes() for image in np.asarray(data.train_images)}
    assert not train & {image.tobytes() for image in np.asarray(data.test_images)}


@pytest.mark.parametrize(("window", "stride"), [(3, 1), (3, 2), (1, 2), (1, 1)])
def test_convolution_by_products_is_the_convolution(window, stride):
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    kernel = jax.random.normal(jax.random.key(1), (window, window, 3, 5))
    expected = jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    found = _by_products(x, kernel, (stride, stride), "SAME")
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_the_network_has_the_parameters_its_docstring_says(variables):
    sizes = [leaf.size for leaf in jax.tree.leaves(variables["params"])]
    assert f"{sum(sizes):,} parameters" in ResNet.__doc__


def test_the_mask_of_the_network_exempts_its_batchnorms_alone(variables):
    mask = bnmask.decay_mask(variables["params"], variables["batch_stats"])
    assert len(mask.exempted) == 18
    assert all(re.search(r"(norm\d?|post)/(scale|bias)$", path) for path in mask.exempted)


@pytest.mark.usefixtures("optax_promotion")
def test_decay_moves_what_the_policy_names_and_nothing_else(variables):
    params = variables["params"]
    mask = bnmask.decay_mask(params, variables["batch_stats"])
    zeros = jax.tree.map(jnp.zeros_like, params)
    for policy, decayed in ((Policy("all", None), set(mask)), (Policy("m", mask), mask.decayed)):
        tx = optimizer(Recipe(epochs=2), policy, steps=1)
        state = tx.init(params)
        _, state = tx.update(zeros, state, params)  # the warm-up's first step has rate 0
        updates, _ = tx.update(zeros, state, params)
        moved = {
            "/".join(key.key for key in keys)
            for keys, update in jax.tree_util.tree_leaves_with_path(updates)
            if bool(jnp.any(update != 0))
        }
        zero = {path for path in mask if path.endswith("bias")}  # a bias of 0 decays to 0
        assert moved == set(decayed) - zero


def test_effective_rate_is_g_over_g_plus_lambda_gamma(monkeypatch):
    data = digits()._replace(train_images=jnp.ones((4, 1)), train_labels=jnp.arange(4))

    def loss(params, batch_stats, images, labels):  # dL/dgamma is the batch's mean label
        return jnp.sum(params["head"]["scale"]) * jnp.mean(labels.astype(jnp.float32)), batch_stats

    monkeypatch.setattr(measure, "data_loss", loss)
    params = {"head": {"scale": jnp.asarray([2.0, -4.0])}}
    state = State(params, {}, (), jax.random.key(0))
    rates = measure.effective_rates(state, 0.25, data, ALL, batch_size=2)
    g = np.asarray([0.5, 2.5])  # labels 0, 1 and then 2, 3
    np.testing.assert_allclose(rates.gradient, [g.mean(), g.mean()])
    np.testing.assert_allclose(
        rates.effective, [np.mean(g / (g + 0.25 * 2)), np.mean(g / (g + 0.25 * 4))], rtol=1e-6
    )
    free = measure.effective_rates(state, 0.0, data, ALL, batch_size=2)
    np.testing.assert_array_equal(free.effective, [1, 1])


def test_effective_rate_of_a_dead_gain_is_one(monkeypatch):
    data = digits()._replace(train_images=jnp.ones((2, 1)), train_labels=jnp.arange(2))
    monkeypatch.setattr(
        measure, "data_loss", lambda p, s, x, y: (0.0 * jnp.sum(p["head"]["scale"]), s)
    )
    state = State({"head": {"scale": jnp.zeros(1)}}, {}, (), jax.random.key(0))
    rates = measure.effective_rates(state, 0.1, data, ALL, batch_size=2)
    assert rates.effective.tolist() == [1.0]


def test_gains_are_the_normalisers_scales(variables):
    params = variables["params"]
    norm_scale = bnmask.Mask(
        {
            leaf.path: leaf.role is bnmask.Role.NORM_SCALE
            for leaf in bnmask.analyze_structure(params, variables["batch_stats"]).leaves
        }
    )
    gains = measure.gains(params, norm_scale)
    assert gains.shape == (16 + 2 * 16 + 3 * 32 + 3 * 64,)
    assert bool(jnp.all(gains == 1))


def test_loss_of_the_untrained_network_is_that_of_a_guess(variables):
    data = digits()
    loss, updated = data_loss(
        variables["params"], variables["batch_stats"], data.train_images, data.train_labels
    )
    assert abs(float(loss) - math.log(10)) < 1
    assert jax.tree.structure(updated) == jax.tree.structure(variables["batch_stats"])


def test_estimate_is_mean_and_standard_error():
    found = estimate(np.asarray([1.0, 2.0, 3.0]))
    assert (found.mean, found.seeds) == (2.0, 3)
    assert found.error == pytest.approx(1 / math.sqrt(3))
    assert found.margin == pytest.approx(4.3027 / math.sqrt(3), rel=1e-4)
    assert f"{found:+.2f}" == "+2.00 ± 0.58"


@pytest.mark.parametrize(
    ("mean", "said"),
    [
        (0.0, "not larger than its standard error: these runs do not tell the policies apart."),
        (-0.9, "not larger than its standard error: these runs do not tell the policies apart."),
        (2.0, "holds 0: a hint, no more."),
        (-3.0, "does not hold 0."),
    ],
)
def test_comparison_claims_no_more_than_the_seeds_do(mean, said):
    sentence = comparison("Accuracy", Estimate(mean, 1.0, 5), "+.1f", " points")
    assert sentence.startswith(f"Accuracy: {mean:+.1f} ± 1.0 points over 5 pairs of runs, ")
    assert sentence.endswith(said)


def _outcome(name, accuracy):
    ones = np.ones((3, 4))
    return Outcome(name, np.asarray(accuracy), ones.T, ones.T, ones, ones)


def test_equal_seeds_do_not_hide_each_other():
    panel = Figure().subplots()
    plot._accuracy(panel, [_outcome("a", [0.5, 0.5, 0.7]), _outcome("b", [0.6, 0.6, 0.6])])
    for dots in panel.collections[::2]:
        assert len(np.unique(np.asarray(dots.get_offsets())[:, 0])) == 3


def test_the_plot_takes_the_colours_of_the_page():
    outcomes = [_outcome("a", [0.5, 0.5, 0.7]), _outcome("b", [0.6, 0.6, 0.6])]
    panels = plot.svgs_of(outcomes)
    assert panels == plot.svgs_of(outcomes)
    for panel in panels:
        assert set(re.findall(r"(?:fill|stroke): (#\w+|var\S+?|currentColor)[;\"]", panel)) <= {
            "currentColor", "var(--orange)", "var(--blue)", "var(--faint)",
        }  # fmt: skip
        assert "var(--blue)" in panel


@pytest.mark.parametrize("width", [30, 60, 80, 200])
def test_terminal_cuts_nothing_off(width):
    words = "a reason of several words, long enough that it must wrap somewhere"
    columns = (Column("path"), Column("size", number=True), Column("why", prose=True))
    table = Table("T", columns, ((Cell("a/long/path/kernel"), Cell("123"), Cell(words)),))
    console = Console(width=width, file=io.StringIO())
    for renderable in renderables(Document("D", ("S",), (table,)), console):
        console.print(renderable)
    shown = console.file.getvalue()
    assert "a/long/path/kernel" in shown
    assert " ".join(shown.split()).count("123") == 1
    assert set(words.split()) <= set(shown.split())


@pytest.mark.once
@pytest.mark.usefixtures("optax_promotion")
def test_demo_writes_a_report_and_a_plot_and_prints_what_it_measured(tmp_path):
    out = tmp_path / "new" / "folder"
    result = CliRunner().invoke(
        app, ["demo", "--seeds", "2", "--epochs", "1", "--out", str(out)], env={"COLUMNS": "80"}
    )
    assert result.exit_code == 0, result.output
    shown = result.output
    assert shown.index("What the seeds say") < shown.index("Policies") < shown.index("proved")
    assert re.search(r"whose scale changes nothing +not told +12", shown)
    assert re.search(r"test accuracy, % +\d+\.\d\d ± \d+\.\d\d", result.output)
    assert re.search(r"mean η_eff/η +0\.\d{3} ± \d\.\d{3} +1\.000 ± 0\.000", result.output)
    assert "over 2 pairs of runs" in " ".join(result.output.split())
    assert max(map(len, result.output.replace(str(out), "").splitlines())) <= 80
    assert (out / "policies.png").read_bytes().startswith(b"\x89PNG")
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 3
    assert page.index("<svg") < page.index('<section class="leaves">')
    assert "block2/post/scale" in page
    assert "`" not in re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
    assert not re.search(r'(src|href)="http', page)
