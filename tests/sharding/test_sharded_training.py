"""Training on eight devices: our transformations move no array that was not moved without them."""

import functools

import jax
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import optax_bnmask as bnmask
from tests.support.sharding.collectives import collectives, entries
from tests.support.sharding.training import (
    ANALYSIS,
    AXES,
    INVARIANT,
    LAYOUTS,
    OPTIMIZERS,
    adamw,
    close,
    laid_out,
    network,
    on_one_device,
    shardings,
    stepper,
    trained,
)

pytestmark = pytest.mark.usefixtures("optax_promotion")


def mesh_of(kind=AxisType.Auto):
    return jax.make_mesh((4, 2), AXES, axis_types=(kind, kind))


def compiled(tx, mesh, layout, apply=network):
    """The training step, compiled for params laid out in that way, and its arguments."""
    params, data = laid_out(mesh, layout)
    arguments = params, tx.init(params), *data
    return jax.jit(stepper(tx, apply)).lower(*arguments).compile(), arguments


@functools.cache
def without_us(layout, kind=AxisType.Auto, apply=network):
    """What the devices tell each other without our transformations."""
    with jax.set_mesh(mesh_of(kind)):
        return collectives(compiled(adamw(), mesh_of(kind), layout, apply)[0].as_text())


def assert_laid_out(tree, expected):
    """Every array lies as it did."""
    same = jax.tree.map(lambda x, s: x.sharding.is_equivalent_to(s, x.ndim), tree, expected)
    assert all(jax.tree.leaves(same)), same


def assert_only_norms_are_reduced(found, without, name):
    """What we add are sums of parts of norms: all-reduces of a number, or one for each channel."""
    assert not without - found, "what was there without us must still be there"
    added = found - without
    if not name.startswith(("keep_norm", "hyperball", "monitor_scale")):
        assert not added
        return
    by_channel = name in ("keep_norm by channel", "hyperball")
    axes = ANALYSIS.invariant_axes if by_channel else {}
    numbers = sum(
        int(np.prod([ANALYSIS[path].shape[axis] for axis in axes.get(path, ())]))
        for path in INVARIANT.decayed
    )
    assert {kind for kind, _ in added} <= {"all-reduce"}
    assert all(len(shape) <= 1 for _, shape in added)
    # Four numbers for a norm that is kept, six for an exact angle, five for one that is watched;
    # over two axes of the mesh each may go in two steps. Gains are watched by one mean each.
    gains = 2 * name.startswith("monitor_scale")
    sums = 6 if name == "hyperball" else 5
    assert entries(added) <= 2 * (sums * numbers + gains)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_layouts_of_params_and_state_stay_and_only_norms_are_reduced(name, layout):
    mesh, tx = mesh_of(), OPTIMIZERS[name]()
    step, (params, state, images, targets) = compiled(tx, mesh, layout)
    assert_only_norms_are_reduced(collectives(step.as_text()), without_us(layout), name)
    laid = shardings(mesh, layout, params)
    new_params, new_state, _ = step(params, state, images, targets)
    assert_laid_out(new_params, laid)
    for x, y in zip(jax.tree.leaves(state), jax.tree.leaves(new_state), strict=True):
        assert x.sharding.is_equivalent_to(y.sharding, x.ndim) or x.sharding.num_devices == 1
    lies = optax.tree_map_params(
        tx, lambda x, s: x.sharding.is_equivalent_to(s, x.ndim), new_state, laid
    )
    assert [leaf for leaf in jax.tree.leaves(lies) if isinstance(leaf, bool)] == [True] * 16
    close(trained(step, params, name, images, targets), on_one_device(name))


def gathered(params, images):
    """Fully sharded, in types: each param is put together where it is used."""
    return network(jax.tree.map(lambda w: jax.sharding.reshard(w, P()), params), images)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_explicit_axes_keep_every_sharding_and_only_norms_are_reduced(name):
    layout, kind = "fsdp and tensor", AxisType.Explicit
    mesh, tx = mesh_of(kind), OPTIMIZERS[name]()
    with jax.set_mesh(mesh):
        params, data = laid_out(mesh, layout)
        assert bnmask.analyze(gathered, params, data[0]).decay_mask() == ANALYSIS.decay_mask()
        step = jax.jit(stepper(tx, gathered)).lower(params, tx.init(params), *data).compile()
        found = collectives(step.as_text())
        assert_only_norms_are_reduced(found, without_us(layout, kind, gathered), name)
        moved, _, _ = step(params, tx.init(params), *data)
        assert jax.tree.map(jax.typeof, moved) == jax.tree.map(jax.typeof, params)
        close(trained(step, params, name, *data), on_one_device(name))
