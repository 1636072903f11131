"""Norms that `keep_norm` and `hyperball` hold: found where a step leaves others, and no decay."""

import optax
import pytest

import optax_bnmask as bnmask
from tests.support.audits import ANALYSIS, MASK, PARAMS, RATE, adamw, audited, summary

pytestmark = pytest.mark.usefixtures("optax_promotion")

KERNEL = "tail/kernel"
CHOSEN = bnmask.Mask({leaf.path: leaf.path == KERNEL for leaf in ANALYSIS.leaves})
AXES = {KERNEL: (1,)}
KEPT = bnmask.keep_norm(CHOSEN)
FIRST = {
    "before Adam": optax.chain(KEPT, adamw(MASK)),
    "before Adam, by channel": optax.chain(bnmask.keep_norm(CHOSEN, axes=AXES), adamw(MASK)),
    "before a decay": optax.chain(optax.adam(RATE), KEPT, optax.add_decayed_weights(-0.1, MASK)),
    "before clipping": optax.chain(adamw(MASK), KEPT, optax.clip(1e-5)),
    "hyperball before Adam": optax.chain(
        bnmask.hyperball(0.1, CHOSEN, flip_sign=False), adamw(MASK)
    ),
    "hyperball of a radius before a decay": optax.chain(
        optax.adam(RATE),
        bnmask.hyperball(0.1, CHOSEN, radius=3.0, flip_sign=False),
        optax.add_decayed_weights(-0.1, MASK),
    ),
}
LAST = {
    "keep_norm": optax.chain(adamw(MASK), KEPT),
    "keep_norm by channel": optax.chain(adamw(MASK), bnmask.keep_norm(CHOSEN, axes=AXES)),
    "keep_norm around accumulation": optax.chain(optax.MultiSteps(adamw(MASK), 2), KEPT),
    "hyperball": optax.chain(adamw(MASK), bnmask.hyperball(0.1, CHOSEN, flip_sign=False)),
    "hyperball of a radius": optax.chain(
        adamw(MASK), bnmask.hyperball(0.1, CHOSEN, radius=3.0, flip_sign=False)
    ),
    "hyperball of an injected radius": optax.chain(
        adamw(MASK),
        optax.inject_hyperparams(bnmask.hyperball, static_args=("mask", "flip_sign"))(
            0.1, CHOSEN, radius=3.0, flip_sign=False
        ),
    ),
    "in accumulation": optax.MultiSteps(optax.chain(adamw(MASK), KEPT), 2),
    "in `optax.masked`": optax.chain(adamw(MASK), optax.masked(bnmask.keep_norm(True), CHOSEN)),
    "in `monitor_scale`": bnmask.monitor_scale(optax.chain(adamw(MASK), KEPT), ANALYSIS),
}


@pytest.mark.parametrize("name", FIRST)
def test_a_norm_that_something_changes_afterwards_is_warned_of(name):
    found = [f for f in audited(FIRST[name]).findings if f.kind == "norm_not_kept"]
    assert [(f.severity, f.paths) for f in found] == [("warning", (KERNEL,))]
    assert "put it last in the chain" in found[0].message


@pytest.mark.parametrize("name", LAST)
def test_a_norm_that_is_held_is_no_finding_and_no_decay(name):
    audit = audited(LAST[name])
    assert summary(audit) == []
    assert audit.decayed == {"head/kernel"}


@pytest.mark.parametrize(
    "tx",
    [
        optax.chain(bnmask.keep_norm(True), optax.sgd(0.1)),
        optax.chain(
            optax.scale_by_adam(), bnmask.hyperball(0.1), optax.scale_by_learning_rate(0.1)
        ),
    ],
    ids=["keep_norm", "hyperball"],
)
def test_where_nothing_decays_a_norm_that_is_not_kept_is_taken_for_no_decay(tx):
    audit = audited(tx)
    kinds = {finding.kind for finding in audit.findings}
    assert "norm_not_kept" in kinds
    assert kinds <= {"norm_not_kept", "nothing_decayed", "climbs"}
    assert set(audit.rates.values()) == {0.0}


def test_an_error_of_another_library_is_quoted_with_the_place_that_it_names():
    mask = {"head": {"kernel": True}, "norm": True, "tail": True}
    (found,) = bnmask.audit(optax.adamw(RATE, mask=mask), PARAMS, ANALYSIS).findings
    assert found.message.endswith("at key path tree_map tree['head'].")
