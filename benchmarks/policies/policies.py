"""The seven policies, each a way from two rates to an Optax optimizer."""

import warnings
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

import optax_bnmask as bnmask

REFERENCE = "exempt norm"
"""The library's default, which the others are compared with."""

POLICIES = (
    "no decay",
    "everything",
    REFERENCE,
    "exempt norm and bias",
    "STRICT",
    "STRICT + keep_norm",
    "exempt norm, corrected",
)

MOMENTUM = 0.9

OPTIMIZERS = {
    "SGD": optax.trace(MOMENTUM),
    "AdamW": optax.scale_by_adam(),
}
"""What stands between the gradient and the learning rate."""

SWEEPS = {
    "SGD": ((0.03, 0.1, 0.3, 1.0), (6e-4, 2e-3, 6e-3, 2e-2, 6e-2)),
    "AdamW": ((3e-3, 1e-2, 3e-2, 1e-1), (0.06, 0.2, 0.6, 2.0, 6.0)),
}
"""Peak learning rates, over a decade and a half, and decays, over two, in steps of about 3."""


def analysis_of(task):
    """What the program of a task's network says of its parameters, traced as it is trained."""
    batch = jnp.zeros((task.batch_size, *task.train.inputs.shape[1:]))
    variables = task.network.init(jax.random.key(0), batch, train=True)
    return bnmask.analyze_linen(task.network, variables, batch, train=True)


def optimizer(policy, name, analysis, steps_in_epoch, epochs) -> Callable:
    """The function of learning rate and decay (numbers or tracers) that gives the optimizer.

    SGD takes the decay before its momentum, as a penalty's gradient, AdamW after its
    normalisation. The learning rate warms up in one epoch and falls to 0 along a cosine.
    """
    norm_exempt = analysis.decay_mask()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # what it warns of is what is measured here
        strict = analysis.decay_mask(exempt=bnmask.STRICT)
    invariant = analysis.select("scale_invariant")
    masks = {
        "everything": None,
        "exempt norm and bias": analysis.decay_mask(exempt=bnmask.STANDARD),
        "STRICT": strict,
        "STRICT + keep_norm": strict,
    }

    def decay(weight_decay, schedule, peak):
        if policy == "no decay":
            return optax.identity()
        if policy == "exempt norm, corrected":
            return bnmask.corrected_weight_decay(
                weight_decay, schedule, peak, mask=norm_exempt, corrected=invariant
            )
        return optax.add_decayed_weights(weight_decay, mask=masks.get(policy, norm_exempt))

    shape = optax.warmup_cosine_decay_schedule(
        0.0, 1.0, steps_in_epoch, steps_in_epoch * max(epochs, 2)
    )

    def make(learning_rate, weight_decay):
        def schedule(count):
            return learning_rate * shape(count)

        links = [OPTIMIZERS[name], decay(weight_decay, schedule, learning_rate)]
        if name == "SGD":
            links.reverse()
        links.append(optax.scale_by_learning_rate(schedule))
        if policy == "STRICT + keep_norm":
            links.append(bnmask.keep_norm(invariant, axes=analysis.invariant_axes))
        return optax.chain(*links)

    return make
