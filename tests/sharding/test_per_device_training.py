"""Training steps written for one device, in `shard_map`: BatchNorm averages over the devices."""

import functools

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
    with pytest.raises(ValueError, match="out_specs"):  # JAX refuses to call it one norm
        jax.shard_map(step, mesh=mesh, in_specs=(over, over), out_specs=(over, P()))(kernel, update)
