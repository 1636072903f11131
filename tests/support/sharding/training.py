"""A network with a BatchNorm, the ways to lay it out on a mesh, and a step that trains it."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

import optax_bnmask as bnmask

AXES = ("data", "model")
DECAY, PEAK, STEPS = 0.1, 0.05, 3
# Adam's first steps divide by the gradient: near 0, its rounding is a part of a step.
close = functools.partial(chex.assert_trees_all_close, rtol=1e-3, atol=2e-4)
SCHEDULE = optax.linear_schedule(PEAK, PEAK / 10, 100)
SHAPES = {
    "conv": {"kernel": (3, 3, 8, 16)},
    "batch_norm": {"bias": (16,), "scale": (16,)},
    "dense": {"kernel": (16, 32)},
    "layer_norm": {"bias": (32,), "scale": (32,)},
    "head": {"bias": (8,), "kernel": (32, 8)},
}
"""Every axis but those of the window divides by eight."""


def initial(seed=0):
    """Params that hide nothing: no zero gains or biases."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.uniform(0.2, 1.0, shape), jnp.float32),
        SHAPES,
        is_leaf=lambda node: isinstance(node, tuple),
    )


def batch(seed=1, size=16):
    """Images and targets."""
    rng = np.random.default_rng(seed)
    shapes = (size, 6, 6, 8), (size, 8)
    return tuple(jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)


def normalised(z, axes):
    """Zero mean and unit variance over some axes."""
    z = z - z.mean(axes, keepdims=True)
    return z * jax.lax.rsqrt(jnp.square(z).mean(axes, keepdims=True) + 1e-5)


def wide(vector, like):
    """A vector with axes of length 1 in front."""
    return vector.reshape((1,) * (like.ndim - 1) + vector.shape)


def network(params, images, normalise=normalised):
    """A convolution, a BatchNorm, a dense layer, a LayerNorm, a head."""
    z = jax.lax.conv_general_dilated(
        images,
        params["conv"]["kernel"],
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    z = normalise(z, (0, 1, 2))
    z = z * wide(params["batch_norm"]["scale"], z) + wide(params["batch_norm"]["bias"], z)
    z = jax.nn.relu(z).mean((1, 2)) @ params["dense"]["kernel"]
    z = normalised(z, (-1,))
    z = z * wide(params["layer_norm"]["scale"], z) + wide(params["layer_norm"]["bias"], z)
    z = jnp.tanh(z) @ params["head"]["kernel"]
    return z + wide(params["head"]["bias"], z)


def loss(params, images, targets, apply=network):
    """The mean squared error."""
    return jnp.square(apply(params, images) - targets).mean()


ANALYSIS = bnmask.analyze(
    network,
    jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32),
        SHAPES,
        is_leaf=lambda node: isinstance(node, tuple),
    ),
    jax.ShapeDtypeStruct((16, 6, 6, 8), jnp.float32),
)
MASK = ANALYSIS.decay_mask()
INVARIANT = ANALYSIS.select("scale_invariant")
BY_HAND = {
    "conv": {"kernel": True},
    "batch_norm": {"bias": False, "scale": False},
    "dense": {"kernel": True},
    "layer_norm": {"bias": False, "scale": False},
    "head": {"bias": True, "kernel": True},
}


def adamw(mask=None):
    return optax.adamw(SCHEDULE, weight_decay=DECAY, mask=mask)


def corrected():
    return optax.chain(
        optax.scale_by_adam(),
        bnmask.corrected_weight_decay(DECAY, SCHEDULE, PEAK, mask=MASK, corrected=INVARIANT),
        optax.scale_by_learning_rate(SCHEDULE),
    )


OPTIMIZERS = {
    "mask": lambda: adamw(MASK),
    "corrected_weight_decay": corrected,
    "keep_norm": lambda: optax.chain(adamw(MASK), bnmask.keep_norm(INVARIANT)),
    "keep_norm by channel": lambda: optax.chain(
        adamw(MASK), bnmask.keep_norm(INVARIANT, axes=ANALYSIS.invariant_axes)
    ),
    "hyperball": lambda: optax.chain(
        adamw(MASK),
        bnmask.hyperball(
            SCHEDULE, INVARIANT, axes=ANALYSIS.invariant_axes, exact_angle=True, flip_sign=False
        ),
    ),
    "monitor_scale": lambda: bnmask.monitor_scale(adamw(MASK), ANALYSIS),
}
"""The mask, and each of our transformations with it."""


def spread(leaf, names):
    """The last axes of a leaf over the mesh's axes of those names, where it has as many."""
    names = names[-leaf.ndim :]
    return PartitionSpec(*[None] * (leaf.ndim - len(names)), *names)


LAYOUTS = {
    "data": lambda leaf: PartitionSpec(),
    "fsdp by output": lambda leaf: spread(leaf, ("data",)),
    "fsdp by input": lambda leaf: spread(leaf, ("data", None) if leaf.ndim > 1 else ("data",)),
    "tensor": lambda leaf: spread(leaf, ("model",)),
    "fsdp and tensor": lambda leaf: spread(leaf, ("data", "model")),
}
"""The `PartitionSpec` of a leaf, by the name of the way to divide a network; batches go by data."""


def shardings(mesh, layout, tree):
    """The sharding of every leaf of a tree."""
    return jax.tree.map(lambda leaf: NamedSharding(mesh, LAYOUTS[layout](leaf)), tree)


def laid_out(mesh, layout):
    """Params and a batch on the mesh."""
    params = initial()
    by_data = NamedSharding(mesh, PartitionSpec("data"))
    return jax.device_put(params, shardings(mesh, layout, params)), jax.device_put(batch(), by_data)


def stepper(tx, apply=network):
    """One step of training: params, state, images, targets to params, state, loss."""

    def step(params, state, images, targets):
        value, grads = jax.value_and_grad(functools.partial(loss, apply=apply))(
            params, images, targets
        )
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    return step


@functools.cache
def on_one_device(name):
    """Params, state and losses of a few steps."""
    with jax.numpy_dtype_promotion("standard"):
        return trained(jax.jit(stepper(OPTIMIZERS[name]())), initial(), name, *batch())


def trained(step, params, name, images, targets):
    tx, losses = OPTIMIZERS[name](), []
    state = tx.init(params)
    for _ in range(STEPS):
        params, state, value = step(params, state, images, targets)
        losses.append(value)
    return jax.device_get((params, state, losses))
