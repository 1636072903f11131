"""What the frameworks hand over, and what their optimizers then see."""

import dataclasses
from typing import Any, NamedTuple

import equinox as eqx
import flax
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

import optax_bnmask as bnmask
from optax_bnmask import Role, StructureError
from tests.support import fixtures
from tests.support.fixtures import IMAGES, SEQUENCE, haiku, linen


@pytest.fixture(autouse=True)
def third_party_promotion():
    """Flax, Haiku and Equinox layers promote dtypes and ranks within themselves."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def exempted(params, stats=None, **options):
    return bnmask.decay_mask(params, stats, **options).exempted


def test_linen_batch_norms_are_found_under_any_name():
    params, stats = linen(fixtures.OddNames(), IMAGES)
    assert exempted(params, stats) == tuple(
        f"{name}/{leaf}" for name in ("bn1", "normalization", "post") for leaf in ("bias", "scale")
    )


def test_linen_inline_conv_bn_decays_its_kernel_alone():
    params, stats = linen(fixtures.InlineConvBN(), IMAGES)
    assert bnmask.decay_mask(params, stats).decayed == ("kernel",)


def test_linen_half_statistics_leave_the_bias_unknown():
    analysis = bnmask.analyze_structure(*linen(fixtures.HalfStatistics(), SEQUENCE))
    assert analysis["bias"].role is Role.UNKNOWN
    assert "'mean' and not both a 'mean' and a 'var'" in analysis["bias"].reason
    assert len(analysis.notes) == 2


def test_linen_spectral_norm_is_refused_by_its_one_long_key():
    params, stats = linen(fixtures.Spectral(), SEQUENCE)
    assert set(stats["SpectralNorm_0"]) == {"Dense_0/kernel/u", "Dense_0/kernel/sigma"}
    analysis = bnmask.analyze_structure(params, stats)
    assert analysis.decay_mask().exempted == ()
    assert "'SpectralNorm_0' are not BatchNorm's" in analysis.notes[0]


def test_linen_weight_norm_scale_is_unknown_and_decays():
    params, stats = linen(fixtures.Weighted(), SEQUENCE)
    analysis = bnmask.analyze_structure(params, stats)
    leaf = analysis["WeightNorm_0/Dense_0/kernel/scale"]
    assert leaf.role is Role.UNKNOWN
    assert analysis.decay_mask()[leaf.path]


@pytest.mark.parametrize("block", [fixtures.Block, fixtures.BatchNormBlock])
def test_linen_scan_stacks_normalisers(block):
    params, stats = linen(fixtures.Stacked(block), SEQUENCE)
    analysis = bnmask.analyze_structure(params, stats)
    found = [leaf for leaf in analysis.leaves if leaf.path.endswith("/scale")]
    assert [(leaf.shape, leaf.role) for leaf in found] == [((3, 8), Role.NORM_SCALE)]
    assert found[0].confirmed == (block is not fixtures.Block)
    assert analysis["blocks/Dense_0/bias"].role is Role.BIAS


def test_linen_vmap_stacks_batch_norms():
    vmapped = nn.vmap(
        nn.BatchNorm,
        variable_axes={"params": 0, "batch_stats": 0},
        split_rngs={"params": True},
        in_axes=0,
    )
    params, stats = linen(vmapped(use_running_average=False), SEQUENCE)
    assert params["scale"].shape == (2, 8)
    assert exempted(params, stats) == ("bias", "scale")


def test_linen_batch_norm_may_normalise_several_axes():
    params, stats = linen(nn.BatchNorm(use_running_average=False, axis=(1, -1)), SEQUENCE)
    assert params["scale"].shape == (5, 8)
    assert exempted(params, stats) == ("bias", "scale")


class Affineless(nn.Module):
    use_scale: bool
    use_bias: bool

    @nn.compact
    def __call__(self, x):
        norm = nn.BatchNorm(
            use_running_average=False, use_scale=self.use_scale, use_bias=self.use_bias
        )
        return norm(nn.Dense(4)(x))


@pytest.mark.parametrize("use_scale", [True, False])
@pytest.mark.parametrize("use_bias", [True, False])
def test_linen_batch_norm_may_have_no_scale_or_no_bias(use_scale, use_bias):
    params, stats = linen(Affineless(use_scale, use_bias), SEQUENCE)
    expected = ["BatchNorm_0/bias"] * use_bias + ["BatchNorm_0/scale"] * use_scale
    assert exempted(params, stats) == tuple(expected)
    notes = bnmask.analyze_structure(params, stats).notes
    assert bool(notes) == (not use_scale and not use_bias)


class BoxedConvBN(nn.Module):
    @nn.compact
    def __call__(self, x):
        boxed = nn.with_partitioning
        dense = nn.Dense(4, kernel_init=boxed(nn.initializers.lecun_normal(), (None, "model")))
        norm = nn.BatchNorm(
            use_running_average=False,
            scale_init=boxed(nn.initializers.ones, ("model",)),
            bias_init=boxed(nn.initializers.zeros, ("model",)),
        )
        return norm(dense(x))


def test_linen_boxes_on_params_alone_change_no_name():
    params, stats = linen(BoxedConvBN(), SEQUENCE)
    assert isinstance(params["BatchNorm_0"]["scale"], nn.Partitioned)
    assert exempted(params, stats) == ("BatchNorm_0/bias", "BatchNorm_0/scale")
    mask = bnmask.decay_mask(params, stats)
    assert jax.tree.structure(mask(params)) == jax.tree.structure(params)
    assert nn.unbox(mask(params)) == mask(nn.unbox(params))


def test_frozen_dict_params_with_dict_statistics_and_the_reverse():
    params, stats = linen(fixtures.OddNames(), IMAGES)
    mask = bnmask.decay_mask(params, stats)
    freeze = flax.core.freeze
    assert mask == bnmask.decay_mask(freeze(params), stats)
    assert mask == bnmask.decay_mask(params, freeze(stats))
    frozen = jax.tree.map(lambda x: jnp.ones(x.shape), freeze(params))
    tx = optax.adamw(1e-3, mask=mask)  # made from the dict
    updates, _ = tx.update(frozen, tx.init(frozen), frozen)
    assert isinstance(updates, flax.core.FrozenDict)


def test_linen_recurrent_attention_and_embedding_layers_are_told_by_convention():
    roles = {
        leaf.path: leaf.role
        for leaf in bnmask.analyze_structure(*linen(fixtures.Sequences(), fixtures.TOKENS)).leaves
    }
    assert roles.pop("tokens/embedding") is Role.EMBEDDING
    assert roles.pop("q_einsum/w") is Role.WEIGHT
    assert all(
        role is (Role.BIAS if p.endswith("bias") else Role.WEIGHT) for p, role in roles.items()
    )
    attention = bnmask.analyze_structure(*linen(fixtures.Attention(), SEQUENCE))
    assert {leaf.role for leaf in attention.leaves} == {Role.BIAS, Role.WEIGHT}


@pytest.mark.parametrize(
    "module",
    [nn.LayerNorm(), nn.RMSNorm(), nn.GroupNorm(num_groups=2), nn.InstanceNorm()],
    ids=lambda module: type(module).__name__,
)
def test_linen_normalisers_without_statistics_are_told_by_convention(module):
    params, stats = linen(module, SEQUENCE)
    analysis = bnmask.analyze_structure(params, stats)
    assert {leaf.role for leaf in analysis.leaves} <= {Role.NORM_SCALE, Role.NORM_BIAS}
    assert all("by Flax's and Haiku's convention" in leaf.reason for leaf in analysis.leaves)


class Twice(nn.Module):
    @nn.compact
    def __call__(self, x):
        norm = nn.BatchNorm(use_running_average=False, name="shared")
        return norm(nn.Dense(8)(norm(x)))


def test_linen_module_used_in_two_places_has_one_scope():
    assert exempted(*linen(Twice(), SEQUENCE)) == ("shared/bias", "shared/scale")


def test_linen_train_state_uses_the_mask_and_is_refused_in_place_of_its_params():
    params = {"n": {"scale": jnp.ones(4)}, "d": {"kernel": jnp.ones((4, 4))}}
    mask = bnmask.decay_mask(params)
    tx = optax.adamw(1.0, weight_decay=0.5, mask=mask)
    state = TrainState.create(apply_fn=lambda: None, params=params, tx=tx)
    state = state.apply_gradients(grads=jax.tree.map(jnp.zeros_like, params))
    assert state.params["n"]["scale"][0] == 1
    assert state.params["d"]["kernel"][0, 0] == 0.5
    with pytest.raises(StructureError, match=r"Found a TrainState.*Pass `state.params`"):
        bnmask.decay_mask(state)


def nnx_net():
    return fixtures.NNXNet(nnx.Rngs(0))


NNX_NORMS = ("layers/1/bias", "layers/1/scale")


def test_nnx_module_and_state_bring_their_own_statistics():
    net = nnx_net()
    mask = bnmask.decay_mask(net)
    assert mask.exempted == NNX_NORMS
    assert "layers/1/mean" not in mask
    assert bnmask.decay_mask(nnx.state(net)) == mask
    assert bnmask.decay_mask(nnx.to_pure_dict(nnx.state(net, nnx.Param))) == mask
    by_hand = bnmask.decay_mask(nnx.state(net, nnx.Param), nnx.state(net, nnx.BatchStat))
    assert by_hand == mask
    assert bnmask.decay_mask(net, nnx.state(net, nnx.BatchStat)) == mask
    analysis = bnmask.analyze_structure(net)
    assert analysis["layers/1/scale"].confirmed


def test_nnx_optimizer_sees_variables_first_and_arrays_later():
    net, seen = nnx_net(), []
    mask = bnmask.decay_mask(net)

    def spying(tree):
        leaves = jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, nnx.Variable))
        seen.append(isinstance(leaves[0], nnx.Variable))
        return mask(tree)

    tx = optax.sgd(1.0)
    optimizer = nnx.Optimizer(
        net, optax.chain(optax.add_decayed_weights(0.5, spying), tx), wrt=nnx.Param
    )
    before = nnx.to_pure_dict(nnx.state(net, nnx.Param))
    zeros = jax.tree.map(jnp.zeros_like, nnx.state(net, nnx.Param))
    optimizer.update(net, zeros)
    after = nnx.to_pure_dict(nnx.state(net, nnx.Param))
    assert True in seen
    assert False in seen
    expected = jax.tree.map(lambda x, d: x * 0.5 if d else x, before, mask(before))
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), after, expected))
    with pytest.raises(StructureError, match=r"Found a Optimizer.*for NNX the model itself"):
        bnmask.decay_mask(optimizer)


def test_nnx_state_of_another_kind_of_variable_is_taken_whole():
    class Learned(nnx.Variable):
        pass

    state = nnx.State({"a": Learned(jnp.ones((2, 2))), "n": {"scale": nnx.Param(jnp.ones(2))}})
    assert set(bnmask.decay_mask(state)) == {"a", "n/scale"}


def test_nnx_random_streams_are_no_parameters():
    class Dropped(nnx.Module):
        def __init__(self, rngs):
            self.drop = nnx.Dropout(0.5, rngs=rngs)
            self.norm = nnx.BatchNorm(3, rngs=rngs)

    net = Dropped(nnx.Rngs(0))
    for params in (net, nnx.state(net)):
        assert tuple(bnmask.decay_mask(params)) == ("norm/bias", "norm/scale")


def test_nnx_shared_module_is_listed_once():
    class Shared(nnx.Module):
        def __init__(self, rngs):
            self.a = nnx.BatchNorm(3, rngs=rngs)
            self.b = self.a

    assert tuple(bnmask.decay_mask(Shared(nnx.Rngs(0)))) == ("a/bias", "a/scale")


def test_nnx_spectral_norm_is_refused():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.sn = nnx.SpectralNorm(nnx.Linear(3, 4, rngs=rngs), rngs=rngs)

    analysis = bnmask.analyze_structure(Net(nnx.Rngs(0)))
    assert analysis["sn/layer_instance/kernel"].role is Role.WEIGHT
    assert any("'sn/batch_stats' are not BatchNorm's" in note for note in analysis.notes)


def test_haiku_batch_norm_is_found_by_its_averages():
    params, state = haiku(fixtures.haiku_batch_norm, IMAGES)
    assert params["post"]["scale"].shape == (1, 1, 1, 4)
    analysis = bnmask.analyze_structure(params, state)
    assert analysis.decay_mask().exempted == ("post/offset", "post/scale")
    assert analysis["post/scale"].confirmed
    assert analysis["head/b"].role is Role.BIAS
    assert analysis.notes == ()


def haiku_layers(x):
    x = hk.LayerNorm(axis=-1, create_scale=True, create_offset=True, name="post")(x)
    return hk.Linear(3)(hk.ExponentialMovingAverage(0.9, name="average")(x))


def test_haiku_other_state_is_refused_and_noted():
    params, state = haiku(haiku_layers, SEQUENCE)
    analysis = bnmask.analyze_structure(params, state)
    assert analysis.decay_mask().exempted == ("post/offset", "post/scale")
    assert any("'average' are not BatchNorm's" in note for note in analysis.notes)


def test_equinox_module_needs_its_arrays_filtered_out():
    net = fixtures.EquinoxNet(jax.random.key(0))
    params = eqx.filter(net, eqx.is_inexact_array)
    assert exempted(params) == ("post/weight", "post/bias")
    assert isinstance(bnmask.decay_mask(params)(params), fixtures.EquinoxNet)
    mlp = eqx.nn.MLP(2, 2, 4, 1, key=jax.random.key(0))
    with pytest.raises(StructureError, match=r"'activation' is a .*`eqx.filter"):
        bnmask.decay_mask(mlp)


def test_equinox_batch_norm_is_told_by_convention():
    norm, _ = eqx.nn.make_with_state(eqx.nn.BatchNorm)(4, "batch", mode="batch")
    params = eqx.filter({"n": norm}, eqx.is_inexact_array)
    mask = bnmask.decay_mask(params)
    assert not mask["n/weight"]
    assert not mask["n/bias"]


@pytest.mark.parametrize("mode", ["batch", "ema"])
def test_equinox_state_confirms_its_batch_norms_and_nothing_else(mode):
    class Net(eqx.Module):
        post: eqx.nn.BatchNorm
        head: eqx.nn.SpectralNorm  # keeps a pair of arrays, too: `u` and `v`
        gain: jax.Array

        def __init__(self):
            key = jax.random.key(0)
            self.post = eqx.nn.BatchNorm(4, "batch", mode=mode)
            self.head = eqx.nn.SpectralNorm(eqx.nn.Linear(4, 4, key=key), "weight", key=key)
            self.gain = jnp.ones(4)

    net, state = eqx.nn.make_with_state(Net)()
    analysis = bnmask.analyze_structure(eqx.filter(net, eqx.is_inexact_array), state)
    confirmed = [leaf.path for leaf in analysis.leaves if leaf.confirmed]
    assert confirmed == ["post/weight", "post/bias"]
    assert analysis.notes == ()
    assert analysis.decay_mask().exempted == ("post/weight", "post/bias")


class Scope(NamedTuple):
    scale: Any
    bias: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Layer:
    kernel: Any
    post: Any


def test_dataclasses_and_named_tuples_are_containers_like_any_other():
    params = [Layer(jnp.ones((2, 4)), Scope(jnp.ones(4), jnp.zeros(4)))]
    stats = [{"post": {"mean": jnp.zeros(4), "var": jnp.ones(4)}}]
    mask = bnmask.decay_mask(params, stats)
    assert mask(params) == [Layer(kernel=True, post=Scope(scale=False, bias=False))]
    assert bnmask.analyze_structure(params, stats)["0/post/scale"].confirmed
