"""`keep_norm` against NumPy in float64, over long runs, and where there is nothing to turn."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_bnmask as bnmask
from optax_bnmask import PathError, StructureError
from tests.support.transforms.cases import INVARIANT, PARAMS, cast, wide

RNG = np.random.default_rng(0)
KERNEL = RNG.normal(size=(3, 3, 4, 8))


def norm(x, axes=None):
    """The norm in float64, over all axes or over those that are not in `axes`."""
    x = np.asarray(x, np.complex128)
    summed = None if axes is None else tuple(a for a in range(x.ndim) if a not in axes)
    return np.sqrt(np.sum(np.abs(x) ** 2, axis=summed, keepdims=True))


def tangential(w, u, axes=None):
    """The part of `u` across `w`, in float64."""
    summed = None if axes is None else tuple(a for a in range(w.ndim) if a not in axes)
    return u - np.sum(u * w, axis=summed, keepdims=True) / norm(w, axes).real ** 2 * w


def turned(update, weight, axes=None, mask=None):
    """The update that `keep_norm` makes of one leaf."""
    tx = bnmask.keep_norm(mask, axes=None if axes is None else {"w": axes})
    updates, _ = jax.jit(tx.update)({"w": update}, tx.init({"w": weight}), {"w": weight})
    return updates["w"]


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("axes", [None, (3,), (0, 3), (0, 1, 2, 3)], ids=str)
def test_equals_numpy_for_one_norm_and_for_a_norm_of_each_slice(axes, size):
    w = jnp.asarray(KERNEL, jnp.float32)
    u = jnp.asarray(size * RNG.normal(size=KERNEL.shape), jnp.float32)
    w64, u64 = wide(w), wide(u)
    moved = w64 + tangential(w64, u64, axes)
    expected = moved * norm(w64, axes) / norm(moved, axes) - w64
    got = turned(u, w, axes)
    np.testing.assert_allclose(got, expected.real, atol=2e-6 * max(1, size * 0.1))


@pytest.mark.parametrize("size", [1e-4, 1.0, 100.0])
@pytest.mark.parametrize("axes", [None, (3,)], ids=str)
def test_motion_is_along_the_tangential_part_by_the_arctangent_of_its_length(axes, size):
    w = wide(jnp.asarray(KERNEL, jnp.float32))
    u = size * (RNG.normal(size=KERNEL.shape) + 0.5 * KERNEL)
    got = wide(turned(jnp.asarray(u, jnp.float32), jnp.asarray(w, jnp.float32), axes))
    across, expected = tangential(w, got, axes), tangential(w, u, axes)
    unit, aim = across / norm(across, axes), expected / norm(expected, axes)
    np.testing.assert_allclose(unit, aim, atol=1e-6 + 1e-7 / size)
    along = np.sqrt(norm(w + got, axes) ** 2 - norm(across, axes) ** 2)
    angle = np.arctan2(norm(across, axes), along)
    slope = norm(expected, axes) / norm(w, axes)
    np.testing.assert_allclose(angle, np.arctan(slope), rtol=1e-4)


@pytest.mark.parametrize("weight", [1e-25, 1.0, 1e15])
@pytest.mark.parametrize("update", [1e-30, 1e-10, 1e20, 1e36])
@pytest.mark.parametrize("axes", [None, (3,)], ids=str)
def test_updates_and_weights_of_any_size_turn_as_in_float64_and_keep_the_norm(axes, update, weight):
    """Squares of these are no float32s: an update of 1e20 used to make a weight exactly 0."""
    w = jnp.asarray(weight * KERNEL, jnp.float32)
    u = jnp.asarray(update * RNG.normal(size=KERNEL.shape), jnp.float32)
    w64, u64 = wide(w), wide(u)
    moved = w64 + tangential(w64, u64, axes)
    expected = moved * (norm(w64, axes) / norm(moved, axes)).real
    after = w64 + wide(turned(u, w, axes))
    np.testing.assert_allclose(after, expected, atol=2e-6 * weight)
    np.testing.assert_allclose(norm(after, axes), norm(w64, axes), rtol=5e-7)


@pytest.mark.parametrize("factor", [1e20, -1e20, 2.0**70, 1e-25])
def test_radial_update_of_any_size_leaves_the_weight_of_its_norm(factor):
    w = jnp.asarray(KERNEL, jnp.float32)
    after = w + turned(jnp.float32(factor) * w, w)
    np.testing.assert_allclose(norm(after), norm(w), rtol=5e-7)


PUSHES = {
    "small": lambda w, noise: 1e-3 * noise,
    "large": lambda w, noise: 30 * noise,
    "radial": lambda w, noise: 100 * w + 0.1 * noise,
    "shrinking": lambda w, noise: -0.9 * w,
}


@functools.cache
def walks(dtype):
    """Where each kind of update takes one weight in 10,000 steps, with one norm and with four."""
    draws = np.random.default_rng(1).normal(size=(10_001, 2, 6, 4))
    params = {f"{push} {norms}": jnp.asarray(draws[0], dtype) for push in PUSHES for norms in "14"}
    tx = bnmask.keep_norm(None, axes={path: (-1,) for path in params if path.endswith("4")})

    def step(carry, noise):
        params, state = carry
        updates = {
            path: PUSHES[path[:-2]](w.astype(jnp.float32), noise).astype(dtype)
            for path, w in params.items()
        }
        updates, state = tx.update(updates, state, params)
        params = optax.apply_updates(params, updates)
        chex.assert_type([*params.values()], dtype)
        # XLA would convert the whole history in each step to store a bfloat16 on a CPU.
        return (params, state), cast(params, jnp.float32)

    run = jax.jit(lambda noise: jax.lax.scan(step, (params, tx.init(params)), noise)[1])
    walked = run(jnp.asarray(draws[1:], jnp.float32))
    return wide(params), wide(walked)


@pytest.mark.parametrize(
    ("dtype", "eps"), [(jnp.float32, 4), (jnp.bfloat16, 2)], ids=["float32", "bfloat16"]
)
@pytest.mark.parametrize("norms", ["1", "4"])
@pytest.mark.parametrize("push", PUSHES)
def test_norm_is_that_of_init_to_rounding_after_each_of_10000_steps(push, norms, dtype, eps):
    """Rounding: of the update and of the sum, half an eps of each element.

    An update is at most twice as long as the weight, so this is 1.5 eps of the norm, however the
    errors fall. In float32, where sums and roots round as coarsely as the leaf, they add as much.
    """
    params, walked = (tree[f"{push} {norms}"] for tree in walks(dtype))
    summed = (-3, -2, -1) if norms == "1" else (-3, -2)
    lengths, at_init = (np.sqrt(np.sum(x**2, axis=summed)) for x in (walked, params))
    assert np.abs(lengths / at_init - 1).max() <= eps * float(jnp.finfo(dtype).eps)


@pytest.mark.parametrize("push", PUSHES)
def test_10000_steps_do_take_the_weight_elsewhere_unless_they_are_radial(push):
    params, walked = (tree[f"{push} 1"] for tree in walks(jnp.float32))
    away = np.linalg.norm(walked[-1] - params) / np.linalg.norm(params)
    assert (away > 0.1) == (push != "shrinking")


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_updates_of_zero_stay_zero_even_where_the_norm_has_moved_away(dtype):
    w = jnp.asarray(KERNEL, dtype)
    tx = bnmask.keep_norm(None)
    updates, _ = tx.update(jnp.zeros_like(w), tx.init(w), 3 * w)
    assert updates.dtype == dtype
    assert not updates.any()


@pytest.mark.parametrize("axes", [None, (1,)], ids=str)
def test_updates_of_what_was_zero_at_init_pass(axes):
    w, u = jnp.zeros((4, 3)), jnp.asarray(RNG.normal(size=(4, 3)), jnp.float32)
    np.testing.assert_array_equal(turned(u, w, axes), u)


def test_slice_of_zeros_passes_beside_slices_that_turn():
    w, u = jnp.ones((4, 3)).at[:, 1].set(0), jnp.asarray(RNG.normal(size=(4, 3)), jnp.float32)
    got = turned(u, w, (1,))
    np.testing.assert_array_equal(got[:, 1], u[:, 1])
    np.testing.assert_allclose(norm(w + got, (1,))[0, ::2], 2, rtol=1e-6)


def test_negative_axes_are_those_from_the_end():
    w, u = jnp.asarray(KERNEL, jnp.float32), jnp.asarray(KERNEL[::-1], jnp.float32)
    np.testing.assert_array_equal(turned(u, w, (-1, -4)), turned(u, w, (3, 0)))


@pytest.mark.parametrize("update", [0.5, -7.0, 1e3])
def test_scalar_leaf_that_keeps_its_norm_does_not_move(update):
    got = turned(jnp.float32(update), jnp.float32(3.0))
    np.testing.assert_allclose(got, 0, atol=3 * 2**-23)


def test_complex_leaf_keeps_its_norm_and_its_dtype():
    draws = RNG.normal(size=(4, 5))
    w = jnp.asarray(draws[0] + 1j * draws[1], jnp.complex64)
    u = jnp.asarray(draws[2] + 1j * draws[3], jnp.complex64)
    got = turned(u, w)
    assert got.dtype == jnp.complex64
    np.testing.assert_allclose(norm(np.asarray(w) + np.asarray(got)), norm(w), rtol=1e-6)
    assert norm(got) > 0.1


@pytest.mark.parametrize("axes", [(2,), (-3,), (0, 5)], ids=str)
def test_axis_that_the_leaf_lacks_is_an_error_that_names_leaf_and_shape(axes):
    tx = bnmask.keep_norm(None, axes={"head/kernel": axes})
    with pytest.raises(StructureError, match=r"`axes`.*'head/kernel', whose shape is \(4, 3\)"):
        tx.init(PARAMS)


def test_path_in_axes_that_the_mask_does_not_know_is_an_error_that_names_the_nearest():
    with pytest.raises(PathError, match=r"no leaf 'conv/kernle'; the nearest are 'conv/kernel'"):
        bnmask.keep_norm(INVARIANT, axes={"conv/kernle": (2,)})


def test_update_without_params_says_what_to_call():
    tx = bnmask.keep_norm(INVARIANT)
    with pytest.raises(ValueError, match=r"`keep_norm` needs the parameters"):
        tx.update(PARAMS, tx.init(PARAMS))


def test_leaves_that_are_not_chosen_pass_whatever_their_dtype_and_gradients_of_none_stay():
    params = {"conv": {"kernel": jnp.ones((2, 2))}, "head": {"kernel": jnp.arange(3)}}
    tx = bnmask.keep_norm({"conv": {"kernel": True}, "head": {"kernel": False}})
    updates = {"conv": {"kernel": None}, "head": {"kernel": jnp.arange(3)}}
    got, _ = tx.update(updates, tx.init(params), params)
    chex.assert_trees_all_equal(got, updates)
    assert got["head"]["kernel"] is updates["head"]["kernel"]


class ConvNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        for width in (4, 5):
            x = nn.Conv(width, (3,), use_bias=False)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=False, use_fast_variance=False)(x))
        return nn.Dense(3)(x.mean(1))


def test_each_channel_keeps_its_norm_along_invariant_axes_and_the_function_does_not_notice(
    optax_promotion,
):
    with jax.numpy_rank_promotion("allow"):  # Flax's layers add a bias to a batch
        images = jax.random.normal(jax.random.key(0), (8, 6, 2))
        variables = jax.jit(ConvNet().init)(jax.random.key(1), images)
        analysis = bnmask.analyze_linen(ConvNet(), variables, images)
        chosen, axes = analysis.select("scale_invariant"), analysis.invariant_axes
        assert chosen["Conv_0/kernel"]
        assert axes["Conv_0/kernel"] == axes["Conv_1/kernel"] == (2,)
        params = variables["params"]

        @jax.jit
        def outputs(params):
            return ConvNet().apply({**variables, "params": params}, images, mutable="batch_stats")[
                0
            ]

        @jax.jit
        def update(params):
            grads = jax.grad(lambda params: jnp.square(outputs(params)).mean())(params)
            plain, kept = optax.adam(0.1), bnmask.keep_norm(chosen, axes=axes)
            free, _ = plain.update(grads, plain.init(params), params)
            return free, kept.update(free, kept.init(params), params)[0]

        free, got = update(params)
        new, across = optax.apply_updates(params, got), optax.apply_updates(params, free)
        for conv in ("Conv_0", "Conv_1"):
            w, u = wide(params[conv]["kernel"]), wide(free[conv]["kernel"])
            np.testing.assert_allclose(norm(new[conv]["kernel"], (2,)), norm(w, (2,)), rtol=5e-7)
            across[conv]["kernel"] = jnp.asarray(w + tangential(w, u, (2,)), jnp.float32)
        np.testing.assert_allclose(outputs(new), outputs(across), atol=1e-3)
        assert np.abs(outputs(new) - outputs(params)).max() > 0.1
    passed = jax.tree.map(lambda a, b: bool((a == b).all()), got, free)
    assert passed == (~chosen)(params)
