"""A network's params, gradients and mask, and Optax's transformations that decay with a mask."""

import jax
import jax.numpy as jnp
import optax

import optax_bnmask as bnmask

RATE, DECAY, STEPS = 0.1, 0.25, 3
KEYS = iter(jax.random.split(jax.random.key(0), 32))


def draw(*shape):
    return 0.5 + jax.random.uniform(next(KEYS), shape)


PARAMS = {
    "conv": {"kernel": draw(3, 2, 4), "bias": draw(4)},
    "post": {"scale": draw(4), "bias": draw(4)},
    "stack": {"scale": draw(2, 4), "bias": draw(2, 4)},
    "head": {"kernel": draw(4, 3)},
}
STATS = {
    "post": {"mean": jnp.zeros(4), "var": jnp.ones(4)},
    "stack": {"mean": jnp.zeros((2, 4)), "var": jnp.ones((2, 4))},
}
GRADS = jax.tree.map(lambda x: draw(STEPS, *x.shape), PARAMS)
ANALYSIS = bnmask.analyze_structure(PARAMS, STATS)
MASK = bnmask.decay_mask(PARAMS, STATS)


def nested_in_partition(decay, mask):
    """The mask inside `optax.partition`, where its tree has holes."""
    labels = ANALYSIS.labels(categories={"bias": "slow"}, default="fast")
    return optax.partition(
        {
            "slow": optax.adamw(RATE / 2, weight_decay=decay, mask=mask),
            "fast": optax.adamw(RATE, weight_decay=decay, mask=mask),
        },
        labels,
    )


TRANSFORMS = {
    "add_decayed_weights": optax.add_decayed_weights,
    "corrected_weight_decay": lambda decay, mask: bnmask.corrected_weight_decay(
        decay, optax.linear_schedule(RATE, 0.0, STEPS), RATE, mask=mask, corrected=mask
    ),
    "adamw": lambda decay, mask: optax.adamw(RATE, weight_decay=decay, mask=mask),
    "nadamw": lambda decay, mask: optax.nadamw(RATE, weight_decay=decay, mask=mask),
    "lamb": lambda decay, mask: optax.lamb(RATE, weight_decay=decay, mask=mask),
    "lion": lambda decay, mask: optax.lion(RATE, weight_decay=decay, mask=mask),
    "lars": lambda decay, mask: optax.lars(RATE, weight_decay=decay, weight_decay_mask=mask),
    "adafactor": lambda decay, mask: optax.adafactor(
        RATE, min_dim_size_to_factor=2, weight_decay_rate=decay, weight_decay_mask=mask
    ),
    "sgd chain": lambda decay, mask: optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.add_decayed_weights(decay, mask),
        optax.sgd(RATE, momentum=0.9),
    ),
    "masked": lambda decay, mask: optax.chain(
        optax.masked(optax.add_decayed_weights(decay), mask), optax.sgd(RATE)
    ),
    "mask in masked": lambda decay, mask: optax.chain(
        optax.masked(optax.add_decayed_weights(decay, mask), ~ANALYSIS.select("embedding")),
        optax.sgd(RATE),
    ),
    "nested in partition": nested_in_partition,
    "inject_hyperparams": lambda decay, mask: optax.inject_hyperparams(
        optax.adamw, static_args="mask"
    )(RATE, weight_decay=decay, mask=mask),
    "MultiSteps": lambda decay, mask: optax.MultiSteps(
        optax.adamw(RATE, weight_decay=decay, mask=mask), every_k_schedule=2
    ).gradient_transformation(),
    "apply_if_finite": lambda decay, mask: optax.apply_if_finite(
        optax.adamw(RATE, weight_decay=decay, mask=mask), max_consecutive_errors=2
    ),
}
"""From a decay and a mask to a transformation, by name."""
