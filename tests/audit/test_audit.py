"""An audit finds what an optimizer decays, and names what is wrong with it."""

import functools
import json
import re

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import optax_bnmask as bnmask
from optax_bnmask import PathError, VerificationError
from tests.support.decaying import ANALYSIS, DECAY, MASK, PARAMS, STATS, TRANSFORMS

RATE = 1e-3
NORMS = {"post/scale", "post/bias", "stack/scale", "stack/bias"}


pytestmark = pytest.mark.usefixtures("optax_promotion")


def audited(tx, params=PARAMS, analysis=ANALYSIS):
    return bnmask.audit(tx, params, analysis)


def adamw(mask=None, rate=RATE):
    return optax.adamw(rate, weight_decay=DECAY, mask=mask)


def kinds(audit):
    return [finding.kind for finding in audit.findings]


@pytest.mark.parametrize("name", TRANSFORMS)
def test_decayed_set_is_the_masks_for_every_optimizer_of_the_conformance_suite(name):
    audit = audited(TRANSFORMS[name](DECAY, MASK))
    assert audit.decayed == set(MASK.decayed)
    assert audit.ok, audit.findings


@pytest.mark.parametrize("name", TRANSFORMS)
def test_decay_of_zero_is_seen_in_every_optimizer_of_the_conformance_suite(name):
    audit = audited(TRANSFORMS[name](0.0, MASK))
    assert audit.decayed == set()
    assert kinds(audit) == ["nothing_decayed"]


def test_rate_of_adamw_is_learning_rate_times_decay():
    rates = audited(adamw(MASK)).rates
    np.testing.assert_allclose([rates[path] for path in MASK.decayed], RATE * DECAY, rtol=1e-5)
    assert all(rates[path] == 0 for path in MASK.exempted)
    assert list(rates) == [leaf.path for leaf in ANALYSIS.leaves]


WRONG = {
    "mask never passed": (adamw(), "everything_decayed", NORMS),
    "pattern without a match": (
        adamw(
            lambda tree: jax.tree_util.tree_map_with_path(lambda k, _: "norm" not in str(k), tree)
        ),
        "everything_decayed",
        NORMS,
    ),
    "inverted": (adamw(~MASK), "inverted", NORMS | {"conv/kernel", "head/kernel"}),
    "inverted STANDARD": (
        adamw(~ANALYSIS.decay_mask(exempt=bnmask.STANDARD)),
        "inverted",
        NORMS | {"conv/kernel", "head/kernel"},
    ),
    "groups merged back": (
        optax.partition(
            {"decay": adamw(), "norm": adamw(rate=RATE / 10)},
            ANALYSIS.labels(categories=("norm",)),
        ),
        "everything_decayed",
        NORMS,
    ),
    "stacked norms by an ndim rule": (
        adamw(functools.partial(jax.tree.map, lambda leaf: leaf.ndim > 1)),
        "norm_decayed",
        {"stack/scale", "stack/bias"},
    ),
    "decay of zero": (optax.adamw(RATE, weight_decay=0.0), "nothing_decayed", None),
    "mask of nothing": (
        adamw(functools.partial(jax.tree.map, lambda _: False)),
        "nothing_decayed",
        None,
    ),
    "a weight exempt by its name": (
        adamw(ANALYSIS.decay_mask(never=["head/*"])),
        "weight_exempt",
        {"head/kernel"},
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_decay_is_found_and_named(name):
    tx, kind, paths = WRONG[name]
    audit = audited(tx)
    assert not audit.ok
    found = audit.findings[0]
    assert (found.severity, found.kind) == ("error", kind)
    if paths:
        assert set(found.paths) == paths
        assert all(repr(path) in found.message for path in sorted(paths)[:1])


def resnet():
    def net(params, x):
        for name in ("conv1", "conv2"):
            block = params[name]
            x = jax.lax.conv_general_dilated(
                x, block["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            x = (x - x.mean((0, 1, 2), keepdims=True)) * jax.lax.rsqrt(
                x.var((0, 1, 2), keepdims=True) + 1e-5
            )
            x = jnp.maximum(x * block["bn"]["scale"] + block["bn"]["bias"], 0)
        return x.mean((1, 2)) @ params["head"]["kernel"]

    block = {"kernel": jnp.ones((3, 3, 4, 4)), "bn": {"scale": jnp.ones(4), "bias": jnp.ones(4)}}
    params = {"conv1": block, "conv2": block, "head": {"kernel": jnp.ones((4, 2))}}
    with jax.numpy_rank_promotion("allow"):
        return params, bnmask.analyze(net, params, jnp.ones((2, 8, 8, 4)))


def by_name(rule):
    """A mask of the examples that people copy: a rule on the keys of each leaf."""

    def mask(params):
        flat = flax.traverse_util.flatten_dict(params)
        return flax.traverse_util.unflatten_dict({keys: rule(keys) for keys in flat})

    return mask


def test_layer_norm_rule_of_language_models_on_a_resnet_decays_its_batch_norms():
    params, analysis = resnet()
    rule = by_name(lambda keys: keys[-1] != "bias" and keys[-2:] != ("LayerNorm", "scale"))
    audit = audited(adamw(rule), params, analysis)
    assert kinds(audit) == ["norm_decayed"]
    assert set(audit.findings[0].paths) == {"conv1/bn/scale", "conv2/bn/scale"}


def test_batchnorm_rule_by_module_name_decays_what_is_named_otherwise():
    params, analysis = resnet()
    audit = audited(adamw(by_name(lambda keys: "batchnorm" not in keys)), params, analysis)
    assert kinds(audit) == ["everything_decayed"]
    assert "conv1/bn/scale" in audit.findings[0].paths


def test_weights_whose_scale_is_hidden_may_be_exempt():
    params, analysis = resnet()
    with pytest.warns(UserWarning, match="scale_invariant"):
        strict = analysis.decay_mask(exempt=bnmask.STRICT)
    audit = audited(adamw(strict), params, analysis)
    assert audit.decayed == set(strict.decayed)
    assert audit.ok


def test_warm_up_that_starts_at_zero_is_waited_for():
    schedule = optax.linear_schedule(0.0, RATE, 100, transition_begin=300)
    audit = audited(adamw(MASK, rate=schedule))
    assert audit.decayed == set(MASK.decayed)


def test_learning_rate_that_stays_zero_is_undetermined():
    audit = audited(adamw(MASK, rate=0.0))
    assert kinds(audit) == ["undetermined"]
    with pytest.raises(VerificationError, match="cannot be told"):
        bnmask.assert_decays(adamw(MASK, rate=0.0), PARAMS, ANALYSIS)


def test_decay_with_a_schedule_of_its_own_is_seen():
    tx = optax.chain(
        optax.scale_by_adam(),
        optax.add_decayed_weights(optax.linear_schedule(0.0, DECAY, 4), MASK),
        optax.scale_by_learning_rate(RATE),
    )
    assert audited(tx).decayed == set(MASK.decayed)


def test_rare_updates_are_waited_for():
    tx = optax.MultiSteps(adamw(MASK), every_k_schedule=32).gradient_transformation()
    assert audited(tx).decayed == set(MASK.decayed)


def test_penalty_that_adam_normalises_is_seen():
    tx = optax.chain(optax.add_decayed_weights(DECAY, MASK), optax.adam(RATE))
    assert audited(tx).decayed == set(MASK.decayed)


def test_centred_decay_is_seen():
    tx = optax.chain(optax.add_decayed_weights(DECAY, MASK), optax.centralize(), optax.sgd(RATE))
    assert audited(tx).decayed == set(MASK.decayed)


def test_noise_is_no_decay():
    tx = optax.chain(optax.add_noise(0.1, 0.5, key=1), adamw(MASK))
    assert audited(tx).decayed == set(MASK.decayed)


def test_trust_ratio_without_decay_is_no_decay():
    assert kinds(audited(optax.lamb(RATE, weight_decay=0.0))) == ["nothing_decayed"]


def test_norms_that_are_kept_do_not_decay():
    kept = bnmask.Mask({path: path == "conv/kernel" for path in MASK})
    audit = audited(optax.chain(adamw(MASK), bnmask.keep_norm(kept)))
    assert audit.decayed == set(MASK.decayed) - {"conv/kernel"}


@pytest.mark.parametrize(
    "tx",
    [
        optax.chain(optax.adam(RATE), bnmask.keep_norm(True)),
        optax.chain(optax.scale_by_adam(), bnmask.hyperball(1e-2, True)),
    ],
    ids=["keep_norm", "hyperball"],
)
def test_norms_that_are_kept_where_nothing_decays_are_no_decay(tx):
    assert kinds(audited(tx)) == ["nothing_decayed"]
    with pytest.raises(AssertionError):
        bnmask.assert_decays(tx, PARAMS, ANALYSIS)


def test_frozen_leaves_are_told_apart_and_nothing_is_expected_of_them():
    labels = {name: "frozen" if name == "conv" else "trained" for name in PARAMS}
    tx = optax.partition({"trained": adamw(MASK), "frozen": optax.set_to_zero()}, labels)
    audit = audited(tx)
    assert audit.frozen == {"conv/kernel", "conv/bias"}
    assert audit.ok
    bnmask.assert_decays(tx, PARAMS, ANALYSIS)


def test_unequal_rates_are_a_warning_that_names_the_slower():
    labels = ANALYSIS.labels(categories={"bias": "slow"}, default="fast")
    tx = optax.partition({"slow": adamw(MASK, rate=RATE / 10), "fast": adamw(MASK)}, labels)
    audit = audited(tx)
    assert audit.ok
    assert [(f.severity, f.kind, f.paths) for f in audit.findings] == [
        ("warning", "unequal_rates", ("conv/bias",))
    ]


@pytest.mark.parametrize("check", [bnmask.audit, bnmask.assert_decays])
def test_arguments_of_another_kind_are_named(check):
    params = {"norm": {"scale": jnp.ones(3)}}
    analysis, tx = bnmask.analyze_structure(params), optax.sgd(0.1)
    with pytest.raises(TypeError, match=r"`analysis` must be an `Analysis`.* Found a Mask"):
        check(tx, params, analysis.decay_mask())
    with pytest.raises(TypeError, match=r"`tx` must be an `optax.Gradient.*`\. Found a dict"):
        check(params, tx, analysis)


def test_what_an_optimizer_raises_is_said_and_not_raised():
    def update(updates, state, params=None):
        raise RuntimeError("no such thing")

    audit = audited(optax.GradientTransformation(lambda _: (), update))
    assert kinds(audit) == ["undetermined"]
    assert "RuntimeError: no such thing" in audit.findings[0].message


def test_unknown_leaf_is_refused():
    with pytest.raises(PathError, match="does not know 'tail/kernel'"):
        audited(adamw(), {"tail": {"kernel": jnp.ones((2, 2))}})


def test_analysis_may_know_more_than_the_optimizer_gets():
    part = {"head": PARAMS["head"], "post": PARAMS["post"]}
    assert audited(adamw(MASK), part).decayed == {"head/kernel"}


def test_params_and_state_are_left_alone():
    before = jax.tree.map(np.array, PARAMS)
    audited(adamw(MASK))
    jax.tree.map(np.testing.assert_array_equal, before, PARAMS)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_dtypes_do_not_hide_a_small_rate(dtype):
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), PARAMS)
    tx = optax.adamw(1e-5, weight_decay=1e-5, mask=MASK)
    assert audited(tx, params).decayed == set(MASK.decayed)


def huge():
    def shape(*sizes):
        return jax.ShapeDtypeStruct(sizes, jnp.float32)

    params = {
        f"layer{i}": {"kernel": shape(60_000, 30_000), "norm": {"scale": shape(30_000)}}
        for i in range(4)
    }
    return params, bnmask.analyze_structure(params)


@pytest.mark.parametrize(
    "make",
    [adamw, lambda mask: optax.adafactor(RATE, weight_decay_rate=DECAY, weight_decay_mask=mask)],
    ids=["adamw", "adafactor"],
)
def test_seven_billion_parameters_are_audited_on_small_ones(make):
    params, analysis = huge()
    audit = audited(make(analysis.decay_mask()), params, analysis)
    assert audit.decayed == {f"layer{i}/kernel" for i in range(4)}
    assert audit.ok
    assert kinds(audit) == []


def test_mask_by_size_is_not_mistaken_on_small_params():
    params, analysis = huge()
    rule = functools.partial(jax.tree.map, lambda leaf: leaf.size > 10**6)
    audit = audited(adamw(rule), params, analysis)
    assert "undetermined" in kinds(audit)
    assert "hangs on the sizes" in audit.findings[-1].message


def test_nnx_state_is_audited():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.linear = nnx.Linear(4, 8, use_bias=False, rngs=rngs)
            self.post = nnx.BatchNorm(8, rngs=rngs)

    model = Net(nnx.Rngs(0))
    params, analysis = nnx.state(model, nnx.Param), bnmask.analyze_structure(model)
    assert kinds(audited(adamw(), params, analysis)) == ["everything_decayed"]
    assert audited(adamw(analysis.decay_mask()), params, analysis).ok


def test_assertion_lists_the_leaves_that_differ():
    bnmask.assert_decays(adamw(MASK), PARAMS, ANALYSIS)
    standard = ANALYSIS.decay_mask(exempt=bnmask.STANDARD)
    bnmask.assert_decays(adamw(standard), PARAMS, ANALYSIS, exempt=bnmask.STANDARD)
    with pytest.raises(VerificationError, match="1 of 7 leaves differ") as caught:
        bnmask.assert_decays(adamw(standard), PARAMS, ANALYSIS)
    assert "'conv/bias' does not decay and should" in str(caught.value)
    with pytest.raises(AssertionError, match=r"'post/bias' decays \(0\.00025 of itself in a step"):
        bnmask.assert_decays(adamw(), PARAMS, ANALYSIS)


def test_report_says_it_in_text_html_and_json():
    audit = audited(adamw())
    text = str(audit)
    assert text.startswith("7 of 7 leaves decay. What decays is wrong.")
    assert re.search(r"post/scale +norm_scale +0\.00025 +yes +no !", text)
    assert "everything_decayed" in repr(audit)
    assert "post/scale" in audit._repr_html_()
    record = json.loads(audit.to_json())
    assert (record["schema"], record["ok"]) == ("optax_bnmask/audit/1", False)
    assert record["rates"]["post/scale"] == audit.rates["post/scale"]


def test_statistics_make_no_difference_to_what_is_measured():
    structure = bnmask.analyze_structure(PARAMS, STATS)
    assert audited(adamw(MASK), PARAMS, structure).rates == audited(adamw(MASK)).rates


def test_without_an_analysis_the_structure_tells():
    params = {"dense": {"kernel": jnp.ones((2, 3))}, "norm": {"scale": jnp.ones(3)}}
    tx = optax.adamw(1e-3, weight_decay=0.1, mask=bnmask.decay_mask(params))
    found = bnmask.audit(tx, params)
    assert (found.decayed, found.findings) == ({"dense/kernel"}, ())
    bnmask.assert_decays(tx, params)


def test_a_bias_that_does_not_decay_is_either_way_and_the_assertion_names_the_way_out():
    params = {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}}
    tx = optax.adamw(1e-3, mask=bnmask.decay_mask(params, exempt=bnmask.STANDARD))
    row = next(line for line in str(bnmask.audit(tx, params)).splitlines() if "bias" in line)
    assert row.split() == ["dense/bias", "bias", "0", "no", "either"]
    with pytest.raises(VerificationError, match=r"say so in `exempt`: `bnmask.STANDARD`"):
        bnmask.assert_decays(tx, params)
