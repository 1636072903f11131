"""Where decay balances growth, invariant weights turn by the published angle, and others do not."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_bnmask as bnmask

WIDTH, BATCH, STEPS, SEEDS, MOMENTUM = 16, 64, 2000, 4, 0.9
KERNELS = ("first/kernel", "second/kernel")


def student(p, x):
    for layer in (p["first"], p["second"]):
        z = x @ layer["kernel"]
        z = (z - z.mean(0, keepdims=True)) * jax.lax.rsqrt(z.var(0, keepdims=True) + 1e-8)
        x = jax.nn.relu(z * layer["scale"][None])
    return x @ p["head"]


def initial(key):
    first, second, head = jax.random.normal(key, (3, WIDTH, WIDTH)) / WIDTH**0.5
    ones = jnp.ones(WIDTH)
    layers = {
        "first": {"kernel": first, "scale": ones},
        "second": {"kernel": second, "scale": ones},
    }
    return layers | {"head": head}


ANALYSIS = bnmask.analyze(
    student, initial(jax.random.key(0)), jax.ShapeDtypeStruct((BATCH, WIDTH), jnp.float32)
)
TURNED = bnmask.Mask({leaf.path: leaf.path in KERNELS for leaf in ANALYSIS.leaves})


def loss(p, key):
    x = jax.random.normal(key, (BATCH, WIDTH))
    teacher = jax.random.normal(jax.random.key(9), (WIDTH, WIDTH))
    targets = jnp.argmax(x @ teacher, -1)
    return optax.softmax_cross_entropy_with_integer_labels(student(p, x), targets).mean()


def angle(a, b):
    a, b = a / jnp.linalg.norm(a), b / jnp.linalg.norm(b)
    return 2 * jnp.arctan2(jnp.linalg.norm(a - b), jnp.linalg.norm(a + b))


def settled(tx):
    """By path, the root mean square of the angles of the last quarter of the steps."""

    def step(carry, key):
        p, state = carry
        updates, state = tx.update(jax.grad(loss)(p, key), state, p)
        new = optax.apply_updates(p, updates)
        return (new, state), jax.tree.map(angle, p, new)

    def trained(seed):
        p, keys = initial(jax.random.key(seed)), jax.random.split(jax.random.key(100 + seed), STEPS)
        return jax.lax.scan(step, (p, tx.init(p)), keys)[1]

    turned = jax.jit(jax.vmap(trained))(jnp.arange(SEEDS))
    last = jax.tree.map(lambda x: np.asarray(x[:, -STEPS // 4 :], np.float64), turned)
    return {
        path: float(np.sqrt(np.mean(x**2)))
        for path, x in bnmask.paths.tree_index(last).leaves.items()
    }


ETA, DECAY = 0.03, 0.03
SETTLING = {
    "sgd": (
        optax.chain(optax.add_decayed_weights(DECAY), optax.sgd(ETA, MOMENTUM)),
        (2 * ETA * DECAY / (1 + MOMENTUM)) ** 0.5,
    ),
    "adamw": (
        optax.adamw(ETA, b1=0.9, weight_decay=DECAY),
        (2 * ETA * DECAY * (1 - 0.9) / (1 + 0.9)) ** 0.5,
    ),
}


@pytest.mark.once
@pytest.mark.parametrize("name", SETTLING)
def test_proved_invariant_kernels_settle_at_the_published_angle_and_the_head_does_not(
    name, optax_promotion
):
    """SGD with momentum and AdamW, as in arXiv:2305.17212.

    Each gradient moves a kernel, over all later steps, by ``c = eta/(1 - mu) * g`` across it, so
    that ``|w|**2`` grows by ``|c|**2`` a step, and shrinks by ``2*eta*lambda/(1 - mu) * |w|**2``.
    One step is ``eta * sum(mu**k * g_k)``, of squared length ``(1 - mu)/(1 + mu) * |c|**2``.
    AdamW: the same, with ``c = eta * g/sqrt(v)``, and a decay of ``eta*lambda`` a step.
    """
    tx, formula = SETTLING[name]
    found = settled(tx)
    assert all(ANALYSIS[path].scale == "invariant" for path in KERNELS)
    assert ANALYSIS["head"].scale == "sensitive"
    assert [found[path] for path in KERNELS] == pytest.approx([formula] * 2, rel=0.05)
    assert abs(found["head"] / formula - 1) > 0.05


@pytest.mark.once
def test_on_the_hyperball_kernels_turn_by_the_scheduled_angle_from_the_first_step(optax_promotion):
    ball = bnmask.hyperball(0.01, TURNED, exact_angle=True, flip_sign=False)
    found = settled(optax.chain(optax.adam(ETA), ball))
    assert [found[path] for path in KERNELS] == pytest.approx([0.01] * 2, rel=1e-4)
    assert abs(found["head"] / 0.01 - 1) > 0.05
