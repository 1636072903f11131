"""What our transformations add to an AdamW step, beside the least that memory allows.

Run with `python -m benchmarks.step_time`; it prints a table. AdamW in float32 reads params,
gradients and two moments and writes all but the gradients: 28 bytes per parameter at least. The
bandwidth is that of a copy, measured in the same run; all variants take turns in every round, and
the table shows medians. Compiled afresh each, in turns as well, they also show what they add to
the compilation.
"""

import argparse
import time
from itertools import zip_longest

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optax_bnmask as bnmask
from benchmarks.adamp import adamp
from benchmarks.record import Row, compared
from benchmarks.timing import fastest, in_turns

BYTES_PER_PARAMETER = 28
RATE, DECAY = 1e-9, 0.1  # params hardly move, so that AdamP goes on finding them invariant
PLAIN, MASKED, BY_HAND, FLOOR = (
    "AdamW",
    "with the mask",
    "with a mask by hand",
    "the floor: 28 bytes a parameter",
)


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


def gradients(params, width):
    """A gradient of the network: one to which its invariant weights are orthogonal."""
    x = jax.random.normal(jax.random.key(1), (64, width))
    return jax.jit(jax.grad(lambda params: jnp.square(network(params, x) - 1).mean()))(params)


def variants(params, width):
    """The optimizers that are compared, by name."""
    analysis = bnmask.analyze(network, params, jax.ShapeDtypeStruct((8, width), jnp.float32))
    mask = analysis.decay_mask()
    by_hand = {"layers": [{"kernel": True, "scale": False} for _ in params["layers"]], "head": True}
    invariant = analysis.select("scale_invariant")
    masked = optax.adamw(RATE, weight_decay=DECAY, mask=mask)
    return {
        PLAIN: optax.adamw(RATE, weight_decay=DECAY),
        MASKED: masked,
        BY_HAND: optax.adamw(RATE, weight_decay=DECAY, mask=by_hand),
        "with `corrected_weight_decay`": optax.chain(
            optax.scale_by_adam(),
            bnmask.corrected_weight_decay(DECAY, RATE, RATE, mask=mask, corrected=invariant),
            optax.scale_by_learning_rate(RATE),
        ),
        "with `keep_norm`": optax.chain(masked, bnmask.keep_norm(invariant)),
        "with `hyperball`": optax.chain(masked, bnmask.hyperball(RATE, invariant, flip_sign=False)),
        "with `monitor_scale(every=50)`": bnmask.monitor_scale(masked, analysis, every=50),
        "with `monitor_scale`": bnmask.monitor_scale(masked, analysis),
        "AdamP, which detects at run time": adamp(RATE, DECAY),
    }


def compiler(tx, params, grads, options=None):
    """A function that compiles one step, in which the old params and state are donated.

    `options` are XLA's, by name.
    """

    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = jax.eval_shape(tx.init, params)
    jitted = jax.jit(step, donate_argnums=(0, 1), compiler_options=options)
    return lambda: jitted.lower(params, state, grads).compile()


def stepper(compiled, tx, params, grads, repeats):
    """A function that takes `repeats` steps and waits for the last."""
    kept = jax.block_until_ready((jax.tree.map(jnp.copy, params), tx.init(params)))

    def steps():
        nonlocal kept
        for _ in range(repeats):
            kept = compiled(*kept, grads)
        jax.block_until_ready(kept)

    return steps


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


def differences(on, ours, by_hand):
    """How far a compiled step with our mask differs from one with a mask by hand: not at all."""
    lines = zip_longest(*(compiled.as_text().splitlines() for compiled in (ours, by_hand)))
    differing = float(sum(a != b for a, b in lines))
    name = "mask against mask by hand:"
    yield Row("step", on, f"{name} differing HLO", differing, "lines", limit=0)
    costs = [compiled.cost_analysis() for compiled in (ours, by_hand)]
    for of, unit in (("flops", "flops"), ("bytes accessed", "bytes")):
        apart = float(abs(costs[0][of] - costs[1][of]))
        yield Row("step", on, f"{name} differing {of}", apart, unit, limit=0)


def measured(layers, width, rounds, repeats, compilations):
    """Milliseconds for a step and seconds to compile it, for each variant, and the floor."""
    params = initial(layers, width)
    grads = gradients(params, width)
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    speed = bandwidth(size)
    on = f"{size:,} parameters in {2 * layers + 1} leaves"
    optimizers = variants(params, width)
    compilers = {name: compiler(tx, params, grads) for name, tx in optimizers.items()}
    compiled = {}
    compile_step = {name: lambda n=name: compiled.update({n: compilers[n]()}) for name in compilers}
    compiling = fastest(
        in_turns(compile_step, compilations, before=jax.clear_caches, clock=time.perf_counter)
    )
    calls = {
        name: stepper(compiled[name], tx, params, grads, repeats) for name, tx in optimizers.items()
    }
    taken = in_turns(calls, rounds, before=lambda: None, clock=time.perf_counter)
    for name, seconds in taken.items():
        milliseconds = 1e3 * float(np.median(seconds)) / repeats
        yield Row("step", on, name, milliseconds, "ms", "" if name == PLAIN else PLAIN)
    floor = 1e3 * BYTES_PER_PARAMETER * size / speed
    note = f"a copy moves {speed / 1e9:,.0f} GB/s"
    yield Row("step", on, FLOOR, float(floor), "ms", PLAIN, note=note)
    for name, seconds in compiling.items():
        yield Row("compilation", on, name, seconds, "s", "" if name == PLAIN else PLAIN)
    yield from differences(on, compiled[MASKED], compiled[BY_HAND])


def rows(*, quick):
    """The rows at a size that suits two cores."""
    layers, width, rounds = (4, 256, 10) if quick else (16, 512, 20)
    yield from measured(layers, width, rounds, repeats=5, compilations=1 if quick else 5)


def table(layers, width, rounds, repeats):
    """The measured table, as Markdown."""
    found = compared(measured(layers, width, rounds, repeats, compilations=1))
    steps = {row.what: row for row in found if row.experiment == "step" and row.unit == "ms"}
    floor = steps.pop(FLOOR)
    lines = [
        f"{jax.devices()[0].device_kind}: {floor.on}; {floor.note}, so the floor is "
        f"{floor.value:.3f} ms.",
        "",
        "| step | ms | of AdamW | of the floor |",
        "| --- | --: | --: | --: |",
    ]
    plain = steps[PLAIN].value
    for name, row in steps.items():
        of_plain, of_floor = row.value / plain, row.value / floor.value
        lines.append(f"| {name} | {row.value:.3f} | {of_plain:.2f} | {of_floor:.2f} |")
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
