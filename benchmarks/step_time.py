"""What our transformations add to an AdamW step, beside the least that memory allows.

Run with `python -m benchmarks.step_time`; it prints a table. AdamW in float32 reads params,
gradients and two moments and writes all but the gradients: 28 bytes per parameter at least. The
bandwidth is that of a copy, measured in the same run; all variants take turns in every round, and
the table shows medians.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optax_bnmask as bnmask

BYTES_PER_PARAMETER = 28
RATE, DECAY = 1e-3, 0.1


def network(params, x):
    """A stack of dense layers, each before an RMSNorm with a gain: the weights are invariant."""
    for layer in params["layers"]:
        z = x @ layer["kernel"]
        x = z * jax.lax.rsqrt(jnp.mean(jnp.square(z), -1, keepdims=True) + 1e-6) * layer["scale"]
        x = jnp.tanh(x)
    return x @ params["head"]


def initial(layers, width):
    """Random params of the network: ``layers * width * (width + 1)`` of them, and a head."""
    keys = jax.random.split(jax.random.key(0), layers)
    return {
        "layers": [
            {"kernel": jax.random.normal(key, (width, width)), "scale": jnp.ones(width)}
            for key in keys
        ],
        "head": jnp.ones((width, 10)),
    }


def variants(params, width):
    """The optimizers that are compared, by name."""
    analysis = bnmask.analyze(network, params, jax.ShapeDtypeStruct((8, width), jnp.float32))
    mask = analysis.decay_mask()
    invariant = analysis.select("scale_invariant")
    masked = optax.adamw(RATE, weight_decay=DECAY, mask=mask)
    return {
        "AdamW": optax.adamw(RATE, weight_decay=DECAY),
        "with the mask": masked,
        "with corrected_weight_decay": optax.chain(
            optax.scale_by_adam(),
            bnmask.corrected_weight_decay(DECAY, RATE, RATE, mask=mask, corrected=invariant),
            optax.scale_by_learning_rate(RATE),
        ),
        "with keep_norm": optax.chain(masked, bnmask.keep_norm(invariant)),
        "with monitor_scale": bnmask.monitor_scale(masked, analysis),
    }


def stepper(tx, params):
    """A function that takes one step, timed to its end; the compiled step donates its state."""

    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    compiled = jax.jit(step, donate_argnums=(0, 1))
    grads = jax.tree.map(lambda p: jnp.full_like(p, 1e-3), params)
    kept = jax.block_until_ready((jax.tree.map(jnp.copy, params), tx.init(params)))

    def timed(repeats):
        nonlocal kept
        start = time.perf_counter()
        for _ in range(repeats):
            kept = compiled(*kept, grads)
        jax.block_until_ready(kept)
        return (time.perf_counter() - start) / repeats

    return timed


def bandwidth(size):
    """Bytes per second of a copy of that many floats, read and written."""
    copy = jax.jit(lambda x: x + 1, donate_argnums=0)
    x = copy(jnp.zeros(size))
    times = []
    for _ in range(20):
        jax.block_until_ready(x)
        start = time.perf_counter()
        for _ in range(5):
            x = copy(x)
        jax.block_until_ready(x)
        times.append((time.perf_counter() - start) / 5)
    return 8 * size / np.median(times)


def table(layers, width, rounds, repeats):
    """The measured table, as Markdown."""
    params = initial(layers, width)
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    speed = bandwidth(size)
    floor = BYTES_PER_PARAMETER * size / speed
    steppers = {name: stepper(tx, params) for name, tx in variants(params, width).items()}
    for timed in steppers.values():
        timed(2)
    times = {name: [] for name in steppers}
    for _ in range(rounds):
        for name, timed in steppers.items():
            times[name].append(timed(repeats))
    plain = np.median(times["AdamW"])
    device = jax.devices()[0].device_kind
    lines = [
        f"{device}: {size:,} parameters in {2 * layers + 1} leaves; a copy moves "
        f"{speed / 1e9:,.0f} GB/s, so the floor is {1e3 * floor:.3f} ms.",
        "",
        "| step | ms | of AdamW | of the floor |",
        "| --- | --: | --: | --: |",
    ]
    for name, seconds in times.items():
        median = np.median(seconds)
        lines.append(
            f"| {name} | {1e3 * median:.3f} | {median / plain:.2f} | {median / floor:.2f} |"
        )
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    print(table(options.layers, options.width, options.rounds, options.repeats))


if __name__ == "__main__":
    main()
