"""What the treatments of scale-invariant weights add to an AdamW step on params of real networks.

AdamW moves 28 bytes a parameter: it reads and writes the param and two moments, and reads the
gradient. A treatment that must know a norm before it writes stores the update and reads it again
beside the param: 40 bytes, if all sums could be taken while the update is made. In the passes that
they take, if no cache holds a leaf, `hyperball` moves 56, `keep_norm` 76, the exact angle 88. On a
CPU each is also measured under XLA's memory-optimised scheduler, which goes leaf by leaf.
"""

import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optax_bnmask as bnmask
from benchmarks.networks import NETWORKS, TOKENS, Transformer, of_linen
from benchmarks.record import Row
from benchmarks.step_time import DECAY, RATE, compiler, stepper
from benchmarks.timing import in_turns

MASKED = "AdamW with the mask"
LEAF_BY_LEAF = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
SMALL = {"transformer, 1 layer": (Transformer(1, width=64), TOKENS)}
LARGE = {
    "ResNet-50": NETWORKS["ResNet-50"],
    "transformer, 4 layers": (Transformer(4), TOKENS),
}


def drawn(shapes, seed):
    """Random arrays of the shapes in a tree."""
    leaves, tree = jax.tree.flatten(shapes)
    rng = np.random.default_rng(seed)
    arrays = [jnp.asarray(0.05 * rng.standard_normal(leaf.shape, np.float32)) for leaf in leaves]
    return jax.tree.unflatten(tree, arrays)


def variants(analysis):
    """The optimizers that are compared, by name."""
    chosen = analysis.select("input", "hidden")  # the same leaves on either network, most of both
    masked = optax.adamw(RATE, weight_decay=DECAY, mask=analysis.decay_mask())

    def ball(*, exact_angle):
        return bnmask.hyperball(RATE, chosen, exact_angle=exact_angle, flip_sign=False)

    return {
        MASKED: masked,
        "`keep_norm`": optax.chain(masked, bnmask.keep_norm(chosen)),
        "`hyperball`": optax.chain(masked, ball(exact_angle=False)),
        "`hyperball(exact_angle=True)`": optax.chain(masked, ball(exact_angle=True)),
        "`monitor_scale(every=50)`": bnmask.monitor_scale(masked, analysis, every=50),
    }


def measured(name, module, x, rounds, repeats):
    """Milliseconds for a step of each variant, which take turns, and the bytes that it stores.

    Times are medians, and so those of a step that is not due for `monitor_scale(every=50)`.
    """
    fn, shapes, args = of_linen(module, x)
    analysis = bnmask.analyze(fn, shapes, *args)
    params, grads = drawn(shapes, 0), drawn(shapes, 1)
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    on = f"{name}, {size:,} parameters"
    schedulers = {"": None}
    if jax.default_backend() == "cpu":
        schedulers[", leaf by leaf"] = LEAF_BY_LEAF
    optimizers = variants(analysis)
    calls, notes = {}, {}
    for suffix, options in schedulers.items():
        for what, tx in optimizers.items():
            compiled = compiler(tx, params, grads, options)()
            calls[what + suffix] = stepper(compiled, tx, params, grads, repeats)
            stored = compiled.memory_analysis().temp_size_in_bytes / size
            notes[what + suffix] = f"stores {stored:.1f} bytes a parameter"
    taken = in_turns(calls, rounds, before=lambda: None, clock=time.perf_counter)
    for what, seconds in taken.items():
        milliseconds = 1e3 * float(np.median(seconds)) / repeats
        against = "" if what == MASKED else MASKED
        yield Row("treatments", on, what, milliseconds, "ms", against, note=notes[what])


def rows(*, quick):
    """The rows, on params of a size that suits two cores."""
    rounds, repeats = (2, 1) if quick else (9, 3)
    for name, (module, x) in (SMALL if quick else LARGE).items():
        yield from measured(name, module, x, rounds, repeats)
