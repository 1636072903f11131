"""The policies, each a way from two numbers to an Optax optimizer."""

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
    "hyperball",
    "hyperball, all matrices",
)
"""Those of hyperball hold the norm of each invariant convolution, or of the head's kernel as well.
Nothing decays there: the peak angle of a step takes the place of the decay, as the second number.
"""

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

ANGLES = (0.01, 0.02, 0.05, 0.1, 0.2)
"""Peak angles in radians. Decay settles at 0.025 to 0.08 with what validates best."""


def turns(policy):
    """Whether the second number of a policy is an angle."""
    return policy.startswith("hyperball")


def swept(policy, name):
    """The learning rates, and the decays or angles, that a policy is tried with."""
    rates, decays = SWEEPS[name]
    if policy == "no decay":
        return rates, (0.0,)
    return rates, ANGLES if turns(policy) else decays


def analysis_of(task):
    """What the program of a task's network says of its parameters, traced as it is trained."""
    batch = jnp.zeros((task.batch_size, *task.train.inputs.shape[1:]))
    variables = task.network.init(jax.random.key(0), batch, train=True)
    return bnmask.analyze_linen(task.network, variables, batch, train=True)


def optimizer(policy, name, analysis, steps_in_epoch, epochs) -> Callable:
    """The function of learning rate and decay or angle (numbers or tracers) to the optimizer.

    SGD takes the decay before its momentum, as a penalty's gradient, AdamW after its
    normalisation. Learning rate and angle warm up in one epoch and fall to 0 along a cosine.
    """
    shape = optax.warmup_cosine_decay_schedule(
        0.0, 1.0, steps_in_epoch, steps_in_epoch * max(epochs, 2)
    )
    decay, sphere = _decay(policy, analysis), _sphere(policy, analysis, shape)

    def make(learning_rate, second):
        def schedule(count):
            return learning_rate * shape(count)

        links = [OPTIMIZERS[name], decay(second, schedule, learning_rate)]
        if name == "SGD":
            links.reverse()
        return optax.chain(*links, optax.scale_by_learning_rate(schedule), sphere(second))

    return make


def _decay(policy, analysis) -> Callable:
    """The decay of a policy, from its strength, the schedule and the schedule's peak."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # what it warns of is what is measured here
        strict = analysis.decay_mask(exempt=bnmask.STRICT)
    norm_exempt, invariant = analysis.decay_mask(), analysis.select("scale_invariant")
    masks = {
        "everything": None,
        "exempt norm and bias": analysis.decay_mask(exempt=bnmask.STANDARD),
        "STRICT": strict,
        "STRICT + keep_norm": strict,
    }

    def decay(weight_decay, schedule, peak):
        if policy == "no decay" or turns(policy):
            return optax.identity()
        if policy == "exempt norm, corrected":
            return bnmask.corrected_weight_decay(
                weight_decay, schedule, peak, mask=norm_exempt, corrected=invariant
            )
        return optax.add_decayed_weights(weight_decay, mask=masks.get(policy, norm_exempt))

    return decay


def _sphere(policy, analysis, shape) -> Callable:
    """What a policy does last to keep norms, from the peak angle."""
    invariant = analysis.select("scale_invariant")
    matrices = analysis.select("input", "hidden", "head")
    turned = {path: matrices[path] and invariant[path] for path in matrices}
    masks = {"hyperball": bnmask.Mask(turned), "hyperball, all matrices": matrices}

    def sphere(angle):
        if turns(policy):
            return bnmask.hyperball(lambda n: angle * shape(n), masks[policy], flip_sign=False)
        if policy == "STRICT + keep_norm":
            return bnmask.keep_norm(invariant, axes=analysis.invariant_axes)
        return optax.identity()

    return sphere
