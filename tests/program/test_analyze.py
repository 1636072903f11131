"""What `analyze` says of small programs, and what it says of bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_bnmask as bnmask

S = jax.ShapeDtypeStruct
F32 = jnp.float32


@pytest.fixture(autouse=True)
def _users_promote_ranks():
    with jax.numpy_rank_promotion("allow"):
        yield


def normalised(z, axis=0):
    return (z - z.mean(axis, keepdims=True)) * jax.lax.rsqrt(z.var(axis, keepdims=True) + 1e-5)


def scales(analysis):
    return {leaf.path: str(leaf.scale) for leaf in analysis.leaves}


def roles(analysis):
    return {leaf.path: str(leaf.role) for leaf in analysis.leaves}


def test_a_weight_before_a_normaliser_is_invariant_with_its_bias_and_without():
    def fn(p, x):
        z = normalised(x @ p["with"]["w"] + p["with"]["b"])
        return jnp.tanh(normalised(z @ p["without"]["w"])) @ p["head"]

    params = {
        "with": {"w": S((3, 8), F32), "b": S((8,), F32)},
        "without": {"w": S((8, 8), F32)},
        "head": S((8, 2), F32),
    }
    analysis = bnmask.analyze(fn, params, S((16, 3), F32))
    assert scales(analysis) == {
        "head": "sensitive",
        "with/b": "invariant",
        "with/w": "invariant",
        "without/w": "invariant",
    }
    assert analysis["with/w"].invariant_axes == (1,)
    assert analysis.dead == ("with/b",)
    assert analysis.groups == ()
    assert {"without/w": 1} in [dict(s) for s in analysis.symmetries]


def test_gain_and_bias_of_a_normaliser_whose_only_reader_is_normalised_are_invariant_together():
    def fn(p, x):
        z = normalised(x @ p["w"]) * p["gamma"] + p["beta"]
        return normalised(jax.nn.relu(z) @ p["v"]) @ p["head"]

    params = {"w": S((3, 8), F32), "gamma": S((8,), F32), "beta": S((8,), F32)}
    params |= {"v": S((8, 8), F32), "head": S((8, 2), F32)}
    analysis = bnmask.analyze(fn, params, S((16, 3), F32))
    assert scales(analysis)["gamma"] == "invariant"
    assert scales(analysis)["beta"] == "joint"
    assert roles(analysis)["gamma"] == "norm_scale"
    assert roles(analysis)["beta"] == "norm_bias"


def test_the_last_convolution_of_a_preactivation_block_is_invariant_only_with_the_stem():
    def fn(p, x):
        stream = x @ p["stem"]
        stream = stream + jax.nn.relu(normalised(stream) @ p["first"]) @ p["last"]
        return normalised(stream) @ p["head"]

    params = {name: S((4, 4), F32) for name in ("stem", "first", "last", "head")}
    analysis = bnmask.analyze(fn, params, S((16, 4), F32))
    assert scales(analysis)["stem"] == "joint"
    assert scales(analysis)["last"] == scales(analysis)["first"] == "joint"
    assert scales(analysis)["head"] == "sensitive"


def test_a_zero_centred_gain_is_a_normalisers_and_its_reason_says_so():
    def fn(p, x):
        return (normalised(x @ p["w"], -1) * (1 + p["scale"])) @ p["head"]

    params = {"w": S((3, 8), F32), "scale": S((8,), F32), "head": S((8, 2), F32)}
    leaf = bnmask.analyze(fn, params, S((16, 3), F32))["scale"]
    assert leaf.role is bnmask.Role.NORM_SCALE
    assert "zero-centred" in leaf.reason
    assert leaf.scale is bnmask.Scale.SENSITIVE


def test_a_fused_kernel_is_hidden_in_the_columns_of_queries_and_keys_only():
    def fn(p, x):
        q, k, v = jnp.split(x @ p["qkv"], 3, axis=-1)
        heads = [t.reshape(*t.shape[:-1], 2, 4) for t in (q, k, v)]
        q, k = (t * jax.lax.rsqrt((t * t).mean(-1, keepdims=True) + 1e-6) for t in heads[:2])
        weights = jax.nn.softmax(jnp.einsum("bthd,bshd->bhts", q, k))
        return jnp.einsum("bhts,bshd->bthd", weights, heads[2]).reshape(*x.shape[:-1], 8) @ p["o"]

    params = {"qkv": S((8, 24), F32), "o": S((8, 8), F32)}
    analysis = bnmask.analyze(fn, params, S((2, 5, 8), F32))
    leaf = analysis["qkv"]
    assert leaf.scale is bnmask.Scale.SENSITIVE
    assert "the scale of indices 0:16 of axis 1 (of 24) is hidden" in leaf.reason
    assert leaf.invariant_blocks == {1: (bnmask.Block(0, 8, 4), bnmask.Block(8, 16, 4))}
    assert "along axis 1, 0:8 in runs of 4, 8:16 in runs of 4 may" in analysis.explain("qkv")
    assert bnmask.Analysis.from_json(analysis.to_json()) == analysis


def test_parts_of_a_fused_kernel_are_treated_by_what_is_known_of_each():
    """Gate and up of one kernel, of which the gate alone is normalised: it alone keeps its norm."""

    def fn(p, x):
        gate, up = jnp.split(x @ p["fused"], 2, axis=-1)
        return (jnp.tanh(normalised(gate)) * up) @ p["down"]

    params = {"fused": S((4, 12), F32), "down": S((6, 3), F32)}
    analysis = bnmask.analyze(fn, params, S((16, 4), F32))
    assert not any(analysis.select("scale_invariant")[path] for path in params)
    mask = analysis.select("scale_invariant", by_blocks=True)
    first, second = (f"fused/part along axis 1 [{part}]" for part in ("0:6", "6:12"))
    assert {path: mask[path] for path in mask} == {"down": False, first: True, second: False}
    tx = bnmask.by_blocks(bnmask.keep_norm(mask), analysis)
    keys = jax.random.split(jax.random.key(0), 2)
    weights = {
        path: jax.random.normal(key, params[path].shape)
        for path, key in zip(params, keys, strict=True)
    }
    updates, _ = tx.update(jax.tree.map(jnp.ones_like, weights), tx.init(weights), weights)
    assert (updates["down"] == 1).all()
    assert (updates["fused"][:, 6:] == 1).all()
    moved = weights["fused"] + updates["fused"]
    before, after = (jnp.linalg.norm(w[:, :6]) for w in (weights["fused"], moved))
    assert jnp.allclose(before, after, rtol=1e-6)
    assert jnp.abs(updates["fused"][:, :6]).max() > 0.1


def test_every_epsilon_is_recorded_with_its_place():
    analysis = bnmask.analyze(
        lambda p, x: normalised(x @ p["w"]), {"w": S((3, 8), F32)}, S((16, 3), F32)
    )
    (assumption,) = analysis.assumptions
    assert assumption.kind == "epsilon"
    assert assumption.value == pytest.approx(1e-5)
    assert "test_analyze.py" in assumption.where


def test_an_epsilon_beside_data_alone_is_no_assumption():
    analysis = bnmask.analyze(
        lambda p, x: normalised(x) @ p["w"], {"w": S((3, 8), F32)}, S((16, 3), F32)
    )
    assert analysis.assumptions == ()


def test_a_primitive_without_a_rule_is_counted_and_pins_what_it_reads():
    def opaque(x):
        return jax.pure_callback(lambda y: y, S(x.shape, x.dtype), x)

    analysis = bnmask.analyze(
        lambda p, x: normalised(opaque(x @ p["w"])), {"w": S((3, 8), F32)}, S((16, 3), F32)
    )
    assert analysis.unhandled == {"pure_callback": 1}
    assert scales(analysis)["w"] == "sensitive"


def test_a_leaf_without_use_is_unused_and_never_invariant():
    params = {"w": S((3, 8), F32), "idle": S((8,), F32)}
    analysis = bnmask.analyze(
        lambda p, x: x @ p["w"] + 0 * p["idle"].shape[0], params, S((4, 3), F32)
    )
    assert roles(analysis)["idle"] == scales(analysis)["idle"] == "unused"


def test_leaves_of_integer_dtype_are_said_to_be_so():
    params = {"w": S((3, 8), F32), "steps": S((), jnp.int32)}
    leaf = bnmask.analyze(
        lambda p, x: (x @ p["w"]) * p["steps"].astype(F32), params, S((4, 3), F32)
    )["steps"]
    assert leaf.scale is bnmask.Scale.UNKNOWN
    assert "not of floating dtype" in leaf.reason


def test_a_function_that_does_not_depend_on_its_parameters_is_refused():
    with pytest.raises(bnmask.StructureError, match=r"depend on none of its 1 leaves"):
        bnmask.analyze(lambda p, x: x.sum(), {"w": S((3, 8), F32)}, S((4, 3), F32))


def test_a_function_without_float_output_is_refused():
    with pytest.raises(bnmask.StructureError, match=r"must return at least one array of floating"):
        bnmask.analyze(lambda p, x: (x @ p["w"]).argmax(-1), {"w": S((3, 8), F32)}, S((4, 3), F32))


def test_a_leaf_that_is_no_array_is_named():
    with pytest.raises(bnmask.StructureError, match=r"'act' is a function"):
        bnmask.analyze(lambda p, x: x, {"w": S((3, 8), F32), "act": lambda x: x}, S((4, 3), F32))


def test_inference_mode_is_warned_of_module_by_module():
    def fn(p, stats, x):
        z = x @ p["w"]
        return (z - stats["post"]["mean"]) * jax.lax.rsqrt(stats["post"]["var"] + 1e-5)

    stats = {"post": {"mean": S((8,), F32), "var": S((8,), F32)}}
    with pytest.warns(UserWarning, match=r"normaliser at .*post.* runs on its running statistics"):
        analysis = bnmask.analyze(fn, {"w": S((3, 8), F32)}, stats, S((16, 3), F32))
    assert scales(analysis)["w"] == "sensitive"


def test_a_batch_renorm_is_traced_as_it_is_trained_and_nobody_is_warned():
    def fn(p, stats, x):
        z = x @ p["dense"]["w"] + p["dense"]["b"]
        mean, std = z.mean(0), jnp.sqrt(z.var(0) + 1e-5)
        running = stats["post"]["mean"], jnp.sqrt(stats["post"]["var"])
        r = jax.lax.stop_gradient(jnp.clip(std / running[1], 1 / 3, 3))
        d = jax.lax.stop_gradient(jnp.clip((mean - running[0]) / running[1], -5, 5))
        return jnp.tanh(((z - mean) / std * r + d) * p["post"]["scale"])

    params = {"dense": {"w": S((3, 8), F32), "b": S((8,), F32)}, "post": {"scale": S((8,), F32)}}
    stats = {"post": {"mean": S((8,), F32), "var": S((8,), F32)}}
    with jax.numpy_rank_promotion("allow"):
        analysis = bnmask.analyze(fn, params, stats, S((16, 3), F32))
    assert scales(analysis)["dense/w"] == "sensitive"
    (note,) = analysis.notes
    assert note.startswith("the normaliser at 'post' corrects the statistics of the batch")
    assert note.endswith("the gradient of 'dense/w' is orthogonal to it all the same")


def test_side_effects_are_no_obstacle():
    def fn(p, x):
        jax.debug.print("{}", x.sum())
        return normalised(x @ p["w"])

    analysis = bnmask.analyze(fn, {"w": S((3, 8), F32)}, S((16, 3), F32))
    assert scales(analysis)["w"] == "invariant"


def test_static_arguments_are_passed_as_they_are():
    def fn(p, x, mode, *, train):
        assert mode == "fast"
        return normalised(x @ p["w"]) if train else x @ p["w"]

    params, x = {"w": S((3, 8), F32)}, S((16, 3), F32)
    assert scales(bnmask.analyze(fn, params, x, "fast", train=True))["w"] == "invariant"
    assert scales(bnmask.analyze(fn, params, x, "fast", train=False))["w"] == "sensitive"


def test_strict_warns_with_the_percentage_left_without_decay():
    params = {"w": S((3, 8), F32), "head": S((8, 2), F32)}
    analysis = bnmask.analyze(
        lambda p, x: normalised(x @ p["w"]) @ p["head"], params, S((16, 3), F32)
    )
    with pytest.warns(UserWarning, match=r"60\.0 % of the parameters are left without decay"):
        mask = analysis.decay_mask(exempt=bnmask.STRICT)
    assert mask.decayed == ("head",)


def test_the_same_input_gives_the_same_answer_to_the_byte():
    params = {name: S((4, 4), F32) for name in "abcdefgh"}

    def fn(p, x):
        for name in p:
            x = x + jax.nn.relu(normalised(x @ p[name]))
        return x

    first, second = (bnmask.analyze(fn, params, S((16, 4), F32)) for _ in range(2))
    assert first == second
    assert first.to_json() == second.to_json()


def test_explain_names_where_the_scale_cancels_and_where_it_is_pinned():
    def fn(p, x):
        return jnp.tanh(normalised(x @ p["w"]) @ p["head"])

    params = {"w": S((3, 8), F32), "head": S((8, 2), F32)}
    analysis = bnmask.analyze(fn, params, S((16, 3), F32))
    hidden, pinned = analysis.explain("w"), analysis.explain("head")
    assert "here the scale cancels, at" in hidden
    assert "no output scales" in hidden
    assert "test_analyze.py" in hidden
    assert "tanh is not homogeneous in a value that scales: pinned, at" in pinned


def test_explain_of_an_unknown_path_names_the_nearest():
    analysis = bnmask.analyze(
        lambda p, x: x @ p["kernel"], {"kernel": S((3, 8), F32)}, S((4, 3), F32)
    )
    with pytest.raises(bnmask.PathError, match=r"no leaf 'kernl'; the nearest are 'kernel'"):
        analysis.explain("kernl")


def test_no_array_is_allocated_for_a_parameter():
    params = {"w": S((1 << 20, 1 << 20), jnp.bfloat16), "head": S((1 << 20, 2), jnp.bfloat16)}
    x = S((16, 1 << 20), jnp.bfloat16)
    analysis = bnmask.analyze(lambda p, x: normalised(x @ p["w"]) @ p["head"], params, x)
    assert scales(analysis)["w"] == "invariant"
    assert analysis["w"].size == 1 << 40


def test_concrete_parameters_are_not_computed_with():
    params = {"w": np.full((3, 8), np.nan, np.float32)}
    analysis = bnmask.analyze(lambda p, x: normalised(x @ p["w"]), params, S((16, 3), F32))
    assert scales(analysis)["w"] == "invariant"


@pytest.mark.parametrize("name", ["/tmp/ipykernel_412/2671.py", "<ipython-input-3-1a2b3c4d>"])
def test_place_in_a_notebook_is_a_cell_and_not_a_file_of_this_process(name):
    lines = "def net(params, x):\n    return jnp.square(x) * params['gain']\n"
    scope = {"jnp": jnp}
    exec(compile(lines, name, "exec"), scope)
    analysis = bnmask.analyze(scope["net"], {"gain": jnp.ones(3)}, jnp.ones(3))
    assert "at cell:2 (net)" in analysis["gain"].reason


def test_value_of_a_surrounding_trace_that_the_function_closes_over_is_some_constant():
    found = []

    @jax.jit
    def step(temperature, params, x):
        def network(params, x):
            z = x @ params["w"]
            z = z * jax.lax.rsqrt(jnp.square(z).sum(-1, keepdims=True))
            return jnp.tanh(z * temperature[None] + params["b"][None])

        found.append(bnmask.analyze(network, params, x))
        return network(params, x)

    step(jnp.ones(4), {"b": jnp.ones(4), "w": jnp.ones((3, 4))}, jnp.ones((2, 3)))
    assert {leaf.path: str(leaf.scale) for leaf in found[0].leaves} == {
        "b": "sensitive",
        "w": "invariant",
    }


@pytest.mark.parametrize("examples", [1, 2])
def test_a_batch_of_one_is_noted_where_it_leaves_nothing_to_normalise(examples):
    def net(p, x):
        z = x @ p["w"]
        z = (z - z.mean(0)) * jax.lax.rsqrt(z.var(0) + 1e-5)
        return jnp.tanh(z * p["g"][None])

    params = {"w": jnp.ones((4, 8)), "g": jnp.ones(8)}
    analysis = bnmask.analyze(net, params, jnp.ones((examples, 4)))
    assert (analysis["w"].scale is bnmask.Scale.INVARIANT) == (examples == 2)
    said = "is of a single entry, as with a batch of one example"
    assert [said in note for note in analysis.notes] == [True] * (examples == 1)
