"""Flax's own ways to lay a model out on a mesh, with the mask and with our transformations."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optax_bnmask as bnmask
from tests.support.sharding.training import AXES

IMAGES = np.random.default_rng(0).normal(size=(16, 6, 6, 8)).astype(np.float32)
MESH = jax.make_mesh((4, 2), AXES, axis_types=(AxisType.Auto,) * 2)
BY_DATA = NamedSharding(MESH, P("data"))
KERNEL, CHANNELS, HEAD = (None, None, "data", "model"), ("model",), ("model", None)


@pytest.fixture(autouse=True)
def promotion(optax_promotion):
    """Standard, and ranks too: Flax's layers add a bias to a batch."""
    with jax.numpy_rank_promotion("allow"):
        yield


def everything(analysis):
    """The mask, the corrected decay and both other transformations, in one optimizer."""
    mask, invariant = analysis.decay_mask(), analysis.select("scale_invariant")
    decay = bnmask.corrected_weight_decay(0.1, 1e-2, 1e-2, mask=mask, corrected=invariant)
    keep = bnmask.keep_norm(invariant, axes=analysis.invariant_axes)
    steps = optax.scale_by_adam(), decay, optax.scale_by_learning_rate(1e-2), keep
    return bnmask.monitor_scale(optax.chain(*steps), analysis)


def assert_on_the_sphere(kernel, before):
    """Every output channel has turned and has the norm it had."""
    assert kernel.sharding.spec == P(*KERNEL)
    norms = [np.sqrt(np.square(np.asarray(x)).sum((0, 1, 2))) for x in (kernel, before)]
    np.testing.assert_allclose(*norms, rtol=1e-5)
    assert np.abs(np.asarray(kernel) - before).max() > 1e-3


def boxed(init, names):
    return nn.with_partitioning(init, names)


class Linen(nn.Module):
    """Each param says how it is divided."""

    @nn.compact
    def __call__(self, x):
        kernel = boxed(nn.initializers.lecun_normal(), KERNEL)
        x = nn.Conv(16, (3, 3), use_bias=False, kernel_init=kernel)(x)
        ones, zeros = (boxed(f, CHANNELS) for f in (nn.initializers.ones, nn.initializers.zeros))
        x = nn.BatchNorm(use_running_average=False, scale_init=ones, bias_init=zeros)(x)
        return nn.Dense(8, kernel_init=boxed(nn.initializers.lecun_normal(), HEAD))(
            nn.relu(x).mean((1, 2))
        )


class State(TrainState):
    batch_stats: object = None


def test_linen_with_partitioning_lays_out_the_whole_train_state():
    net = Linen()
    variables = jax.eval_shape(net.init, jax.random.key(0), IMAGES)
    analysis = bnmask.analyze_linen(net, variables, IMAGES)
    assert analysis["Conv_0/kernel"].invariant_axes == (3,)
    mask = bnmask.decay_mask(variables["params"], variables["batch_stats"])
    assert mask == analysis.decay_mask()
    tx = everything(analysis)

    def create(key):
        made = net.init(key, IMAGES)
        return State.create(
            apply_fn=net.apply, params=made["params"], tx=tx, batch_stats=made["batch_stats"]
        )

    lies = nn.get_sharding(jax.eval_shape(create, jax.random.key(0)), MESH)
    state = jax.jit(create, out_shardings=lies)(jax.random.key(0))
    moments = optax.tree_utils.tree_get(state.opt_state, "mu")
    assert moments["Conv_0"]["kernel"].value.sharding.spec == P(*KERNEL)
    before = np.asarray(state.params["Conv_0"]["kernel"].value)

    def step(state, images):
        def loss(params):
            variables = {"params": params, "batch_stats": state.batch_stats}
            out, new = state.apply_fn(variables, images, mutable=["batch_stats"])
            return jnp.square(out).mean(), new["batch_stats"]

        grads, stats = jax.grad(loss, has_aux=True)(state.params)
        return state.apply_gradients(grads=grads, batch_stats=stats)

    step = jax.jit(step, in_shardings=(lies, BY_DATA), out_shardings=lies, donate_argnums=0)
    for _ in range(2):
        state = step(state, jax.device_put(IMAGES, BY_DATA))
    assert_on_the_sphere(state.params["Conv_0"]["kernel"].value, before)
    assert optax.tree_utils.tree_get(state, "angle")["Conv_0/kernel"] > 0


class Divided(nnx.Module):
    """The same in NNX."""

    def __init__(self, rngs):
        lecun = nnx.initializers.lecun_normal()
        kernel, head = (nnx.with_partitioning(lecun, names) for names in (KERNEL, HEAD))
        ones = nnx.with_partitioning(nnx.initializers.ones, CHANNELS)
        self.conv = nnx.Conv(8, 16, (3, 3), use_bias=False, rngs=rngs, kernel_init=kernel)
        self.post = nnx.BatchNorm(16, rngs=rngs, scale_init=ones)
        self.head = nnx.Linear(16, 8, rngs=rngs, kernel_init=head)

    def __call__(self, x):
        return self.head(nnx.relu(self.post(self.conv(x))).mean((1, 2)))


def test_nnx_with_partitioning_trains_where_its_variables_lie():
    @nnx.jit
    def create():
        net = Divided(nnx.Rngs(0))
        state = nnx.state(net)
        nnx.update(net, jax.lax.with_sharding_constraint(state, nnx.get_partition_spec(state)))
        return net

    @nnx.jit
    def step(net, optimizer, images):
        grads = nnx.grad(lambda net: jnp.square(net(images)).mean())(net)
        optimizer.update(net, grads)

    with jax.set_mesh(MESH):
        net = create()
        analysis = bnmask.analyze_nnx(net, IMAGES)
        assert analysis["conv/kernel"].invariant_axes == (3,)
        assert bnmask.decay_mask(net) == analysis.decay_mask()
        optimizer = nnx.Optimizer(net, everything(analysis), wrt=nnx.Param)
        before = np.asarray(net.conv.kernel.get_value())
        for _ in range(2):
            step(net, optimizer, jax.device_put(IMAGES, BY_DATA))
    assert_on_the_sphere(net.conv.kernel.get_value(), before)
    moments = optax.tree_utils.tree_get(nnx.to_pure_dict(nnx.state(optimizer)), "mu")
    assert moments["conv"]["kernel"].sharding.spec == P(*KERNEL)
