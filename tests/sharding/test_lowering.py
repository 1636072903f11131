"""The training step, lowered for devices that this host has not: what the mask and we put there."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import optax_bnmask as bnmask
from tests.support.sharding.training import (
    ANALYSIS,
    AXES,
    BY_HAND,
    INVARIANT,
    LAYOUTS,
    MASK,
    OPTIMIZERS,
    adamw,
    batch,
    initial,
    shardings,
    stepper,
)

PLATFORMS = ("tpu", "cuda")
every_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)
every_platform = pytest.mark.parametrize("platform", PLATFORMS)


pytestmark = pytest.mark.usefixtures("optax_promotion")


def shapes(tx, dtype=jnp.float32, placed=lambda tree: tree):
    """Params, state, images and targets: nothing is allocated."""

    def make():
        return jax.tree.map(lambda leaf: leaf.astype(dtype), (initial(), *batch()))

    params, images, targets = placed(jax.eval_shape(make))
    return params, jax.eval_shape(tx.init, params), images, targets


def jitted(tx):
    """The step, whose params and state are donated, read or not."""
    return jax.jit(stepper(tx), donate_argnums=(0, 1), keep_unused=True)


def lowered(tx, *platforms, **how):
    """The StableHLO of the step."""
    traced = jitted(tx).trace(*shapes(tx, **how))
    return traced.lower(lowering_platforms=platforms).as_text()


def on_eight_devices(layout):
    """Puts the params' shapes on a mesh, and the batch's."""
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), AXES, axis_types=(AxisType.Auto,) * 2)
    by_data = NamedSharding(mesh, PartitionSpec("data"))

    def put(leaf, sharding):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    def placed(tree):
        params, *data = tree
        divided = jax.tree.map(put, params, shardings(mesh, layout, params))
        return divided, *(put(leaf, by_data) for leaf in data)

    return placed


def same_shapes(avals, tree):
    wanted = [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree)]
    return [(aval.shape, aval.dtype) for aval in avals] == wanted


def dtypes(module):
    """The dtypes of all arrays in a module."""
    return set(re.findall(r"tensor<(?:[\dx]*x)?([a-z]+\d+)", module))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@every_optimizer
def test_one_export_of_the_step_serves_tpu_and_cuda(name, dtype):
    tx = OPTIMIZERS[name]()
    arguments = shapes(tx, dtype)
    exported = jax.export.export(jitted(tx), platforms=PLATFORMS)(*arguments)
    assert exported.platforms == PLATFORMS
    params, state, *_ = arguments
    assert same_shapes(exported.in_avals, arguments)
    # Nothing changes its dtype from one step to the next.
    assert same_shapes(exported.out_avals, (params, state, jax.ShapeDtypeStruct((), dtype)))
    module = exported.mlir_module()
    assert "stablehlo.convolution" in module
    assert "custom_call" not in module  # nothing that only one platform has
    wide = {"f32", "bf16"} if dtype == jnp.bfloat16 else {"f32"}
    assert dtypes(module) & {"f16", "bf16", "f32", "f64"} == wide


@every_platform
@every_optimizer
def test_every_param_and_every_leaf_of_the_state_is_updated_in_place(name, platform):
    tx = OPTIMIZERS[name]()
    params, state, *_ = shapes(tx)
    updated = re.findall(r"tf.aliasing_output = (\d+)", lowered(tx, platform))
    assert sorted(map(int, updated)) == list(range(len(jax.tree.leaves((params, state)))))


@every_platform
def test_the_mask_gives_the_text_that_a_mask_by_hand_gives(platform):
    ours, by_hand, without = (lowered(adamw(mask), platform) for mask in (MASK, BY_HAND, None))
    assert ours == by_hand
    assert ours != without


@pytest.mark.parametrize("layout", LAYOUTS)
def test_so_it_does_on_a_mesh(layout):
    ours, by_hand, without = (
        lowered(adamw(mask), *PLATFORMS, placed=on_eight_devices(layout))
        for mask in (MASK, BY_HAND, None)
    )
    assert ours == by_hand
    assert ours != without


@every_optimizer
@pytest.mark.parametrize("layout", ["data", "fsdp and tensor"])
def test_the_module_holds_the_sharding_of_every_param_and_of_the_batch(name, layout):
    tx, placed = OPTIMIZERS[name](), on_eight_devices(layout)
    module = lowered(tx, *PLATFORMS, placed=placed)
    assert "mhlo.num_partitions = 8" in module
    found = re.findall(r"%arg\d+: [^%]*?sdy.sharding<@mesh, (\[.*?\])>", module.split("->")[0])
    params, _, *data = shapes(tx, placed=placed)
    assert found == [in_text(leaf) for leaf in jax.tree.leaves((params, data))]


def in_text(leaf):
    """The sharding of a leaf as modules write it."""
    names = [*leaf.sharding.spec, *[None] * (leaf.ndim - len(leaf.sharding.spec))]
    axes = ["{}" if name is None else f'{{"{name}"}}' for name in names]
    return f"[{', '.join(axes)}]"


def update_alone(mask):
    """The StableHLO of an update, from given gradients."""
    tx = adamw(mask)
    params, state, *_ = shapes(tx)
    return jax.jit(tx.update).trace(params, state, params).lower().as_text()


def test_the_update_alone_is_the_text_by_hand_with_fewer_operations_than_without_a_mask():
    ours, by_hand, without = map(update_alone, (MASK, BY_HAND, None))
    assert ours == by_hand
    assert 0 < ours.count("stablehlo.") < without.count("stablehlo.")


def test_on_this_host_the_mask_compiles_to_what_a_mask_by_hand_compiles_to():
    ours, by_hand = (
        jitted(adamw(mask)).lower(*shapes(adamw(mask))).compile() for mask in (MASK, BY_HAND)
    )
    assert ours.as_text() == by_hand.as_text()
    assert ours.cost_analysis() == by_hand.cost_analysis()
    assert ours.cost_analysis()["flops"] > 0
    assert ours.cost_analysis()["bytes accessed"] > 0
    assert ours.memory_analysis().temp_size_in_bytes == by_hand.memory_analysis().temp_size_in_bytes


@pytest.fixture(scope="module")
def exported_step():
    """A step with all that there is, exported; arguments; and what it makes of them before.

    Most of the time is the compiler's: it takes half of it where it need not do its best.
    """
    jax.config.update("jax_disable_most_optimizations", True)
    with jax.numpy_dtype_promotion("standard"):
        yield exported_and_run()
    jax.config.update("jax_disable_most_optimizations", False)


def exported_and_run():
    keep = bnmask.keep_norm(INVARIANT, axes=ANALYSIS.invariant_axes)
    chain = optax.chain(OPTIMIZERS["corrected_weight_decay"](), keep)
    tx, params = bnmask.monitor_scale(chain, ANALYSIS), initial()
    leaves, tree = jax.tree.flatten((params, jax.jit(tx.init)(params), *batch()))

    @jax.jit
    def flat(*leaves):  # a serialised export knows no NamedTuples, Optax's no more than ours
        return jax.tree.leaves(stepper(tx)(*jax.tree.unflatten(tree, leaves)))

    exported = jax.export.export(flat, platforms=("cpu", *PLATFORMS))(*leaves)
    return exported, leaves, flat(*leaves)


def read_back(exported):
    """Through bytes."""
    return jax.export.deserialize(exported.serialize())


@pytest.mark.parametrize("through", [lambda exported: exported, read_back], ids=["memory", "bytes"])
def test_an_exported_step_runs_here_and_gives_the_same_bits(exported_step, through):
    exported, leaves, wanted = exported_step
    step = through(exported)
    assert step.platforms == ("cpu", *PLATFORMS)
    got = step.call(*leaves)
    assert len(got) == len(wanted)
    for new, other in zip(got, wanted, strict=True):
        assert np.asarray(new).tobytes() == np.asarray(other).tobytes()
    assert not any(map(np.array_equal, got[:8], leaves[:8]))  # all eight params have moved
