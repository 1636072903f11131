"""A small network, what is known of it, and gradients for a few steps: what these tests share."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optax_bnmask as bnmask

STEPS, DECAY, PEAK = 4, 0.25, 0.1
SCHEDULE = optax.linear_schedule(PEAK, PEAK / 4, STEPS)
KEYS = iter(jax.random.split(jax.random.key(0), 32))


def draw(*shape):
    return 0.5 + jax.random.uniform(next(KEYS), shape)


PARAMS = {
    "conv": {"kernel": draw(3, 2, 4)},
    "head": {"kernel": draw(4, 3)},
    "norm": {"bias": draw(4), "scale": draw(4)},
}
GRADS = jax.tree.map(lambda x: draw(STEPS, *x.shape) - 1, PARAMS)
IMAGES = draw(5, 3, 2)


def network(params, images):
    """A contraction, a batch normalisation and a head."""
    x = jnp.einsum("bij,ijk->bk", images, params["conv"]["kernel"])
    x = (x - x.mean(0, keepdims=True)) / x.std(0, keepdims=True)
    x = params["norm"]["scale"][None] * x + params["norm"]["bias"][None]
    return jax.nn.relu(x) @ params["head"]["kernel"]


ANALYSIS = bnmask.analyze(network, PARAMS, IMAGES)
MASK = ANALYSIS.decay_mask()
INVARIANT = ANALYSIS.select("scale_invariant")


def cast(tree, dtype):
    return jax.tree.map(lambda x: x.astype(dtype), tree)


def at(grads, step):
    return jax.tree.map(lambda x: x[step], grads)


def loop(tx, params, grads):
    """Params, state and every update of a training loop whose jitted update donates the state."""
    update, state, every = jax.jit(tx.update, donate_argnums=1), tx.init(params), []
    for step in range(STEPS):
        updates, state = update(at(grads, step), state, params)
        params = optax.apply_updates(params, updates)
        every.append(updates)
    return params, state, jax.tree.map(lambda *x: jnp.stack(x), *every)


@functools.partial(jax.jit, static_argnums=0)
def scan(tx, params, grads):
    """The same in one `lax.scan`, whose carry is the state."""

    def step(carry, grad):
        params, state = carry
        updates, state = tx.update(grad, state, params)
        return (optax.apply_updates(params, updates), state), updates

    (params, state), every = jax.lax.scan(step, (params, tx.init(params)), grads)
    return params, state, every


def wide(tree):
    """A tree as NumPy arrays in float64."""
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)
