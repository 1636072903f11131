"""From structure: what may be a leaf and a tree, and what is refused in words."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict

import optax_bnmask as bnmask
from optax_bnmask import Role, StructureError
from tests.support.structure import kept, norm, roles, zeros


def test_abstract_leaves_tell_as_much_as_arrays():
    params, stats = {"n": norm(4), "d": {"kernel": zeros(2, 4)}}, {"n": kept(4)}
    abstract = jax.eval_shape(lambda *trees: trees, params, stats)
    assert bnmask.analyze_structure(*abstract) == bnmask.analyze_structure(params, stats)


def test_mask_is_made_from_tracers_inside_jit():
    params, stats = {"n": norm(4), "d": {"kernel": zeros(2, 4)}}, {"n": kept(4)}
    seen = []
    jax.jit(lambda p, s: seen.append(bnmask.decay_mask(p, s)))(params, stats)
    assert seen == [bnmask.decay_mask(params, stats)]


def test_numpy_arrays_and_python_numbers_are_leaves():
    params = {"d": {"kernel": np.zeros((2, 4), np.float32), "gain": 1.0, "steps": 3}}
    mask = bnmask.decay_mask(params)
    assert mask(params) == {"d": {"kernel": True, "gain": True, "steps": False}}


@pytest.mark.parametrize("leaf", [jnp.zeros(3, jnp.int32), np.zeros(3, bool), jax.random.key(0)])
def test_leaves_that_no_optimizer_moves_do_not_decay(leaf):
    params = {"a": leaf, "b": zeros(3)}
    assert bnmask.decay_mask(params).exempted == ("a",)
    assert bnmask.analyze_structure(params)["a"].reason == (
        "not of floating dtype: no optimizer moves it"
    )
    assert bnmask.analyze_structure(params).decay_mask() == bnmask.decay_mask(params)


def test_bfloat16_and_complex_leaves_decay():
    params = {"a": jnp.zeros(3, jnp.bfloat16), "b": jnp.zeros(3, jnp.complex64)}
    assert bnmask.decay_mask(params).decayed == ("a", "b")


@pytest.mark.parametrize("empty", [{}, [], (), None, {"a": {}, "b": None}])
def test_trees_without_arrays_are_no_params(empty):
    for call in (bnmask.decay_mask, bnmask.analyze_structure):
        with pytest.raises(StructureError, match=r"`params` must hold an array.*without"):
            call(empty, {})


def test_swapped_arguments_are_refused():
    params, stats = {"n": norm(4), "d": {"kernel": zeros(2, 4)}}, {"n": kept(4)}
    with pytest.raises(StructureError, match=r"statistics in `params` at 'n'.*Swap the two"):
        bnmask.decay_mask(stats, params)


@pytest.mark.parametrize("shape", [(1, 1, 8), (1, 8, 1, 1), (8, 1)])
def test_statistics_may_have_further_axes_of_length_one(shape):
    analysis = bnmask.analyze_structure({"n": norm(8)}, {"n": kept(*shape)})
    assert [leaf.role for leaf in analysis.leaves] == [Role.NORM_BIAS, Role.NORM_SCALE]
    assert all(leaf.confirmed for leaf in analysis.leaves)


def test_mean_and_variance_may_differ_in_axes_of_length_one():
    stats = {"n": {"mean": zeros(1, 8), "var": zeros(8)}}
    assert bnmask.decay_mask({"n": norm(8)}, stats).decayed == ()


def test_keras_names_its_statistics_moving():
    stats = {"n": {"moving_mean": zeros(4), "moving_variance": zeros(4)}}
    found = bnmask.analyze_structure({"n": norm(4, gain="gamma", bias="beta")}, stats)
    assert {leaf.role for leaf in found.leaves} == {Role.NORM_SCALE, Role.NORM_BIAS}
    assert all(leaf.confirmed for leaf in found.leaves)
    assert found.notes == ()


@pytest.mark.parametrize("flat", ["params", "batch_stats", "both"])
@pytest.mark.parametrize("separator", ["/", None])
def test_flat_dicts_say_what_nested_ones_say(flat, separator):
    trees = {
        "params": {"a": {"odd": norm(4), "lin": {"kernel": zeros(2, 4), "bias": zeros(4)}}},
        "batch_stats": {"a": {"odd": kept(4)}},
    }
    expected = bnmask.analyze_structure(*trees.values())
    for name in trees if flat == "both" else [flat]:
        trees[name] = flatten_dict(trees[name], sep=separator)
    found = bnmask.analyze_structure(*trees.values())
    assert {leaf.path: (leaf.role, leaf.reason) for leaf in found.leaves} == {
        leaf.path: (leaf.role, leaf.reason) for leaf in expected.leaves
    }


def test_one_array_is_a_tree():
    assert bnmask.decay_mask(zeros(2, 2))(zeros(2, 2)) is True


def test_none_leaves_stay_none():
    params = {"d": {"kernel": zeros(2, 4), "bias": None}}
    assert bnmask.decay_mask(params)(params) == {"d": {"kernel": True, "bias": None}}


def test_shared_array_is_a_leaf_in_each_of_its_places():
    kernel, scope = zeros(2, 4), norm(4)
    params = {"a": {"kernel": kernel}, "b": {"kernel": kernel}, "m": scope, "n": scope}
    mask = bnmask.decay_mask(params, {"m": kept(4)})
    assert mask.exempted == ("m/bias", "m/scale", "n/bias", "n/scale")


def test_analysis_and_decay_mask_agree_on_every_scope():
    params = {f"s{i}": norm(i + 1) | ({"kernel": zeros(2, 2)} if i % 2 else {}) for i in range(6)}
    stats = {f"s{i}": kept(i + 1) for i in range(0, 6, 3)}
    for exempt in (("norm",), bnmask.STANDARD, ("embedding",), ()):
        by_analysis = bnmask.analyze_structure(params, stats).decay_mask(exempt=exempt)
        assert by_analysis == bnmask.decay_mask(params, stats, exempt=exempt)


def test_mismatched_statistics_name_the_leaf():
    with pytest.raises(StructureError, match=r"'n/bias' has shape \(4,\).* 'n' have shape \(8,\)"):
        bnmask.decay_mask({"n": norm(4)}, {"n": kept(8)})


def test_mismatch_at_the_root_names_the_leaf():
    with pytest.raises(StructureError, match=r"'bias' has shape \(4,\)"):
        bnmask.decay_mask(norm(4), kept(8))


def test_statistics_of_another_model_are_refused():
    params = {"stem": {"kernel": zeros(2, 4)}, "bn": norm(4)}
    with pytest.raises(StructureError, match=r"'block/post' has the shape of 'bn/scale'"):
        bnmask.decay_mask(params, {"block": {"post": kept(4)}})


@pytest.mark.parametrize("rest", ["batch_stats", "intermediates", "cache"])
def test_variables_passed_whole_are_refused(rest):
    variables = {"params": {"n": norm(4)}, rest: {"n": kept(4)}}
    with pytest.raises(StructureError, match=r"Pass `variables\['params'\]`"):
        bnmask.decay_mask(variables)


@pytest.mark.parametrize("level", [None, "params", "batch_stats"])
def test_params_may_have_a_level_around_them_as_some_optimizers_see_them(level):
    params, stats = {"n": norm(4), "d": {"kernel": zeros(2, 4)}}, {"n": kept(4)}
    wrapped = {"params": params}
    analysis = bnmask.analyze_structure(wrapped, {level: stats} if level else stats)
    assert analysis["params/n/scale"].confirmed
    assert analysis.decay_mask()(wrapped) == {"params": bnmask.decay_mask(params, stats)(params)}


def test_variables_of_a_model_without_statistics_are_params_like_any_other():
    assert bnmask.decay_mask({"params": {"n": norm(4)}}).exempted == (
        "params/n/bias",
        "params/n/scale",
    )


@pytest.mark.parametrize("others", [{}, {"params": {"n": norm(4)}}])
def test_statistics_in_their_wrapper_are_refused(others):
    wrapped = {"batch_stats": {"n": kept(4)}} | others
    with pytest.raises(StructureError, match=r"Pass `variables\['batch_stats'\]`"):
        bnmask.decay_mask({"n": norm(4)}, wrapped)


@pytest.mark.parametrize("thing", ["text", object(), len])
def test_leaf_that_is_no_array_is_named(thing):
    with pytest.raises(StructureError, match=r"'d/act' is a "):
        bnmask.decay_mask({"d": {"act": thing, "kernel": zeros(2, 4)}})


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        ({"kernel": (8, 16), "lora_a": (8, 1), "lora_b": (1, 16)}, {}),
        ({"a": (8, 8), "b": (8, 1), "c": (1, 8)}, {}),
        ({"w1": (4, 8), "b1": (8,), "w2": (8, 3), "b2": (3,)}, {"b1", "b2"}),
        ({"wi": (4, 8), "bi": (8,)}, {"bi"}),
        ({"W": (4, 8), "B": (8,)}, {"B"}),
        ({"w1": (4, 8), "b1": (3,)}, {}),
        ({"a": (4, 8), "b": (8,)}, {"b"}),
        ({"wk": (4, 8), "k": (8,), "xwk": (8,)}, {}),
        ({"wq": (8, 8), "ln1_scale": (8,), "ln1_bias": (8,)}, {}),
    ],
)
def test_biases_in_flat_scopes_are_told_by_their_partners(shapes, expected):
    found = roles({name: zeros(*shape) for name, shape in shapes.items()})
    assert {name for name, role in found.items() if role is Role.BIAS} == set(expected)


def test_a_gain_and_bias_of_one_stem_are_a_normalisers():
    found = roles({"wq": zeros(8, 8), "ln1_scale": zeros(8), "ln1_bias": zeros(8)})
    assert found["ln1_scale"] is Role.NORM_SCALE
    assert found["ln1_bias"] is Role.NORM_BIAS


def test_of_two_offsets_beside_a_weight_one_is_the_weights():
    v = jnp.ones(8)
    scope = {"kernel": jnp.ones((3, 3, 4, 8)), "bias": v, "scale": v, "beta": v}
    analysis = bnmask.analyze_structure({"conv": scope}, {"conv": {"mean": v, "var": v}})
    assert {leaf.path: str(leaf.role) for leaf in analysis.leaves} == {
        "conv/beta": "norm_bias",
        "conv/bias": "bias",
        "conv/kernel": "weight",
        "conv/scale": "norm_scale",
    }


def test_a_flat_scope_of_thousands_takes_time_linear_in_their_number():
    def seconds(n):
        struct = jax.ShapeDtypeStruct
        params = {f"x{i}_b": struct((i % 7 + 2,), "float32") for i in range(n)}
        params |= {f"x{i}_w": struct((i, i % 7 + 2), "float32") for i in range(n)}
        start = time.process_time()
        bnmask.decay_mask(params)
        return time.process_time() - start

    seconds(100)
    assert seconds(4_000) < 20 * max(seconds(1_000), 0.02)


@pytest.mark.parametrize("wrong", [("norm", "bias"), ["norm"]])
def test_names_in_the_place_of_statistics_are_refused(wrong):
    with pytest.raises(StructureError, match="categories that do not decay"):
        bnmask.decay_mask({"c": norm(4)}, wrong)


def test_params_and_optimizer_states_in_the_place_of_statistics_are_refused():
    params = {"c": norm(4), "d": {"kernel": zeros(4, 4)}}
    state = optax.adamw(1e-3).init(params)
    with pytest.raises(StructureError, match="of the same names as those of `params`"):
        bnmask.decay_mask(params, params)
    with pytest.raises(StructureError, match=r"`batch_stats` must be .* the state of an optimizer"):
        bnmask.decay_mask(params, state)
    with pytest.raises(StructureError, match=r"`params` must be .* the state of an optimizer"):
        bnmask.decay_mask(state)


def test_keys_may_be_numbers():
    params = {
        "layers": {0: {"kernel": zeros(3, 4), "bias": zeros(4)}, 10: zeros(4), 9: zeros(4, 6)}
    }
    assert roles(params) == {
        "layers/0/kernel": "weight",
        "layers/0/bias": "bias",
        "layers/9": "unknown",
        "layers/10": "unknown",
    }
    assert bnmask.decay_mask({0: zeros(3, 4), 1: zeros(4)})({0: zeros(3, 4), 1: zeros(4)}) == {
        0: True,
        1: True,
    }
    lists = nnx.Dict(biases=nnx.List([nnx.Param(zeros(3)), nnx.Param(zeros(3))]))
    assert set(bnmask.analyze_structure(nnx.state(lists)).decay_mask()) == {"biases/0", "biases/1"}
