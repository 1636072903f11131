"""One spelling of a leaf's name for every container."""

import collections
import dataclasses
from typing import Any, NamedTuple

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from optax_bnmask import PathError, StructureError
from optax_bnmask.paths import matches, tree_index

X = jnp.zeros(3)


@jax.tree_util.register_pytree_node_class
class Keyless:
    """A node whose children have no names, with something static beside them."""

    def __init__(self, *children):
        self.children = children

    def tree_flatten(self):
        return self.children, "static"

    @classmethod
    def tree_unflatten(cls, _, children):
        return cls(*children)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Wrapper:
    array: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Gain:
    gain: Any


class Pair(NamedTuple):
    first: Any
    second: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Layer:
    kernel: Any
    bias: Any


@flax.struct.dataclass
class Struct:
    kernel: Any
    bias: Any = None


@pytest.mark.parametrize(
    ("tree", "paths"),
    [
        ({"b": X, "a": {"c": X}}, ["a/c", "b"]),
        (flax.core.freeze({"b": X, "a": {"c": X}}), ["a/c", "b"]),
        ({"a": flax.core.freeze({"c": X}), "b": {"d": X}}, ["a/c", "b/d"]),
        ([X, {"k": X}], ["0", "1/k"]),
        ((X, (X, X)), ["0", "1/0", "1/1"]),
        ({10: X, 9: X}, ["9", "10"]),
        (Pair(X, {"k": X}), ["first", "second/k"]),
        (Layer(X, X), ["kernel", "bias"]),
        (Struct(X), ["kernel"]),
        (collections.OrderedDict(b=X, a=X), ["b", "a"]),
        ({"a": None, "b": X, "c": optax.MaskedNode()}, ["b"]),
        ({"WeightNorm_0": {"Dense_0/kernel/scale": X}}, ["WeightNorm_0/Dense_0/kernel/scale"]),
        ({"net/~/linear": {"w": X}}, ["net/~/linear/w"]),
        (nnx.State({"layers": {0: {"kernel": nnx.Param(X)}}}), ["layers/0/kernel"]),
        ({"a": nn.Partitioned(X, names=("x",))}, ["a"]),
        ({"a": nn.LogicallyPartitioned(nn.Partitioned(X, names=("x",)), names=("x",))}, ["a"]),
        ({"a": nnx.Param(X)}, ["a"]),
        (nnx.Param(X), [""]),
        (X, [""]),
        ({"a": Keyless(X)}, ["a"]),
        ({"a": Keyless(nn.Partitioned(Keyless(X), names=("x",)))}, ["a"]),
        ({"a": Wrapper(X), "b": Wrapper({"c": X})}, ["a", "b/array/c"]),
        ({"a": Gain(X)}, ["a/gain"]),
        (
            {"a": Keyless(X, X), "b": Keyless(X), "c": Keyless(X, X)},
            ["a/0", "a/1", "b", "c/0", "c/1"],
        ),
        ({"a": Keyless({"b": X})}, ["a/0/b"]),
        ({"a": Keyless(optax.MaskedNode()), "b": X}, ["b"]),
        ({("a", "b", "c"): X, ("a", "d"): X}, ["a/b/c", "a/d"]),
        ({("b", "x"): {"c": X}, ("a",): {"c": X}}, ["a/c", "b/x/c"]),
        (flax.core.freeze({("b", "x"): X, ("a", "y"): X}), ["a/y", "b/x"]),
        ({}, []),
        (None, []),
    ],
)
def test_paths_come_in_the_order_of_the_leaves(tree, paths):
    found = tree_index(tree)
    assert list(found.leaves) == paths
    assert len(jax.tree.leaves(tree)) == len(paths)


TREES = st.recursive(
    st.integers(0, 9),
    lambda inner: st.one_of(
        st.dictionaries(st.text("abc", min_size=1, max_size=2), inner, max_size=3),
        st.lists(inner, max_size=3),
        st.tuples(inner, inner),
    ),
    max_leaves=20,
)


@given(TREES)
def test_leaves_are_those_of_jax_under_the_names_that_jax_gives(tree):
    expected = {
        jax.tree_util.keystr(keys, simple=True, separator="/"): leaf
        for keys, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    found = tree_index(tree)
    assert list(found.leaves.items()) == list(expected.items())
    assert sorted(p for s in found.scopes.values() for p in s.values()) == sorted(expected)


@given(TREES)
def test_nested_scopes_are_those_that_lie_above_others(tree):
    found = tree_index(tree)
    above = {
        path
        for path in found.scopes
        if any(
            other != path and (not path or other.startswith(f"{path}/")) for other in found.scopes
        )
    }
    assert found.nested == above


@pytest.mark.parametrize(
    "tree",
    [
        {"a/b": X, "a": {"b": X}},
        {"a/b": {"x": X}, "a": {"b": {"y": X}}},
        {"a/b": {"x": X}, "a": {"b": {"x": X}}},
        {("a", "b"): X, ("a/b",): X},
        {"c": 1.0, "d": {("a/b", "c"): X, ("a", "b", "c"): X}},
        {("a/b",): X, ("c",): X, ("a", "b"): X},
    ],
)
def test_two_leaves_or_containers_of_one_name_are_refused(tree):
    with pytest.raises(
        StructureError, match=r"of one name at '(d/)?(a/b.*)?' once .* joined by '/'"
    ):
        tree_index(tree)


FLAT = {"a/b/kernel": X, "a/b/bias": X, "a/gain": X, "top": X}


@pytest.mark.parametrize("flat", [FLAT, {tuple(key.split("/")): X for key in FLAT}])
@pytest.mark.parametrize("above", [(), ("model",)])
def test_keys_of_several_levels_make_the_scopes_that_nested_dicts_make(flat, above):
    nested = {"a": {"b": {"kernel": X, "bias": X}, "gain": X}, "top": X}
    for key in above:
        flat, nested = {key: flat}, {key: nested}
    found, expected = tree_index(flat), tree_index(nested)
    assert found.leaves.keys() == expected.leaves.keys()
    assert found.scopes == expected.scopes
    assert found.nested == expected.nested


def test_what_linen_keeps_for_an_array_of_another_module_stays_one_key():
    tree = {"WeightNorm_0": {"Dense_0/kernel/scale": X}}
    assert tree_index(tree).scopes == {
        "WeightNorm_0": {"Dense_0/kernel/scale": "WeightNorm_0/Dense_0/kernel/scale"}
    }


def test_globs_match_whole_paths_and_cross_slashes():
    paths = ["head/kernel", "head/bias", "body/head/kernel"]
    assert matches("head/*", paths, "never") == {"head/kernel", "head/bias"}
    assert matches(("*/kernel",), paths, "never") == {"head/kernel", "body/head/kernel"}
    assert matches(("head/[kb]*", "body/*"), paths, "never") == set(paths)
    assert matches((), paths, "never") == frozenset()


def test_glob_that_matches_nothing_names_what_is_near():
    with pytest.raises(
        PathError, match=r"in `never` .* 'haed/kernel' matches none .* 'head/kernel'"
    ):
        matches("haed/kernel", ["head/kernel", "head/bias"], "never")


def test_path_error_is_a_key_error_and_a_value_error_that_reads_as_a_sentence():
    with pytest.raises(KeyError) as caught:
        matches("x", [], "always")
    assert isinstance(caught.value, ValueError)
    assert str(caught.value).startswith("Every glob in `always` must match a leaf.")
