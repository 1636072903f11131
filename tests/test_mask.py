"""The decision: masks and labels as callables and as values."""

import copy
import itertools
import os
import pickle
import subprocess
import sys

import flax
import jax
import jax.numpy as jnp
import optax
import pytest

import optax_bnmask as bnmask
from optax_bnmask import CategoryError, Mask, PathError

PARAMS = {
    "conv": {"kernel": jnp.ones((3, 3, 1, 4)), "bias": jnp.zeros(4)},
    "post": {"scale": jnp.ones(4), "bias": jnp.zeros(4)},
    "table": {"embedding": jnp.ones((7, 4))},
}
STATS = {"post": {"mean": jnp.zeros(4), "var": jnp.ones(4)}}
MASK = bnmask.decay_mask(PARAMS, STATS)


def test_default_exempts_the_normalisers_and_nothing_else():
    assert MASK.exempted == ("post/bias", "post/scale")
    assert MASK.decayed == ("conv/bias", "conv/kernel", "table/embedding")


@pytest.mark.parametrize(
    ("exempt", "exempted"),
    [
        ((), ()),
        ("norm", ("post/bias", "post/scale")),
        (("bias",), ("conv/bias",)),
        (bnmask.STANDARD, ("conv/bias", "post/bias", "post/scale")),
        (["norm", "embedding"], ("post/bias", "post/scale", "table/embedding")),
    ],
)
def test_exempt_takes_categories(exempt, exempted):
    assert bnmask.decay_mask(PARAMS, STATS, exempt=exempt).exempted == exempted


def test_always_and_never_have_the_last_word():
    mask = bnmask.decay_mask(PARAMS, STATS, always="post/scale", never=("conv/*", "table/*"))
    assert mask.decayed == ("post/scale",)


def test_call_gives_python_bools_in_the_callers_containers():
    frozen = flax.core.freeze(PARAMS)
    assert isinstance(MASK(frozen), flax.core.FrozenDict)
    assert MASK(frozen) == flax.core.freeze(MASK(PARAMS))
    assert {type(leaf) for leaf in jax.tree.leaves(MASK(PARAMS))} == {bool}


def test_call_keeps_the_holes_of_masked_trees():
    holed = PARAMS | {"conv": optax.MaskedNode(), "table": None}
    assert MASK(holed) == {
        "conv": optax.MaskedNode(),
        "post": {"scale": False, "bias": False},
        "table": None,
    }


def test_call_never_looks_at_the_leaves():
    assert MASK(jax.tree.map(lambda _: object(), PARAMS)) == MASK(PARAMS)


def test_call_on_an_unknown_leaf_names_it_and_its_nearest():
    with pytest.raises(PathError, match=r"met 'conv/kernle', .*nearest are 'conv/kernel'.* anew"):
        MASK({"conv": {"kernle": jnp.ones(3)}})


def test_mask_called_with_a_step_count_says_how_to_declare_it_static():
    tx = optax.inject_hyperparams(optax.adamw)(1e-3, mask=MASK)
    with pytest.raises(PathError, match=r'single .*`static_args=\("mask",\)`'):
        tx.init(PARAMS)
    tx = optax.inject_hyperparams(optax.adamw, static_args=("mask",))(1e-3, mask=MASK)
    with jax.numpy_dtype_promotion("standard"):  # Optax raises a float to a count
        updates, _ = tx.update(jax.tree.map(jnp.zeros_like, PARAMS), tx.init(PARAMS), PARAMS)
    assert updates["conv"]["kernel"][0, 0, 0, 0] < 0
    assert updates["post"]["scale"][0] == 0


@pytest.mark.usefixtures("optax_promotion")
def test_mask_in_the_place_of_a_number_says_what_it_is_called_with():
    for tx in (optax.adamw(1e-3, weight_decay=MASK), optax.add_decayed_weights(MASK)):
        with pytest.raises(PathError, match=r"in the place of a number.*pass it as `mask`"):
            tx.update(PARAMS, tx.init(PARAMS), PARAMS)


def test_mask_behind_what_joins_all_leaves_says_so():
    with pytest.raises(PathError, match=r"`optax.flatten`.* mask outside of it"):
        optax.flatten(optax.adamw(1e-3, mask=MASK)).init(PARAMS)


@pytest.mark.parametrize("kept", [MASK, ~MASK, bnmask.Labels({"a": "x"}), Mask({})])
def test_mask_and_labels_refuse_to_be_taken_for_a_bool(kept):
    with pytest.raises(TypeError, match=r"not one yes or no.*call it: `mask\(params\)`"):
        bool(kept)


def test_labels_are_no_mask_for_optax():
    labels = ANALYSIS.labels(categories={"norm": "no_decay"}, default="decay")
    with pytest.raises(TypeError, match=r"`mask` must hold a bool for each leaf: pass `analysis"):
        optax.adamw(1e-3, mask=labels).init(PARAMS)
    parts = {"no_decay": optax.sgd(0.1), "decay": optax.adamw(0.1)}
    assert optax.partition(parts, labels).init(PARAMS)


def test_summary_counts_leaves_and_parameters():
    said = "decays: 3 leaves, 68 parameters; exempt: 2 leaves, 8 parameters"  # 36 + 4 + 28, 4 + 4
    assert MASK.summary(PARAMS) == said
    assert MASK.summary() == "decays: 3 leaves; exempt: 2 leaves"
    assert bnmask.Labels({"a": "x", "b": "y", "c": "x"}).summary() == "x: 2 leaves; y: 1 leaf"
    with pytest.raises(PathError, match="no leaf 'strange'"):
        MASK.summary({"strange": jnp.ones(3)})


def test_analysis_is_no_mask_for_optax():
    analysis = bnmask.analyze_structure(PARAMS, STATS)
    with pytest.raises(TypeError, match=r"it is no `mask`.*`analysis.decay_mask\(\)`"):
        optax.adamw(1e-3, mask=analysis).init(PARAMS)


ANALYSIS = bnmask.analyze_structure(PARAMS, STATS)


@pytest.mark.parametrize(
    ("mask", "found"),
    [
        (ANALYSIS, "an Analysis"),
        (ANALYSIS.labels(categories="norm"), "'decay' from a `Labels`"),
        ({"conv": "yes"}, "'yes'"),
    ],
)
def test_what_has_no_bools_is_no_mask_for_a_transformation(mask, found):
    with pytest.raises(TypeError, match=f"`mask` must hold a bool for each leaf. Found {found}"):
        bnmask.keep_norm(mask).init(PARAMS)


def test_item_of_an_unknown_path_names_the_nearest():
    assert MASK["conv/kernel"] is True
    with pytest.raises(PathError, match=r"no leaf 'conv/kernle'.*'conv/kernel'"):
        MASK["conv/kernle"]


def test_mask_is_a_collection_of_paths():
    assert len(MASK) == 5
    assert set(MASK) == {*MASK.decayed, *MASK.exempted}
    assert "conv/kernel" in MASK
    assert "conv" not in MASK


def test_mask_is_equal_by_content_and_hashable():
    again = bnmask.decay_mask(flax.core.freeze(PARAMS), STATS)
    assert again == MASK
    assert hash(again) == hash(MASK)
    assert bnmask.decay_mask(PARAMS, STATS, exempt=()) != MASK
    assert bnmask.Labels({"a": True}) != Mask({"a": True})
    assert Mask({"a": True}) != {"a": True}
    assert ~~MASK == MASK != ~MASK


def test_mask_is_frozen():
    with pytest.raises(AttributeError, match="`Mask` is frozen; make a new one"):
        MASK.anything = 1
    with pytest.raises(AttributeError, match="`Mask` is frozen"):
        del MASK._by_path


def test_mask_does_not_alias_the_mapping_it_was_made_of():
    source = {"a": True}
    mask = Mask(source)
    source["a"] = False
    assert mask["a"] is True


def test_mask_survives_pickle_and_copies():
    for twin in (pickle.loads(pickle.dumps(MASK)), copy.copy(MASK), copy.deepcopy(MASK)):
        assert type(twin) is Mask
        assert twin == MASK


def test_repr_shows_what_is_exempt():
    assert repr(MASK) == "Mask(3 of 5 leaves decay; exempt: post/bias, post/scale)"
    assert repr(bnmask.decay_mask(PARAMS, exempt=())) == "Mask(5 of 5 leaves decay)"
    assert repr(bnmask.Labels({"a/b": "x"})) == "Labels(\n  a/b: 'x'\n)"


def test_repr_fits_a_screen():
    paths = [f"n{i}" for i in range(1000)]
    mask = Mask(dict.fromkeys(paths, False))
    assert repr(mask).startswith("Mask(0 of 1000 leaves decay; exempt: n0, n1, ")
    assert repr(mask).endswith(", n11 and 988 more)")
    few = Mask({path: path in ("n5", "n7") for path in paths})
    assert repr(few) == "Mask(2 of 1000 leaves decay: n5, n7)"
    assert repr(bnmask.Labels(dict.fromkeys(paths, "x"))).endswith("n11: 'x'\n  and 988 more\n)")


PRINT_PICKLE = """
import pickle, sys, jax.numpy as jnp, optax_bnmask as bnmask
x = jnp.zeros(4)
params = {name: {"scale": x, "bias": x, "w": x} for name in ("b", "a", "c")}
stats = {"a": {"mean": x, "var": x}, "b": {"mean": x}}
mask = bnmask.decay_mask(params, stats, never=("*/w",))
analysis = bnmask.analyze_structure(params, stats)
print(pickle.dumps(mask).hex(), repr(mask), repr(analysis), analysis.to_json())
"""


def test_same_input_gives_the_same_bytes_in_every_process():
    outputs = {
        subprocess.run(
            [sys.executable, "-c", PRINT_PICKLE],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1
    assert b"Mask(" in outputs.pop()


def test_mask_is_a_static_argument_of_jit():
    counts = itertools.count()

    def decayed(mask, params):
        next(counts)
        return jax.tree.map(lambda x, d: x * 0.5 if d else x, params, mask(params))

    jitted = jax.jit(decayed, static_argnums=0)
    jitted(MASK, PARAMS)
    out = jitted(bnmask.decay_mask(PARAMS, STATS), PARAMS)
    assert next(counts) == 1  # an equal mask is no new compilation
    assert out["conv"]["kernel"][0, 0, 0, 0] == 0.5
    assert out["post"]["scale"][0] == 1


def test_glob_that_matches_nothing_is_an_error():
    with pytest.raises(PathError, match=r"in `never` .* 'heads/\*' matches none of the 5 leaves"):
        bnmask.decay_mask(PARAMS, STATS, never="heads/*")


def test_leaf_both_always_and_never_is_an_error():
    with pytest.raises(PathError, match="'conv/bias' is matched by both, and so are 1 more"):
        bnmask.decay_mask(PARAMS, STATS, always="conv/*", never="conv/*")


def test_unknown_category_is_an_error_that_lists_them():
    with pytest.raises(CategoryError, match=r"one of 'norm', 'bias', .*Found 'batchnorm'"):
        bnmask.decay_mask(PARAMS, STATS, exempt=("batchnorm",))


def test_path_as_a_category_points_to_the_globs():
    with pytest.raises(CategoryError, match="To name leaves, use `always` and `never`"):
        bnmask.decay_mask(PARAMS, STATS, exempt=("post/scale",))


@pytest.mark.parametrize("category", ["gain", "scale_invariant", "jointly_invariant"])
def test_category_that_structure_cannot_show_points_to_analyze(category):
    with pytest.raises(CategoryError, match=f"{category!r} cannot be told from structure.*analyze"):
        bnmask.decay_mask(PARAMS, STATS, exempt=("norm", category))
    with pytest.raises(CategoryError, match=f"{category!r} cannot be told from structure"):
        bnmask.analyze_structure(PARAMS, STATS).select(category)


def test_select_is_true_where_the_leaf_is_in_a_category():
    analysis = bnmask.analyze_structure(PARAMS, STATS)
    assert analysis.select("norm").decayed == ("post/bias", "post/scale")
    assert analysis.select("norm") == ~analysis.decay_mask()


def test_labels_take_the_first_category_that_fits():
    labels = bnmask.analyze_structure(PARAMS, STATS).labels(categories={"norm": "n", "bias": "b"})
    assert labels(PARAMS) == {
        "conv": {"kernel": "decay", "bias": "b"},
        "post": {"scale": "n", "bias": "n"},
        "table": {"embedding": "decay"},
    }
    named = bnmask.analyze_structure(PARAMS, STATS).labels(categories=("embedding",), default="x")
    assert named["table/embedding"] == "embedding"
    assert named["post/scale"] == "x"


def test_analysis_names_an_unknown_path_and_explains_a_known_one():
    analysis = bnmask.analyze_structure(PARAMS, STATS)
    assert analysis.explain("post/scale").startswith("post/scale: norm_scale. a running mean")
    assert "post/scale" in analysis
    with pytest.raises(PathError, match="no leaf 'post/scael'; the nearest are 'post/scale'"):
        analysis.explain("post/scael")


def test_masks_of_the_same_leaves_are_joined():
    one, other = Mask({"a": True, "b": True, "c": False}), Mask({"a": True, "b": False, "c": False})
    assert one & other == other
    assert one | other == one
    assert one & ~other == Mask({"a": False, "b": True, "c": False})
