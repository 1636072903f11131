"""Checkpoints of every kind, read by their metadata: one tree, one answer."""

import json
import shutil

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

from optax_bnmask import checkpoints
from optax_bnmask.errors import StructureError
from tests.support.checkpoints import stored_files as files


@pytest.fixture(autouse=True)
def _promotion_as_frameworks_need_it():
    import jax

    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


def roles(path, **places):
    analysis = checkpoints.analyze_checkpoint(path, **places)
    return {leaf.path: leaf.role.value for leaf in analysis.leaves}


def shapes(tree):
    return {name: (leaf.shape, leaf.dtype.name) for name, leaf in files.flat(tree).items()}


@pytest.mark.parametrize("writer", files.WRITERS)
def test_every_way_of_storing_gives_the_same_shapes_and_roles(writer, tmp_path):
    path = files.WRITERS[writer](tmp_path, files.VARIABLES)
    stored = checkpoints.read(path)
    assert shapes(stored.params) == shapes(files.PARAMS)
    assert shapes(stored.batch_stats) == shapes(files.STATS)
    assert roles(path) == files.ROLES


@pytest.mark.parametrize("writer", files.WRITERS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8", "bool"])
def test_dtypes_survive(writer, dtype, tmp_path):
    stored = checkpoints.read(
        files.WRITERS[writer](tmp_path, {"w": np.ones((2, 3), jnp.dtype(dtype))})
    )
    assert shapes(stored.params) == {"w": ((2, 3), dtype)}


def test_an_analysis_says_where_it_is_from_and_that_no_program_verified_it(tmp_path):
    path = files.managed(tmp_path / "steps", [3, 20], default=files.VARIABLES)
    notes = checkpoints.analyze_checkpoint(path).notes
    assert notes[0] == (
        "read from a checkpoint (Orbax, step 20, the last, item 'default'), params at 'params'; "
        "running statistics at 'batch_stats'"
    )
    assert notes[1].startswith("unverified by a program: ")


def test_items_of_a_step_are_branches_of_one_tree(tmp_path):
    path = files.managed(tmp_path / "steps", [1], params=files.PARAMS, state=files.STATS)
    assert roles(path) == roles(path / "1") == files.ROLES


def test_a_link_to_a_checkpoint_is_followed(tmp_path):
    target = files.orbax(tmp_path / "step_7", files.VARIABLES)
    (tmp_path / "latest").symlink_to(target)
    assert roles(tmp_path / "latest") == files.ROLES


@pytest.mark.parametrize("writer", ["orbax", "msgpack"])
@pytest.mark.parametrize("outer", [(), ("state",)])
def test_a_train_state_is_its_params_and_statistics(writer, outer, tmp_path):
    class State(TrainState):
        batch_stats: dict

    tree = State.create(
        apply_fn=None, params=files.PARAMS, tx=optax.adamw(1e-3), batch_stats=files.STATS
    )
    for name in outer:
        tree = {name: tree, "epoch": 3, "name": "a run", "nothing": None}
    assert roles(files.WRITERS[writer](tmp_path, tree)) == files.ROLES


class Net(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(2, 3, rngs=rngs)
        self.post = nnx.BatchNorm(3, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.blocks = nnx.List([nnx.Linear(3, 3, use_bias=False, rngs=rngs)])


NNX = {
    "blocks/0/kernel": "weight",
    "linear/bias": "bias",
    "linear/kernel": "weight",
    "post/bias": "norm_bias",
    "post/scale": "norm_scale",
}


@pytest.mark.parametrize("writer", ["orbax", "orbax_directories", "orbax_manager"])
@pytest.mark.parametrize("outer", ["", "model"])
def test_an_nnx_state_brings_its_statistics_and_loses_its_random_streams(writer, outer, tmp_path):
    tree = nnx.state(Net(nnx.Rngs(0)))
    path = files.WRITERS[writer](tmp_path, {outer: tree, "step": 3} if outer else tree)
    analysis = checkpoints.analyze_checkpoint(path)
    assert {leaf.path: leaf.role.value for leaf in analysis.leaves} == NNX
    assert "statistics are kept" not in " ".join(analysis.notes)
    assert analysis["post/scale"].confirmed
    assert any("were taken for running statistics" in note for note in analysis.notes)


def test_statistics_that_nnx_kept_apart_lose_their_boxes_too(tmp_path):
    def boxed(tree):
        return {
            key: boxed(child) if isinstance(child, dict) else {"value": child}
            for key, child in tree.items()
        }

    stored = checkpoints.read(files.flax_msgpack(tmp_path / "both", boxed(files.VARIABLES)))
    assert shapes(stored.params) == shapes(files.PARAMS)
    assert shapes(stored.batch_stats) == shapes(files.STATS)


def test_the_params_have_the_paths_that_the_model_gives_them(tmp_path):
    """So a mask from the checkpoint fits the model."""
    import optax_bnmask as bnmask

    model = Net(nnx.Rngs(0))
    path = files.orbax(tmp_path / "nnx", nnx.state(model))
    assert checkpoints.analyze_checkpoint(path).decay_mask() == bnmask.decay_mask(model)


@pytest.mark.parametrize("writer", ["orbax", "msgpack", "safetensors_slashes", "npz"])
def test_lists_become_numbers(writer, tmp_path):
    tree = {"layers": {"0": {"kernel": np.ones((2, 3))}, "1": {"kernel": np.ones((3, 2))}}}
    if writer in {"orbax", "msgpack"}:
        tree = {"layers": list(tree["layers"].values())}
    assert roles(files.WRITERS[writer](tmp_path, tree)) == {
        "layers/0/kernel": "weight",
        "layers/1/kernel": "weight",
    }


def test_all_variables_under_params_are_taken_apart(tmp_path):
    path = files.flax_msgpack(tmp_path / "x", {"step": 1, "params": files.VARIABLES})
    assert roles(path) == files.ROLES


def test_boxes_of_partitioned_params_add_no_name(tmp_path):
    import flax.linen as nn

    boxed = {
        "dense": {"kernel": nn.Partitioned(np.ones((2, 3)), names=(None, None)), "v": np.ones(3)}
    }
    assert list(roles(files.flax_msgpack(tmp_path / "x", boxed))) == ["dense/kernel", "dense/v"]


def test_haiku_params_and_state(tmp_path):
    tree = {
        "params": {"bn": {"scale": np.ones((1, 4)), "offset": np.ones((1, 4))}},
        "state": {
            "bn/~/mean_ema": {"average": np.ones((1, 4)), "hidden": np.ones((1, 4))},
            "bn/~/var_ema": {"average": np.ones((1, 4)), "hidden": np.ones((1, 4))},
        },
    }
    found = checkpoints.analyze_checkpoint(files.flax_msgpack(tmp_path / "x", tree))
    assert found["bn/scale"].confirmed


def test_an_array_in_chunks_is_one_array(tmp_path, monkeypatch):
    monkeypatch.setattr("flax.serialization.MAX_CHUNK_SIZE", 100)
    path = files.flax_msgpack(tmp_path / "x", {"w": np.ones((13, 11), np.float32)})
    assert b"__msgpack_chunked_array__" in path.read_bytes()
    assert shapes(checkpoints.read(path).params) == {"w": ((13, 11), "float32")}


def test_numpy_scalars_and_numbers_are_arrays_without_axes(tmp_path):
    tree = {"a": np.float32(1), "b": 1.5, "c": 3, "d": True, "e": 1j}
    found = shapes(checkpoints.read(files.flax_msgpack(tmp_path / "x", tree)).params)
    dtypes = {"a": "float32", "b": "float32", "c": "int32", "d": "bool", "e": "complex64"}
    assert found == {name: ((), dtype) for name, dtype in dtypes.items()}


def test_places_may_be_told(tmp_path):
    tree = {"ema": {"a/b": files.PARAMS}, "kept": {"running": files.STATS}, "opt_state": {"x": 1}}
    path = files.flax_msgpack(tmp_path / "x", tree)
    assert roles(path, params="ema/a/b", stats="kept/running") == files.ROLES
    assert list(roles(path, params="ema/a/b/head")) == ["bias", "kernel"]


def test_a_key_with_a_slash_is_told_from_a_way_of_two_keys(tmp_path):
    tree = {"a": {"c": np.ones(3)}, "a/b": files.PARAMS}
    assert (
        roles(files.flax_msgpack(tmp_path / "x", tree), params="a/b").keys() == files.ROLES.keys()
    )


def test_the_top_may_be_told(tmp_path):
    path = files.flax_msgpack(
        tmp_path / "x", {"params": {"kernel": np.ones((2, 3))}, "w": np.ones(3)}
    )
    assert list(roles(path, params=".")) == ["params/kernel", "w"]


@pytest.mark.parametrize(
    ("tree", "places", "said"),
    [
        (
            {"a": {"params": files.PARAMS}, "b": {"params": files.PARAMS}},
            {},
            r"one set of params. There are 'a/params', 'b/params'. Say which with --params",
        ),
        ({"opt_state": files.PARAMS, "x": files.PARAMS}, {}, "nothing called 'params'"),
        ({"params": {}}, {}, "At 'params' there is no array"),
        (
            files.VARIABLES,
            {"params": "parms"},
            "No branch is called 'parms'; the nearest .* 'params'",
        ),
        (
            files.VARIABLES,
            {"stats": "params/x"},
            "`stats` must name a branch .* No branch is called 'x'",
        ),
        (
            files.VARIABLES,
            {"params": "params/head/bias"},
            "must name a branch .* No branch is called 'bias'",
        ),
        ({"kernel": "no array"}, {}, "'kernel' is a string. Say where the params are"),
        ({"kernel": b"no array"}, {}, "'kernel' is a string of bytes"),
    ],
)
def test_params_that_are_not_to_be_found_are_said_so(tree, places, said, tmp_path):
    path = files.flax_msgpack(tmp_path / "x", tree)
    with pytest.raises(StructureError, match=said):
        checkpoints.read(path, **places)


def test_no_chunk_of_an_array_needs_to_be_there(tmp_path):
    path = files.orbax(tmp_path / "plain", files.VARIABLES, ocdbt=False)
    for file in path.glob("*/*"):
        if file.is_file() and not file.name.startswith("."):
            file.unlink()
    assert roles(path) == files.ROLES


def test_a_name_with_a_slash_or_a_dot_is_found_where_orbax_put_it(tmp_path):
    tree = {"a.b": {"x/y": np.ones((2, 3))}}
    for ocdbt in (True, False):
        path = files.orbax(tmp_path / f"{ocdbt}", tree, ocdbt=ocdbt)
        assert list(roles(path)) == ["a.b/x/y"]


def test_a_path_that_a_url_would_misread(tmp_path):
    place = tmp_path / "a %20b?#c"
    place.mkdir()
    assert roles(files.orbax(place / "x", files.VARIABLES)) == files.ROLES


def test_a_copy_elsewhere_reads_the_same(tmp_path):
    path = files.orbax(tmp_path / "x", files.VARIABLES)
    shutil.copytree(path, tmp_path / "y")
    shutil.rmtree(path)
    assert roles(tmp_path / "y") == files.ROLES


def test_relative_paths_are_of_the_working_directory(tmp_path, monkeypatch):
    files.orbax(tmp_path / "x", files.VARIABLES)
    monkeypatch.chdir(tmp_path)
    assert roles("x") == roles("./x") == files.ROLES


def test_without_tensorstore_a_store_is_a_sentence(tmp_path, monkeypatch):
    path = files.orbax(tmp_path / "x", files.VARIABLES)
    monkeypatch.setitem(__import__("sys").modules, "tensorstore", None)
    with pytest.raises(StructureError, match=r"only TensorStore reads.*Install `orbax-checkpoint`"):
        checkpoints.read(path)


def test_what_one_json_says_twice_is_still_said_once(tmp_path):
    """The metadata of Orbax may hold fields that we do not know."""
    path = files.orbax(tmp_path / "x", files.VARIABLES)
    record = json.loads((path / "_METADATA").read_text())
    (path / "_METADATA").write_text(json.dumps(record | {"of_the_future": [1]}))
    assert roles(path) == files.ROLES
