"""Training that Orbax interrupts: saved in the midst, restored on the same mesh or on another."""

import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import optax_bnmask as bnmask
from tests.support.sharding.training import (
    ANALYSIS,
    AXES,
    DECAY,
    INVARIANT,
    MASK,
    OPTIMIZERS,
    PEAK,
    SCHEDULE,
    batch,
    initial,
    laid_out,
    shardings,
    stepper,
)

BEFORE, STEPS = 2, 4
HERE, THERE = "fsdp and tensor on 4 x 2", "fsdp by input on 4 of the devices"
PLACES = {
    HERE: ((4, 2), "fsdp and tensor"),
    "tensor on 2 x 4": ((2, 4), "tensor"),
    THERE: ((4, 1), "fsdp by input"),
}


def all_in_one():
    """Every transformation of `OPTIMIZERS` in one chain; the dense layer keeps one norm."""
    chain = optax.chain(
        optax.scale_by_adam(),
        bnmask.corrected_weight_decay(DECAY, SCHEDULE, PEAK, mask=MASK, corrected=INVARIANT),
        optax.scale_by_learning_rate(SCHEDULE),
        bnmask.keep_norm(INVARIANT, axes=ANALYSIS.invariant_axes),
    )
    return bnmask.monitor_scale(chain, ANALYSIS)


pytestmark = pytest.mark.usefixtures("optax_promotion")


@pytest.fixture(autouse=True, scope="module")
def hurried_compiler():
    """Most of the time is the compiler's: it takes half of it where it need not do its best."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def mesh_of(place):
    shape, _ = PLACES[place]
    devices = np.array(jax.devices()[: math.prod(shape)]).reshape(shape)
    return Mesh(devices, AXES, axis_types=(AxisType.Auto, AxisType.Auto))


def abstract(tx, place, dtype=jnp.float32):
    """Params and state as shapes with shardings: what users have before there are any arrays."""
    mesh, layout = mesh_of(place), PLACES[place][1]
    params = jax.eval_shape(lambda: cast(initial(), dtype))
    placed = shardings(mesh, layout, params)
    state = optax.tree_map_params(
        tx,
        with_sharding,
        jax.eval_shape(tx.init, params),
        placed,
        # A field of the state that is not shaped like the params: an array, or a dict of some.
        transform_non_params=lambda field: jax.tree.map(
            lambda leaf: with_sharding(leaf, NamedSharding(mesh, PartitionSpec())), field
        ),
    )
    return {"params": jax.tree.map(with_sharding, params, placed), "state": state}


def with_sharding(leaf, sharding):
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def cast(tree, dtype):
    return jax.tree.map(lambda leaf: leaf.astype(dtype), tree)


def started(tx, place):
    """Params and state where they are to live."""
    mesh, layout = mesh_of(place), PLACES[place][1]
    params, _ = laid_out(mesh, layout)
    places = jax.tree.map(lambda leaf: leaf.sharding, abstract(tx, place)["state"])
    return {"params": params, "state": jax.jit(tx.init, out_shardings=places)(params)}


def jitted(tx, place):
    """The training step, which leaves everything where it was."""
    places = jax.tree.map(lambda leaf: leaf.sharding, abstract(tx, place))
    step = stepper(tx)

    def stepped(tree, images, targets):
        params, state, loss = step(tree["params"], tree["state"], images, targets)
        return {"params": params, "state": state}, loss

    return jax.jit(stepped, out_shardings=(places, None))


def train(step, tree, place, seeds):
    """What becomes of params and state, and the losses."""
    by_data, losses = NamedSharding(mesh_of(place), PartitionSpec("data")), []
    for seed in seeds:
        tree, loss = step(tree, *jax.device_put(batch(seed), by_data))
        losses.append(loss)
    return tree, losses


def by_standard_checkpointer(folder, tree):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "here", tree)
        checkpointer.wait_until_finished()

    def restore(wanted):
        with ocp.StandardCheckpointer() as checkpointer:
            return checkpointer.restore(folder / "here", wanted)

    return restore


def by_manager(folder, tree):
    with ocp.CheckpointManager(folder / "steps") as manager:
        saved = {name: ocp.args.StandardSave(part) for name, part in tree.items()}
        manager.save(BEFORE, args=ocp.args.Composite(**saved))

    def restore(wanted):
        with ocp.CheckpointManager(folder / "steps") as manager:
            asked = {name: ocp.args.StandardRestore(part) for name, part in wanted.items()}
            got = manager.restore(manager.latest_step(), args=ocp.args.Composite(**asked))
        return dict(got.items())

    return restore


WRITERS = {"StandardCheckpointer": by_standard_checkpointer, "CheckpointManager": by_manager}


def assert_same_bits(got, wanted):
    """Equal structures, dtypes and bits, leaf by leaf."""
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    for (keys, leaf), other in zip(
        jax.tree.leaves_with_path(got), jax.tree.leaves(wanted), strict=True
    ):
        where = jax.tree_util.keystr(keys)
        assert leaf.dtype == other.dtype, where
        assert np.asarray(leaf).tobytes() == np.asarray(other).tobytes(), where


def assert_placed(tree, wanted):
    """Every leaf has the sharding that was asked for."""
    for (keys, leaf), struct in zip(
        jax.tree.leaves_with_path(tree), jax.tree.leaves(wanted), strict=True
    ):
        assert leaf.sharding == struct.sharding, jax.tree_util.keystr(keys)


def moved_to(tree, wanted):
    return jax.device_put(tree, jax.tree.map(lambda leaf: leaf.sharding, wanted))


@functools.cache
def interrupted():
    """The chain of all, its step where it trains, and params and state in the midst of it."""
    tx = all_in_one()
    step = jitted(tx, HERE)
    tree, _ = train(step, started(tx, HERE), HERE, range(BEFORE))
    return tx, step, tree


@functools.cache
def elsewhere():
    """The step of the chain of all, with half the devices in another layout."""
    return jitted(all_in_one(), THERE)


def filled(wanted):
    """Numbers that are different in every place, in the shapes and shardings that are wanted."""
    draw, leaves = np.random.default_rng(0), []
    for leaf in jax.tree.leaves(wanted):
        value = draw.uniform(1, 1000, leaf.shape).astype(leaf.dtype)
        leaves.append(jax.device_put(value, leaf.sharding))
    return jax.tree.unflatten(jax.tree.structure(wanted), leaves)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_state_is_restored_bit_for_bit_on_any_mesh(name, dtype, tmp_path):
    tx = OPTIMIZERS[name]()
    saved = filled(abstract(tx, HERE, dtype))
    restore = by_standard_checkpointer(tmp_path, saved)
    for place in PLACES:
        wanted = abstract(tx, place, dtype)
        got = restore(wanted)
        assert_same_bits(got, saved)
        assert_placed(got, wanted)
    assert {leaf.dtype for leaf in jax.tree.leaves(saved["params"])} == {jnp.dtype(dtype)}


def test_training_leaves_params_and_state_where_the_abstract_state_says():
    tx, _, tree = interrupted()
    assert_placed(tree, abstract(tx, HERE))
    divided = [leaf for leaf in jax.tree.leaves(tree) if not leaf.is_fully_replicated]
    assert len(divided) == 3 * len(jax.tree.leaves(tree["params"]))  # the params and two moments


@pytest.mark.parametrize("writer", WRITERS)
def test_training_goes_on_bit_for_bit_on_the_same_mesh(writer, tmp_path):
    tx, step, tree = interrupted()
    got = WRITERS[writer](tmp_path, tree)(abstract(tx, HERE))
    assert_same_bits(got, tree)
    on, whole = (train(step, start, HERE, range(BEFORE, STEPS)) for start in (got, tree))
    assert_same_bits(on, whole)
    with pytest.raises(AssertionError, match="params"):
        assert_same_bits(on[0], tree)  # it did go on


@pytest.mark.parametrize("writer", WRITERS)
def test_training_goes_on_with_half_the_devices_as_from_the_live_state_moved_there(
    writer, tmp_path
):
    tx, _, tree = interrupted()
    wanted, step = abstract(tx, THERE), elsewhere()
    got, moved = WRITERS[writer](tmp_path, tree)(wanted), moved_to(tree, wanted)
    assert_same_bits(got, tree)
    assert_placed(got, wanted)
    on, live = (train(step, start, THERE, range(BEFORE, STEPS)) for start in (got, moved))
    assert_same_bits(on, live)
    assert_placed(on[0], wanted)


def test_training_with_half_the_devices_is_the_same_training_to_rounding():
    tx, step, tree = interrupted()
    here, _ = train(step, tree, HERE, range(BEFORE, STEPS))
    moved = moved_to(tree, abstract(tx, THERE))
    there, _ = train(elsewhere(), moved, THERE, range(BEFORE, STEPS))
    chex.assert_trees_all_close(
        jax.device_get(here["params"]), jax.device_get(there["params"]), rtol=1e-4, atol=1e-5
    )


class Net(nnx.Module):
    """A dense layer, a BatchNorm and a head."""

    def __init__(self, rngs):
        self.dense = nnx.Linear(8, 16, use_bias=False, rngs=rngs)
        self.post = nnx.BatchNorm(16, rngs=rngs)
        self.head = nnx.Linear(16, 8, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.post(self.dense(x))))


def model_and_optimizer():
    model = Net(nnx.Rngs(0))
    analysis = bnmask.analyze_nnx(model, jax.ShapeDtypeStruct((16, 8), jnp.float32))
    keep = bnmask.keep_norm(analysis.select("scale_invariant"), axes=analysis.invariant_axes)
    adamw = optax.adamw(SCHEDULE, weight_decay=DECAY, mask=analysis.decay_mask())
    tx = bnmask.monitor_scale(optax.chain(adamw, keep), analysis)
    return model, nnx.Optimizer(model, tx, wrt=nnx.Param)


def divided(state, mesh):
    """Shapes with shardings, over the last axis where it divides by the mesh's first."""

    def one(leaf):
        names = (None,) * (leaf.ndim - 1) + ("data",)
        spec = names if leaf.ndim and leaf.shape[-1] % mesh.shape["data"] == 0 else ()
        return with_sharding(leaf, NamedSharding(mesh, PartitionSpec(*spec)))

    return jax.tree.map(one, state)


@nnx.jit
def nnx_step(model, optimizer, x):
    gradients = nnx.grad(lambda model: jnp.square(model(x) - jnp.roll(x, 1)).mean())(model)
    optimizer.update(model, gradients)


def test_an_nnx_optimizer_is_restored_and_goes_on_bit_for_bit(tmp_path):
    mesh, images = mesh_of(HERE), jax.random.normal(jax.random.key(0), (STEPS, 16, 8))
    images = jax.device_put(images, NamedSharding(mesh, PartitionSpec(None, "data")))
    graph, shapes = nnx.split(nnx.eval_shape(model_and_optimizer))
    wanted = divided(shapes, mesh)
    places = jax.tree.map(lambda leaf: leaf.sharding, wanted)
    live = nnx.merge(
        graph, jax.jit(lambda: nnx.state(model_and_optimizer()), out_shardings=places)()
    )
    for x in images[:BEFORE]:
        nnx_step(*live, x)
    nnx.update(live, moved_to(nnx.state(live), wanted))

    saved = jax.device_get(nnx.state(live))
    got = by_standard_checkpointer(tmp_path, nnx.state(live))(wanted)
    assert_same_bits(got, saved)
    assert_placed(got, wanted)
    restored = nnx.merge(graph, got)
    for x in images[BEFORE:]:
        nnx_step(*live, x)
        nnx_step(*restored, x)
    assert_same_bits(nnx.state(restored), nnx.state(live))
    with pytest.raises(AssertionError, match="kernel"):
        assert_same_bits(nnx.state(live), saved)  # it did go on
