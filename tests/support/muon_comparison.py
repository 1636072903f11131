"""Who sends which leaf to Muon wrongly: Optax's default and a rule of names against the program.

`python -m tests.support.muon_comparison` writes the table of `docs/muon.md`. What is right is said
here by hand: the leaves of each network that are hidden matrices, with the axes that are summed
over and those that are put out; the axes of a leaf that are neither index matrices of their own.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp

import optax_bnmask as bnmask
from optax_bnmask.paths import matches, tree_index

KEY = jax.random.key(0)
INTO_HEADS, OUT_OF_HEADS = ((0,), (1, 2)), ((0, 1), (2,))
DENSE, FILTER = ((0,), (1,)), ((0, 1, 2), (3,))


def shape(*sizes, dtype="float32"):
    return jax.ShapeDtypeStruct(sizes, dtype)


def stacked(spec):
    """The axes of a leaf of whose kind a scan stacks several."""
    return tuple(tuple(axis + 1 for axis in axes) for axes in spec)


@dataclasses.dataclass(frozen=True)
class Network:
    """A network, and what is known of it.

    Attributes:
      name: What it is.
      build: Gives ``(fn, params, x)``.
      matrices: Its hidden matrices, as globs, with the axes summed over and those put out.
    """

    name: str
    build: Callable[[], tuple[Callable[..., Any], Any, Any]]
    matrices: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]


def of_linen(module, x):
    params = jax.eval_shape(module.init, KEY, x)["params"]

    def fn(params, x):
        return module.apply({"params": params}, x, mutable=["batch_stats"])[0]

    return fn, params, x


class Block(nn.Module):
    """A pre-LayerNorm block; its kernels of heads have three axes."""

    @nn.compact
    def __call__(self, x, _):
        y = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(2)(y, y)
        return x + nn.Dense(8)(nn.gelu(nn.Dense(32)(nn.LayerNorm()(x)))), None


class Decoder(nn.Module):
    """A language model; its layers are one stack, or stand beside each other."""

    scanned: bool

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(50, 8)(tokens) + self.param("position", nn.zeros, (tokens.shape[1], 8))
        if self.scanned:
            split = {"params": True}
            x, _ = nn.scan(Block, {"params": 0}, split_rngs=split, length=3)(name="layers")(x, None)
        else:
            for _ in range(3):
                x, _ = Block()(x, None)
        return nn.Dense(50, name="head")(nn.LayerNorm()(x))


class Convolutional(nn.Module):
    """Separable convolutions, each before a BatchNorm."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(8, (3, 3), name="stem")(x)
        for width in (16, 16):
            n = x.shape[-1]
            x = nn.Conv(n, (3, 3), feature_group_count=n, name=f"depth{n}_{width}")(x)
            x = nn.Conv(width, (1, 1), use_bias=False, name=f"point{n}_{width}")(x)
            x = nn.relu(nn.BatchNorm(use_running_average=False)(x))
        return nn.Dense(5, name="head")(x.mean((1, 2)))


class Recurrent(nn.Module):
    """A language model of LSTM cells."""

    @nn.compact
    def __call__(self, tokens):
        x = nn.RNN(nn.OptimizedLSTMCell(8))(nn.Embed(50, 8)(tokens))
        x = nn.RNN(nn.GRUCell(8))(x)
        return nn.Dense(50, name="head")(x)


def experts():
    """A layer of experts behind a router, and gains of a state-space layer's kind."""

    def fn(p, x):
        h = jnp.tanh(x @ p["embed"])
        h = h * jax.lax.rsqrt((h * h).mean(-1, keepdims=True) + 1e-6) * p["gain"]
        weights = jax.nn.softmax(h @ p["router"])
        up = jax.nn.silu(jnp.einsum("td,edf->etf", h, p["up"]))
        h = jnp.einsum("etf,efd,te->td", up, p["down"], weights)
        h = h * jax.lax.rsqrt((h * h).mean(-1, keepdims=True) + 1e-6)
        decay = jnp.exp(-jnp.exp(p["A_log"])[None])
        return (decay * h[..., None]).sum(-1) @ p["head"]

    params = {
        "embed": shape(6, 8), "gain": shape(1, 8), "router": shape(8, 4), "up": shape(4, 8, 16),
        "down": shape(4, 16, 8), "A_log": shape(8, 5), "head": shape(8, 6),
    }  # fmt: skip
    return fn, params, shape(12, 6)


def equinox():
    """Equinox keeps kernels as (out, in), and calls gains and kernels `weight` alike."""

    class Net(eqx.Module):
        start: eqx.nn.Linear
        attention: eqx.nn.MultiheadAttention
        norm: eqx.nn.LayerNorm
        mix: eqx.nn.Linear
        head: eqx.nn.Linear

        def __call__(self, x):
            x = jax.vmap(self.start)(x)
            x = x + self.attention(x, x, x)
            x = jax.nn.gelu(jax.vmap(self.mix)(jax.vmap(self.norm)(x)))
            return jax.vmap(self.head)(x)

    def make():
        return Net(
            eqx.nn.Linear(6, 8, key=KEY), eqx.nn.MultiheadAttention(2, 8, key=KEY),
            eqx.nn.LayerNorm(8), eqx.nn.Linear(8, 8, key=KEY), eqx.nn.Linear(8, 3, key=KEY),
        )  # fmt: skip

    made = eqx.filter_eval_shape(make)
    params, static = eqx.partition(made, lambda x: isinstance(x, jax.ShapeDtypeStruct))
    return lambda p, x: eqx.combine(p, static)(x), params, shape(5, 6)


def haiku():
    """Haiku calls kernels `w` and gains `scale`; its fused kernels are (in, 3 * out)."""

    def forward(x):
        x = hk.Linear(8, name="start")(x)
        for name in ("first", "second"):
            y = hk.LayerNorm(-1, True, True)(x)
            query, key, value = jnp.split(hk.Linear(24, name=f"{name}_fused")(y), 3, -1)
            x = x + jax.nn.softmax(query @ key.T) @ value
        return hk.Linear(3, name="head")(x)

    net = hk.without_apply_rng(hk.transform(forward))
    x = shape(5, 6)
    return net.apply, jax.eval_shape(net.init, KEY, x), x


HEADS_OF = {
    "query/kernel": INTO_HEADS, "key/kernel": INTO_HEADS, "value/kernel": INTO_HEADS,
    "out/kernel": OUT_OF_HEADS,
}  # fmt: skip
NETWORKS = (
    Network(
        "Linen, attention, layers stacked by a scan",
        lambda: of_linen(Decoder(scanned=True), shape(2, 5, dtype="int32")),
        {f"layers/*/{name}": stacked(spec) for name, spec in HEADS_OF.items()}
        | {"layers/Dense_*/kernel": stacked(DENSE)},
    ),
    Network(
        "Linen, attention, layer by layer",
        lambda: of_linen(Decoder(scanned=False), shape(2, 5, dtype="int32")),
        {f"Block_*/*/{name}": spec for name, spec in HEADS_OF.items()}
        | {"Block_*/Dense_*/kernel": DENSE},
    ),
    Network(
        "Linen, separable convolutions",
        lambda: of_linen(Convolutional(), shape(2, 8, 8, 3)),
        {"point*/kernel": FILTER},
    ),
    Network(
        "Linen, recurrent cells",
        lambda: of_linen(Recurrent(), shape(2, 5, dtype="int32")),
        {"*Cell_*/*/kernel": DENSE},
    ),
    Network(
        "a function, experts and a state space's gains",
        experts,
        {"router": DENSE, "up": ((1,), (2,)), "down": ((1,), (2,))},
    ),
    Network(
        "Equinox, attention",
        equinox,
        {"attention/*/weight": ((1,), (0,)), "mix/weight": ((1,), (0,))},
    ),
    Network("Haiku, fused attention", haiku, {"*_fused/w": DENSE}),
)


def by_default(leaves, _):
    """Optax's own: each leaf of two axes."""
    return {path: DENSE for path, leaf in leaves.items() if len(leaf.shape) == 2}


def by_names(leaves, _):
    """What is called a kernel, but in the head and the embedding, along its last two axes."""
    return {
        path: ((n - 2,), (n - 1,))
        for path, leaf in leaves.items()
        if (n := len(leaf.shape)) > 1
        and re.search("(^|/)(kernel|weight|w|up|down)$", path)
        and not re.search("(^|/)(head|embed)", path)
    }


def by_program(_, network):
    """`muon_dimension_numbers`."""
    specs = bnmask.analyze(*network).muon_dimension_numbers()
    return {
        path: (specs[path].reduction_axis, specs[path].output_axis)
        for path in specs
        if specs[path] is not None
    }


RULES = {
    "`ndim == 2`, Optax's default": by_default,
    "names of kernels, last two axes": by_names,
    "**`muon_dimension_numbers()`**": by_program,
}
KINDS = ("taken, no hidden matrix", "left out", "wrong axes")


def wrong_of(found, truth, leaves):
    """What a rule gets wrong, by path; which of two groups of axes is the rows does not matter."""

    def matrix(path, spec):
        return {tuple(axis for axis in axes if leaves[path].shape[axis] > 1) for axes in spec}

    out = {path: KINDS[0] for path in found if path not in truth}
    out |= {path: KINDS[1] for path in truth if path not in found}
    same = [path for path in truth if path in found]
    return out | {p: KINDS[2] for p in same if matrix(p, found[p]) != matrix(p, truth[p])}


def judged():
    """`_judged`, with promotion as the frameworks need it."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        return _judged()


def _judged():
    """For each rule what it gets wrong: ``{rule: {(network, path): what}}``, and the leaves."""
    wrong, total = {rule: {} for rule in RULES}, 0
    for network in NETWORKS:
        built = network.build()
        leaves = tree_index(built[1], "params").leaves
        total += len(leaves)
        truth = {
            path: spec
            for glob, spec in network.matrices.items()
            for path in sorted(matches([glob], leaves, "matrices"))
        }
        for rule, takes in RULES.items():
            found = wrong_of(takes(leaves, built), truth, leaves)
            wrong[rule] |= {(network.name, path): what for path, what in found.items()}
    return wrong, total


def table():
    """The comparison as a Markdown table."""
    wrong, total = judged()
    lines = [
        f"| rule | wrong of {total} leaves | {' | '.join(KINDS)} | for example |",
        "| --- | --: | --: | --: | --: | --- |",
    ]
    for rule, leaves in wrong.items():
        kinds = Counter(leaves.values())
        counts = " | ".join(str(kinds[what]) for what in KINDS)
        example = next((f"`{path}`, {name}" for name, path in leaves), "")
        lines.append(f"| {rule} | {len(leaves)} | {counts} | {example} |")
    return "\n".join(lines)


PAGE = Path(__file__).parents[2] / "docs" / "muon.md"
FRAME = re.compile(r"(?<=<!-- comparison -->\n).*?(?=\n\n)", re.S)

if __name__ == "__main__":
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(FRAME.sub(lambda _: table(), page), encoding="utf-8")
