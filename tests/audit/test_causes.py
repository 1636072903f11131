"""Each cause is found on its own, named by the leaves it is about, and is absent where it is."""

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx
from jax import lax
from optax import contrib

import optax_bnmask as bnmask
from optax_bnmask import VerificationError

RATE, DECAY = 1e-3, 0.1
PARAMS = {
    "head": {"kernel": jnp.ones((5, 4)), "bias": jnp.ones(4)},
    "tail": {"kernel": jnp.ones((4, 2))},
    "norm": {"scale": jnp.ones(4)},
}
ANALYSIS = bnmask.analyze_structure(PARAMS)
WEIGHTS = {"head/kernel", "tail/kernel"}
MASK = ANALYSIS.decay_mask(exempt=bnmask.STANDARD)

pytestmark = pytest.mark.usefixtures("optax_promotion")


@pytest.fixture(autouse=True)
def rank_promotion():
    """Standard in ranks too: so are the networks here."""
    with jax.numpy_rank_promotion("allow"):
        yield


def audited(tx, params=PARAMS, analysis=ANALYSIS, **options):
    return bnmask.audit(tx, params, analysis, **options)


def adamw(mask=MASK, rate=RATE, decay=DECAY):
    return optax.adamw(rate, weight_decay=decay, mask=mask)


def summary(audit):
    return [(found.severity, found.kind, set(found.paths)) for found in audit.findings]


def added(pull):
    """A pull, as a function of the params, in front of plain gradient descent."""
    update = optax.stateless(lambda u, p: jax.tree.map(lambda u, p: u + pull(p), u, p))
    return optax.chain(update, optax.sgd(RATE))


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


FROZEN = {
    "head": {"kernel": True, "bias": True},
    "tail": {"kernel": False},
    "norm": {"scale": False},
}


@pytest.mark.parametrize(
    "last", [adamw(), optax.chain(optax.add_decayed_weights(0.1, MASK), optax.sgd(0.1))]
)
def test_leaf_that_decays_behind_a_gradient_set_to_zero_is_erased(last):
    audit = audited(optax.chain(optax.masked(optax.set_to_zero(), FROZEN), last))
    assert summary(audit) == [("error", "erased", {"head/kernel"})]


def test_leaf_that_its_program_gives_no_gradient_is_erased():
    def net(p, x):
        target = jax.jit(lambda x: lax.stop_gradient(jnp.tanh(x @ p["teacher"])))(x)
        return (jnp.tanh(x @ p["w"]) - target) @ p["head"]

    shapes = {"w": (4, 8), "teacher": (4, 8), "head": (8, 2)}
    params = {name: jnp.ones(shape) for name, shape in shapes.items()}
    analysis = bnmask.analyze(net, params, jnp.ones((3, 4)))
    audit = audited(adamw(None), params, analysis)
    assert summary(audit) == [("error", "erased", {"teacher"})]
    left = {"w": True, "teacher": False, "head": True}
    assert "erased" not in [kind for _, kind, _ in summary(audited(adamw(left), params, analysis))]


def test_masked_as_a_freeze_lets_leaves_climb():
    trained = jax.tree.map(lambda frozen: not frozen, FROZEN)
    audit = audited(optax.masked(adamw(), trained))
    assert summary(audit) == [("error", "climbs", {"head/kernel", "head/bias"})]


@pytest.mark.parametrize(
    "first", [optax.clip_by_global_norm(1.0), optax.chain(optax.zero_nans(), optax.clip(0.1))]
)
def test_so_it_does_behind_clipping(first):
    trained = jax.tree.map(lambda frozen: not frozen, FROZEN)
    audit = audited(optax.chain(first, optax.masked(adamw(), trained)))
    assert summary(audit) == [("error", "climbs", {"head/kernel", "head/bias"})]


def test_leaves_that_are_to_raise_the_loss_are_a_warning():
    up = optax.chain(optax.scale(-1.0), adamw())
    labels = jax.tree.map(lambda frozen: "up" if frozen else "down", FROZEN)
    audit = audited(optax.partition({"up": up, "down": adamw()}, labels))
    assert summary(audit) == [("warning", "climbs", {"head/kernel", "head/bias"})]
    assert audit.decayed == WEIGHTS


def stream(params, x):
    """Two residual blocks between norms, whose table and last kernels share one scale."""

    def rms(z):
        return z * lax.rsqrt((z * z).mean(-1, keepdims=True) + 1e-6)

    h = x @ params["table"]
    for i in range(2):
        h = h + jnp.tanh(rms(h) @ params[f"in{i}"]) @ params[f"out{i}"]
    return rms(h) @ params["head"]


def test_part_of_a_joint_group_that_is_exempt_is_named():
    shapes = {"table": (4, 8), "head": (8, 3), "in0": (8, 9), "in1": (8, 9)}
    shapes |= {"out0": (9, 8), "out1": (9, 8)}
    params = {name: jnp.ones(shape) for name, shape in shapes.items()}
    analysis = bnmask.analyze(stream, params, jnp.ones((2, 4)))
    assert {"table", "out0", "out1"} in analysis.groups
    partly = {name: name != "out1" for name in params}
    assert summary(audited(adamw(partly), params, analysis)) == [
        ("warning", "group_split", {"out1"})
    ]
    exempt = ("norm", "jointly_invariant")
    none = analysis.decay_mask(exempt=exempt)
    for mask in (analysis.decay_mask(), none):
        assert summary(audited(adamw(mask), params, analysis)) == []


def layers():
    """Three layers whose kernels feed a batch norm, and a head of very few parameters."""

    def net(p, x):
        for i in range(3):
            z = x @ p[f"w{i}"]
            z = (z - z.mean(0)) * lax.rsqrt(z.var(0) + 1e-6)
            x = jax.nn.relu(z * p[f"g{i}"])
        return x @ p["head"]

    params = {f"w{i}": jnp.ones((64, 64)) for i in range(3)} | {"head": jnp.ones((64, 1))}
    params |= {f"g{i}": jnp.ones(64) for i in range(3)}
    return params, bnmask.analyze(net, params, jnp.ones((8, 64)))


def test_one_of_several_invariant_kernels_is_named():
    params, analysis = layers()
    mask = analysis.decay_mask(never=["w1"])
    (found,) = audited(adamw(mask), params, analysis).findings
    assert (found.severity, found.kind, found.paths) == ("warning", "invariant_split", ("w1",))
    assert "neither decay nor keep their norm though the other 2 of them do" in found.message


def test_one_kernel_that_is_neither_kept_nor_decays_beside_kept_ones_is_named():
    params, analysis = layers()
    kept = bnmask.keep_norm(bnmask.Mask({path: path in ("w0", "w2") for path in params}))
    tx = optax.chain(adamw(analysis.decay_mask(never=["w*"])), kept)
    (found,) = audited(tx, params, analysis).findings
    assert (found.severity, found.kind, found.paths) == ("warning", "invariant_split", ("w1",))


def test_hardly_any_decay_is_named_unless_it_is_wanted_or_treated():
    params, analysis = layers()
    kernels = {"w0", "w1", "w2"}
    strict = analysis.decay_mask(never=kernels)
    assert summary(audited(adamw(strict), params, analysis)) == [
        ("warning", "hardly_anything_decayed", kernels)
    ]
    assert summary(audited(adamw(strict), params, analysis, exempt=bnmask.STRICT)) == []
    kept = bnmask.keep_norm(analysis.select("scale_invariant"), axes=analysis.invariant_axes)
    treated = audited(optax.chain(adamw(strict), kept), params, analysis)
    assert (summary(treated), treated.frozen) == ([], set())


def test_corrected_decay_under_a_warm_up_is_no_warning():
    params, analysis = layers()
    warm_up = optax.linear_schedule(0.0, RATE, 1000)
    corrected = bnmask.corrected_weight_decay(
        DECAY,
        warm_up,
        RATE,
        mask=analysis.decay_mask(),
        corrected=analysis.select("scale_invariant"),
    )
    tx = optax.chain(optax.scale_by_adam(), corrected, optax.scale_by_learning_rate(warm_up))
    audit = audited(tx, params, analysis)
    assert (summary(audit), audit.decayed) == ([], {"w0", "w1", "w2", "head"})


def test_unknown_leaves_that_decay_are_said():
    one = {"a": {"w1": jnp.ones(8)}}
    more = one | {name: {"kernel": jnp.ones((8, 8))} for name in "bcd"}
    for params, severity in ((one, "warning"), (more, "note")):
        audit = audited(adamw(None), params, bnmask.analyze_structure(params))
        assert summary(audit) == [(severity, "unknown_decayed", {"a/w1"})]
        assert audit.ok


def test_what_should_decay_is_what_exempt_says():
    wanted = audited(adamw(None), exempt=())
    assert (summary(wanted), wanted.ok) == ([], True)
    assert re_advised(wanted) == {"yes"}
    loose = audited(adamw(ANALYSIS.decay_mask()), exempt=bnmask.STANDARD)
    assert summary(loose) == [("error", "exempt_decayed", {"head/bias"})]
    assert re_advised(loose) == {"yes", "no", "!"}


def re_advised(audit):
    rows = audit.to_text().split("Leaves\n")[1].splitlines()[1:]
    return {word for row in rows for word in row.split()[4:]}


def test_what_an_audit_cannot_see_it_says():
    (found,) = audited(optax.adam(RATE)).findings
    assert "a part of the loss" in found.message
    assert "after more than 64 steps" in found.message


def broken_mask(params):
    raise TypeError("no mask today")


UNTOLD = {
    "a mask that raises": (adamw(broken_mask), "TypeError: no mask today"),
    "no learning rate": (adamw(rate=0.0), "the learning rate is 0"),
    "no numbers": (optax.stateless_with_tree_map(lambda g, _: g * jnp.nan), "not finite"),
}


@pytest.mark.parametrize("name", UNTOLD)
def test_what_could_not_be_told_is_not_fine(name):
    tx, why = UNTOLD[name]
    audit = audited(tx)
    assert [(s, kind) for s, kind, _ in summary(audit)] == [("error", "undetermined")]
    assert why in audit.findings[0].message
    assert not audit.ok
    assert "What decays could not be told." in str(audit)


def test_slow_and_fast_params_are_audited():
    assert (audited(optax.lookahead(adamw(), 5, 0.5)).decayed) == WEIGHTS


def test_optimizer_that_refuses_further_arguments_is_audited():
    climb = optax.chain(contrib.normalize(), optax.sgd(0.05))
    audit = audited(contrib.sam(adamw(), climb, sync_period=2))
    assert (audit.decayed, summary(audit)) == (WEIGHTS, [])


def test_optimizer_of_nnx_is_audited_by_its_transformation():
    model = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
    analysis = bnmask.analyze_structure(model)
    tx = adamw(analysis.decay_mask(exempt=bnmask.STANDARD))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    assert audited(optimizer, model, analysis).decayed == {"kernel"}


def test_blocks_that_repeat_are_one_line():
    params = {f"block{i}": PARAMS for i in range(12)}
    text = str(audited(adamw(None), params, bnmask.analyze_structure(params)))
    assert "block{0..11}/head/kernel" in text
    assert "block3/head/kernel" not in text.split("Leaves\n")[1]
