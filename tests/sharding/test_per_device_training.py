"""Training steps written for one device, in `shard_map`: BatchNorm averages over the devices."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import optax_bnmask as bnmask
from tests.support.sharding.collectives import collectives
from tests.support.sharding.training import (
    ANALYSIS,
    OPTIMIZERS,
    adamw,
    batch,
    close,
    initial,
    loss,
    network,
    normalised,
    on_one_device,
    trained,
    wide,
)

pytestmark = pytest.mark.usefixtures("optax_promotion")


def across_devices(z, axes):
    """A BatchNorm whose two statistics are averaged over the devices in one go, as Flax's are."""
    if axes == (-1,):
        return normalised(z, axes)
    both = jnp.stack([z.mean(axes), jnp.square(z).mean(axes)])
    mean, square = jax.lax.pmean(both, "devices").reshape(2, *[1] * (z.ndim - 1), -1)
    return (z - mean) * jax.lax.rsqrt(square - jnp.square(mean) + 1e-5)


of_one_device = functools.partial(network, normalise=across_devices)


def spread(tx):
    """The step on every device: gradients are averaged, the optimizer runs everywhere alike."""
    mesh = jax.make_mesh((8,), ("devices",), axis_types=(AxisType.Auto,))

    def step(params, state, images, targets):
        varying = jax.lax.pcast(params, "devices", to="varying")
        value, grads = jax.value_and_grad(functools.partial(loss, apply=of_one_device))(
            varying, images, targets
        )
        value, grads = jax.lax.pmean((value, grads), "devices")
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    by_data = P("devices")
    return jax.jit(
        jax.shard_map(
            step, mesh=mesh, in_specs=(P(), P(), by_data, by_data), out_specs=(P(), P(), P())
        )
    )


def compiled(tx):
    """That step, compiled."""
    params = initial()
    return spread(tx).lower(params, tx.init(params), *batch()).compile()


@functools.cache
def without_us():
    """What the devices tell each other without our transformations."""
    return collectives(compiled(adamw()).as_text())


def test_analysis_of_one_devices_program_is_that_of_the_whole_ones():
    mesh = jax.make_mesh((8,), ("devices",), axis_types=(AxisType.Auto,))
    apply = jax.shard_map(
        of_one_device, mesh=mesh, in_specs=(P(), P("devices")), out_specs=P("devices")
    )
    analysis = bnmask.analyze(apply, initial(), batch()[0])
    for leaf, other in zip(analysis.leaves, ANALYSIS.leaves, strict=True):
        assert (leaf.path, leaf.role, leaf.scale) == (other.path, other.role, other.scale)
        assert leaf.invariant_axes == other.invariant_axes
    assert analysis.decay_mask() == ANALYSIS.decay_mask()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_inside_shard_map_equal_one_device_and_add_no_collective(name):
    step, params, data = compiled(OPTIMIZERS[name]()), initial(), batch()
    close(trained(step, params, name, *data), on_one_device(name))
    assert without_us()
    assert collectives(step.as_text()) == without_us()


def test_part_of_a_leaf_inside_shard_map_keeps_its_own_norm():
    """There a device's part is the leaf: each part keeps its norm, and so the whole does."""
    mesh = jax.make_mesh((4,), ("devices",), axis_types=(AxisType.Auto,))
    rng = np.random.default_rng(0)
    kernel, update = (jnp.asarray(rng.normal(size=(8, 3)), jnp.float32) for _ in range(2))
    tx = bnmask.keep_norm({"w": True})

    def step(w, u):
        updates, state = tx.update({"w": u}, tx.init({"w": w}), {"w": w})
        return w + updates["w"], state.kept_norm["w"]

    over = P("devices")
    moved, norms = jax.jit(
        jax.shard_map(step, mesh=mesh, in_specs=(over, over), out_specs=(over, over))
    )(kernel, update)
    parts = np.linalg.norm(np.asarray(moved).reshape(4, -1), axis=1)
    np.testing.assert_allclose(parts, np.linalg.norm(kernel.reshape(4, -1), axis=1), rtol=1e-6)
    np.testing.assert_allclose(parts, np.ravel(norms), rtol=1e-6)
    whole = jax.shard_map(step, mesh=mesh, in_specs=(over, over), out_specs=(over, P()))
    with pytest.raises(ValueError, match="out_specs"):  # JAX refuses to call it one norm
        jax.eval_shape(whole, kernel, update)


@pytest.mark.parametrize("every", [1, 2])
def test_what_is_watched_inside_shard_map_is_of_each_part(every):
    """Of a leaf that is divided, each device's values are those of a leaf that is its part."""
    mesh = jax.make_mesh((4,), ("devices",), axis_types=(AxisType.Auto,))
    rng = np.random.default_rng(0)
    one = jax.ShapeDtypeStruct((2, 4), jnp.float32)
    analysis = bnmask.analyze(
        lambda p, x: normalised(x @ p["kernel"].T, -1) * wide(p["scale"], x),
        {"kernel": one, "scale": jax.ShapeDtypeStruct((2,), jnp.float32)},
        one,
    )
    assert analysis["kernel"].scale is bnmask.Scale.INVARIANT
    assert analysis["scale"].role is bnmask.Role.NORM_SCALE
    sgd = optax.chain(optax.add_decayed_weights(0.5), optax.sgd(0.1, momentum=0.9))
    tx = bnmask.monitor_scale(sgd, analysis, every=every)
    whole = {"kernel": (8, 4), "scale": (8,)}
    w, *gradients = (
        jax.tree.map(
            lambda shape: jnp.asarray(rng.uniform(0.5, 1, shape), jnp.float32),
            whole,
            is_leaf=lambda node: isinstance(node, tuple),
        )
        for _ in range(4)
    )

    def watched(w, *gradients):
        state = tx.init(w)
        for g in gradients:
            updates, state = tx.update(g, state, w)
            w = optax.apply_updates(w, updates)
        return jax.tree.map(lambda x: x[None], (w, *state[3:]))

    over = P("devices")
    spread = jax.shard_map(watched, mesh=mesh, in_specs=over, out_specs=over)
    found = jax.jit(spread)(w, *gradients)
    each = [
        jax.tree.map(lambda x, own=slice(2 * k, 2 * k + 2): x[own], (w, *gradients))
        for k in range(4)
    ]
    part_alone = jax.jit(watched)
    alone = jax.tree.map(lambda *x: jnp.concatenate(x), *(part_alone(*part) for part in each))
    chex.assert_trees_all_close(found, alone, rtol=1e-5)
    assert len(np.unique(np.asarray(found[-1]["kernel"]))) == 4
