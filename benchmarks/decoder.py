"""A decoder of 70 billion parameters, analysed in a process of its own that allocates none of them.

Run with `python -m benchmarks.decoder`; it prints what it took as JSON.
"""

import json
import re
import resource
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp

import optax_bnmask as bnmask
from benchmarks.record import Row

LAYERS, WIDTH, HEADS, KV_HEADS, SIZE, HIDDEN, VOCABULARY = 80, 8192, 64, 8, 128, 28672, 128256
POSITIONS = 4096
INVARIANT = {"layers/query", "layers/key"}
MIB, GIB_IN_MIB = 2**20, 2**10
SHAPES = {
    "embedding": (VOCABULARY, WIDTH),
    "layers": {
        "attention_norm": (LAYERS, WIDTH),
        "query": (LAYERS, WIDTH, HEADS, SIZE),
        "query_norm": (LAYERS, SIZE),
        "key": (LAYERS, WIDTH, KV_HEADS, SIZE),
        "key_norm": (LAYERS, SIZE),
        "value": (LAYERS, WIDTH, KV_HEADS, SIZE),
        "out": (LAYERS, HEADS, SIZE, WIDTH),
        "mlp_norm": (LAYERS, WIDTH),
        "gate": (LAYERS, WIDTH, HIDDEN),
        "up": (LAYERS, WIDTH, HIDDEN),
        "down": (LAYERS, HIDDEN, WIDTH),
    },
    "norm": (WIDTH,),
    "head": (WIDTH, VOCABULARY),
}


def rms_norm(x, gain):
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + 1e-6)
    return y.astype(x.dtype) * gain


def rotated(x):
    half = SIZE // 2
    angle = jnp.arange(x.shape[1])[:, None] * 5e5 ** (-jnp.arange(half) / half)
    cos, sin = (f(angle).astype(x.dtype)[None, :, None, :] for f in (jnp.cos, jnp.sin))
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def layer(x, p):
    y = rms_norm(x, p["attention_norm"])
    q = rotated(rms_norm(jnp.einsum("btd,dhk->bthk", y, p["query"]), p["query_norm"]))
    k = rotated(rms_norm(jnp.einsum("btd,dhk->bthk", y, p["key"]), p["key_norm"]))
    v = jnp.einsum("btd,dhk->bthk", y, p["value"])
    q = q.reshape(*q.shape[:2], KV_HEADS, HEADS // KV_HEADS, SIZE)
    scores = jnp.einsum("btgrk,bsgk->bgrts", q, k).astype(jnp.float32) * SIZE**-0.5
    causal = jnp.tril(jnp.ones((x.shape[1], x.shape[1]), bool))
    weights = jax.nn.softmax(jnp.where(causal, scores, -1e30)).astype(x.dtype)
    read = jnp.einsum("bgrts,bsgk->btgrk", weights, v).reshape(*x.shape[:2], HEADS, SIZE)
    x = x + jnp.einsum("bthk,hkd->btd", read, p["out"])
    y = rms_norm(x, p["mlp_norm"])
    return x + (jax.nn.silu(y @ p["gate"]) * (y @ p["up"])) @ p["down"]


def decoder(params, tokens):
    """Logits of the next tokens."""
    x = params["embedding"][tokens]
    x, _ = jax.lax.scan(lambda x, p: (layer(x, p), None), x, params["layers"])
    return rms_norm(x, params["norm"]) @ params["head"]


def peak():
    """The most bytes that were resident in this process."""
    # Linux lets a process inherit `ru_maxrss` from a larger parent, but not this.
    status = Path("/proc/self/status")
    if status.exists():
        return 1024 * int(re.search(r"VmHWM:\s*(\d+) kB", status.read_text())[1])
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def measured():
    """What one analysis takes, imports excluded from the seconds but not from the memory."""
    params = jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, jnp.bfloat16),
        SHAPES,
        is_leaf=lambda node: isinstance(node, tuple),
    )
    bnmask.analyze  # noqa: B018 - imports what it needs
    before, start = peak(), time.perf_counter()
    analysis = bnmask.analyze(decoder, params, jax.ShapeDtypeStruct((1, POSITIONS), jnp.int32))
    found = {leaf.path for leaf in analysis.leaves if leaf.scale.name == "INVARIANT"}
    return {
        "seconds": time.perf_counter() - start,
        "before": before,
        "peak": peak(),
        "parameters": sum(leaf.size for leaf in analysis.leaves),
        "misjudged": len(found ^ INVARIANT),
    }


def rows(*, quick):
    """Seconds and memory of the analysis, from a process that did nothing else."""
    del quick  # it takes seconds
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.decoder"],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"The decoder's process has failed:\n{done.stderr}")
    found = json.loads(done.stdout)
    on = f"decoder, {found['parameters'] / 1e9:.1f} billion parameters"
    yield Row("decoder", on, "`analyze`, tracing included", found["seconds"], "s")
    before = f"{found['before'] / MIB:,.0f} MiB of it for imports"
    memory = found["peak"] / MIB
    yield Row("decoder", on, "peak resident memory", memory, "MiB", limit=GIB_IN_MIB, note=before)
    misjudged = float(found["misjudged"])
    yield Row("decoder", on, "differs from what is invariant", misjudged, "leaves", limit=0)


if __name__ == "__main__":
    print(json.dumps(measured()))
