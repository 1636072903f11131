"""The benchmarks: AdamP detects as published, exponents and bars are what they say, on record."""

import dataclasses
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_bnmask as bnmask
from benchmarks import treatments
from benchmarks.__main__ import judged, main, parsed
from benchmarks.adamp import adamp, detected
from benchmarks.plots import picture
from benchmarks.record import Growth, Record, Row, compared
from benchmarks.step_time import compiler, differences, initial, table, variants
from benchmarks.tables import markdown, page
from benchmarks.timing import fastest, in_turns

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results.json"
IN_USE = RESULTS.with_name("in_use.json")
ENVIRONMENT = {
    "device": "abacus",
    "cpus": 2,
    "python": "3.11",
    "jax": "0.10",
    "flax": "0.12",
    "optax": "0.2",
    "kfac-jax": None,
    "quick": False,
}

NAMES = ("normed", "whole", "free")
SQUARES = dict.fromkeys(NAMES, jax.ShapeDtypeStruct((8, 8), jnp.float32))


def grown(exponent):
    sizes = (100, 1_000, 10_000)
    return Growth("a walk", "leaves", sizes, tuple(3e-6 * n**exponent for n in sizes))


def record(*, taken=2.0, exponent=1.0):
    rows = (
        Row("mask", "9 leaves", "`ours`", taken, "ms", "`theirs`", limit=1.5),
        Row("mask", "9 leaves", "`theirs`", 1.6, "ms"),
        Row(
            "mask", "9 leaves", "`absent`", None, "ms", "`theirs`", limit=1.0, note="not installed"
        ),
        Row("mask", "9 leaves", "memory", 1020.0, "MiB", limit=1024),
    )
    return Record(ENVIRONMENT, compared(rows), (grown(exponent),))


def loss(params, x):
    """Each column of `normed` and all of `whole` may be scaled alone; `free` may not."""
    y = x @ params["normed"]
    y = y * jax.lax.rsqrt(jnp.square(y).mean(0, keepdims=True)) + x
    z = y @ params["whole"]
    z = jnp.sin(z * jax.lax.rsqrt(jnp.square(z).mean()))
    return jnp.square(z @ params["free"] - 1).sum()


@pytest.fixture(name="defaults_of_jax")
def promotion_as_optax_needs_it():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture(name="params", scope="module")
def random_params():
    weights = jax.random.normal(jax.random.key(1), (3, 8, 8))
    return dict(zip(NAMES, weights, strict=True))


@pytest.fixture(name="grads", scope="module")
def gradients(params):
    return jax.jit(jax.grad(loss))(params, jax.random.normal(jax.random.key(2), (32, 8)))


def test_adamp_detects_what_may_be_scaled_by_channel_and_as_a_whole(params, grads):
    found = {
        name: tuple(bool(detected(params[name], grads[name], axes)) for axes in ((0,), None))
        for name in params
    }
    assert found == {"normed": (True, True), "whole": (False, True), "free": (False, False)}


@pytest.mark.usefixtures("defaults_of_jax")
def test_adamp_turns_invariant_leaves_and_decays_them_little(params, grads):
    def first_update(tx):
        updates, _ = jax.jit(tx.update)(grads, tx.init(params), params)
        return updates

    decay, updates = 0.3, first_update(adamp(1.0, 0.3))
    adam = first_update(optax.adamw(1.0, weight_decay=decay))
    np.testing.assert_allclose(updates["free"], adam["free"], rtol=1e-5)
    for name, axes in (("normed", 0), ("whole", None)):
        weight = params[name]
        radial = (weight * (updates[name] + 0.1 * decay * weight)).sum(axes)
        np.testing.assert_allclose(radial, 0, atol=1e-4)
        assert np.abs((weight * (adam[name] + decay * weight)).sum(axes)).max() > 0.1


@pytest.mark.usefixtures("defaults_of_jax")
def test_adamp_leaves_gains_and_biases_to_adamw():
    params, grads = {"scale": jnp.array([1.0, 2.0])}, {"scale": jnp.array([2.0, -1.0])}
    ours, theirs = (
        tx.update(grads, tx.init(params), params)[0]["scale"]
        for tx in (adamp(0.1, 0.3), optax.adamw(0.1, weight_decay=0.3))
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


@pytest.mark.usefixtures("defaults_of_jax")
def test_step_with_our_mask_is_that_with_a_mask_by_hand_and_not_that_without():
    params = initial(1, 8)
    optimizers = variants(params, 8)
    plain, ours, by_hand = (
        compiler(optimizers[name], params, params)()
        for name in ("AdamW", "with the mask", "with a mask by hand")
    )
    assert [row.value for row in differences("", ours, by_hand)] == [0, 0, 0]
    assert next(differences("", ours, plain)).value > 0


@pytest.mark.once
@pytest.mark.usefixtures("defaults_of_jax")
def test_table_of_steps_has_a_row_for_each_variant():
    shown = table(layers=1, width=8, rounds=1, repeats=1).splitlines()
    assert "so the floor is" in shown[0]
    assert [line.split(" | ")[0][2:] for line in shown[4:]] == list(variants(initial(1, 8), 8))


class Normalised(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.BatchNorm(use_running_average=False)(nn.Dense(4, use_bias=False)(x)))
        return nn.Dense(2)(x)


@pytest.mark.once
@pytest.mark.usefixtures("defaults_of_jax")
def test_treatments_are_compared_with_adamw_under_both_schedulers_of_a_cpu():
    x = jax.ShapeDtypeStruct((8, 4), jnp.float32)
    found = compared(treatments.measured("two layers", Normalised(), x, rounds=1, repeats=1))
    names = list(treatments.variants(bnmask.analyze(loss, SQUARES, SQUARES["free"])))
    assert [row.what for row in found] == names + [f"{name}, leaf by leaf" for name in names]
    assert [row.against for row in found] == ["", *[treatments.MASKED] * (2 * len(names) - 1)]
    assert all(row.value > 0 for row in found)


def test_calls_take_turns_and_short_ones_are_repeated():
    order, now = [], iter(range(10_000))
    calls = {name: lambda name=name: order.append(name) for name in "ab"}
    taken = in_turns(calls, 3, before=lambda: order.append("|"), clock=lambda: next(now))
    assert "".join(order) == "ab|a|b|a|b|a|b"
    assert taken == {"a": [1, 1, 1], "b": [1, 1, 1]}
    order.clear()
    taken = in_turns(calls, 1, before=lambda: None, shortest=1, clock=lambda: len(order) / 10)
    assert fastest(taken) == pytest.approx({"a": 0.1, "b": 0.1})
    assert order[-10:] == ["b"] * 10


@pytest.mark.parametrize("exponent", [0.5, 1.0, 1.7])
def test_fit_recovers_the_exponent(exponent):
    assert grown(exponent).exponent == pytest.approx(exponent)


def test_bars_that_hold_or_cannot_be_measured_are_no_failure(capsys):
    assert [bar.met for bar in record().bars()] == [True, None, True, True]
    assert judged(record()) == 0
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    ("failing", "name"),
    [
        (record(taken=2.5), "`ours` (9 leaves) is 1.56, not at most 1.5"),
        (record(exponent=1.2), "exponent of a walk is 1.2, not at most 1.1"),
    ],
    ids=["ratio", "exponent"],
)
def test_bar_that_is_not_met_is_named(failing, name, capsys):
    assert judged(failing) == 1
    assert capsys.readouterr().err == f"Not met: {name}\n"
    assert markdown(failing).count("**not met**") == 1


def test_record_is_the_same_after_json_and_is_shown(tmp_path, capsys):
    path = tmp_path / "results.json"
    path.write_text(record().to_json(), encoding="utf-8")
    assert Record.from_json(path.read_text(encoding="utf-8")) == record()
    assert main(["--show", str(path)]) == 0
    assert (
        capsys.readouterr().out
        == """\
On abacus (2 CPUs), Python 3.11, JAX 0.10, Flax 0.12, Optax 0.2:

| what | on | takes | of | ratio | bar |
| --- | --- | --: | --- | --: | --- |
| `ours` | 9 leaves | 2 ms | `theirs` | 1.25 | ≤ 1.5: met |
| `theirs` |  | 1.6 ms |  |  |  |
| `absent` |  | not installed | `theirs` |  | ≤ 1: not measured |
| memory |  | 1,020 MiB |  |  | ≤ 1,024: met |
| growth of a walk | 100 to 10,000 leaves | 0.3 to 30 ms |  | n^1.00 | ≤ 1.1: met |
"""
    )


def test_only_a_whole_run_replaces_the_record():
    assert parsed([]).output == RESULTS
    assert parsed(["--quick"]).output is None
    assert parsed(["--only", "mask"]).output is None


def test_picture_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    picture(dataclasses.replace(record(), growths=()), tmp_path / "bars.png")
    picture(record(), tmp_path / "all.png")
    nothing = Record(ENVIRONMENT, (), ())
    picture(nothing, tmp_path / "nothing.png")
    assert not (tmp_path / "nothing.png").exists()
    assert (tmp_path / "all.png").stat().st_size > (tmp_path / "bars.png").stat().st_size


@pytest.fixture(name="kept", scope="module")
def record_that_is_kept():
    return Record.from_json(RESULTS.read_text(encoding="utf-8"))


@pytest.fixture(name="in_use", scope="module")
def record_of_use():
    return Record.from_json(IN_USE.read_text(encoding="utf-8"))


def test_pages_show_what_is_on_record(kept, in_use):
    assert RESULTS.with_suffix(".md").read_text("utf-8") == page(kept, picture="results.png")
    assert IN_USE.with_suffix(".md").read_text("utf-8") == page(in_use, picture="in_use.png")


def test_sentences_of_the_page_are_on_record(kept):
    shown = " ".join((RESULTS.parents[1] / "docs" / "cost.md").read_text(encoding="utf-8").split())
    ratio = {(row.on.split(" (")[0], row.what): row.ratio for row in kept.rows if row.ratio}
    leaves = "100,000 leaves"
    built, bare, regexes, traversal = (
        ratio[leaves, what]
        for what in (
            "`decay_mask(params, batch_stats)`",
            "`decay_mask(params)`",
            "regexes on paths",
            "`ModelParamTraversal`",
        )
    )
    networks = ("ResNet-50", "ResNet-152", "transformer, 64 layers")
    beyond = [ratio[name, "analysis beyond tracing"] for name in networks]
    whole = [ratio[name, "`analyze`, tracing included"] for name in networks]
    steps = {row.what: row.ratio for row in kept.rows if row.experiment == "step"}
    low, high = (f(growth.exponent for growth in kept.growths) for f in (min, max))
    for sentence in (
        f"{built:.2f} times what Flax's `path_aware_map` takes to walk over them ({bare:.2f} "
        f"without statistics); a list of regexes takes {regexes:.2f} times, `ModelParamTraversal` "
        f"{traversal:.2f} times that",
        f"{beyond[0]:.2f} (ResNet-50), {beyond[1]:.2f} (ResNet-152) and {beyond[2]:.2f} "
        f"(a transformer of 64 layers) of `jax.make_jaxpr`",
        f"{whole[0]:.2f}, {whole[1]:.2f} and {whole[2]:.2f} of the automatic registration of "
        f"layers in kfac-jax",
        f"grow with exponents from {low:.2f} to {high:.2f}",
        f"`keep_norm` takes {steps['with `keep_norm`']:.1f} times, `monitor_scale` "
        f"{steps['with `monitor_scale`']:.1f} times and AdamP, which finds out at run time, "
        f"{steps['AdamP, which detects at run time']:.1f} times",
    ):
        assert sentence in shown


def test_bars_hold_on_record(kept):
    found = kept
    assert not found.environment["quick"]
    assert {row.experiment for row in found.rows} == {
        *("mask", "analysis", "step", "compilation", "decoder")
    }
    assert [growth.sizes[-1] for growth in found.growths[:2]] == [100_000] * 2
    assert [bar.name for bar in found.bars() if not bar.met] == []


def test_bars_of_use_hold_on_record(in_use):
    assert not in_use.environment["quick"]
    assert {row.experiment for row in in_use.rows} == {"audit", "treatments", "verify"}
    assert {row.on for row in in_use.rows if row.experiment == "audit"} == {
        *("1,000 leaves", "5,000 leaves")
    }
    assert len({row.on for row in in_use.rows if row.experiment == "verify"}) == 7
    assert [growth.sizes for growth in in_use.growths] == [(200, 1_000, 5_000)]
    bars = in_use.bars()
    assert len(bars) == 10
    assert [bar.name for bar in bars if not bar.met] == []
