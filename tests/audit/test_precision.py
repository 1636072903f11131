"""A decay that a dtype rounds away is lost, unless what is rounded away is kept somewhere."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_bnmask as bnmask

RATE, DECAY = 1e-3, 0.1
PARAMS = {
    "head": {"kernel": jnp.ones((5, 4)), "bias": jnp.ones(4)},
    "tail": {"kernel": jnp.ones((4, 2))},
    "norm": {"scale": jnp.ones(4)},
}
WEIGHTS = {"head/kernel", "tail/kernel"}
MASK = bnmask.analyze_structure(PARAMS).decay_mask(exempt=bnmask.STANDARD)

pytestmark = pytest.mark.usefixtures("optax_promotion")


def cast(dtype):
    return jax.tree.map(lambda leaf: leaf.astype(dtype), PARAMS)


def summary(tx, dtype=jnp.bfloat16):
    params = cast(dtype)
    audit = bnmask.audit(tx, params, bnmask.analyze_structure(params))
    return [(found.severity, found.kind, set(found.paths)) for found in audit.findings]


def adamw(rate=RATE):
    return optax.adamw(rate, weight_decay=DECAY, mask=MASK)


def zipped(rule, *trees):
    """A rule with two results for each leaf, as two trees."""
    made = jax.tree.map(rule, *trees)
    return jax.tree.transpose(jax.tree.structure(trees[0]), jax.tree.structure((0, 0)), made)


def in_float32(tree):
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree)


def averaged(tx):
    """With an average of the params in float32 beside them, which no update reads."""

    def update(updates, average, params):
        new = jax.tree.map(lambda a, p, u: 0.999 * a + 0.001 * (p + u), average, params, updates)
        return updates, in_float32(new)

    return optax.chain(tx, optax.GradientTransformation(in_float32, update))


def with_start(tx):
    """With a copy of the first params in float32."""
    return optax.chain(tx, optax.GradientTransformation(in_float32, lambda u, s, _: (u, s)))


def compensated(tx):
    """With a running sum of what was rounded away (Kahan)."""

    def init(params):
        return tx.init(params), jax.tree.map(jnp.zeros_like, params)

    def rounded(step, left, param):
        new = param + step + left
        return new - param, step + left - (new - param)

    def update(updates, state, params):
        inner, left = state
        updates, inner = tx.update(updates, inner, params)
        updates, left = zipped(rounded, updates, left, params)
        return updates, (inner, left)

    return optax.GradientTransformation(init, update)


def mastered(rate):
    """On a copy of the params in float32, from which they are rounded in each step."""

    def update(updates, master, params):
        new = jax.tree.map(
            lambda m, u, d: m * (1 - rate * d) - RATE * u, master, updates, MASK(params)
        )
        return jax.tree.map(lambda n, p: n.astype(p.dtype) - p, new, params), new

    return optax.GradientTransformation(in_float32, update)


def rounding_at_random(tx):
    """With the last bits of the sum of param and update drawn, so that it is right on average."""

    def init(params):
        return tx.init(in_float32(params)), jax.random.key_data(jax.random.key(0))

    def update(updates, state, params):
        inner, key = state
        now, after = jax.random.split(jax.random.wrap_key_data(key))
        updates, inner = tx.update(in_float32(updates), inner, in_float32(params))

        def rounded(step, param):
            bits = jax.lax.bitcast_convert_type(param + step, jnp.uint32)
            bits += jax.random.bits(now, param.shape, jnp.uint32) & 0xFFFF
            new = jax.lax.bitcast_convert_type(bits & jnp.uint32(0xFFFF0000), jnp.float32)
            return (new - param).astype(jnp.bfloat16)

        updates = jax.tree.map(rounded, updates, in_float32(params))
        return updates, (inner, jax.random.key_data(after))

    return optax.GradientTransformation(init, update)


def arrives(tx, steps=2000):
    """Whether a kernel in bfloat16 has become smaller after steps without gradients."""
    params = cast(jnp.bfloat16)
    zero = jax.tree.map(jnp.zeros_like, params)

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(zero, state, params)
        return (optax.apply_updates(params, updates), state), None

    (last, _), _ = jax.lax.scan(step, (params, tx.init(params)), length=steps)
    return bool(jnp.all(last["head"]["kernel"] < 1))


LOST = {
    "AdamW": adamw(1e-4),
    "AdamW at a low rate": adamw(1e-7),
    "and an average in float32": averaged(adamw(1e-4)),
    "and the start in float32": with_start(adamw(1e-4)),
}
ARRIVES = {
    "a copy in float32": mastered(1e-5),
    "a running sum": compensated(adamw(1e-4)),
    "a high rate": adamw(0.5),
}


@pytest.mark.parametrize("name", LOST)
def test_decay_below_the_precision_of_a_leaf_is_lost(name):
    assert not arrives(LOST[name])
    assert summary(LOST[name]) == [("warning", "lost", WEIGHTS)]
    assert "low rate" in name or summary(LOST[name], jnp.float32) == []


def test_a_low_rate_that_something_keeps_is_not_called_lost():
    assert summary(mastered(1e-7)) == []
    assert summary(compensated(adamw(1e-6))) == []


def test_a_part_that_is_lost_counts():
    params = {"experts": {"kernel": jnp.ones((4, 8, 6), jnp.bfloat16)}}
    rates = jnp.array([1e-5, 0.5, 1e-5, 1e-5], jnp.float32)[:, None, None]
    pull = optax.stateless(lambda u, p: jax.tree.map(lambda u, p: u + rates * p, u, p))
    tx = optax.chain(pull, optax.sgd(1.0))
    found = bnmask.audit(tx, params, bnmask.analyze_structure(params)).findings
    assert {each.kind for each in found} == {"lost", "uneven_rates"}


def test_a_rate_that_gradients_raise_is_not_called_lost():
    tx = optax.contrib.mechanize(adamw(RATE))
    assert "lost" not in [kind for _, kind, _ in summary(tx, jnp.float32)]


@pytest.mark.parametrize("name", ARRIVES)
def test_decay_that_adds_up_over_the_steps_is_not_lost(name):
    assert arrives(ARRIVES[name])
    assert summary(ARRIVES[name]) == []


def test_decay_that_is_rounded_at_random_cannot_be_told():
    params = {"wide": {"kernel": jnp.ones((32, 16), jnp.bfloat16)}}
    tx = rounding_at_random(optax.adamw(1e-4, weight_decay=DECAY))
    (found,) = bnmask.audit(tx, params, bnmask.analyze_structure(params)).findings
    assert (found.severity, found.kind) == ("error", "undetermined")
    assert "in rounding at random" in found.message


def test_rates_below_the_precision_are_shown_as_they_are():
    params = cast(jnp.bfloat16)
    audit = bnmask.audit(mastered(1e-5), params, bnmask.analyze_structure(params))
    np.testing.assert_allclose(audit.rates["head/kernel"], 1e-5, rtol=1e-6)
