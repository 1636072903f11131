"""The comparison of policies: what the page shows is on record, and policies differ as named."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from scipy import stats

from benchmarks.policies.comparing import adjusted, load, margin_of, markdown, rows
from benchmarks.policies.policies import (
    OPTIMIZERS,
    POLICIES,
    REFERENCE,
    analysis_of,
    optimizer,
    turns,
)
from benchmarks.policies.tasks import Split, Task
from benchmarks.policies.training import grid, scores, trainer
from examples.digits.model import ResNet

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "accuracy.md").read_text(encoding="utf-8")
RESULTS = load([ROOT / "benchmarks" / "policies" / "results.json"])
HYPERBALL = load([ROOT / "benchmarks" / "policies" / "hyperball.json"])


pytestmark = pytest.mark.usefixtures("optax_promotion")


def test_page_shows_the_table_on_record():
    shown = PAGE.partition("<!-- policies -->\n")[2].partition("\n<!-- /policies -->")[0]
    assert shown == markdown(RESULTS)


def test_page_counts_the_choices_at_an_edge():
    edges = sum(bool(result.at_edge) for result in RESULTS)
    assert f"Of the {len(RESULTS)} choices, {edges} lie at an edge" in PAGE


def test_record_holds_every_policy_on_forty_seeds_in_four_columns():
    columns = {(r.task, r.optimizer) for r in RESULTS}
    assert len(columns) == 4
    assert {(r.task, r.optimizer, r.policy) for r in RESULTS} == {
        (*column, policy) for column in columns for policy in POLICIES if not turns(policy)
    }
    assert {len(r.accuracies) for r in RESULTS} == {40}


def test_page_shows_what_is_on_record_of_hyperball():
    shown = PAGE.partition("<!-- hyperball -->\n")[2].partition("\n<!-- /hyperball -->")[0]
    assert shown == markdown(HYPERBALL)
    assert {r.policy for r in HYPERBALL} == {REFERENCE, *filter(turns, POLICIES)}
    assert {len(r.accuracies) for r in HYPERBALL} == {40}
    found = {(r.result.task, r.result.optimizer, r.result.policy): r for r in rows(HYPERBALL)}
    compared = {key: row for key, row in found.items() if key[2] != REFERENCE}
    worse = {key for key, row in compared.items() if row.p_value < 0.05 and row.difference < 0}
    assert worse == {key for key, row in compared.items() if row.p_value < 0.05}
    assert {task for task, *_ in worse} == {"MNIST-1D"}
    assert len(compared) - len(worse) == 5
    edges = sum(bool(row.result.at_edge) for row in compared.values())
    assert f"{['', 'One', 'Two', 'Three', 'Four', 'Five', 'Six', 'Seven'][edges]} of the" in PAGE
    for key, row in compared.items():
        assert f"{abs(row.difference):.2f}" in PAGE.partition("<!-- /hyperball -->")[2], key
    again = [np.mean(r.accuracies) for r in HYPERBALL if r.policy == REFERENCE]
    assert [f"{100 * mean:.2f}" for mean in again] == ["99.13", "99.14", "98.89", "98.90"]


def test_sentences_of_the_page_hold_on_record():
    found = {(r.result.task, r.result.optimizer, r.result.policy): r for r in rows(RESULTS)}
    of = {policy: [row for key, row in found.items() if key[2] == policy] for policy in POLICIES}
    assert all(row.p_value < 0.05 and row.difference < -0.25 for row in of["no decay"])
    gains = {key: row for key, row in found.items() if row.p_value < 0.05}
    assert {key[0] for key in gains if key[2] == "everything"} == {"MNIST-1D"}
    assert {key[0] for key in gains if key[2] == "STRICT"} == {"MNIST-1D"}
    assert [key[1] for key in gains if key[2] == "STRICT + keep_norm"] == ["SGD"]
    assert len([key for key in gains if key[2] == "exempt norm, corrected"]) == 1
    (cost,) = {
        f"{row.difference:.2f} points" for key, row in gains.items() if key[2] == "everything"
    }
    for page in ("README.md", "docs/choose.md", "docs/accuracy.md"):
        assert cost in " ".join((ROOT / page).read_text(encoding="utf-8").split())


def test_cells_that_were_not_run_and_columns_without_the_reference_are_shown_as_such():
    some = [
        r
        for r in RESULTS
        if r.task == "MNIST-1D"
        and (r.policy == "STRICT" or (r.policy == REFERENCE and r.optimizer == "SGD"))
    ]
    *_, reference, strict = markdown(some).splitlines()
    assert reference == "| exempt norm | 98.91 ± 0.02 | not run |"
    assert strict == "| STRICT | 98.64 ± 0.03 (**-0.26 ± 0.03**) | 98.75 ± 0.03 |"


def test_holm_multiplies_by_the_tests_that_are_left_and_never_falls():
    np.testing.assert_allclose(adjusted([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    assert adjusted([0.9, 0.8]).max() == 1


def test_margin_is_half_of_the_interval_of_students_t():
    values = np.array([1.0, 2.0, 4.0])
    low, high = stats.t.interval(0.95, 2, loc=values.mean(), scale=stats.sem(values))
    assert margin_of(values) == pytest.approx((high - low) / 2)


def noise(seed, examples):
    inputs = jax.random.normal(jax.random.key(seed), (examples, 8, 1))
    return Split(inputs, jnp.arange(examples) % 10)


TASK = Task("noise", ResNet(window=(3,)), noise(0, 40), noise(1, 40), noise(2, 40), 20, 2)


@pytest.mark.once
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_policies_are_one_policy_where_the_decay_is_zero_and_differ_where_it_is_not(name):
    runs = grid((0.05,), (0.0, 1.0), (0, 1))

    def losses(policy):
        train = trainer(TASK, policy, name, 2)
        return scores(TASK, train, runs, TASK.test, at_once=3).cross_entropy.reshape(2, 2)

    reference, corrected = losses(REFERENCE), losses("exempt norm, corrected")
    np.testing.assert_allclose(corrected[0], reference[0], rtol=1e-4)
    assert (np.abs(corrected[1] - reference[1]) > 1e-3).all()
    assert (np.abs(reference[1] - reference[0]) > 1e-3).all()


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("policy", [policy for policy in POLICIES if turns(policy)])
def test_hyperball_holds_the_norms_of_its_matrices_and_turns_them_by_the_angle_swept(policy, name):
    params = TASK.network.init(jax.random.key(0), TASK.train.inputs[:1], train=True)["params"]
    tx = optimizer(policy, name, analysis_of(TASK), steps_in_epoch=1, epochs=2)(0.1, 0.05)
    update, state = jax.jit(tx.update), tx.init(params)
    for _ in range(2):  # the first is the step of a warm-up that starts at 0
        updates, state = update(jax.tree.map(jnp.cos, params), state, params)
    before, steps = flatten_dict(params, sep="/"), flatten_dict(updates, sep="/")
    held = set()
    for path in (path for path in before if path.endswith("kernel")):
        length = jnp.linalg.norm(before[path])
        if jnp.abs(jnp.linalg.norm(before[path] + steps[path]) / length - 1) < 1e-6:
            held.add(path)
            assert jnp.linalg.norm(steps[path]) / length == pytest.approx(0.05, rel=0.2)
    others = {"head/kernel"} if policy == "hyperball" else set()
    assert held == {path for path in before if path.endswith("kernel")} - others


def test_seeds_are_paired_and_batches_of_runs_keep_their_order():
    runs = grid((0.01, 0.03), (0.1,), (5, 6, 7))
    assert re.sub(r"\s+", "", str(runs.seed)) == "[567567]"
    assert np.asarray(runs.learning_rate).tolist() == pytest.approx([0.01] * 3 + [0.03] * 3)
