"""True claims that are hard to see, and false ones that are easy to miss, a kind at a time."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import optax_bnmask as bnmask


@pytest.fixture(autouse=True)
def _as_users_have_it():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def normal(seed, *shape, size=1.0):
    return jnp.asarray(size * np.random.default_rng(seed).normal(size=shape), jnp.float32)


def layer_norm(z, eps=0.0):
    z = z - z.mean(-1, keepdims=True)
    return z * lax.rsqrt((z * z).mean(-1, keepdims=True) + eps)


def batch_norm(z, eps=1e-5):
    return (z - z.mean(0)) * lax.rsqrt(z.var(0) + eps)


def rms(z, eps=1e-6):
    return z * lax.rsqrt((z * z).mean(-1, keepdims=True) + eps)


def verified(fn, params, *args, seed=0, **kwargs):
    analysis = bnmask.analyze(fn, params, *args, **kwargs)
    return bnmask.verify(analysis, fn, params, *args, key=jax.random.key(seed), **kwargs)


def refuse(right, wrong, params, *args, seed=0, match="changes them by"):
    """The claims made of one function are false of another."""
    analysis = bnmask.analyze(right, params, *args)
    assert "invariant" in {leaf.scale for leaf in analysis.leaves}
    with pytest.raises(bnmask.VerificationError, match=match):
        bnmask.verify(analysis, wrong, params, *args, key=jax.random.key(seed))


W, X = {"w": normal(1, 4, 5)}, normal(2, 6, 4)
TOKENS = jnp.arange(8)[None]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("norm", [rms, layer_norm])
def test_a_symmetry_that_shrinks_a_tied_table_holds(dtype, norm):
    def tied(p, tokens):
        table = p["table"].astype(dtype)
        h = norm(table[tokens].astype(jnp.float32), 1e-6).astype(dtype) * p["gain"].astype(dtype)
        return (h @ table.T).astype(jnp.float32)

    params = {"table": normal(1, 32, 16, size=0.02), "gain": jnp.ones(16)}
    assert bnmask.analyze(tied, params, TOKENS).symmetries
    assert verified(tied, params, TOKENS).error <= 1e-8


@pytest.mark.parametrize("eps", [0.0, 1e-8, 1e-5, 1e-3])
def test_a_constant_before_a_norm_is_no_epsilon(eps):
    shift = normal(3, 6, 5, size=0.01)

    def right(p, x):
        return layer_norm(x @ p["w"], eps)

    def wrong(p, x):
        return layer_norm(x @ p["w"] + shift, eps)

    refuse(right, wrong, W, X)


def test_a_constant_as_small_as_the_epsilon_but_elsewhere_is_none():
    def right(p, x):
        return layer_norm(x @ p["w"], 1e-3)

    def wrong(p, x):
        z = x @ p["w"] + 1e-3
        return layer_norm(z * z, 1e-3)[:, :1] + layer_norm(x @ p["w"], 1e-3)

    refuse(right, wrong, W, X)


def test_a_joint_group_is_weak_beside_a_large_epsilon_and_only_there():
    def fn(eps):
        return lambda p, x: layer_norm(x @ p["w"] + jnp.tanh(x) @ p["v"], eps)

    small = {"w": normal(1, 4, 5, size=0.01), "v": normal(3, 4, 5, size=0.01)}
    (weak,) = verified(fn(1e-3), small, X).weak
    assert {weak.path, *weak.others} == {"v", "w"}
    assert "0.001 in `add` is not negligible" in str(weak)
    assert verified(fn(1e-6), {"w": normal(1, 4, 5), "v": normal(3, 4, 5)}, X).ok


def test_the_epsilon_that_is_small_enough_is_not_blamed():
    def fn(p, x):
        return layer_norm(jnp.tanh(layer_norm(x @ p["w"], 1e-8)) @ p["v"], 5e-4)

    (weak,) = verified(fn, {"w": normal(1, 4, 5), "v": normal(3, 5, 5, size=0.01)}, X).weak
    assert weak.path == "v"
    assert "0.0005" in weak.because
    assert "1e-08" not in weak.because


@pytest.mark.parametrize("fill", [-1e9, -jnp.inf, float(jnp.finfo(jnp.float32).min)])
@pytest.mark.parametrize("way", ["chosen", "added"])
def test_masked_logits_hide_nothing(fill, way):
    mask, params = jnp.array([True, True, True, False]), W | {"head": normal(3, 5, 4)}

    def masked(inner):
        def fn(p, x):
            logits = inner(jax.nn.relu(x @ p["w"])) @ p["head"]
            if way == "chosen":
                return jnp.where(mask, logits, fill)
            return logits + jnp.where(mask, 0.0, fill)

        return fn

    refuse(masked(layer_norm), masked(jnp.tanh), params, X)
    assert verified(masked(layer_norm), params, X).invariant == 1


def test_a_last_cast_hides_nothing():
    def end(y):
        return y.astype(jnp.bfloat16).astype(jnp.float32)

    def wrong(p, x):
        return end(layer_norm(x @ p["w"]) + 1e-3 * jnp.tanh(x @ p["w"]))

    refuse(lambda p, x: end(layer_norm(x @ p["w"])), wrong, W, X)


@pytest.mark.parametrize("seed", range(3))
def test_two_indices_of_many_that_are_not_free_are_named(seed):
    def alone(z):
        return z / jnp.linalg.norm(z, axis=0, keepdims=True)

    def wrong(p, x):
        z = x @ p["w"]
        return jnp.concatenate([alone(z[:, :62]), z[:, 62:] / jnp.linalg.norm(z[:, 62:])], 1)

    refuse(lambda p, x: alone(x @ p["w"]), wrong, {"w": normal(1, 4, 64)}, X, seed=seed,
           match=r"Scaling ind(ex|ices) 6[23].* of axis 1 of 'w'")  # fmt: skip


def test_many_layers_before_one_norm_overflow_nothing():
    def fn(p, x):
        for i in range(10):
            x = jax.nn.relu(x @ p[f"w{i}"])
        return layer_norm(x, 1e-6)

    params = {f"w{i}": normal(i, 4 if i == 0 else 8, 8, size=0.5) for i in range(10)}
    assert verified(fn, params, jnp.abs(X)).invariant == 10


def test_layers_in_float16_overflow_nothing():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            for _ in range(6):
                x = nn.relu(nn.Dense(8, use_bias=False, dtype=jnp.float16)(x))
            return nn.LayerNorm(dtype=jnp.float16)(x)

    variables = Net().init(jax.random.key(0), X)
    found = bnmask.verify_linen(Net(), variables, X, key=jax.random.key(1))
    assert (found.invariant, found.dtype) == (6, "float64")


MLP = {"w": normal(1, 3, 8), "g": normal(2, 8), "b": normal(3, 8), "v": normal(4, 8, 4),
       "c": normal(5, 4), "d": normal(6, 4)}  # fmt: skip


def mlp(p, x):
    z = jax.nn.relu(batch_norm(x @ p["w"]) * p["g"] + p["b"])
    return batch_norm(z @ p["v"]) * p["c"] + p["d"]


@pytest.mark.parametrize(
    ("x", "said"),
    [
        (jnp.ones((4, 3)), "all 1.0"),
        (jnp.zeros((16, 3)), "all 0.0"),
        (jnp.tile(normal(7, 1, 3), (6, 1)), "6 equal examples"),
        (normal(7, 1, 3), "a single example"),
    ],
)
def test_examples_that_are_all_equal_are_named_and_make_no_bias_dead(x, said):
    found = verified(mlp, MLP, x)
    assert found.dead_biases == ()
    assert f"'0' ({said})" in found.notes[0]
    assert "Give examples that differ" in found.notes[0]


def test_a_constant_mask_beside_examples_that_differ_is_not_named():
    found = verified(lambda p, x, mask: mlp(p, x) * mask, MLP, normal(7, 16, 3), jnp.ones((16, 4)))
    assert found.notes == ()


def test_a_false_claim_on_equal_examples_is_refused_without_calling_it_a_bug():
    ones = jnp.ones((6, 4))
    analysis = bnmask.analyze(lambda p, x: layer_norm(x @ p["w"]), W, ones)
    with pytest.raises(bnmask.VerificationError, match="On these inputs little can be") as said:
        bnmask.verify(analysis, lambda p, x: x @ p["w"], W, ones, key=jax.random.key(0))
    assert "report it" not in str(said.value)


def test_a_bias_after_one_step_of_training_is_not_dead_and_one_before_a_mean_is():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.BatchNorm(use_running_average=False)(nn.Conv(4, (3, 3))(x)))
            return nn.Dense(5)(x.mean((1, 2)))

    x = normal(1, 8, 8, 8, 3)
    variables = Net().init(jax.random.key(0), x)
    params, stats = variables["params"], variables["batch_stats"]

    def fn(p, x):
        return Net().apply({"params": p, "batch_stats": stats}, x, mutable=["batch_stats"])[0]

    def loss(p):
        return optax.softmax_cross_entropy_with_integer_labels(fn(p, x), jnp.arange(8) % 5).mean()

    tx = optax.adam(1e-3)
    updates, _ = tx.update(jax.grad(loss)(params), tx.init(params))
    params = optax.apply_updates(params, updates)
    found = bnmask.verify(
        bnmask.analyze_linen(Net(), variables, x), fn, params, x, key=jax.random.key(2)
    )
    assert found.dead_biases == ("Conv_0/bias",)


def test_a_key_of_the_functions_own_is_given_to_it():
    def fn(p, x, *, key):
        return layer_norm(x @ p["w"]) * jax.random.normal(key, (5,))

    analysis = bnmask.analyze(fn, W, X, key=jax.random.key(3))
    assert bnmask.verify(analysis, fn, W, X, key=jax.random.key(3)).ok


def test_what_the_analysis_set_apart_stays_apart():
    def fn(p, x):
        return layer_norm(x @ p["w"]), p["w"].sum()

    analysis = bnmask.analyze(fn, W, X, has_aux=True)
    assert bnmask.verify(analysis, fn, W, X, key=jax.random.key(0)).invariant == 1
    with pytest.raises(bnmask.VerificationError, match="Scaling 'w' changes them by"):
        bnmask.verify(analysis, fn, W, X, key=jax.random.key(0), has_aux=False)


def test_loops_and_branches_are_computed_in_double_precision_too():
    def fn(p, x):
        def step(h, w):
            h = layer_norm(h @ w, 1e-5)
            return lax.cond(h[0, 0] > 0, jnp.tanh, jnp.sin, h), None

        h = lax.scan(step, x, p["w"])[0]
        return lax.while_loop(
            lambda s: s[0] < 2, lambda s: (s[0] + 1, layer_norm(s[1], 1e-5)), (0, h)
        )[1]

    found = verified(fn, {"w": normal(1, 3, 4, 4)}, X)
    assert (found.invariant, found.axes, found.dtype) == (1, 1, "float64")
    assert found.error <= 1e-8


def pooled(x, window):
    """The largest of some neighbours, by a function of the program's own, so that JAX keeps it."""
    return lax.reduce_window(x, -jnp.inf, jnp.maximum, (1, window), (1, 1), "SAME")


def smallest(x):
    return lax.reduce(x, jnp.inf, jnp.minimum, (1,))


@pytest.mark.parametrize(
    "fn", [lambda p, x: pooled(rms(x @ p["w"]), 3), lambda p, x: smallest(rms(x @ p["w"]))]
)
def test_reductions_by_functions_of_the_programs_own_are_computed_in_double_precision(fn):
    found = verified(fn, W, X)
    assert (found.dtype, found.invariant, found.unseen) == ("float64", 1, ())


def test_a_branch_that_is_taken_at_the_own_parameters_alone_is_looked_at():
    def branching(p, x, *, otherwise):
        z, is_small = x @ p["v"], jnp.abs(p["w"]).max() < 1e-2  # as at no others
        return lax.cond(is_small, lambda: otherwise(z), lambda: rms(z)) @ p["head"]

    params = {"w": jnp.zeros(4), "v": normal(2, 4, 5), "head": normal(3, 5, 2)}
    refuse(
        lambda p, x: branching(p, x, otherwise=rms),
        lambda p, x: branching(p, x, otherwise=jnp.tanh),
        params,
        X,
    )
