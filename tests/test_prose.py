"""Sentences are made last: rewording any of them changes nothing that the library decides."""

import dataclasses
import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

import optax_bnmask as bnmask
from optax_bnmask import structure
from optax_bnmask.program.running import Running
from optax_bnmask.report.repetition import assumption_lines, leaf_families

X = jax.ShapeDtypeStruct((16, 5), "float32")


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(4, name="dense")(x)
        return nn.BatchNorm(use_running_average=not train, name="bn")(x)


@pytest.fixture(autouse=True)
def _promotion_as_frameworks_need_it():
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture
def variables():
    return jax.eval_shape(Net().init, jax.random.key(0), X)


def decisions(analysis):
    return [(leaf.path, leaf.role, leaf.scale, leaf.dead) for leaf in analysis.leaves]


def test_statistics_confirm_whatever_the_reason_says(monkeypatch, variables):
    frozen = {"params": variables["params"]["bn"], "batch_stats": variables["batch_stats"]["bn"]}
    norm, x = nn.BatchNorm(use_running_average=True), jax.ShapeDtypeStruct((16, 4), "float32")
    with pytest.warns(UserWarning, match="running statistics"):
        before = bnmask.analyze_linen(norm, frozen, x)
    monkeypatch.setattr(structure, "CONFIRMED", "reworded")
    with pytest.warns(UserWarning, match="running statistics"):
        after = bnmask.analyze_linen(norm, frozen, x)
    assert decisions(after) == decisions(before)
    assert {leaf.role for leaf in after.leaves} == {bnmask.Role.NORM_SCALE, bnmask.Role.NORM_BIAS}
    assert [leaf.reason for leaf in after.leaves] == [
        leaf.reason.replace("a running mean and var of its shape are kept in its scope", "reworded")
        for leaf in before.leaves
    ]


def test_a_table_folds_the_same_rows_whatever_the_reasons_say():
    params = {
        f"block{i}": {"bn": {"scale": jnp.ones(4)}, "post": {"scale": jnp.ones(4)}}
        for i in range(4)
    }
    kept = {"mean": jnp.zeros(4), "var": jnp.ones(4)}
    stats = {"block1": {"bn": kept}, "block2": {"bn": kept}}
    analysis = bnmask.analyze_structure(params, stats)
    reworded = dataclasses.replace(
        analysis,
        leaves=tuple(
            dataclasses.replace(leaf, reason=f"{i} in other words")
            for i, leaf in enumerate(analysis.leaves)
        ),
    )
    rows = [family.pattern for family in leaf_families(analysis)]
    assert [family.pattern for family in leaf_families(reworded)] == rows
    assert rows == [
        "block{0,3}/bn/scale",
        "block{0,3}/post/scale",
        "block{1,2}/bn/scale",
        "block{1,2}/post/scale",
    ]


def test_running_statistics_are_warned_of_in_whatever_words(monkeypatch, variables):
    monkeypatch.setattr(Running, "__str__", lambda self: f"reworded, of {self.scope}")
    with pytest.warns(UserWarning, match="reworded, of bn"):
        bnmask.analyze_linen(Net(), variables, X)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bnmask.analyze_linen(Net(), variables, X, train=True)


def test_assumptions_alike_are_one_line_in_whatever_words(monkeypatch):
    assumptions = tuple(
        bnmask.Assumption("epsilon", 1e-5, "add", f"net.py:{line} (norm{line})") for line in (3, 7)
    )
    evidence = frozenset({bnmask.Evidence.PROGRAM})
    analysis = bnmask.Analysis((), evidence, assumptions=assumptions)
    monkeypatch.setattr(bnmask.Assumption, "__str__", lambda self: "reworded")
    (line,) = assumption_lines(analysis, collapse=True)
    assert line == "1e-05 in `add` taken as 0, at net.py:{3,7} (norm{3,7})"
