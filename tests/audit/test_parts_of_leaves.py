"""What an optimizer does to parts of leaves counts: layers of stacks, rows, parts of kernels."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_bnmask as bnmask
from optax_bnmask import VerificationError

RATE, DECAY, LAYERS = 1e-2, 0.1, 12
PARAMS = {
    "layers": {
        "kernel": jnp.ones((LAYERS, 8, 8)),
        "norm": {"scale": jnp.ones((LAYERS, 8))},
    },
    "table": {"embedding": jnp.ones((10, 8))},
    "head": {"kernel": jnp.ones((8, 9))},
}
ANALYSIS = bnmask.analyze_structure(PARAMS)
MASK = ANALYSIS.decay_mask()
PLACES = {
    "layers/kernel": ("layers", "kernel"),
    "layers/norm/scale": ("layers", "norm", "scale"),
    "table/embedding": ("table", "embedding"),
    "head/kernel": ("head", "kernel"),
}
FEW = {"two in the middle": [8, 9], "the first": [0], "the last": [11], "all but one": range(11)}

pytestmark = pytest.mark.usefixtures("optax_promotion")


def audited(tx):
    return bnmask.audit(tx, PARAMS, ANALYSIS)


def summary(audit):
    return [(found.severity, found.kind, found.paths) for found in audit.findings]


def ones_at(indices, axis, shape):
    """1 at some indices of an axis, 0 elsewhere, to be broadcast to a shape."""
    one = np.zeros(shape[axis], np.float32)
    one[list(indices)] = 1
    return one.reshape([-1 if a == axis else 1 for a in range(len(shape))])


def at(path, rule):
    """A transformation of the update of one leaf by ``rule(update, param)``."""

    def update(updates, params):
        flat = {tuple(key.key for key in keys): leaf for keys, leaf in leaves(params)}
        return jax.tree_util.tree_map_with_path(
            lambda keys, u: (
                rule(u, flat[PLACES[path]]) if tuple(key.key for key in keys) == PLACES[path] else u
            ),
            updates,
        )

    return optax.stateless(update)


def leaves(tree):
    return jax.tree_util.tree_leaves_with_path(tree)


def between(step):
    """AdamW with a step between its decay and its learning rate."""
    decay = optax.add_decayed_weights(DECAY, MASK)
    return optax.chain(optax.scale_by_adam(), decay, step, optax.scale(-RATE))


def adamw():
    return optax.adamw(RATE, weight_decay=DECAY, mask=MASK)


@pytest.mark.parametrize("few", FEW)
def test_rows_of_a_norm_that_decay_are_an_error(few):
    rows = ones_at(FEW[few], 0, (LAYERS, 8))
    audit = audited(between(at("layers/norm/scale", lambda u, p: u + DECAY * rows * p)))
    assert ("error", "norm_decayed", ("layers/norm/scale",)) in summary(audit)
    np.testing.assert_allclose(audit.rates["layers/norm/scale"], RATE * DECAY, rtol=1e-6)


@pytest.mark.parametrize("few", FEW)
@pytest.mark.parametrize("path", ["layers/norm/scale", "layers/kernel"])
def test_rows_that_grow_are_growth_whatever_the_others_do(few, path):
    shape = {"layers/norm/scale": (LAYERS, 8), "layers/kernel": (LAYERS, 8, 8)}[path]
    rows = 2 * ones_at(FEW[few], 0, shape)
    tx = between(at(path, lambda u, p: u - DECAY * rows * p))
    assert ("error", "growth", (path,)) in summary(audited(tx))
    assert audited(tx).rates[path] < 0
    with pytest.raises(VerificationError, match=f"'{path}' grows"):
        bnmask.assert_decays(tx, PARAMS, ANALYSIS)


@pytest.mark.parametrize("few", FEW)
def test_layers_of_a_stack_without_decay_are_named(few):
    rows = ones_at(FEW[few], 0, (LAYERS, 8, 8))
    tx = between(at("layers/kernel", lambda u, p: u - DECAY * (1 - rows) * p))
    assert summary(audited(tx)) == [("warning", "uneven_rates", ("layers/kernel",))]
    np.testing.assert_allclose(audited(tx).rates["layers/kernel"], RATE * DECAY, rtol=1e-6)


def test_a_part_of_a_fused_kernel_that_decays_is_named():
    values = ones_at([6, 7, 8], 1, (8, 9))
    tx = between(at("head/kernel", lambda u, p: u - DECAY * (1 - values) * p))
    (found,) = audited(tx).findings
    assert (found.kind, found.paths) == ("uneven_rates", ("head/kernel",))
    assert "from 0 to 0.001" in found.message


def test_learning_rates_by_layer_of_a_stack_are_proportional():
    rates = (0.8 ** np.arange(LAYERS - 1, -1, -1, dtype=np.float32)).reshape(-1, 1, 1)
    (found,) = audited(optax.chain(adamw(), at("layers/kernel", lambda u, _: u * rates))).findings
    assert (found.kind, found.paths) == ("uneven_rates", ("layers/kernel",))
    assert "from 8.59e-05 to 0.001" in found.message


def test_rows_whose_gradient_alone_is_masked_are_erased():
    new = ones_at([8, 9], 0, (10, 8))
    masked = at("table/embedding", lambda u, _: u * new)
    (found,) = audited(optax.chain(masked, adamw())).findings
    assert (found.severity, found.kind) == ("error", "erased")
    assert found.paths == ("table/embedding",)
    assert summary(audited(optax.chain(adamw(), masked))) == []


def test_single_entries_whose_gradient_is_masked_are_a_warning():
    kept = np.asarray(np.random.default_rng(3).random((8, 9)) < 0.1, np.float32)
    pruned = at("head/kernel", lambda u, _: u * kept)
    (found,) = audited(optax.chain(pruned, adamw())).findings
    assert (found.severity, found.kind, found.paths) == ("warning", "erased", ("head/kernel",))


def test_gradients_that_are_dropped_for_being_small_erase_nothing():
    largest = at(
        "head/kernel", lambda u, _: jnp.where(jnp.abs(u) >= jnp.quantile(jnp.abs(u), 0.9), u, 0)
    )
    assert summary(audited(optax.chain(largest, adamw()))) == []


def largest_rows(u, _):
    sizes = jnp.linalg.norm(u.reshape(len(u), -1), axis=1)
    return jnp.where((sizes >= jnp.median(sizes)).reshape((-1,) + (1,) * (u.ndim - 1)), u, 0)


def largest_of_each_row(u, _):
    return jnp.where(jnp.abs(u) >= jnp.median(jnp.abs(u), axis=-1, keepdims=True), u, 0)


@pytest.mark.parametrize("rule", [largest_rows, largest_of_each_row])
@pytest.mark.parametrize("path", ["layers/kernel", "table/embedding", "head/kernel"])
def test_rows_of_which_the_smallest_gradients_are_dropped_are_not_erased(rule, path):
    assert summary(audited(optax.chain(at(path, rule), adamw()))) == []


def by_turns(path):
    """Rows whose number is even in one step, odd in the next."""

    def update(updates, count, params):
        rows = jnp.arange(LAYERS) % 2 == count % 2
        step = at(path, lambda u, _: u * rows.reshape((-1,) + (1,) * (u.ndim - 1)))
        return step.update(updates, step.init(params), params)[0], count + 1

    return optax.GradientTransformation(lambda _: jnp.zeros((), jnp.int32), update)


def test_layers_that_are_updated_by_turns_decay_alike():
    audit = audited(optax.chain(adamw(), by_turns("layers/kernel")))
    assert summary(audit) == []
    np.testing.assert_allclose(audit.rates["layers/kernel"], RATE * DECAY, rtol=1e-6)


def lamb(step):
    decay = optax.add_decayed_weights(DECAY, MASK)
    ratio = optax.scale_by_trust_ratio()
    return optax.chain(optax.scale_by_adam(), decay, step, ratio, optax.scale(-RATE))


def test_layers_behind_a_trust_ratio_are_told_apart():
    rows = ones_at([8, 9], 0, (LAYERS, 8, 8))
    few = lamb(at("layers/kernel", lambda u, p: u - DECAY * (1 - rows) * p))
    assert summary(audited(few)) == [("warning", "uneven_rates", ("layers/kernel",))]
    grows = audited(lamb(at("layers/kernel", lambda u, p: u - 2 * DECAY * rows * p)))
    assert summary(grows) == [("error", "growth", ("layers/kernel",))]
    np.testing.assert_allclose(grows.rates["layers/kernel"], -RATE * DECAY, rtol=0.02)
    np.testing.assert_allclose(grows.rates["table/embedding"], RATE * DECAY, rtol=0.02)


def test_rows_behind_a_trust_ratio_whose_gradient_alone_is_masked_are_erased():
    new = ones_at([8, 9], 0, (10, 8))
    masked = at("table/embedding", lambda u, _: u * new)
    tx = optax.chain(masked, optax.lamb(RATE, weight_decay=DECAY, mask=MASK))
    assert summary(audited(tx)) == [("error", "erased", ("table/embedding",))]


def test_layers_that_grow_only_under_a_gradient_are_growth():
    rows = 2 * ones_at([8, 9], 0, (LAYERS, 8, 8))
    inner = between(at("layers/kernel", lambda u, p: u - DECAY * rows * p))

    def update(updates, state, params):
        made, state = inner.update(updates, state, params)
        lazy = jax.tree.map(
            lambda m, u: m * jnp.any(u != 0, tuple(range(1, u.ndim)), keepdims=True), made, updates
        )
        return lazy, state

    found = audited(optax.GradientTransformation(inner.init, update))
    assert summary(found) == [("error", "growth", ("layers/kernel",))]
    np.testing.assert_allclose(found.rates["table/embedding"], RATE * DECAY, rtol=1e-6)


def test_one_layer_that_decays_faster_is_named_and_not_the_healthy_leaves():
    rows = 9 * ones_at([8], 0, (LAYERS, 8, 8))
    tx = between(at("layers/kernel", lambda u, p: u + DECAY * rows * p))
    assert summary(audited(tx)) == [("warning", "uneven_rates", ("layers/kernel",))]
