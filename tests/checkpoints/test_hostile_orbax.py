"""Orbax directories that are damaged, foreign or built to harm: each a sentence."""

import json
import os
import shutil

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from optax_bnmask import checkpoints
from optax_bnmask.errors import StructureError
from tests.support.checkpoints import stored_files as files
from tests.support.checkpoints.hostile import DEEP, refused
from tests.support.checkpoints.peak_memory import little_memory


@pytest.fixture(autouse=True)
def _no_file_takes_memory():
    with little_memory():
        yield


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    place = tmp_path_factory.mktemp("orbax")
    tree = {"params": {"w": np.ones((2, 3), np.float32)}}
    return files.orbax(place / "plain", tree, ocdbt=False), files.orbax(place / "store", tree)


@pytest.fixture
def plain(saved, tmp_path):
    shutil.copytree(saved[0], tmp_path / "step")
    return tmp_path / "step"


@pytest.fixture
def store(saved, tmp_path):
    shutil.copytree(saved[1], tmp_path / "step")
    return tmp_path / "step"


def leaf(*keys, kind="jax.Array"):
    return {
        "key_metadata": [{"key": key, "key_type": 2} for key in keys],
        "value_metadata": {"value_type": kind, "skip_deserialize": False},
    }


TREES = {
    "not_json": (b"\x80\x04pickle", "'_METADATA' must be JSON"),
    "nested_deep": (DEEP, "nested too deep"),
    "a_key_twice": (b'{"tree_metadata": {}, "tree_metadata": {}}', "'tree_metadata' stands twice"),
    "a_list": (b"[]", "'_METADATA' must be a JSON object"),
    "no_tree": ({}, "'tree_metadata' is None, no list of leaves"),
    "tree_is_a_list": ({"tree_metadata": [1]}, "no list of leaves"),
    "leaf_is_a_number": ({"tree_metadata": {"a": 1}}, "describes 'a' by 1"),
    "leaf_without_keys": ({"tree_metadata": {"a": leaf()}}, "gives 'a' no keys"),
    "leaf_with_an_empty_key": ({"tree_metadata": {"a": leaf("a", "")}}, "gives 'a' no keys"),
    "traversal": ({"tree_metadata": {"a": leaf("/../../secret")}}, "puts .* outside of it"),
    "traversal_split": ({"tree_metadata": {"a": leaf("x/", "/..", "/y")}}, "has no|cannot be read"),
    "absolute": ({"tree_metadata": {"a": leaf("/etc")}}, "puts '/etc' outside of it"),
    "zero_byte": ({"tree_metadata": {"a": leaf("a\0b")}}, r"puts 'a\\x00b' outside of it"),
    "deep_keys": ({"tree_metadata": {"a": leaf(*"a" * 1000)}}, "a.a.a.*cannot be read"),
    "an_array_that_is_not_there": ({"tree_metadata": {"a": leaf("gone")}}, "gone.*cannot be read"),
    "twice": (
        {"tree_metadata": {"a": leaf("params", "w"), "b": leaf("params", "w")}},
        "two of one name, 'params/w'",
    ),
    "below": (
        {"tree_metadata": {"a": leaf("params", kind="string"), "b": leaf("params", "w")}},
        "'params/w' is below an array",
    ),
}


@pytest.mark.parametrize("case", TREES)
def test_hostile_metadata_of_orbax(case, plain):
    record, said = TREES[case]
    text = record if isinstance(record, bytes) else json.dumps(record).encode()
    (plain / "_METADATA").write_bytes(text)
    refused(plain, said)


def described(**fields):
    return {"shape": [2, 3], "dtype": "<f4", **fields}


ARRAYS = {
    "not_json": (b"\0", "'params.w/.zarray' must be JSON"),
    "dtype_is_a_record": (described(dtype=[["a", "<f4"]]), "which no array of JAX has"),
    "dtype_of_objects": (described(dtype="|O"), r"the dtype '\|O', which no array"),
    "dtype_of_text": (described(dtype="<U4"), "which no array of JAX has"),
    "dtype_of_no_size": (described(dtype="<f3"), "the dtype '<f3', which no array"),
    "negative": (described(shape=[-2]), "which no array has"),
    "overflow": (described(shape=[2**40, 2**40]), "more than can be stored"),
    "no_shape": (described(shape=None), "the shape None, which no array has"),
    "shape_twice": (b'{"shape": [1], "shape": [2]}', "key 'shape' stands twice"),
    "two_megabytes": (b" " * (2 << 20), "has more than 1,048,576 bytes, too many for metadata"),
}


@pytest.mark.parametrize("case", ARRAYS)
def test_hostile_description_of_an_array(case, plain):
    record, said = ARRAYS[case]
    text = record if isinstance(record, bytes) else json.dumps(record).encode()
    (plain / "params.w" / ".zarray").write_bytes(text)
    refused(plain, said)


@pytest.mark.parametrize("case", ARRAYS)
def test_hostile_description_of_an_array_in_a_store(case, store):
    import tensorstore

    record, said = ARRAYS[case]
    text = record if isinstance(record, bytes) else json.dumps(record).encode()
    base = {"driver": "ocdbt", "base": (store.resolve()).as_uri() + "/"}
    tensorstore.KvStore.open(base).result().write("params.w/.zarray", text).result()
    if case == "two_megabytes":
        said = "is longer than any description"
    refused(store, said)


@pytest.mark.parametrize("name", ["_METADATA", "params.w/.zarray"])
@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("outside", "is a link to a place outside of it"),
        ("loop", "cannot be read"),
        ("pipe", "is no plain file"),
        ("directory", "is no plain file"),
        ("dangling", "cannot be read|no '_METADATA'"),
    ],
)
def test_what_is_no_plain_file_is_refused(name, kind, said, plain, tmp_path):
    path = plain / name
    kept = path.read_bytes()
    path.unlink()
    if kind == "outside":
        (tmp_path / "elsewhere").write_bytes(kept)
        path.symlink_to(tmp_path / "elsewhere")
    elif kind == "loop":
        path.symlink_to(path)
        said = f"{said}|holds|no '_METADATA'"
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "dangling":
        path.symlink_to(tmp_path / "nowhere")
    else:
        path.mkdir()
    refused(plain, said)


def test_a_link_within_the_checkpoint_is_fine(plain):
    path = plain / "params.w" / ".zarray"
    path.rename(plain / "moved")
    path.symlink_to(plain / "moved")
    assert checkpoints.read(plain).params["w"].shape == (2, 3)


def test_a_directory_of_an_array_that_leads_outside_is_refused(plain, tmp_path):
    (plain / "params.w").rename(tmp_path / "elsewhere")
    (plain / "params.w").symlink_to(tmp_path / "elsewhere")
    refused(plain, "is a link to a place outside of it")


def test_a_link_in_a_store_that_leads_outside_is_refused(store, tmp_path):
    (store / "manifest.ocdbt").rename(tmp_path / "elsewhere")
    (store / "manifest.ocdbt").symlink_to(tmp_path / "elsewhere")
    refused(store, "'manifest.ocdbt' is a link to a place outside of it")


@pytest.mark.parametrize("kind", ["outside", "loop", "pipe", "dangling", "directory_outside"])
def test_nothing_that_a_store_could_name_leads_outside_or_keeps_waiting(kind, store, tmp_path):
    """Its manifest may name files in any directory below it, not only in `d`."""
    (store / "named").mkdir()
    path = store / "named" / "data"
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "data").touch()
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(
            {
                "outside": tmp_path / "elsewhere" / "data",
                "loop": path,
                "dangling": tmp_path / "nowhere",
                "directory_outside": tmp_path / "elsewhere",
            }[kind]
        )
    refused(store, "'named/data' is a link to a place outside of it, or no plain file")


@pytest.mark.parametrize("kind", ["plain", "store"])
@settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_damage_anywhere_is_a_sentence_or_does_not_matter(kind, data, saved, tmp_path):
    path = tmp_path / "step"
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(saved[kind == "store"], path)
    files_of_it = sorted(file for file in path.rglob("*") if file.is_file())
    damaged = data.draw(st.sampled_from(files_of_it))
    content = bytearray(damaged.read_bytes())
    for _ in range(data.draw(st.integers(0, 3)) if content else 0):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    size = data.draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))
    damaged.write_bytes(content[:size])
    try:
        checkpoints.analyze_checkpoint(path)
    except StructureError as error:
        assert str(error).isprintable()  # noqa: PT017 - or no error at all


@pytest.mark.parametrize("name", ["manifest.ocdbt", "d/*"])
@pytest.mark.parametrize("damage", ["cut", "zeros", "noise"])
def test_a_damaged_store_is_refused(name, damage, store):
    for path in store.glob(name):
        data = path.read_bytes()
        noise = bytes(byte ^ 0x55 for byte in data)
        path.write_bytes(
            {"cut": data[: len(data) // 2], "zeros": b"\0" * len(data), "noise": noise}[damage]
        )
    refused(store, "Its store of arrays cannot be read")


def test_a_store_without_its_manifest_is_refused(store):
    (store / "manifest.ocdbt").unlink()
    refused(store, "has no 'manifest.ocdbt'")


def test_an_array_missing_in_a_store_is_named(store):
    record = {"tree_metadata": {"a": leaf("gone")}, "use_ocdbt": True}
    (store / "_METADATA").write_text(json.dumps(record))
    refused(store, "has no 'gone/.zarray', which '_METADATA' lists")


def test_an_unfinished_checkpoint_is_refused(plain):
    unfinished = plain.rename(plain.parent / "step.orbax-checkpoint-tmp-17")
    (unfinished / "_METADATA").unlink()
    refused(unfinished, "was never finished. Take the step before it")
    refused(plain.parent, "was never finished. Take the step before it")


def test_an_old_checkpoint_of_orbax_is_told_from_a_foreign_directory(plain, tmp_path):
    (plain / "_METADATA").rename(plain / "checkpoint")
    refused(plain, "no '_METADATA', as those of Orbax before 2024. Restore it once")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").touch()
    refused(tmp_path / "other", "holds 'notes.txt', and no '_METADATA' of Orbax")
