"""Muon on a transformer whose layers are stacked by a scan: which leaves it takes, three ways.

`python -m benchmarks.muon` trains a model of characters on the help texts that come with Python,
and writes muon.json beside this file and the picture of docs/muon.md; about half an hour on two
cores. All three ways have the same Muon and the same Adam, and their rates are chosen in the
same way: of six for Muon the one with the lowest loss on held-out text, two seeds each; then five
new seeds. Adam's is one for all.
"""

import functools
import json
import re
import statistics
import sys
import time
from pathlib import Path
from pydoc_data.topics import topics

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax.contrib import MuonDimensionNumbers, muon

import optax_bnmask as bnmask
from optax_bnmask.paths import tree_index

DEPTH, WIDTH, HEADS, LENGTH = 4, 64, 4, 64
BATCH, EVALUATED = 16, 256
RATES = tuple((rate, 0.003) for rate in (0.00125, 0.0025, 0.005, 0.01, 0.02, 0.04))  # Muon, Adam
TUNED, REPORTED = (100, 101), (0, 1, 2, 3, 4)
DEFAULT, NAMES, PROGRAM = "default: two axes", "names: `kernel`, its last two axes", "the program"
_PLAIN = MuonDimensionNumbers()
RESULTS = Path(__file__).with_name("muon.json")
PICTURE = Path(__file__).parents[1] / "docs" / "muon.svg"


class Block(nn.Module):
    """Attention and two dense layers, each behind a LayerNorm."""

    @nn.compact
    def __call__(self, x, _):
        y = nn.LayerNorm()(x)
        mask = nn.make_causal_mask(x[..., 0])
        x = x + nn.MultiHeadDotProductAttention(HEADS)(y, mask=mask)
        y = nn.gelu(nn.Dense(4 * WIDTH)(nn.LayerNorm()(x)))
        return x + nn.Dense(WIDTH)(y), None


class Model(nn.Module):
    """A decoder with its layers in one stack, so that their leaves have one axis more."""

    characters: int

    @nn.compact
    def __call__(self, text):
        x = nn.Embed(self.characters, WIDTH)(text)
        x = x + self.param("position", nn.initializers.normal(0.02), (text.shape[1], WIDTH))
        stack = nn.scan(
            Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=DEPTH
        )
        x, _ = stack(name="layers")(x, None)
        return nn.Dense(self.characters, name="head")(nn.LayerNorm()(x))


def text():
    """The characters to train on, those held out, and how many kinds there are."""
    whole = "\n".join(topics[name] for name in sorted(topics))
    kinds = sorted(set(whole))
    place = {kind: number for number, kind in enumerate(kinds)}
    numbers = np.array([place[kind] for kind in whole], np.int32)
    cut = len(numbers) * 9 // 10
    return numbers[:cut], numbers[cut:], len(kinds)


def windows(numbers, count, seed):
    """Pieces of text, each with the character after it."""
    starts = np.random.default_rng(seed).integers(0, len(numbers) - LENGTH - 1, count)
    return numbers[starts[:, None] + np.arange(LENGTH + 1)]


def by_names(path, shape):
    """A rule of names: each kernel but the head's is a matrix along its last two axes."""
    is_matrix = re.search(r"/kernel$", path) and not path.startswith("head") and len(shape) > 1
    return MuonDimensionNumbers(len(shape) - 2, len(shape) - 1) if is_matrix else None


def specs_of(model, params):
    """For each way, a function from params to dimension numbers; `None` is Optax's own default."""
    text_like = jax.ShapeDtypeStruct((BATCH, LENGTH), jnp.int32)
    analysis = bnmask.analyze_linen(model, {"params": params}, text_like)

    def named(tree):
        leaves = tree_index(tree, "params").leaves
        found = [by_names(path, leaf.shape) for path, leaf in leaves.items()]
        return jax.tree.unflatten(jax.tree.structure(tree), found)

    return {DEFAULT: None, NAMES: named, PROGRAM: analysis.muon_dimension_numbers()}


def routed(specs, params):
    """By path, the axes of a leaf that Muon sums over and puts out; those of all others are batch.

    Without specs, Optax takes each leaf of two axes.
    """
    if specs is None:
        specs = functools.partial(jax.tree.map, lambda x: _PLAIN if x.ndim == 2 else None)
    found = jax.tree.leaves(specs(params), is_leaf=lambda x: x is None or type(x) is type(_PLAIN))
    return {
        path: [sorted(int(a) for a in np.atleast_1d(axes)) for axes in spec]
        for path, spec in zip(tree_index(params, "params").leaves, found, strict=True)
        if spec is not None
    }


def trainer(model, specs, train, held_out, steps, every):
    """A function from rates and a seed to the held-out losses on the way; compiled once."""
    tests = jnp.asarray(windows(held_out, EVALUATED, seed=7))

    def loss(params, pieces):
        logits = model.apply({"params": params}, pieces[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, pieces[:, 1:]).mean()

    def optimizer(rate, adam):
        return muon(rate, adam_learning_rate=adam, muon_weight_dimension_numbers=specs)

    @jax.jit
    def run(params, state, pieces, rate, adam):
        def step(carry, batch):
            params, state = carry
            updates, state = optimizer(rate, adam).update(
                jax.grad(loss)(params, batch), state, params
            )
            return (optax.apply_updates(params, updates), state), None

        (params, state), _ = jax.lax.scan(step, (params, state), pieces)
        return params, state, loss(params, tests)

    def losses(rates, seed):
        params = model.init(jax.random.key(seed), jnp.zeros((1, LENGTH), jnp.int32))["params"]
        state, found = optimizer(*rates).init(params), []
        pieces = windows(train, steps * BATCH, seed).reshape(-1, every, BATCH, LENGTH + 1)
        for some in pieces:
            params, state, value = run(params, state, some, *rates)
            found.append(float(value))
        return found

    return losses


def measured(*, rates=RATES, tuned=TUNED, reported=REPORTED, steps=300, every=25):
    """All that is on record: for each way its leaves, its rates and its curves."""
    train, held_out, kinds = text()
    model = Model(kinds)
    params = jax.eval_shape(
        model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, LENGTH), jnp.int32)
    )["params"]
    ways = {}
    for way, specs in specs_of(model, params).items():
        losses, start = trainer(model, specs, train, held_out, steps, every), time.perf_counter()
        tried = {pair: statistics.mean(losses(pair, s)[-1] for s in tuned) for pair in rates}
        best = min(tried, key=tried.get)
        ways[way] = {
            "leaves": routed(specs, params),
            "tried": [[*pair, value] for pair, value in tried.items()],
            "rates": list(best),
            "curves": [losses(best, seed) for seed in reported],
        }
        print(f"{way}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    versions = {
        "python": sys.version.split()[0],
        "jax": jax.__version__,
        "optax": optax.__version__,
    }
    sizes = {"characters": len(train) + len(held_out), "kinds": kinds, "steps": steps}
    return {"versions": versions, **sizes, "every": every, "ways": ways}


def picture(record, path):
    """Draws the curves: a line for the mean of each way, a band from its least to its greatest."""
    import matplotlib as mpl  # noqa: PLC0415 - only the picture needs it

    mpl.use("svg")
    import matplotlib.pyplot as plt  # noqa: PLC0415

    mpl.rcParams["svg.hashsalt"] = "muon"  # the same picture of the same record
    figure, axis = plt.subplots(figsize=(7, 4))
    colours = ("#d55e00", "#0072b2", "#1f2328")
    for (way, found), colour in zip(record["ways"].items(), colours, strict=True):
        curves = np.array(found["curves"])
        steps = record["every"] * np.arange(1, curves.shape[1] + 1)
        axis.plot(steps, curves.mean(0), color=colour, label=way.replace("`", ""))
        axis.fill_between(steps, curves.min(0), curves.max(0), color=colour, alpha=0.2, lw=0)
    axis.set(xlabel="step", ylabel="held-out loss, nats per character")
    axis.legend(title="Muon takes", frameon=False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def main():
    record = measured()
    RESULTS.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    picture(record, PICTURE)


if __name__ == "__main__":
    main()
