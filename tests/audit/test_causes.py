"""Each cause is found on its own, named by the leaves it is about, and is absent where it is."""

import jax
import jax.numpy as jnp
import optax
import pytest
from jax import lax
from optax import contrib

import optax_bnmask as bnmask
from optax_bnmask import VerificationError
from tests.support.audits import (
    ANALYSIS,
    DECAY,
    MASK,
    PARAMS,
    RATE,
    WEIGHTS,
    adamw,
    added,
    audited,
    summary,
)

pytestmark = pytest.mark.usefixtures("optax_promotion")


GROWING = {
    "after Adam": optax.chain(optax.adam(RATE), optax.add_decayed_weights(DECAY, MASK)),
    "after momentum": optax.chain(
        optax.sgd(RATE, momentum=0.9), optax.add_decayed_weights(DECAY, MASK)
    ),
    "negative": adamw(decay=-DECAY),
    "subtracted before the sign": optax.chain(
        optax.add_decayed_weights(-DECAY, MASK), optax.sgd(RATE)
    ),
}


@pytest.mark.parametrize("name", GROWING)
def test_growth_is_an_error_and_no_decay(name):
    audit = audited(GROWING[name])
    assert summary(audit) == [("error", "growth", WEIGHTS)]
    assert audit.decayed == set()
    assert all(audit.rates[path] < 0 for path in WEIGHTS)
    assert "0 of 4 leaves decay. What decays is wrong." in str(audit)
    with pytest.raises(VerificationError, match=r"'head/kernel' grows \(by "):
        bnmask.assert_decays(GROWING[name], PARAMS, ANALYSIS, exempt=bnmask.STANDARD)


def test_growth_of_an_exempt_leaf_fails_the_assertion():
    growing = {"head": {"kernel": False, "bias": True}, "tail": False, "norm": False}
    growing = {**growing, "tail": {"kernel": False}, "norm": {"scale": False}}
    tx = optax.chain(adamw(), optax.add_decayed_weights(DECAY, growing))
    with pytest.raises(VerificationError, match="'head/bias' grows"):
        bnmask.assert_decays(tx, PARAMS, ANALYSIS, exempt=bnmask.STANDARD)


@pytest.mark.parametrize(
    "first",
    [optax.scale_by_adam(), optax.identity(), optax.clip_by_global_norm(0.1), optax.trace(0.9)],
    ids=["Adam", "nothing", "clipping", "momentum"],
)
def test_part_of_a_chain_whose_learning_rate_is_still_to_come_decays(first):
    audit = audited(optax.chain(first, optax.add_decayed_weights(DECAY, MASK)))
    assert (audit.decayed, summary(audit)) == (WEIGHTS, [])


@pytest.mark.parametrize(
    "tx",
    [
        optax.chain(adamw(), optax.scale(-1.0)),
        adamw(rate=-RATE),
        optax.chain(
            optax.scale_by_adam(), optax.add_decayed_weights(DECAY, MASK), optax.scale(RATE)
        ),
    ],
    ids=["turned twice", "a negative learning rate", "not turned"],
)
def test_an_optimizer_that_climbs_as_a_whole_is_warned_of(tx):
    audit = audited(tx)
    (each,) = audit.findings
    assert (each.severity, each.kind, audit.decayed) == ("warning", "climbs", WEIGHTS)
    assert each.message.startswith("All leaves climb their gradient")


def late(steps):
    """A decay that starts at that step."""
    return optax.inject_hyperparams(optax.adamw)(
        RATE, weight_decay=lambda count: jnp.where(count < steps, 0.0, DECAY)
    )


def cautious():
    """A decay only where it and the gradient agree."""

    def update(updates, state, params):
        step = jax.tree.map(lambda u, p: -RATE * (u + DECAY * p * (u * p > 0)), updates, params)
        return step, state

    return optax.chain(
        optax.scale_by_adam(), optax.GradientTransformation(lambda _: optax.EmptyState(), update)
    )


def by_kind(weights, others):
    """One optimizer for weights, one for all else."""
    return optax.partition(
        {"w": weights, "o": others}, jax.tree.map(lambda decays: "wo"[not decays], MASK(PARAMS))
    )


def unfrozen(steps):
    """Frozen until that step."""
    rates = [optax.constant_schedule(0.0), optax.constant_schedule(RATE)]
    return optax.adamw(optax.join_schedules(rates, [steps]), weight_decay=DECAY)


ONE_GROUP = {
    "late": late(30),
    "cautious": cautious(),
    "unfrozen": unfrozen(100),
}


@pytest.mark.parametrize("name", ONE_GROUP)
def test_what_one_group_does_late_or_under_a_gradient_is_seen(name):
    undecayed, always = optax.adam(RATE), optax.adamw(RATE, weight_decay=DECAY)
    assert audited(by_kind(ONE_GROUP[name], undecayed)).decayed == WEIGHTS
    assert "everything_decayed" in [
        f.kind for f in audited(by_kind(always, ONE_GROUP[name])).findings
    ]


@pytest.mark.parametrize(
    "last",
    [
        optax.rmsprop(RATE, decay=0.9, eps=1e-3, momentum=0.9),
        optax.adam(RATE, eps=1e-3),
        optax.adagrad(RATE),
    ],
    ids=["EfficientNet's RMSProp", "Adam with a large epsilon", "Adagrad"],
)
def test_decay_that_the_gradients_divide_is_coupled(last):
    audit = audited(optax.chain(optax.add_decayed_weights(1e-5, MASK), last))
    assert summary(audit) == [("warning", "coupled", WEIGHTS)]


@pytest.mark.parametrize(
    "between",
    [optax.clip_by_global_norm(0.1), optax.adaptive_grad_clip(0.01), optax.clip_by_block_rms(0.1)],
    ids=["by global norm", "adaptively", "by block"],
)
def test_decay_that_is_clipped_with_the_gradient_is_not_coupled(between):
    audit = audited(optax.chain(optax.add_decayed_weights(1e-2, MASK), between, optax.sgd(RATE)))
    assert summary(audit) == []


COUPLED = {
    "Adam": optax.adam(RATE),
    "RMSProp": optax.rmsprop(RATE),
    "the sign": optax.sign_sgd(RATE),
    "Lion": optax.lion(RATE, weight_decay=0.0),
    "Adafactor": optax.adafactor(RATE),
    "RAdam, from its sixth step on": optax.radam(RATE),
    "Yogi": optax.yogi(RATE),
    "AdaDelta": optax.adadelta(RATE),
}


@pytest.mark.parametrize("name", COUPLED)
def test_penalty_in_front_of_an_adaptive_optimizer_is_a_warning(name):
    tx = optax.chain(optax.add_decayed_weights(0.01, MASK), COUPLED[name])
    audit = audited(tx)
    assert summary(audit) == [("warning", "coupled", WEIGHTS)]
    assert audit.decayed == WEIGHTS


def test_penalty_that_adagrad_sums_up_is_a_warning_once_it_is_not_small_beside_the_start():
    tx = optax.chain(optax.add_decayed_weights(DECAY, MASK), optax.adagrad(RATE))
    assert summary(audited(tx)) == [("warning", "coupled", WEIGHTS)]


def test_pull_of_constant_size_is_no_rate():
    assert [kind for _, kind, _ in summary(audited(added(jnp.sign)))] == [
        "everything_decayed",
        "coupled",
    ]


@pytest.mark.parametrize(
    "tx",
    [
        optax.chain(optax.add_decayed_weights(0.01, MASK), optax.sgd(0.1, momentum=0.9)),
        optax.chain(
            optax.add_decayed_weights(DECAY, MASK),
            optax.clip_by_global_norm(0.05),
            optax.sgd(0.1),
        ),
        optax.lamb(RATE, weight_decay=0.01, mask=MASK),
        optax.lars(RATE, weight_decay=0.01, weight_decay_mask=MASK),
        contrib.muon(RATE, weight_decay=DECAY, weight_decay_mask=MASK),
    ],
    ids=["momentum", "clipped", "LAMB", "LARS", "Muon"],
)
def test_pull_in_proportion_to_its_leaf_is_a_rate(tx):
    audit = audited(tx)
    assert audit.decayed == WEIGHTS
    assert "coupled" not in [kind for _, kind, _ in summary(audit)]


@pytest.mark.parametrize(
    "tx",
    [
        contrib.schedule_free_adamw(RATE, weight_decay=0.0),
        contrib.schedule_free_sgd(RATE),
        contrib.cocob(),
        contrib.madgrad(RATE),
        contrib.mechanize(optax.adam(RATE)),
        optax.rprop(RATE),
    ],
    ids=["schedule-free AdamW", "schedule-free", "cocob", "madgrad", "mechanize", "rprop"],
)
def test_rounding_of_new_minus_old_is_no_decay(tx):
    audit = audited(tx)
    assert set(audit.rates.values()) == {0.0}
    assert [kind for _, kind, _ in summary(audit)] == ["nothing_decayed"]


@pytest.mark.parametrize(("centre", "said"), [(1.0, "1,"), (0.25, "0.25,"), (None, "values of")])
def test_pull_to_other_values_is_called_that(centre, said):
    values = jax.tree.map(lambda leaf: jnp.arange(leaf.size) % 3 + leaf.ravel(), PARAMS)
    values = jax.tree.map(lambda leaf, new: new.reshape(leaf.shape), PARAMS, values)
    if centre is not None:
        values = jax.tree.map(lambda leaf: jnp.full_like(leaf, centre), PARAMS)
    update = optax.stateless(
        lambda u, p: jax.tree.map(lambda u, p, v: u + DECAY * (p - v), u, p, values)
    )
    (found,) = audited(optax.chain(update, optax.sgd(RATE))).findings
    assert (found.severity, found.kind) == ("warning", "pulled_elsewhere")
    assert f"pulled to {said}" in found.message
    assert set(found.paths) == {leaf.path for leaf in ANALYSIS.leaves}


def test_pull_to_the_values_at_the_start_is_called_that():
    def update(updates, start, params):
        pull = jax.tree.map(lambda u, p, s: u + DECAY * (p - s), updates, params, start)
        return pull, start

    tx = optax.chain(optax.GradientTransformation(lambda p: p, update), optax.sgd(RATE))
    audit = audited(tx)
    assert [(s, kind) for s, kind, _ in summary(audit)] == [("warning", "recalled")]


def test_gain_around_one_is_not_said_to_go_to_zero():
    def net(p, x):
        z = x @ p["w"]
        return (z * lax.rsqrt((z * z).mean(-1, keepdims=True) + 1e-6) * (1 + p["g"])) @ p["head"]

    params = {"w": jnp.ones((4, 8)), "g": jnp.zeros(8), "head": jnp.ones((8, 2))}
    analysis = bnmask.analyze(net, params, jnp.ones((3, 4)))
    (found,) = audited(adamw({"w": True, "g": True, "head": False}), params, analysis).findings[:1]
    assert "g" in found.paths
    assert "to 0" not in found.message
