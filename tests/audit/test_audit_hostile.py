"""An audit is right, or says that it cannot tell, where optimizers do uncommon things."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from optax import contrib

import optax_bnmask as bnmask

RATE, DECAY = 1e-3, 0.1
PARAMS = {
    "dense": {"kernel": jnp.ones((4, 3)), "bias": jnp.ones(3)},
    "norm": {"scale": jnp.ones(3), "bias": jnp.ones(3)},
}
ANALYSIS = bnmask.analyze_structure(PARAMS)
MASK = ANALYSIS.decay_mask()


pytestmark = pytest.mark.usefixtures("optax_promotion")


def kinds(audit):
    return [finding.kind for finding in audit.findings]


def adamw(mask):
    return optax.adamw(RATE, weight_decay=DECAY, mask=mask)


def by_leaf(rule):
    return functools.partial(jax.tree.map, rule)


def cautious(mask):
    """Decays only what the gradient also pulls to 0, so nothing where there is none."""

    def update(updates, params):
        decay = by_leaf(lambda u, p, m: u + m * DECAY * p * (u * p > 0))
        return decay(updates, params, mask(params))

    return optax.chain(optax.scale_by_adam(), optax.stateless(update), optax.scale(-RATE))


def late(mask):
    decay = optax.linear_schedule(0.0, DECAY, 5, transition_begin=30)
    return optax.chain(
        optax.scale_by_adam(), optax.add_decayed_weights(decay, mask), optax.scale(-RATE)
    )


UNCOMMON = {
    "asks for the loss": lambda mask: optax.chain(adamw(mask), contrib.reduce_on_plateau()),
    "asks for a step size from the loss": lambda mask: optax.chain(
        optax.polyak_sgd(), optax.add_decayed_weights(-RATE * DECAY, mask)
    ),
    "asks for the loss as a function": lambda mask: contrib.sophia(
        RATE, weight_decay=DECAY, weight_decay_mask=mask
    ),
    "decays only with a gradient": cautious,
    "decays late": late,
    "normalises by what may be 0": lambda mask: optax.chain(
        optax.add_decayed_weights(DECAY, mask), contrib.normalize(), optax.sgd(RATE)
    ),
    "trust ratio over noise": lambda mask: optax.chain(
        optax.add_noise(0.1, 0.5, key=1),
        optax.lars(RATE, weight_decay=DECAY, weight_decay_mask=mask),
    ),
}


@pytest.mark.parametrize("name", UNCOMMON)
def test_mask_is_found_in(name):
    audit = bnmask.audit(UNCOMMON[name](MASK), PARAMS, ANALYSIS)
    assert audit.decayed == set(MASK.decayed)
    assert audit.ok


@pytest.mark.parametrize(
    "make",
    [
        lambda: contrib.prodigy(weight_decay=DECAY),
        lambda: contrib.momo(RATE, weight_decay=DECAY),
    ],
    ids=["prodigy", "momo"],
)
def test_missing_mask_is_found_where_the_gradient_sets_the_step(make):
    assert kinds(bnmask.audit(make(), PARAMS, ANALYSIS))[0] == "everything_decayed"


def test_noise_under_a_trust_ratio_is_no_decay_of_a_single_number():
    params = {"head": {"kernel": jnp.ones((1, 2))}, "norm": {"scale": jnp.ones(1)}}
    tx = optax.chain(optax.add_noise(0.1, 0.5, key=1), optax.lamb(RATE, weight_decay=0.0))
    audit = bnmask.audit(tx, params, bnmask.analyze_structure(params))
    assert kinds(audit) == ["nothing_decayed"]


def test_leaf_whose_norm_is_kept_is_not_taken_for_frozen():
    kept = bnmask.Mask({path: path == "dense/kernel" for path in MASK})
    audit = bnmask.audit(optax.chain(adamw(MASK), bnmask.keep_norm(kept)), PARAMS, ANALYSIS)
    assert audit.frozen == set()
    assert audit.decayed == {"dense/bias"}


def test_updates_that_are_not_finite_are_undetermined():
    tx = optax.stateless_with_tree_map(lambda g, _: g * jnp.nan)
    audit = bnmask.audit(tx, PARAMS, ANALYSIS)
    assert kinds(audit) == ["undetermined"]
    assert "not finite" in audit.findings[0].message


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_mask_by_dtype_is_seen(dtype):
    params = {"head": {"kernel": jnp.ones((4, 3), dtype)}, "norm": {"scale": jnp.ones(3)}}
    tx = adamw(by_leaf(lambda leaf: leaf.dtype == dtype))
    audit = bnmask.audit(tx, params, bnmask.analyze_structure(params))
    assert (audit.decayed, audit.ok) == ({"head/kernel"}, True)


def test_numpy_params_of_double_precision_are_audited():
    params = jax.tree.map(np.asarray, jax.tree.map(lambda leaf: np.ones(leaf.shape), PARAMS))
    assert bnmask.audit(adamw(MASK), params, ANALYSIS).decayed == set(MASK.decayed)


@pytest.mark.parametrize(
    ("leaf", "decays", "more"),
    [
        (jnp.zeros((0, 4)), False, []),
        (jnp.ones(()), True, []),
        (jnp.ones((1, 1)), True, []),
        (jnp.ones((3, 3), jnp.complex64), True, []),
        (jnp.ones((4, 3), jnp.float8_e4m3fn), True, ["lost"]),
    ],
    ids=["empty", "scalar", "one number", "complex", "float8"],
)
def test_odd_leaf_is_measured(leaf, decays, more):
    params = {**PARAMS, "odd": {"kernel": leaf}}
    audit = bnmask.audit(adamw(None), params, bnmask.analyze_structure(params))
    assert kinds(audit) == ["everything_decayed", *more]
    assert ("odd/kernel" in audit.decayed) == decays


def test_leaf_of_integers_is_no_obstacle():
    params = {**PARAMS, "odd": {"steps": jnp.zeros(4, jnp.int32)}}
    analysis = bnmask.analyze_structure(params)
    audit = bnmask.audit(adamw(analysis.decay_mask()), params, analysis)
    assert audit.decayed == set(MASK.decayed)


def huge():
    def shape(*sizes):
        return jax.ShapeDtypeStruct(sizes, jnp.float32)

    params = {"head": {"kernel": shape(50_000, 20_000)}, "norm": {"scale": shape(20_000)}}
    return params, bnmask.analyze_structure(params)


def multiplied(factor):
    """Decay by a factor that is 0 for some sizes, so that the program of the update is the same."""
    return optax.chain(
        optax.sgd(RATE), optax.stateless_with_tree_map(lambda u, p: u - factor(p) * p)
    )


@pytest.mark.parametrize(
    "tx",
    [
        multiplied(lambda p: 0.01 if p.size > 10**6 else 0.0),
        multiplied(lambda p: jnp.where(p.size > 10**6, 0.01, 0.0)),
        multiplied(lambda p: np.full(p.shape[-1], 0.01 * (p.size > 10**6), np.float32)),
        adamw(by_leaf(lambda leaf: leaf.shape[0] > 30_000)),
    ],
    ids=["number", "where", "array", "mask"],
)
def test_decay_by_size_of_huge_leaves_is_undetermined_and_nothing_else(tx):
    assert kinds(bnmask.audit(tx, *huge())) == ["undetermined"]


def test_muon_of_huge_leaves_is_audited_on_small_ones_of_the_same_proportions():
    params, analysis = huge()
    tx = contrib.muon(RATE, weight_decay=DECAY, adam_weight_decay=DECAY)
    assert kinds(bnmask.audit(tx, params, analysis)) == ["everything_decayed"]


STRETCHED = {"LAMB": (optax.lamb, "mask"), "LARS": (optax.lars, "weight_decay_mask")}


@pytest.mark.parametrize("name", STRETCHED)
def test_rates_behind_a_trust_ratio_are_in_proportion_to_the_decay(name):
    make, mask = STRETCHED[name]
    decays = np.array([1e-6, 1e-4, 1e-2])
    rates = [
        bnmask.audit(make(RATE, weight_decay=decay, **{mask: MASK}), PARAMS, ANALYSIS).rates
        for decay in decays
    ]
    np.testing.assert_allclose(
        [each["dense/kernel"] for each in rates],
        decays * rates[0]["dense/kernel"] / 1e-6,
        rtol=0.01,
    )
    assert {each["norm/scale"] for each in rates} == {0.0}


SMALL = [(), (1,), (2,), (3,), (1, 1), (2, 1), (3, 1), (3, 3), (3, 3, 3, 16), (3, 3, 3, 3, 3)]


@pytest.mark.parametrize("size", ["real", "large"])
def test_rates_behind_a_trust_ratio_are_alike_whatever_the_shape(size):
    params = {f"x{i}": {"kernel": jnp.ones(shape)} for i, shape in enumerate([*SMALL, (16, 8)])}
    if size == "large":  # which small ones stand in for
        params["table"] = {"kernel": jax.ShapeDtypeStruct((30522, 768), jnp.float32)}
        params["bias"] = {"kernel": jax.ShapeDtypeStruct((768,), jnp.float32)}
    found = bnmask.audit(
        optax.lamb(RATE, weight_decay=DECAY), params, bnmask.analyze_structure(params), exempt=()
    )
    assert "unequal_rates" not in kinds(found)
    np.testing.assert_allclose(list(found.rates.values()), RATE * DECAY, rtol=0.1)


def test_what_grows_with_its_leaf_is_not_said_to_be_divided():
    tx = optax.chain(adamw(MASK), optax.scale_by_param_block_rms())
    (found,) = bnmask.audit(tx, PARAMS, ANALYSIS).findings
    assert found.kind == "coupled"
    assert "multiplied with their size" in found.message


def test_groups_of_one_trust_ratio_that_decay_apart_are_named():
    params = {"a": {"kernel": jnp.ones((4, 3))}, "b": {"kernel": jnp.ones((6, 5))}}
    labels = {"a": {"kernel": "strong"}, "b": {"kernel": "weak"}}
    groups = {
        "strong": optax.lamb(RATE, weight_decay=DECAY),
        "weak": optax.lamb(RATE, weight_decay=DECAY / 100),
    }
    analysis = bnmask.analyze_structure(params)
    (found,) = bnmask.audit(optax.partition(groups, labels), params, analysis).findings
    assert (found.kind, found.paths) == ("unequal_rates", ("b/kernel",))
    assert bnmask.audit(groups["strong"], params, analysis).findings == ()


def after_adamw(rule):
    """AdamW, and a function of the update of the kernel."""

    def update(updates, params):
        del params
        return {
            **updates,
            "dense": {**updates["dense"], "kernel": rule(updates["dense"]["kernel"])},
        }

    return optax.chain(adamw(MASK), optax.stateless(update))


EYE = jnp.eye(4)
OF_ONE_WIDTH = {
    "rows that are scaled": lambda u: u.at[0].multiply(1.0),
    "rows that are added": lambda u: u.at[0].add(0.0),
    "sums of segments": lambda u: jax.ops.segment_sum(u, jnp.arange(4), 4),
    "a linear solve": lambda u: jnp.linalg.solve(2 * EYE, 2 * u),
    "an inverse": lambda u: jnp.linalg.inv(2 * EYE) @ (2 * u),
    "Cholesky": lambda u: jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(EYE), u),
    "an exponential of a matrix": lambda u: jax.scipy.linalg.expm(0 * EYE) @ u,
    "a reduction of its own": lambda u: u + 0 * lax.reduce(u, jnp.float32(0), lax.add, (0, 1)),
    "a histogram": lambda u: u + 0 * jnp.histogram(u)[0][0],
}


@pytest.mark.parametrize("name", OF_ONE_WIDTH)
def test_operations_that_hold_a_program_of_one_width_are_seen_through(name):
    audit = bnmask.audit(after_adamw(OF_ONE_WIDTH[name]), PARAMS, ANALYSIS)
    assert audit.findings == ()
    np.testing.assert_allclose(audit.rates["dense/kernel"], RATE * DECAY, rtol=1e-5)


@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_an_inverted_mask_is_named_however_often_its_blocks_repeat(blocks):
    params = {f"block{i}": {**PARAMS, "n{}": PARAMS["norm"]} for i in range(blocks)}
    analysis = bnmask.analyze_structure(params)
    (found,) = bnmask.audit(adamw(~analysis.decay_mask()), params, analysis).findings
    assert found.kind == "inverted"
    assert "n{}" in found.message


def test_a_soft_threshold_is_not_called_a_penalty_behind_adam():
    pull = optax.stateless(lambda u, p: jax.tree.map(lambda u, p: u + DECAY * jnp.sign(p), u, p))
    tx = optax.chain(optax.scale_by_adam(), optax.masked(pull, MASK), optax.scale(-RATE))
    (found,) = bnmask.audit(tx, PARAMS, ANALYSIS).findings
    assert found.kind == "coupled"
    assert "soft threshold" in found.message


def test_params_that_are_clipped_to_a_small_range_are_not_erased():
    clip = by_leaf(lambda u, p: jnp.clip(p + u, -0.01, 0.01) - p)
    tx = optax.chain(optax.rmsprop(5e-5), optax.stateless(clip))
    (found,) = bnmask.audit(tx, PARAMS, ANALYSIS).findings
    assert found.kind == "nothing_decayed"
