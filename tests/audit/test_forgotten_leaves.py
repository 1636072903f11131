"""Audits of leaves that are erased, frozen, or treated otherwise than others of their kind."""

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx
from jax import lax
from optax import contrib

import optax_bnmask as bnmask
from tests.support.audits import (
    ANALYSIS,
    DECAY,
    MASK,
    PARAMS,
    RATE,
    WEIGHTS,
    adamw,
    audited,
    summary,
)

pytestmark = pytest.mark.usefixtures("optax_promotion")


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
