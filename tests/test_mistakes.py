"""Mistakes of a new user: each is answered by a sentence that names the argument and a way out.

The wrong order, object, stage, mode or name, over all public functions. Those of the treatments
are in `transforms/test_arguments.py`, those of the command line in `test_cli_*.py`.
"""

import io
import tempfile
from pathlib import Path

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

import optax_bnmask as bnmask
from optax_bnmask import CategoryError, PathError, Role, StructureError, VerificationError
from optax_bnmask.checkpoints import analyze_checkpoint
from optax_bnmask.report import to_html, to_json, to_text

KEY = jax.random.key(0)
X = jax.random.normal(KEY, (3, 5))


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train=True):
        x = nn.Dense(4, use_bias=False, name="dense")(x)
        x = nn.BatchNorm(use_running_average=not train, name="bn")(x)
        return nn.Dense(2, name="head")(nn.Dropout(0.1, deterministic=not train)(x))


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.dense = nnx.Linear(5, 4, rngs=rngs)
        self.bn = nnx.BatchNorm(4, rngs=rngs)

    def __call__(self, x):
        return self.bn(self.dense(x))


def fn(params, x):
    return jax.nn.standardize(x @ params["w"], 0) * params["g"][None]


@pytest.fixture(autouse=True)
def _promotion_as_frameworks_need_it():
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
    NET, NNX = Net(), NnxNet(nnx.Rngs(0))
    VARIABLES = NET.init({"params": KEY, "dropout": KEY}, X)
    OF_LINEN = bnmask.analyze_linen(NET, VARIABLES, X)
    OF_NNX = bnmask.analyze_nnx(NNX, X)
    EQUINOX = eqx.nn.Linear(5, 4, key=KEY)
HAIKU = hk.transform(lambda x: hk.BatchNorm(True, True, 0.9)(x, True))
FLAX, STATS = VARIABLES["params"], VARIABLES["batch_stats"]
PARAMS = {"w": jnp.ones((5, 4)), "g": jnp.ones(4)}
ANALYSIS = bnmask.analyze(fn, PARAMS, X)
STRUCTURE = bnmask.analyze_structure(FLAX, STATS)
MASK = ANALYSIS.decay_mask()
TX, SGD = optax.adamw(1e-3, mask=MASK), optax.sgd(0.1)
GRADS = jax.tree.map(jnp.ones_like, PARAMS)


def stepped(tx, params=PARAMS):
    return tx.update(params, tx.init(params), params)


def written(name, content):
    """A file of that name and content."""
    path = Path(tempfile.mkdtemp(), name)
    path.write_bytes(content)
    return path


def npz():
    """A checkpoint with its params below ``state/params``."""
    file = io.BytesIO()
    np.savez(file, **{"state/params/kernel": np.ones((2, 3))})
    return written("model.npz", file.getvalue())


MISTAKES = {
    # decay_mask, analyze_structure
    "params and statistics swapped": (
        lambda: bnmask.decay_mask(STATS, FLAX), StructureError,
        "`params` must come first and `batch_stats` second.* Swap the two"),
    "all variables for params": (
        lambda: bnmask.decay_mask(VARIABLES), StructureError,
        r"`params` must be the tree that the optimizer updates.* Pass `variables\['params'\]`"),
    "all variables beside statistics": (
        lambda: bnmask.analyze_structure(VARIABLES, STATS), StructureError,
        r"Found the collections 'batch_stats', 'params' at its top"),
    "statistics one level too high": (
        lambda: bnmask.decay_mask(FLAX, {"batch_stats": STATS}), StructureError,
        r"`batch_stats` must be the tree.* Pass `variables\['batch_stats'\]`"),
    "statistics of another model": (
        lambda: bnmask.decay_mask(FLAX, {"other": STATS["bn"]}), StructureError,
        "must be of one model.* Take both from the same"),
    "statistics of another width": (
        lambda: bnmask.decay_mask(FLAX, {"bn": {"mean": jnp.ones(7), "var": jnp.ones(7)}}),
        StructureError, r"'bn/bias' has shape \(4,\).* Were both taken from the same"),
    "an array for statistics": (
        lambda: bnmask.decay_mask(FLAX, jnp.ones(4)), StructureError,
        "`batch_stats` must be the tree of statistics.* Found an ArrayImpl.* leave it out"),
    "the name of the statistics": (
        lambda: bnmask.decay_mask(FLAX, "batch_stats"), StructureError,
        "`batch_stats` must be the tree of statistics.* Found 'batch_stats'"),
    "a mask for statistics": (
        lambda: bnmask.decay_mask(FLAX, MASK), StructureError,
        "`batch_stats` must be the tree of statistics.* Found a Mask"),
    "a module for params": (
        lambda: bnmask.decay_mask(NET, STATS), StructureError,
        r"Every leaf of `params` must be an array.* is a Net. Pass.* `variables\['params'\]`"),
    "None for params": (
        lambda: bnmask.decay_mask(None), StructureError,
        "`params` must hold an array. Found a NoneType without any. Pass the tree"),
    "empty params": (
        lambda: bnmask.analyze_structure({}), StructureError, "`params` must hold an array"),
    "an optimizer for params": (
        lambda: bnmask.decay_mask(TX), StructureError, "'init' is a function. Leave it out"),
    "names for arrays": (
        lambda: bnmask.decay_mask({"a": "kernel"}), StructureError, "'a' is a str. Leave it out"),
    "an analysis for params": (
        lambda: bnmask.decay_mask(ANALYSIS), StructureError, "is a Analysis"),
    "an analysis for labels": (
        lambda: optax.partition({"decay": TX}, ANALYSIS).init(PARAMS), TypeError,
        r"An `Analysis` is no label.* Pass `analysis.labels\(...\)` to `optax.partition`"),
    "a category misspelt": (
        lambda: bnmask.decay_mask(FLAX, STATS, exempt=("norms",)), CategoryError,
        "A category must be one of 'norm', .* Found 'norms'"),
    "a path for a category": (
        lambda: bnmask.decay_mask(FLAX, STATS, exempt=("head/bias",)), CategoryError,
        "To name leaves, use `always` and `never`"),
    "no collection of categories": (
        lambda: bnmask.decay_mask(FLAX, STATS, exempt=None), TypeError,
        "`exempt` must be a string or a collection of strings. Found None. Pass `exempt="),
    "a number for categories": (
        lambda: ANALYSIS.decay_mask(exempt=3), TypeError, "`exempt` must be .* Found 3"),
    "a category that structure does not show": (
        lambda: bnmask.decay_mask(FLAX, STATS, exempt=("scale_invariant",)), CategoryError,
        "cannot be told from structure alone.* use `bnmask.analyze"),
    "a glob that matches nothing": (
        lambda: bnmask.decay_mask(FLAX, STATS, always=["heads/*"]), PathError,
        "Every glob in `always` must match a leaf.* the nearest are 'head/"),
    "a function for globs": (
        lambda: bnmask.decay_mask(FLAX, STATS, never=lambda path: True), TypeError,
        "`never` must be a string or a collection of strings. Found a function"),
    "numbers for globs": (
        lambda: bnmask.decay_mask(FLAX, STATS, always=[3]), TypeError, "`always` must .* Found 3"),
    "a leaf in always and in never": (
        lambda: bnmask.decay_mask(FLAX, STATS, always=["head/*"], never=["head/bias"]), PathError,
        "A leaf can be in `always` or in `never`. 'head/bias'.* Narrow one glob"),
    # masks and labels
    "an analysis for a mask": (
        lambda: stepped(optax.adamw(1e-3, mask=ANALYSIS)), TypeError,
        r"An `Analysis` cannot stand for a bool.* Pass `analysis.decay_mask\(\)`"),
    "labels for a mask": (
        lambda: stepped(optax.adamw(1e-3, mask=ANALYSIS.labels())), TypeError,
        r"`mask` must hold a bool.* pass `analysis.decay_mask\(\)`"),
    "a mask where one bool is wanted": (
        lambda: bool(MASK), TypeError, r"is not one yes or no.* call it: `mask\(params\)`"),
    "a mask of another model": (
        lambda: MASK(FLAX), PathError, "can only be applied to leaves that it was made for"),
    "a mask of params on variables": (
        lambda: STRUCTURE.decay_mask()(VARIABLES), PathError, "It met 'batch_stats/bn/mean'"),
    "a path misspelt in a mask": (
        lambda: MASK["gg"], PathError, "no leaf 'gg'; the nearest are 'g'"),
    "a number for a path": (lambda: MASK[0], PathError, "`path` must name a leaf.* no leaf 0"),
    "a summary of another model": (
        lambda: MASK.summary(FLAX), PathError, "`path` must name a leaf"),
    "a mask from names": (
        lambda: bnmask.Mask(["w"]), TypeError,
        "`by_path` must be a mapping from the paths of leaves. Found a list"),
    "a mask from words": (
        lambda: bnmask.Mask({"w": "yes"}), TypeError,
        r"`by_path\['w'\]` must be a bool. Found 'yes'.* True for each leaf that decays"),
    "a mask from a tree": (
        lambda: bnmask.Mask({"head": {"kernel": True}}), TypeError,
        r"`by_path\['head'\]` must be a bool. Found a dict"),
    "a mask from arrays": (
        lambda: bnmask.Mask({"w": jnp.array(True)}), TypeError, "must be a bool. Found an Array"),
    "a mask by number": (
        lambda: bnmask.Mask({0: True}), TypeError, "from the paths of leaves. Found 0"),
    "labels from a list": (
        lambda: bnmask.Labels(["w"]), TypeError, "`by_path` must be a mapping"),
    # what an analysis can be asked
    "a path misspelt": (
        lambda: ANALYSIS["ww"], PathError, "`path` must name a leaf.* the nearest are 'w'"),
    "a number for the path of a leaf": (lambda: ANALYSIS[0], PathError, "no leaf 0"),
    "a glob to explain": (lambda: ANALYSIS.explain("*"), PathError, r"no leaf '\*'"),
    "nothing to explain": (lambda: ANALYSIS.explain(None), PathError, "no leaf None"),
    "a category to select misspelt": (
        lambda: ANALYSIS.select("norms"), CategoryError, "Found 'norms'"),
    "a list to select": (
        lambda: ANALYSIS.select(["norm"]), TypeError, "`categories` must be .* Found a list"),
    "nothing to select": (
        ANALYSIS.select, CategoryError, "`select` must be given at least one category"),
    "a label misspelt": (
        lambda: ANALYSIS.labels(categories=["x"]), CategoryError, "Found 'x'"),
    "matrices from structure": (
        STRUCTURE.muon_dimension_numbers, CategoryError,
        "Matrices.* cannot be told from structure alone.* Use `bnmask.analyze"),
    "a position misspelt": (
        lambda: ANALYSIS.muon_dimension_numbers(positions=("middle",)), CategoryError,
        "`positions` must be a collection of 'input', 'hidden'"),
    "matrices of another model": (
        lambda: ANALYSIS.muon_dimension_numbers()(FLAX), PathError, "It met 'bn/bias'"),
    "the name of a report for its text": (
        lambda: bnmask.Analysis.from_json("report.json"), StructureError, "`text` must be JSON"),
    "an object for its text": (
        lambda: bnmask.Analysis.from_json({"schema": 1}), StructureError, "must be str"),
    # analyze
    "a function and its params swapped": (
        lambda: bnmask.analyze(PARAMS, fn, X), TypeError,
        r"`fn` must be a function `fn\(params, \*args\)`. Found a dict. The order is `fn, params"),
    "a Linen module for a function": (
        lambda: bnmask.analyze(NET, VARIABLES, X), TypeError,
        "`fn` must be a function.* Found a Net. For a module use `bnmask.analyze_linen`"),
    "an NNX module for a function": (
        lambda: bnmask.analyze(NNX, X), TypeError, "For a module use `bnmask.analyze_nnx`"),
    "a result for a function": (
        lambda: bnmask.analyze(fn(PARAMS, X), PARAMS, X), TypeError, "Found an ArrayImpl"),
    "no params": (
        lambda: bnmask.analyze(fn, None, X), StructureError, "`params` must hold an array"),
    "auxiliary output that is none": (
        lambda: bnmask.analyze(fn, PARAMS, X, has_aux=True), StructureError,
        "With `has_aux=True`, `fn` must return a pair.* or leave `has_aux` out"),
    "a function that returns nothing": (
        lambda: bnmask.analyze(lambda p, x: None, PARAMS, X), StructureError,
        "`fn` must return at least one array of floating dtype.* Return the logits or the loss"),
    "a function that returns a class": (
        lambda: bnmask.analyze(lambda p, x: jnp.argmax(fn(p, x)), PARAMS, X), StructureError,
        "`fn` must return at least one array of floating dtype"),
    "a function that uses no params": (
        lambda: bnmask.analyze(lambda p, x: x, PARAMS, X), StructureError,
        "The outputs of `fn` must depend on `params`.* Does `fn` use its first argument"),
    # analyze_linen, analyze_nnx
    "params for variables": (
        lambda: bnmask.analyze_linen(NET, FLAX, X), StructureError,
        "`variables` must hold the collection 'params'.* Pass the whole of what `module.init`"),
    "nothing for variables": (
        lambda: bnmask.analyze_linen(NET, None, X), StructureError, "Found no mapping"),
    "a module and its variables swapped": (
        lambda: bnmask.analyze_linen(VARIABLES, NET, X), TypeError,
        "`module` must be a Linen module.* Found a dict. The order is `module, variables"),
    "the class of a Linen module": (
        lambda: bnmask.analyze_linen(Net, VARIABLES, X), TypeError,
        "must be a Linen module, made and not only its class. Found the class Net"),
    "an NNX module for Linen": (
        lambda: bnmask.analyze_linen(NNX, VARIABLES, X), TypeError,
        "there is `bnmask.analyze_nnx`"),
    "a function for a Linen module": (
        lambda: bnmask.analyze_linen(fn, VARIABLES, X), TypeError, "Found a function"),
    "a Linen model in inference": (
        lambda: bnmask.analyze_linen(NET, VARIABLES, X, train=False), UserWarning,
        "'bn' runs on its running statistics here: trace the function as it is trained"),
    "the class of an NNX module": (
        lambda: bnmask.analyze_nnx(NnxNet, X), TypeError, "Found the class NnxNet"),
    "a Linen module for NNX": (
        lambda: bnmask.analyze_nnx(NET, X), TypeError, "there is `bnmask.analyze_linen`"),
    "the state of an NNX module": (
        lambda: bnmask.analyze_nnx(nnx.state(NNX), X), TypeError, "Found a State"),
    "an NNX module and its input swapped": (
        lambda: bnmask.analyze_nnx(X, NNX), TypeError, "The order is `module, "),
    # verify, gradient_certificate
    "an analysis and its function swapped": (
        lambda: bnmask.verify(fn, ANALYSIS, PARAMS, X, key=KEY), TypeError,
        "`analysis` must be an `Analysis`.* Found a function"),
    "to verify a structure": (
        lambda: bnmask.verify(STRUCTURE, fn, PARAMS, X, key=KEY), StructureError,
        "must have been proved from a program.* Use `optax_bnmask.analyze`"),
    "to verify at other params": (
        lambda: bnmask.verify(ANALYSIS, fn, FLAX, X, key=KEY), StructureError,
        "`params` must be those of `analysis`"),
    "to verify another function": (
        lambda: bnmask.verify(ANALYSIS, lambda p, x: x @ p["w"] * p["g"][None], PARAMS, X, key=KEY),
        VerificationError, "What `analysis` calls a symmetry must leave the outputs"),
    "params for the function to verify": (
        lambda: bnmask.verify(ANALYSIS, PARAMS, PARAMS, X, key=KEY), TypeError,
        "`fn` must be a function.* Found a dict"),
    "several keys": (
        lambda: bnmask.verify(ANALYSIS, fn, PARAMS, X, key=jax.random.split(KEY)), TypeError,
        "`key` must be a key of JAX's.* Pass one key"),
    "variables before the module": (
        lambda: bnmask.verify_linen(OF_LINEN, VARIABLES, NET, X, key=KEY), TypeError,
        "`module` must be a Linen module"),
    "params to verify a Linen module": (
        lambda: bnmask.verify_linen(OF_LINEN, NET, FLAX, X, key=KEY), StructureError,
        "`variables` must hold the collection 'params'"),
    "the class of the module to verify": (
        lambda: bnmask.verify_nnx(OF_NNX, NnxNet, X, key=KEY), TypeError, "the class NnxNet"),
    "params before the analysis": (
        lambda: bnmask.gradient_certificate(PARAMS, ANALYSIS, GRADS), TypeError,
        "`analysis` must be an `Analysis`.* Found a dict"),
    "no gradient": (
        lambda: bnmask.gradient_certificate(ANALYSIS, PARAMS, None), StructureError,
        "`grads` must have every leaf of `analysis`.* Pass the gradient"),
    "the loss for its gradient": (
        lambda: bnmask.gradient_certificate(ANALYSIS, PARAMS, fn), StructureError, "`grads` must"),
    "the shapes of a gradient": (
        lambda: bnmask.gradient_certificate(ANALYSIS, PARAMS, jax.eval_shape(lambda: GRADS)),
        TypeError, "`grads` must be a tree of arrays. Found a ShapeDtypeStruct"),
    # audit, assert_decays, compare
    "an optimizer and its params swapped": (
        lambda: bnmask.audit(PARAMS, TX, ANALYSIS), TypeError,
        "`tx` must be an `optax.GradientTransformation`. Found a dict.* `tx, params, analysis`"),
    "a mask for the analysis": (
        lambda: bnmask.audit(TX, PARAMS, MASK), TypeError, "`analysis` must .* Found a Mask"),
    "None for the analysis": (
        lambda: bnmask.verify(None, fn, PARAMS, X, key=KEY), TypeError,
        "`analysis` must .* Found None"),
    "running statistics among the params": (
        lambda: bnmask.decay_mask(nnx.to_pure_dict(nnx.state(NNX))), StructureError,
        r"Found running statistics in it, .*'mean'.* at 'bn'. Take them out.*`nnx.state\(model"),
    "a function that returns a mask": (
        lambda: stepped(optax.adamw(1e-3, mask=bnmask.decay_mask)), TypeError,
        r"As `mask` of an optimizer it goes as it is.* `decay_mask\(params\)\(params\)`"),
    "a role for a category": (
        lambda: ANALYSIS.select("norm_scale"), CategoryError, "Did you mean 'norm'"),
    "a hyphen in a category": (
        lambda: ANALYSIS.select("scale-invariant"), CategoryError,
        "Did you mean 'scale_invariant'"),
    "all variables as parameters of a function": (
        lambda: bnmask.analyze(lambda v, x: NET.apply(v, x, train=False), VARIABLES, X),
        StructureError, "Found the collections 'batch_stats', 'params' at its top"),
    "the state for the optimizer": (
        lambda: bnmask.audit(TX.init(PARAMS), PARAMS, ANALYSIS), TypeError, "Found a tuple"),
    "what makes an optimizer": (
        lambda: bnmask.audit(optax.adamw, PARAMS, ANALYSIS), TypeError,
        "Found a function. Call what makes one"),
    "params of another model": (
        lambda: bnmask.audit(TX, FLAX, ANALYSIS), PathError, "must be those that `analysis` is of"),
    "a category to audit misspelt": (
        lambda: bnmask.audit(TX, PARAMS, ANALYSIS, exempt=("norms",)), CategoryError, "'norms'"),
    "to assert what a mask says": (
        lambda: bnmask.assert_decays(TX, PARAMS, MASK), TypeError, "`analysis` must"),
    "to assert what a dict says": (
        lambda: bnmask.assert_decays(TX, PARAMS, {"w": True}), TypeError, "`analysis` must"),
    "files to compare": (
        lambda: bnmask.compare("a.json", "b.json"), StructureError,
        "`old` and `new` must each be an `Analysis`.* Read reports with"),
    "an analysis and a mask to compare": (
        lambda: bnmask.compare(ANALYSIS, MASK), StructureError,
        "must say the same things.* Make both in the same way"),
    "labels to compare": (
        lambda: bnmask.compare(ANALYSIS.labels(), ANALYSIS.labels()), StructureError, "a Labels"),
    # what takes an optimizer and an analysis
    "a factory to watch": (
        lambda: bnmask.monitor_scale(optax.sgd, ANALYSIS), TypeError,
        "`inner` must be an `optax.GradientTransformation`.* Call what makes one"),
    "an analysis before the optimizer": (
        lambda: bnmask.by_blocks(ANALYSIS, TX), TypeError, "`analysis` must be an `Analysis`"),
    "blocks from structure": (
        lambda: bnmask.by_blocks(TX, STRUCTURE), CategoryError, "Blocks cannot be told from"),
    "half a step": (
        lambda: bnmask.monitor_scale(TX, ANALYSIS, every=1.5), ValueError, "`every` must .* 1.5"),
    "to watch another model": (
        lambda: stepped(bnmask.monitor_scale(optax.sgd(0.1), ANALYSIS), FLAX), PathError,
        "must name a leaf"),
    # reports, checkpoints
    "a report on a mask": (
        lambda: to_text(MASK), TypeError, "`analysis` must be an `Analysis`.* Found a Mask"),
    "a page on nothing": (lambda: to_html(None), TypeError, "`analysis` must .* Found None"),
    "a mask as JSON": (lambda: to_json(MASK), TypeError, "`analysis` must .* Found a Mask"),
    "a report with another model's mask": (
        lambda: to_text(ANALYSIS, mask=STRUCTURE.decay_mask()), PathError, "must name a leaf"),
    "params for a checkpoint": (
        lambda: analyze_checkpoint(FLAX), TypeError,
        "`path` must be where a checkpoint is. Found a dict. Of params in memory"),
    "a checkpoint that is not there": (
        lambda: analyze_checkpoint("/no/such"), StructureError, "'/no/such': No such file"),
    # what no mistake of its own kind stands above for
    "shapes for params": (
        lambda: bnmask.decay_mask(jax.tree.map(jnp.shape, FLAX)), StructureError,
        "Found 7 integers and no array.* pass `jax.ShapeDtypeStruct"),
    "shapes for params, traced": (
        lambda: bnmask.analyze(fn, jax.tree.map(jnp.shape, PARAMS), X), StructureError,
        "Found 3 integers and no array"),
    "a list for statistics": (
        lambda: bnmask.decay_mask(FLAX, [jnp.zeros(4)]), StructureError,
        "`batch_stats` must be the tree.* Found '0' at its top, and not both a 'mean' and a 'var'"),
    "statistics joined by dots": (
        lambda: bnmask.decay_mask({"bn.scale": jnp.ones(4)}, {"bn.mean": jnp.ones(4)}),
        StructureError, "Found 'bn.mean' at its top.* in flat dicts join keys by '/'"),
    "both that Haiku's `init` returns": (
        lambda: bnmask.decay_mask(({"bn": {"scale": jnp.ones(4)}},
                                   {"bn/~/mean_ema": {"average": jnp.ones(4)}})),
        StructureError, "Found a running average at '1/bn/~/mean_ema'.* pass the first"),
    "categories with yes and no": (
        lambda: bnmask.decay_mask(FLAX, exempt={"norm": False}), TypeError,
        "`exempt` must be a string or a collection of strings. Found a dict"),
    "globs with yes and no": (
        lambda: bnmask.decay_mask(FLAX, STATS, always={"head/*": False}), TypeError,
        "`always` must be a string or a collection of strings. Found a dict"),
    "presets in a tuple": (
        lambda: ANALYSIS.decay_mask(exempt=(bnmask.STANDARD, "gain")), TypeError,
        "`exempt` must be .* Found a tuple"),
    "yes and no to select": (
        lambda: ANALYSIS.select({"norm": True}), TypeError,
        r"each an argument of its own.* Found a dict. A collection is `select\(\*names\)`"),
    "labels that are yes and no": (
        lambda: ANALYSIS.labels(categories={"norm": False}), TypeError,
        "`categories` must be a string, as is each label. Found False"),
    "no default label": (
        lambda: ANALYSIS.labels(default=None), TypeError,
        "`default` must be a string.* Found None"),
    "no positions": (
        lambda: ANALYSIS.muon_dimension_numbers(positions=()), CategoryError,
        r"`positions` must be a collection of 'input', 'hidden', .* Found \(\)"),
    "positions with yes and no": (
        lambda: ANALYSIS.galore_dimension_numbers(positions={"hidden": False}), TypeError,
        "`positions` must be a string or a collection of strings. Found a dict"),
    "None for positions": (
        lambda: ANALYSIS.muon_dimension_numbers(positions=None), TypeError, "Found None"),
    "the method that makes a mask": (
        lambda: stepped(optax.adamw(1e-3, mask=ANALYSIS.decay_mask)), TypeError,
        r"`analysis.decay_mask` must be called with keywords alone.* Found a dict. "
        r"Pass on what `analysis.decay_mask\(\)` returns: Optax calls that with the params"),
    "params for the method that makes a mask": (
        lambda: ANALYSIS.decay_mask(PARAMS), TypeError,
        "`analysis.decay_mask` must be called with keywords alone.* Found a dict"),
    "the method that makes labels": (
        lambda: optax.partition({"decay": TX}, ANALYSIS.labels).init(PARAMS), TypeError,
        r"Pass on what `analysis.labels\(\)` returns"),
    "the method that makes dimension numbers": (
        lambda: optax.contrib.muon(
            0.1, muon_weight_dimension_numbers=ANALYSIS.muon_dimension_numbers).init(PARAMS),
        TypeError, r"Pass on what `analysis.muon_dimension_numbers\(\)` returns"),
    "the method that selects": (
        lambda: optax.masked(TX, ANALYSIS.select).init(PARAMS), TypeError,
        "each an argument of its own.* Found a dict"),
    "labels of nothing": (
        lambda: ANALYSIS.labels(categories=()), CategoryError, "at least one .* Found none"),
    "a default that is a category": (
        lambda: ANALYSIS.labels(categories=("norm",), default="norm"), CategoryError,
        "at least one category from the default. Found 'norm' for both"),
    "a mask and a bool": (
        lambda: MASK & True, TypeError, "`other` must be a `Mask`. Found True"),
    "masks of two models": (
        lambda: MASK | STRUCTURE.decay_mask(), PathError, "must be of the same leaves"),
    "a module's `apply`": (
        lambda: bnmask.analyze(NET.apply, FLAX, X), TypeError,
        "`fn` must be a function.* `apply` takes variables: pass the module to"),
    "a class for a function": (
        lambda: bnmask.analyze(Net, FLAX, X), TypeError, "Found the class Net"),
    "a class for a shape": (
        lambda: bnmask.analyze(fn, PARAMS, jax.ShapeDtypeStruct), TypeError,
        "must be an array. Found the class ShapeDtypeStruct. Give its shape"),
    "a batch of nothing": (
        lambda: bnmask.analyze(fn, PARAMS, jnp.ones((0, 5))), StructureError,
        r"Every argument of `fn` must hold an entry. Argument '0' has the shape \(0, 5\)"),
    "mutable for Linen": (
        lambda: bnmask.analyze_linen(NET, VARIABLES, X, mutable=["batch_stats"]), TypeError,
        "`mutable` must be left out"),
    "statistics beside the variables": (
        lambda: bnmask.analyze_linen(NET, {"params": FLAX}, VARIABLES["batch_stats"], X),
        StructureError,
        "`variables` must hold every collection.* Found 'params' and no 'batch_stats'"),
    "no statistics for Linen": (
        lambda: bnmask.analyze_linen(NET, {"params": FLAX}, X), StructureError,
        "`variables` must hold every collection.* Found 'params' and no 'batch_stats'"),
    "a module's compiled `apply`": (
        lambda: bnmask.analyze(jax.jit(NET.apply), FLAX, X), TypeError,
        "`fn` must be a function.* `apply` takes variables"),
    "an Equinox model, mapped": (
        lambda: bnmask.analyze_equinox(jax.vmap(EQUINOX), EQUINOX, X), TypeError,
        "`fn` must be a function of the model, such as .* Found a Linear"),
    "an Equinox model, compiled": (
        lambda: bnmask.analyze_equinox(eqx.filter_jit(EQUINOX), EQUINOX, X), TypeError,
        "`fn` must be a function of the model.* Found a Linear"),
    "parameters of integers": (
        lambda: bnmask.analyze(fn, jax.tree.map(lambda a: a.astype(int), PARAMS), X),
        StructureError, "`params` must hold an array of floating dtype.* Found only int32"),
    "the state of an optimizer for params": (
        lambda: bnmask.analyze(fn, TX.init(PARAMS), X), StructureError,
        "the state of an optimizer. Pass `variables"),
    "a train state for params": (
        lambda: bnmask.analyze(lambda s, x: s.apply_fn({"params": s.params}, x),
                               TrainState.create(apply_fn=NET.apply, params=FLAX, tx=SGD), X),
        StructureError, "Found a TrainState, which holds its state too. Pass `state.params`"),
    "keys for a place in a checkpoint": (
        lambda: analyze_checkpoint(npz(), params=["state", "params"]), TypeError,
        "`params` must be a string. Found a list.* written with '/', as in 'state/params'"),
    "a number for the place of statistics": (
        lambda: analyze_checkpoint(npz(), stats=1), TypeError, "`stats` must be a string. Found 1"),
    "a report for a checkpoint": (
        lambda: analyze_checkpoint(written("report.json", ANALYSIS.to_json().encode())),
        StructureError, "is JSON: a report is read by `Analysis.from_json`"),
    "the report of an audit for that of an analysis": (
        lambda: bnmask.Analysis.from_json(bnmask.audit(TX, PARAMS, ANALYSIS).to_json()),
        StructureError, "must be of the schema.*, an analysis.* another report. Pass what"),
    "params and statistics in a pair": (
        lambda: bnmask.decay_mask((FLAX, STATS)), StructureError,
        "Found a running average at '1/bn'. Of the pair .* pass the first"),
    "the state of Haiku for its params": (
        lambda: bnmask.analyze_haiku(HAIKU, {"bn/~/mean_ema": {"average": X}}, X), StructureError,
        "Found a running average at 'bn/~/mean_ema'"),
    "an Equinox model for params": (
        lambda: bnmask.analyze(lambda m, x: jax.vmap(m)(x), eqx.nn.MLP(5, 2, 8, 2, key=KEY), X),
        StructureError, "for Equinox there is `bnmask.analyze_equinox`"),
    "a path for the text of a report": (
        lambda: bnmask.Analysis.from_json(Path("report.json")), StructureError,
        "`text` must be JSON.* Found a PosixPath, .* Of a file pass the content"),
    "an analysis behind the module": (
        lambda: bnmask.verify_linen(NET, OF_LINEN, VARIABLES, X, key=KEY), TypeError,
        "after the analysis. Found an Analysis behind it. Put it first"),
    "params joined by dots": (
        lambda: bnmask.decay_mask({"bn.scale": jnp.ones(4)}, {"bn": {"mean": jnp.ones(4),
                                                                     "var": jnp.ones(4)}}),
        StructureError, "'bn' has the shape of 'bn.scale'.* in flat dicts with keys joined by '/'"),
    "a sphere of radius 0": (
        lambda: bnmask.hyperball(0.1, True, radius=0), ValueError, "`radius` must be above 0"),
}  # fmt: skip


@pytest.mark.parametrize(("call", "error", "said"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_answered_by_a_sentence(call, error, said):
    with pytest.raises(error, match=said):
        call()


UNTRACED = {
    "no input": lambda: bnmask.analyze(fn, PARAMS),
    "params left out": lambda: bnmask.analyze(fn, X),
    "a tuple for a shape": lambda: bnmask.analyze(fn, PARAMS, (3, 5)),
    "an input of another shape": lambda: bnmask.analyze(fn, PARAMS, X.T),
    "a word for an input": lambda: bnmask.analyze(fn, PARAMS, "x"),
    "an argument that it does not take": lambda: bnmask.analyze(fn, PARAMS, X, train=True),
    "a choice by a value": lambda: bnmask.analyze(lambda p, x: x if x[0, 0] else p, PARAMS, X),
    "no input for Linen": lambda: bnmask.analyze_linen(NET, VARIABLES),
    "a method that is none": lambda: bnmask.analyze_linen(NET, VARIABLES, X, method="encode"),
    "a key of another name": lambda: bnmask.analyze_linen(NET, VARIABLES, X, rngs={"noise": KEY}),
    "variables' `params` again for Linen": lambda: bnmask.analyze_linen(NET, VARIABLES, FLAX, X),
    "no input for NNX": lambda: bnmask.analyze_nnx(NNX),
    "a shape for NNX": lambda: bnmask.analyze_nnx(NNX, (3, 5)),
    "no input to verify": lambda: bnmask.verify(ANALYSIS, fn, PARAMS, key=KEY),
}


@pytest.mark.parametrize("call", UNTRACED.values(), ids=UNTRACED)
def test_what_the_users_own_code_raises_says_what_it_was_called_with(call):
    """Its type and its lines are the user's; what it was given, and how to give it, is ours."""
    with pytest.raises(Exception, match=r".") as caught:
        call()
    said = " ".join(caught.value.__notes__)
    assert "raised when the function was traced: called with the parameters, " in said
    assert "given as arrays or as `jax.ShapeDtypeStruct(shape, dtype)`" in said


@pytest.mark.parametrize(
    "call",
    [
        lambda: bnmask.analyze_nnx(NNX, nnx.state(NNX, nnx.Param), X),
        lambda: bnmask.analyze_nnx(NNX, nnx.state(NNX), X),
        lambda: bnmask.analyze_linen(NET, VARIABLES, FLAX, X),
        lambda: bnmask.analyze(fn, PARAMS, PARAMS, X),
    ],
)
def test_parameters_that_are_given_twice_are_named(call):
    with pytest.raises(Exception, match=r".") as caught:
        call()
    assert "with all leaves of the parameters, which are given already: leave it out" in " ".join(
        caught.value.__notes__
    )


def loss(params, x):
    return fn(params, x).sum()


@pytest.mark.parametrize(
    "part",
    [
        lambda model: eqx.filter(model, eqx.is_inexact_array),
        lambda model: eqx.partition(model, eqx.is_inexact_array),
    ],
)
def test_a_part_of_an_equinox_model_is_named(part):
    model = part(eqx.nn.MLP(5, 2, 8, 2, key=KEY))
    with pytest.raises(TypeError, match=r"callable") as caught:
        bnmask.analyze_equinox(lambda model, x: jax.vmap(model)(x), model, X)
    assert "takes the whole model: not what `eqx.filter`" in " ".join(caught.value.__notes__)


UNLIKELY = {
    "a training step": (
        lambda p, x: jax.tree.map(lambda a, g: a - 0.1 * g, p, jax.grad(loss)(p, x)),
        "arrays of the names and shapes of `params`, as a training step or a gradient does",
    ),
    "a step with the optimizer's state": (
        lambda p, x: (jax.grad(loss)(p, x), {"count": x.sum()}),
        "arrays of the names and shapes of `params`",
    ),
    "a gradient": (jax.grad(loss), "analyse the function whose gradient is taken"),
    "a loss and its gradient": (jax.value_and_grad(loss), "arrays of the names and shapes"),
    "a stray stop_gradient": (
        lambda p, x: jax.lax.stop_gradient(loss(p, x)),
        "no gradient of an output of floating dtype reaches any leaf, so that none is decayed",
    ),
    "an accuracy": (
        lambda p, x: (fn(p, x).argmax(-1) == 0).mean(), "no gradient of an output of floating dtype"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("unlikely", "said"), UNLIKELY.values(), ids=UNLIKELY)
def test_a_function_that_is_hardly_what_was_meant_is_noted(unlikely, said):
    assert said in " ".join(bnmask.analyze(unlikely, PARAMS, X).notes)


def test_models_are_not_noted():
    of_array = bnmask.analyze(lambda w, x: w[None] * x, jnp.ones(5), jnp.ones((1, 5)))
    named = bnmask.analyze(lambda p, x: {"w": x @ p["w"]}, {"w": jnp.ones((5, 4))}, X)
    assert of_array.notes == named.notes == ANALYSIS.notes == ()


def test_a_compiled_function_of_an_equinox_model_is_a_function():
    compiled = eqx.filter_jit(lambda model, x: jax.vmap(model)(x))
    assert bnmask.analyze_equinox(compiled, EQUINOX, X)["weight"].role is Role.WEIGHT


def test_variables_without_other_collections_may_be_the_parameters_of_apply():
    net = nn.Dense(4)
    analysis = bnmask.analyze(net.apply, net.init(KEY, X), X)
    assert analysis["params/kernel"].role is Role.WEIGHT


def test_the_mistakes_are_many():
    assert len(MISTAKES) + len(UNTRACED) >= 73
