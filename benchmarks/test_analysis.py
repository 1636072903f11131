"""What the analysis of a program costs beyond the tracing that any use of the program pays.

Run with `python -m pytest benchmarks/test_analysis.py -s`; it prints the figures. Nothing here is
collected by default.
"""

import gc
import json
import subprocess
import sys
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from optax_bnmask import compat
from optax_bnmask.program.assemble import analysis_of
from optax_bnmask.program.trace import traced

OF_TRACING = 0.25
FLATNESS = 0.30
GIB, MIB = 2**30, 2**20


class Bottleneck(nn.Module):
    width: int
    stride: int = 1

    @nn.compact
    def __call__(self, x):
        def normed(y, **options):
            return nn.BatchNorm(use_running_average=False, **options)(y)

        def conv(y, features, size, stride=1):
            return nn.Conv(features, (size, size), (stride, stride), use_bias=False)(y)

        y = nn.relu(normed(conv(x, self.width, 1)))
        y = nn.relu(normed(conv(y, self.width, 3, self.stride)))
        y = normed(conv(y, 4 * self.width, 1), scale_init=nn.initializers.zeros)
        if x.shape != y.shape:
            x = normed(conv(x, 4 * self.width, 1, self.stride))
        return nn.relu(x + y)


class ResNet(nn.Module):
    depths: tuple

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(64, (7, 7), (2, 2), use_bias=False)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=False)(x))
        x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
        for stage, depth in enumerate(self.depths):
            for block in range(depth):
                x = Bottleneck(64 * 2**stage, 2 if stage and not block else 1)(x)
        return nn.Dense(1000)(x.mean((1, 2)))


class Transformer(nn.Module):
    layers: int
    width: int = 512
    heads: int = 8

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(32_000, self.width)(tokens)
        x = x + self.param("position", nn.initializers.normal(), (tokens.shape[1], self.width))
        for _ in range(self.layers):
            y = nn.LayerNorm()(x)
            x = x + nn.MultiHeadDotProductAttention(self.heads, normalize_qk=True)(y, y)
            y = nn.gelu(nn.Dense(4 * self.width)(nn.LayerNorm()(x)))
            x = x + nn.Dense(self.width)(y)
        return nn.Dense(32_000)(nn.LayerNorm()(x))


IMAGES = jax.ShapeDtypeStruct((8, 224, 224, 3), jnp.float32)
TOKENS = jax.ShapeDtypeStruct((8, 128), jnp.int32)
MODELS = {
    "ResNet-50": (ResNet((3, 4, 6, 3)), IMAGES),
    "ResNet-152": (ResNet((3, 8, 36, 3)), IMAGES),
    "transformer, 64 layers": (Transformer(64), TOKENS),
}


def equations(jaxpr):
    """How many equations a jaxpr has, those of the jaxprs in it included."""
    total = 0
    for eqn in jaxpr.eqns:
        total += 1
        for value in eqn.params.values():
            for part in value if isinstance(value, tuple | list) else (value,):
                if hasattr(part, "eqns") or hasattr(part, "jaxpr"):
                    total += equations(compat.open_jaxpr(part))
    return total


def seconds(function):
    """The seconds of this process that a call takes, and what it returns."""
    gc.collect()
    start = time.process_time()
    result = function()
    return time.process_time() - start, result


def of_linen(module, x):
    """The module as it is trained, as a function, with the shapes it is called with."""
    variables = jax.eval_shape(module.init, jax.random.key(0), x)

    def fn(params, stats, x):
        out, _ = module.apply({"params": params, "batch_stats": stats}, x, mutable=["batch_stats"])
        return out

    return fn, variables["params"], (variables.get("batch_stats", {}), x)


@pytest.mark.parametrize("name", MODELS)
def test_the_analysis_takes_a_quarter_of_the_tracing_at_most(name):
    fn, params, args = of_linen(*MODELS[name])
    rounds = []
    for _ in range(3):
        jax.clear_caches()  # or a function traced before is not traced again
        tracing, _ = seconds(lambda: jax.make_jaxpr(fn)(params, *args))
        program = traced(fn, params, args, {})
        analysing, analysis = seconds(lambda program=program: analysis_of(program))
        rounds.append((tracing, analysing))
    tracing, analysing = (min(taken) for taken in zip(*rounds, strict=True))
    ratio = analysing / tracing
    print(
        f"\n{name:22}  {len(analysis.leaves):5} leaves  {equations(program.jaxpr):6} equations"
        f"  make_jaxpr {tracing:6.2f} s  analysis {analysing:6.3f} s  ratio {ratio:.3f}"
    )
    assert ratio <= OF_TRACING


def residual(blocks, *, normalised):
    """A residual network, or the same layers in a row without normalisers, and its shapes."""

    def norm(z):
        return (z - z.mean(0)) * jax.lax.rsqrt(z.var(0) + 1e-5)

    def fn(params, x):
        for p in params:
            if normalised:
                x = x + jax.nn.relu(norm(x @ p["into"]) * p["gain"] + p["bias"]) @ p["out"]
            else:
                x = jax.nn.relu(x @ p["into"] + p["bias"])
        return x

    square, vector = (jax.ShapeDtypeStruct(s, jnp.float32) for s in ((64, 64), (64,)))
    block = {"into": square, "bias": vector}
    if normalised:
        block |= {"gain": vector, "out": square}
    return fn, [dict(block) for _ in range(blocks)]


@pytest.mark.parametrize("normalised", [True, False], ids=["normalised", "not normalised"])
def test_the_time_for_an_equation_does_not_grow(normalised):
    x = jax.ShapeDtypeStruct((32, 64), jnp.float32)

    def program(blocks):
        fn, params = residual(blocks, normalised=normalised)
        return traced(fn, params, (x,), {})

    few = 16
    each = equations(program(few).jaxpr) / few
    programs = [program(round(target / each)) for target in (1_000, 3_000, 10_000, 30_000)]
    analysis_of(programs[0])
    taken = [min(seconds(lambda p=p: analysis_of(p))[0] for _ in range(3)) for p in programs]
    counts = [equations(p.jaxpr) for p in programs]
    costs = [time / count for time, count in zip(taken, counts, strict=True)]
    print(f"\n{'normalised' if normalised else 'not normalised'}:")
    for p, count, cost in zip(programs, counts, costs, strict=True):
        print(f"  {count:6} equations  {len(p.paths):5} leaves  {1e6 * cost:6.1f} us an equation")
    assert all(abs(cost / costs[0] - 1) <= FLATNESS for cost in costs)


DECODER = """
import json, pathlib, re, resource, sys, time
import jax, jax.numpy as jnp
import optax_bnmask as bnmask

LAYERS, WIDTH, HEADS, KV_HEADS, SIZE, HIDDEN, VOCABULARY = 80, 8192, 64, 8, 128, 28672, 128256
POSITIONS = 4096
KIB = 1 if sys.platform == "darwin" else 1024


def peak():
    # Linux lets a process inherit `ru_maxrss` from a larger parent, but not this.
    status = pathlib.Path("/proc/self/status")
    if status.exists():
        return 1024 * int(re.search(r"VmHWM:\\s*(\\d+) kB", status.read_text())[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIB


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
    x = params["embedding"][tokens]
    x, _ = jax.lax.scan(lambda x, p: (layer(x, p), None), x, params["layers"])
    return rms_norm(x, params["norm"]) @ params["head"]


layers = {
    "attention_norm": (WIDTH,),
    "query": (WIDTH, HEADS, SIZE),
    "query_norm": (SIZE,),
    "key": (WIDTH, KV_HEADS, SIZE),
    "key_norm": (SIZE,),
    "value": (WIDTH, KV_HEADS, SIZE),
    "out": (HEADS, SIZE, WIDTH),
    "mlp_norm": (WIDTH,),
    "gate": (WIDTH, HIDDEN),
    "up": (WIDTH, HIDDEN),
    "down": (HIDDEN, WIDTH),
}
shapes = {
    "embedding": (VOCABULARY, WIDTH),
    "layers": {name: (LAYERS, *shape) for name, shape in layers.items()},
    "norm": (WIDTH,),
    "head": (WIDTH, VOCABULARY),
}
params = jax.tree.map(
    lambda shape: jax.ShapeDtypeStruct(shape, jnp.bfloat16),
    shapes,
    is_leaf=lambda node: isinstance(node, tuple),
)
bnmask.analyze  # imports are no part of the analysis
before, start = peak(), time.perf_counter()
analysis = bnmask.analyze(decoder, params, jax.ShapeDtypeStruct((1, POSITIONS), jnp.int32))
print(
    json.dumps(
        {
            "seconds": time.perf_counter() - start,
            "before": before,
            "peak": peak(),
            "ru_maxrss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIB,
            "parameters": sum(leaf.size for leaf in analysis.leaves),
            "scales": {leaf.path: leaf.scale.name for leaf in analysis.leaves},
            "unhandled": len(analysis.unhandled),
        }
    )
)
"""


def test_seventy_billion_parameters_are_analysed_in_under_a_gibibyte():
    done = subprocess.run(
        [sys.executable, "-c", DECODER], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    print(
        f"\n{found['parameters'] / 1e9:.1f} billion parameters: {found['seconds']:.2f} s, peak "
        f"resident {found['peak'] / MIB:.0f} MiB, of which {found['before'] / MIB:.0f} MiB before "
        f"(ru_maxrss {found['ru_maxrss'] / MIB:.0f} MiB)"
    )
    assert found["parameters"] > 70e9
    assert found["peak"] < GIB
    assert {name for name, scale in found["scales"].items() if scale == "INVARIANT"} == {
        "layers/query",
        "layers/key",
    }
