"""What structure alone tells: statistics first, then conventions, and refusals with a reason."""

import pytest

import optax_bnmask as bnmask
from optax_bnmask import Role
from optax_bnmask.conventions import by_convention
from tests.support.structure import kept, norm, roles, zeros


@pytest.mark.parametrize("name", ["odd", "model", "conv", "0", "BatchNorm_0", "a/b"])
def test_statistics_decide_whatever_the_module_is_called(name):
    analysis = bnmask.analyze_structure({name: norm(4)}, {name: kept(4)})
    assert [leaf.role for leaf in analysis.leaves] == [Role.NORM_BIAS, Role.NORM_SCALE]
    assert {leaf.reason for leaf in analysis.leaves} == {
        "a running mean and var of its shape are kept in its scope"
    }
    assert analysis.notes == ()


@pytest.mark.parametrize("shape", [(4,), (3, 4), (1, 4), (2, 3, 4), (1,)])
def test_statistics_may_be_stacked_or_have_several_axes(shape):
    found = roles({"n": norm(*shape)}, {"n": kept(*shape)})
    assert set(found.values()) == {Role.NORM_SCALE, Role.NORM_BIAS}


def test_kernel_in_the_same_scope_as_the_statistics_decays():
    params = {"unit": {"kernel": zeros(3, 3, 2, 4), **norm(4)}}
    mask = bnmask.decay_mask(params, {"unit": kept(4)})
    assert mask(params) == {"unit": {"kernel": True, "scale": False, "bias": False}}


def test_kernel_of_the_shape_of_the_statistics_is_no_gain():
    params = {"unit": {"kernel": zeros(4, 4), "scale": zeros(4, 4)}}
    assert roles(params, {"unit": kept(4, 4)}) == {
        "unit/kernel": Role.WEIGHT,
        "unit/scale": Role.NORM_SCALE,
    }


@pytest.mark.parametrize("name", ["scale", "bias"])
def test_batch_norm_may_have_a_gain_or_a_bias_alone(name):
    role = {"scale": Role.NORM_SCALE, "bias": Role.NORM_BIAS}[name]
    assert roles({"n": {name: zeros(4)}}, {"n": kept(4)}) == {f"n/{name}": role}


def test_statistics_confirm_the_names_gamma_and_beta():
    found = roles({"n": norm(4, gain="gamma", bias="beta")}, {"n": kept(4)})
    assert found == {"n/beta": Role.NORM_BIAS, "n/gamma": Role.NORM_SCALE}


def test_statistics_without_parameters_are_noted():
    analysis = bnmask.analyze_structure({"d": {"kernel": zeros(2, 4)}}, {"n": kept(4)})
    assert "the statistics at 'n' have no parameters beside them" in analysis.notes[0]
    assert analysis["d/kernel"].role is Role.WEIGHT


def test_frozen_subtree_may_leave_its_statistics_behind():
    stats = {"backbone": {"n": kept(8)}, "neck": {"n": kept(8)}}
    params = {"head": {"kernel": zeros(8, 2), "bias": zeros(2)}, "neck": {"n": norm(8)}}
    assert bnmask.decay_mask(params, stats).exempted == ("neck/n/bias", "neck/n/scale")
    del params["neck"]
    assert bnmask.decay_mask(params, stats).exempted == ()


def test_root_may_itself_be_a_batch_norm():
    assert set(roles(norm(4), kept(4)).values()) == {Role.NORM_SCALE, Role.NORM_BIAS}


def test_half_statistics_beside_a_bias_are_refused_in_the_reason_and_in_the_notes():
    analysis = bnmask.analyze_structure({"c": {"bias": zeros(4)}}, {"c": {"mean": zeros(4)}})
    why = "statistics are kept in its scope, but they are 'mean' and not both a 'mean' and a 'var'"
    assert analysis["c/bias"].role is Role.UNKNOWN
    assert why in analysis["c/bias"].reason
    assert any(note.startswith("'c/bias'") and why in note for note in analysis.notes)
    assert bnmask.decay_mask({"c": {"bias": zeros(4)}}, {"c": {"mean": zeros(4)}})["c/bias"]


@pytest.mark.parametrize(
    "stats",
    [
        {"mean": zeros(4)},
        {"ema_mean": zeros(4), "ema_var": zeros(4)},
        {"mean": zeros(4), "var": zeros(3, 2)},
    ],
)
def test_statistics_that_settle_nothing_take_nothing_away_from_the_convention(stats):
    analysis = bnmask.analyze_structure({"c": norm(4)}, {"c": stats})
    assert {leaf.role for leaf in analysis.leaves} == {Role.NORM_SCALE, Role.NORM_BIAS}
    assert all("by Flax's and Haiku's convention" in leaf.reason for leaf in analysis.leaves)
    assert all("not a BatchNorm's" in leaf.reason for leaf in analysis.leaves)
    assert len(analysis.notes) == 3


@pytest.mark.parametrize(
    ("gain", "shape"),
    [((8,), (4, 8)), ((5, 8), (8,)), ((3, 5), (5, 3)), ((8,), (1, 8)), ((2, 3, 8), (2, 8))],
)
def test_statistics_of_each_device_or_member_or_stacked_otherwise_confirm(gain, shape):
    stats = {"mean": zeros(*shape), "var": zeros(*shape)}
    analysis = bnmask.analyze_structure(
        {"c": {"scale": zeros(*gain), "bias": zeros(*gain)}}, {"c": stats}
    )
    assert {leaf.role for leaf in analysis.leaves} == {Role.NORM_SCALE, Role.NORM_BIAS}
    assert analysis["c/scale"].confirmed


def test_bias_beside_a_kernel_stays_a_bias_where_half_statistics_are_refused():
    params = {"c": {"kernel": zeros(2, 4), "bias": zeros(4)}}
    leaf = bnmask.analyze_structure(params, {"c": {"mean": zeros(4)}})["c/bias"]
    assert leaf.role is Role.BIAS
    assert leaf.reason.startswith("by convention: beside a weight")
    assert "not a BatchNorm's" in leaf.reason


def test_unequal_mean_and_var_are_refused():
    stats = {"c": {"mean": zeros(4), "var": zeros(2)}}
    analysis = bnmask.analyze_structure({"c": {"kernel": zeros(2, 4), "bias": zeros(4)}}, stats)
    assert any("'mean' has shape (4,) and their 'var' (2,)" in note for note in analysis.notes)


def test_statistics_of_another_shape_than_the_bias_in_a_mixed_scope_are_refused():
    params = {"c": {"kernel": zeros(2, 4), "bias": zeros(4), "scale": zeros(2)}}
    analysis = bnmask.analyze_structure(params, {"c": kept(2)})
    assert analysis["c/scale"].role is Role.NORM_SCALE
    assert analysis["c/bias"].role is Role.BIAS
    assert "its shape is (4,), and that of the mean and var kept" in analysis["c/bias"].reason
    assert any(note.startswith("'c/bias'") for note in analysis.notes)


def test_spectral_statistics_under_one_long_key_are_refused():
    stats = {"SpectralNorm_0": {"Dense_0/kernel/u": zeros(1, 4), "Dense_0/kernel/sigma": zeros()}}
    params = {"Dense_0": {"kernel": zeros(2, 4), "bias": zeros(4)}}
    analysis = bnmask.analyze_structure(params, stats)
    assert [leaf.role for leaf in analysis.leaves] == [Role.BIAS, Role.WEIGHT]
    assert "'SpectralNorm_0' are not BatchNorm's" in analysis.notes[0]
    assert "'Dense_0/kernel/u'" in analysis.notes[0]


@pytest.mark.parametrize(
    ("scope", "why"),
    [
        ({"scale": zeros()}, "it is a single number"),
        ({"scale": zeros(1)}, "it is a single number"),
        ({"scale": zeros(4), "bias": zeros(3)}, "of one shape"),
        ({"scale": zeros(4), "shift": zeros(4)}, "it would have no 'shift' beside it"),
        ({"scale": zeros(4), "inner": {"kernel": zeros(2, 2)}}, "no further scopes beside it"),
        ({"weight": zeros(4, 4)}, "a lone 'weight' may be anything"),
        ({"weight": zeros(1)}, "it is a single number"),
        ({"gamma": zeros(4)}, "a lone 'gamma' may be anything"),
    ],
)
def test_gain_that_is_no_normaliser_by_convention_says_why(scope, why):
    analysis = bnmask.analyze_structure({"s": scope})
    leaf = next(x for x in analysis.leaves if x.path.split("/")[-1] in {"scale", "weight", "gamma"})
    assert leaf.role is Role.UNKNOWN
    assert why in leaf.reason
    assert any(note.startswith(repr(leaf.path)) and why in note for note in analysis.notes)


@pytest.mark.parametrize(
    "scope",
    [
        norm(4),
        norm(3, 4),
        {"scale": zeros(4)},
        {"weight": zeros(4)},
        norm(4, bias="offset"),
        norm(4, gain="weight"),
        norm(4, gain="gamma", bias="beta"),
    ],
)
def test_lone_gain_and_bias_are_a_normalisers_by_convention(scope):
    analysis = bnmask.analyze_structure({"s": scope})
    assert {leaf.role for leaf in analysis.leaves} <= {Role.NORM_SCALE, Role.NORM_BIAS}
    assert all("convention, unconfirmed by statistics" in leaf.reason for leaf in analysis.leaves)


@pytest.mark.parametrize(
    ("weight", "bias"),
    [
        ((2, 4), (4,)),
        ((3, 3, 2, 4), (4,)),
        ((8, 2, 4), (2, 4)),  # attention's queries
        ((4, 2, 3, 3), (4, 1, 1)),  # Equinox's convolutions
        ((5, 2, 4), (5, 4)),  # stacked
        ((5, 8, 2, 4), (5, 2, 4)),  # stacked attention
    ],
)
def test_bias_beside_a_weight_is_a_bias(weight, bias):
    verdicts = by_convention({"kernel": weight, "bias": bias}, nested=False)
    assert verdicts["kernel"].role is Role.WEIGHT
    assert verdicts["bias"].role is Role.BIAS


@pytest.mark.parametrize(("weight", "bias"), [((2, 4), (3,)), ((2, 4), (4, 2)), ((2, 4), ())])
def test_bias_that_does_not_fit_its_weight_is_unknown(weight, bias):
    verdicts = by_convention({"kernel": weight, "bias": bias}, nested=False)
    assert verdicts["bias"].role is Role.UNKNOWN


@pytest.mark.parametrize(
    ("weight", "bias"),
    [
        (("w", (4, 6)), ("bias", (6,))),
        (("weights", (4, 6)), ("bias", (6,))),
        (("filters", (3, 3, 2, 6)), ("b", (6,))),
        (("gating_w", (4, 2, 6)), ("gating_b", (2, 6))),
        (("weight_ih", (12, 4)), ("bias_ih", (12,))),
        (("w", (4, 6)), ("biases", (1, 6))),
    ],
)
def test_bias_beside_a_weight_of_any_spelling_is_told_by_its_shape(weight, bias):
    verdicts = by_convention(dict([weight, bias]), nested=False)
    assert verdicts[weight[0]].role is Role.WEIGHT
    assert verdicts[bias[0]].role is Role.BIAS


def test_weight_of_a_bias_is_the_one_of_its_stem_where_several_fit():
    shapes = {"query_w": (4, 2, 6), "gating_w": (4, 2, 6), "gating_b": (2, 6)}
    verdicts = by_convention(shapes, nested=False)
    assert verdicts["gating_w"].role is Role.WEIGHT
    assert verdicts["query_w"].role is Role.UNKNOWN
    assert verdicts["gating_b"].role is Role.BIAS


@pytest.mark.parametrize(
    ("array", "beside"),
    [
        (("scale", (6,)), ("w", (4, 6))),  # of the output's shape, and yet a gain
        (("ribs", (6,)), ("w", (4, 6))),
        (("bias", (5,)), ("w", (4, 6))),
        (("bias", (4, 6)), ("table", (4, 6))),
        (("bias", (6,)), ("scale", (3, 6))),
    ],
)
def test_array_that_has_no_biass_name_and_shape_is_no_bias(array, beside):
    verdicts = by_convention(dict([array, beside]), nested=False)
    assert verdicts[array[0]].role is Role.UNKNOWN


def test_embedding_is_told_by_being_alone_under_its_name():
    params = {"e": {"embedding": zeros(9, 4)}, "f": {"embedding": zeros(9, 4), "x": zeros(2)}}
    found = roles(params)
    assert found["e/embedding"] is Role.EMBEDDING
    assert found["f/embedding"] is Role.UNKNOWN
    assert not bnmask.decay_mask(params, exempt=("embedding",))["e/embedding"]


def test_unknown_leaves_are_listed_and_decay():
    params = {"thing": zeros(3)}
    assert roles(params) == {"thing": Role.UNKNOWN}
    assert bnmask.decay_mask(params)["thing"]
    assert not bnmask.decay_mask(params, never="thing")["thing"]


def test_structure_says_nothing_of_scale():
    analysis = bnmask.analyze_structure({"n": norm(4)}, {"n": kept(4)})
    assert {leaf.scale for leaf in analysis.leaves} == {bnmask.Scale.UNKNOWN}
    assert analysis.evidence == frozenset({bnmask.Evidence.STRUCTURE})
