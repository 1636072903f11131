"""A numeric certificate: true claims pass, false ones are named, and what is weak is said."""

import dataclasses
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_bnmask as bnmask

KEY = jax.random.key(0)


def normed(x, eps):
    return (x - x.mean(0, keepdims=True)) / jnp.sqrt(x.var(0, keepdims=True) + eps)


def conv_bn(p, x, eps=1e-5):
    z = normed(x @ p["dense"]["kernel"] + p["dense"]["bias"][None], eps)
    z = jax.nn.relu(z * p["bn"]["scale"][None] + p["bn"]["bias"][None])
    return z @ p["head"]["kernel"]


def params(size=1.0):
    rng = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape) * size, jnp.float32)

    return {
        "dense": {"kernel": normal(3, 8), "bias": jnp.zeros(8)},
        "bn": {"scale": jnp.zeros(8), "bias": jnp.zeros(8)},
        "head": {"kernel": normal(8, 2)},
    }


@pytest.fixture(scope="module")
def x():
    return jax.random.normal(jax.random.key(1), (16, 3))


def test_true_claims_are_certified_in_double_precision(x):
    p = params()
    found = bnmask.verify(bnmask.analyze(conv_bn, p, x), conv_bn, p, x, key=KEY)
    assert found.dtype == "float64"
    assert found.error < found.tolerance == 1e-8
    assert found.invariant == 2
    assert found.axes == 2


def test_zero_gains_hide_nothing(x):
    p = params()
    found = bnmask.verify(bnmask.analyze(conv_bn, p, x), conv_bn, p, x, key=KEY)
    assert found.possibly_missed == ()
    assert "All outputs are 0 at `params`" in found.notes[0]


def test_dead_biases_are_named(x):
    p = params()
    found = bnmask.verify(bnmask.analyze(conv_bn, p, x), conv_bn, p, x, key=KEY)
    assert found.dead_biases == ("dense/bias",)


def test_shapes_alone_will_do():
    abstract = jax.eval_shape(params)
    x = jax.ShapeDtypeStruct((16, 3), jnp.float32)
    found = bnmask.verify(bnmask.analyze(conv_bn, abstract, x), conv_bn, abstract, x, key=KEY)
    assert found.ok
    assert "known by shape only" in found.notes[0]


def test_an_epsilon_that_is_not_small_makes_an_invariance_weak(x):
    p = params(size=0.01)
    p["bn"]["scale"] = jnp.ones(8)

    def fn(p, x):
        return conv_bn(p, x, eps=5e-4)

    found = bnmask.verify(bnmask.analyze(fn, p, x), fn, p, x, key=KEY)
    (weak,) = found.weak
    assert weak.path == "dense/kernel"
    assert weak.change > 0.1
    assert not found.ok
    assert "weak: doubling 'dense/kernel' moves the outputs by" in str(found)
    strong = {**p, "dense": {"kernel": 1e4 * p["dense"]["kernel"], "bias": jnp.zeros(8)}}
    assert bnmask.verify(bnmask.analyze(fn, strong, x), fn, strong, x, key=KEY).ok


def test_a_false_claim_about_a_leaf_is_named(x):
    p = params()
    analysis = bnmask.analyze(conv_bn, p, x)

    def unnormed(p, x):
        z = x @ p["dense"]["kernel"] + p["dense"]["bias"][None]
        z = jax.nn.relu(z * p["bn"]["scale"][None] + p["bn"]["bias"][None])
        return z @ p["head"]["kernel"]

    with pytest.raises(bnmask.VerificationError, match=r"Scaling 'dense/bias' .*changes them by"):
        bnmask.verify(analysis, unnormed, p, x, key=KEY)


def test_a_nonlinearity_that_saturates_is_no_invariance(x):
    p = params()
    analysis = bnmask.analyze(conv_bn, p, x)

    def saturated(p, x):
        z = jnp.tanh(x @ p["dense"]["kernel"] + p["dense"]["bias"][None])
        z = jax.nn.relu(z * p["bn"]["scale"][None] + p["bn"]["bias"][None])
        return z @ p["head"]["kernel"]

    with pytest.raises(bnmask.VerificationError, match=r"Scaling 'dense/bias' .*changes them by"):
        bnmask.verify(analysis, saturated, p, x, key=KEY)


def test_a_false_symmetry_is_named(x):
    p = params()
    analysis = bnmask.analyze(conv_bn, p, x)
    false = dataclasses.replace(
        analysis, symmetries=(*analysis.symmetries, {"head/kernel": Fraction(1)})
    )
    with pytest.raises(bnmask.VerificationError, match="'head/kernel': 1"):
        bnmask.verify(false, conv_bn, p, x, key=KEY)


def test_a_false_axis_is_named(x):
    p = params()
    analysis = bnmask.analyze(conv_bn, p, x)
    leaves = tuple(
        dataclasses.replace(leaf, invariant_axes=(0, 1)) if len(leaf.shape) == 2 else leaf
        for leaf in analysis.leaves
    )
    with pytest.raises(bnmask.VerificationError, match="axis 0 of 'dense/kernel'"):
        bnmask.verify(dataclasses.replace(analysis, leaves=leaves), conv_bn, p, x, key=KEY)


def test_what_an_analysis_did_not_claim_is_possibly_missed(x):
    p = {"w": jnp.ones((3, 8))}

    def quotient(p, x):  # a row's direction, through logarithms that no degree passes
        y = x @ p["w"] + jnp.cumsum(x, axis=1) @ p["w"][::-1]
        size = jnp.exp(0.5 * jnp.log(jnp.sum(y * y, axis=1)))
        return y / size[:, None]

    analysis = bnmask.analyze(quotient, p, x)
    assert analysis["w"].scale is bnmask.Scale.SENSITIVE
    assert bnmask.verify(analysis, quotient, p, x, key=KEY).possibly_missed == ("w",)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_a_function_is_computed_in_double_precision_whatever_it_computes_in(x, dtype):
    p = params()

    def low(p, x):
        return conv_bn(jax.tree.map(lambda v: v.astype(dtype), p), x.astype(dtype))

    found = bnmask.verify(bnmask.analyze(low, p, x), low, p, x, key=KEY)
    assert found.dtype == "float64"
    assert found.error < found.tolerance == 1e-8


def test_what_cannot_be_opened_sets_the_tolerance_and_is_told_of(x):
    p = params()

    def called_back(p, x):
        shape = jax.ShapeDtypeStruct((16, 2), jnp.float32)
        return jax.pure_callback(np.tanh, shape, conv_bn(p, x), vmap_method="sequential")

    found = bnmask.verify(bnmask.analyze(called_back, p, x), called_back, p, x, key=KEY)
    assert found.dtype == "float32"
    assert found.error < found.tolerance < 1e-3
    assert "could not be computed in float64 but only in float32" in found.notes[0]


def test_double_precision_does_not_leak(x):
    p = params()
    bnmask.verify(bnmask.analyze(conv_bn, p, x), conv_bn, p, x, key=KEY)
    assert not jax.config.jax_enable_x64
    assert jnp.ones(1).dtype == jnp.float32


def test_outputs_that_are_not_finite_are_an_error(x):
    p = params()

    def undefined(p, x):
        return conv_bn(p, x) + jnp.log(-jnp.abs(x[:, :1]))

    with pytest.raises(bnmask.VerificationError, match="must be finite"):
        bnmask.verify(bnmask.analyze(undefined, p, x), undefined, p, x, key=KEY)


def test_structure_alone_cannot_be_verified(x):
    p = params()
    with pytest.raises(bnmask.StructureError, match="proved from a program"):
        bnmask.verify(bnmask.analyze_structure(p), conv_bn, p, x, key=KEY)


def test_other_params_than_those_analysed_are_an_error(x):
    p = params()
    analysis = bnmask.analyze(conv_bn, p, x)
    with pytest.raises(bnmask.StructureError, match="must be those of `analysis`"):
        bnmask.verify(analysis, conv_bn, {"w": p["head"]["kernel"]}, x, key=KEY)


def test_parameters_drawn_with_the_same_seed_are_not_drawn_again(x):
    p = {"w": jnp.asarray(np.random.default_rng(0).normal(size=(3, 8)), jnp.float32)}

    def fn(p, x):
        return jnp.tanh(normed(x @ p["w"], 1e-5))

    assert bnmask.verify(bnmask.analyze(fn, p, x), fn, p, x, key=jax.random.key(0)).ok


def test_what_is_divided_over_devices_is_opened(x):
    mesh = jax.make_mesh((4,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    split, whole = jax.sharding.PartitionSpec("d"), jax.sharding.PartitionSpec()

    def one(w, x):
        z = x @ w
        mean = jax.lax.pmean(z.mean(0, keepdims=True), "d")
        var = jax.lax.pmean(jnp.square(z).mean(0, keepdims=True), "d") - jnp.square(mean)
        return (z - mean) * jax.lax.rsqrt(var + 1e-5)

    def fn(p, x):
        return jax.shard_map(one, mesh=mesh, in_specs=(whole, split), out_specs=split)(p["w"], x)

    p = {"w": params()["dense"]["kernel"]}
    found = bnmask.verify(bnmask.analyze(fn, p, x), fn, p, x, key=KEY)
    assert found.ok
    assert (found.invariant, found.axes, found.dtype) == (1, 1, "float64")


@pytest.mark.parametrize("path", ["head/kernel", "bn/bias"])
def test_a_leaf_falsely_called_dead_is_named(x, path):
    p = params()
    analysis = bnmask.analyze(conv_bn, p, x)
    (why,) = (leaf.dead for leaf in analysis.leaves if leaf.path == "dense/bias")
    leaves = (
        dataclasses.replace(leaf, dead=why) if leaf.path == path else leaf
        for leaf in analysis.leaves
    )
    false = dataclasses.replace(analysis, leaves=tuple(leaves))
    with pytest.raises(bnmask.VerificationError, match=f"{path!r}, which it calls dead, change"):
        bnmask.verify(false, conv_bn, p, x, key=KEY)
    assert bnmask.verify(analysis, conv_bn, p, x, key=KEY).dead == 1


def test_what_travelled_without_its_program_is_not_called_structure(x):
    p = params()
    read = bnmask.Analysis.from_json(bnmask.analyze(conv_bn, p, x).to_json())
    with pytest.raises(bnmask.StructureError, match="hold what was found, and not the program"):
        bnmask.verify(read, conv_bn, p, x, key=KEY)


def test_a_claim_that_could_not_be_looked_at_is_not_among_those_that_hold(x):
    found = bnmask.verify(bnmask.analyze(conv_bn, params(), x), conv_bn, params(), x, key=KEY)
    partly = dataclasses.replace(found, unseen=("Scaling 'w'",))
    assert not partly.ok
    assert "all that could be looked at hold" in str(partly)
    assert "not looked at: Scaling 'w'" in str(partly)


@pytest.mark.parametrize("factor", [0, -1, "a", float("nan"), float("inf")])
def test_a_factor_is_a_positive_number(x, factor):
    p = params()
    with pytest.raises(TypeError, match="`factor` must be a positive number"):
        bnmask.verify(bnmask.analyze(conv_bn, p, x), conv_bn, p, x, key=KEY, factor=factor)


def test_it_is_no_part_of_a_compiled_program(x):
    p = params()
    analysis = bnmask.analyze(conv_bn, p, x)
    with pytest.raises(TypeError, match=r"call it outside of `jax\.jit`"):
        jax.jit(lambda p: bnmask.verify(analysis, conv_bn, p, x, key=KEY).error)(p)
