"""`hyperball` against NumPy in float64, over long runs, and where there is nothing to turn."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_bnmask as bnmask
from optax_bnmask import PathError, StructureError
from tests.support.transforms.cases import ANALYSIS, INVARIANT, MASK, PARAMS, cast, wide

RNG = np.random.default_rng(0)
KERNEL = RNG.normal(size=(3, 3, 4, 8))
RULES = pytest.mark.parametrize("exact", [False, True], ids=["published", "exact"])
DTYPES = pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])


def norm(x, axes=()):
    """The norm in float64 over the axes that are not in `axes`."""
    x = np.asarray(x, np.float64)
    summed = tuple(a for a in range(x.ndim) if a not in axes)
    return np.sqrt(np.sum(x**2, axis=summed, keepdims=True))


def inner(x, y, axes=()):
    summed = tuple(a for a in range(x.ndim) if a not in axes)
    return np.sum(x * y, axis=summed, keepdims=True)


def reference(w, u, eta, axes=(), exact=False, radius=None):
    """The weight after a step, in float64, as it is written down in the docstring."""
    radius = norm(w, axes) if radius is None else radius
    if exact:
        across = u - inner(u, w, axes) / norm(w, axes) ** 2 * w
        to = across / norm(across, axes)
        return radius * (np.cos(eta) * w / norm(w, axes) - np.sin(eta) * to)
    moved = w - eta * radius * u / norm(u, axes)
    return radius * moved / norm(moved, axes)


def angle(a, b, axes=()):
    """The angle between two arrays, well-conditioned where it is small."""
    a, b = (x / norm(x, axes) for x in (a, b))
    return 2 * np.arctan2(norm(a - b, axes), norm(a + b, axes))


def stepped(update, weight, eta, **options):
    """The update that `hyperball` makes of one leaf."""
    if "axes" in options:
        options["axes"] = {"w": options["axes"]}
    options["exact_angle"] = options.pop("exact", False)
    tx = bnmask.hyperball(eta, **options)
    updates, _ = jax.jit(tx.update)({"w": update}, tx.init({"w": weight}), {"w": weight})
    return updates["w"]


@RULES
@pytest.mark.parametrize("size", [1e-30, 1e-3, 1.0, 1e20])
@pytest.mark.parametrize("axes", [(), (3,), (0, 3)], ids=str)
def test_equals_numpy_for_updates_of_any_size_and_a_norm_of_each_slice(axes, size, exact):
    w = jnp.asarray(KERNEL, jnp.float32)
    u = jnp.asarray(size * RNG.normal(size=KERNEL.shape), jnp.float32)
    for eta in (1e-3, 0.1, 1.0):
        got = wide(w) + wide(stepped(u, w, eta, axes=axes, exact=exact))
        expected = reference(wide(w), wide(u), eta, axes, exact)
        np.testing.assert_allclose(got, expected, atol=1e-6)


@pytest.mark.parametrize("eta", [1e-5, 1e-3, 0.05, 1.0, 2.0])
@pytest.mark.parametrize("axes", [(), (3,)], ids=str)
@pytest.mark.parametrize("radial", [0, 0.5, -30], ids=str)
def test_exact_angle_is_the_scheduled_one_whatever_the_radial_part(eta, axes, radial):
    w = jnp.asarray(KERNEL, jnp.float32)
    u = jnp.asarray(RNG.normal(size=KERNEL.shape) + radial * KERNEL, jnp.float32)
    after = np.asarray(w + stepped(u, w, eta, axes=axes, exact=True), np.float64)
    np.testing.assert_allclose(angle(wide(w), after, axes), eta, atol=1e-6)


def test_published_rule_turns_by_the_arctangent_where_the_update_is_orthogonal():
    w = wide(jnp.asarray(KERNEL, jnp.float32))
    u = RNG.normal(size=KERNEL.shape)
    u -= inner(u, w) / norm(w) ** 2 * w
    after = w + wide(stepped(jnp.asarray(u, jnp.float32), jnp.asarray(w, jnp.float32), 0.1))
    np.testing.assert_allclose(angle(w, after), np.arctan(0.1), atol=1e-6)


@RULES
def test_angle_in_bfloat16_is_right_to_its_rounding(exact):
    """Each entry of the step and of the sum is rounded by half an eps of itself."""
    w = jnp.asarray(RNG.normal(size=(64, 64)), jnp.bfloat16)
    u = jnp.asarray(RNG.normal(size=(64, 64)), jnp.bfloat16)
    update = stepped(u, w, 0.2, exact=exact)
    assert update.dtype == jnp.bfloat16
    after, w64, u64 = (x.astype(jnp.float32) for x in (w + update, w, u))
    expected = angle(wide(w64), reference(wide(w64), wide(u64), 0.2, exact=exact))
    np.testing.assert_allclose(
        angle(wide(w64), wide(after)), expected, atol=float(jnp.finfo(jnp.bfloat16).eps)
    )


PUSHES = {
    "noise": lambda w, noise: noise,
    "mostly radial": lambda w, noise: 100 * w + 0.1 * noise,
    "huge": lambda w, noise: 1e25 * noise,
}


@functools.cache
def walks(dtype, exact):
    """Where each kind of update takes one weight in 10,000 steps, with one norm and with four."""
    draws = np.random.default_rng(1).normal(size=(10_001, 2, 6, 4))
    params = {f"{push} {norms}": jnp.asarray(draws[0], dtype) for push in PUSHES for norms in "14"}
    axes = {path: (-1,) for path in params if path.endswith("4")}
    schedule = optax.linear_schedule(0.3, 0.01, 10_000)
    tx = bnmask.hyperball(schedule, axes=axes, exact_angle=exact)

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
    return wide(params), wide(run(jnp.asarray(draws[1:], jnp.float32)))


@RULES
@DTYPES
@pytest.mark.parametrize("norms", ["1", "4"])
@pytest.mark.parametrize("push", PUSHES)
def test_norm_is_that_of_init_to_rounding_after_each_of_10000_steps(push, norms, dtype, exact):
    """As for `keep_norm`: 1.5 eps of roundings, and in float32 sums and roots as much again."""
    params, walked = (tree[f"{push} {norms}"] for tree in walks(dtype, exact))
    summed = (-3, -2, -1) if norms == "1" else (-3, -2)
    lengths, at_init = (np.sqrt(np.sum(x**2, axis=summed)) for x in (walked, params))
    eps = 4 if dtype == jnp.float32 else 2
    assert np.abs(lengths / at_init - 1).max() <= eps * float(jnp.finfo(dtype).eps)


def test_each_of_10000_steps_turns_by_what_its_schedule_says():
    params, walked = (tree["noise 1"] for tree in walks(jnp.float32, True))
    before = np.concatenate([params[None], walked[:-1]])
    turned = [float(angle(a, b).item()) for a, b in zip(before, walked, strict=True)]
    scheduled = np.linspace(0.3, 0.01, 10_000, endpoint=False)
    np.testing.assert_allclose(turned, scheduled, atol=1e-6)


@RULES
@DTYPES
def test_update_of_zero_leaves_a_leaf_and_a_slice_where_it_is(dtype, exact):
    w = jnp.asarray(KERNEL, dtype)
    u = jnp.ones_like(w).at[..., 1].set(0)
    got = stepped(u, w, 0.1, axes=(3,), exact=exact)
    assert got.dtype == dtype
    assert not got[..., 1].any()
    assert got[..., 0].all()
    assert not stepped(jnp.zeros_like(w), 3 * w, 0.1, exact=exact).any()


@DTYPES
def test_radial_update_turns_nothing_by_the_exact_angle_though_it_is_rounded(dtype):
    w = jnp.asarray(KERNEL, dtype)
    for factor in (1.0, -0.3, 1e-20):
        u = (jnp.float32(factor) * w.astype(jnp.float32)).astype(dtype)
        assert not stepped(u, w, 0.1, exact=True).any()


@RULES
def test_leaf_of_zeros_stays_unless_a_radius_is_given_with_which_it_goes_against_the_update(exact):
    w, u = jnp.zeros((4, 3)), jnp.asarray(RNG.normal(size=(4, 3)), jnp.float32)
    assert not stepped(u, w, 0.1, exact=exact).any()
    got = stepped(u, w, 0.1, radius=2.0, exact=exact)
    np.testing.assert_allclose(got, -2 * wide(u) / norm(u), rtol=1e-6)


@RULES
@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_nan_spoils_its_slice_in_its_step_and_nothing_of_the_state(bad, exact):
    params = {"a": jnp.asarray(KERNEL[0, 0], jnp.float32), "b": jnp.ones((2, 2))}
    tx = bnmask.hyperball(0.1, axes={"a": (1,)}, exact_angle=exact)
    good = {"a": jnp.asarray(KERNEL[1, 1], jnp.float32), "b": jnp.eye(2)}
    spoilt = good | {"a": good["a"].at[0, 2].set(bad)}
    state = tx.init(params)
    got, after = jax.jit(tx.update)(spoilt, state, params)
    expected, _ = jax.jit(tx.update)(good, state, params)
    chex.assert_trees_all_equal(after.radius, state.radius)
    assert np.isnan(got["a"][:, 2]).all()
    np.testing.assert_array_equal(got["b"], expected["b"])
    np.testing.assert_array_equal(np.delete(got["a"], 2, 1), np.delete(expected["a"], 2, 1))


@RULES
def test_given_radius_is_reached_in_one_step_and_those_not_named_keep_theirs(exact):
    params = {"a": jnp.asarray(KERNEL, jnp.float32), "b": jnp.asarray(KERNEL[0], jnp.float32)}
    u = jax.tree.map(lambda x: jnp.asarray(RNG.normal(size=x.shape), jnp.float32), params)
    tx = bnmask.hyperball(0.1, radius={"a": 7.0}, exact_angle=exact)
    got, _ = tx.update(u, tx.init(params), params)
    after = optax.apply_updates(params, got)
    np.testing.assert_allclose(norm(after["a"]), 7, rtol=1e-6)
    np.testing.assert_allclose(norm(after["b"]), norm(params["b"]), rtol=1e-6)
    expected = reference(wide(params["a"]), wide(u["a"]), 0.1, exact=exact, radius=7.0)
    np.testing.assert_allclose(after["a"], expected, atol=1e-6)


def test_behind_a_whole_optimizer_it_descends_and_others_decay_through_the_mask(optax_promotion):
    adamw = optax.adamw(0.01, weight_decay=0.1, mask=MASK)
    behind = optax.chain(adamw, bnmask.hyperball(0.1, INVARIANT, flip_sign=False))
    alone = optax.chain(optax.scale_by_adam(), bnmask.hyperball(0.1, INVARIANT))
    grads = jax.tree.map(jnp.cos, PARAMS)
    got, bare, plain = (
        tx.update(grads, tx.init(PARAMS), PARAMS)[0] for tx in (behind, alone, adamw)
    )
    for update in (got, bare):
        assert jnp.sum(update["conv"]["kernel"] * grads["conv"]["kernel"]) < 0
    chex.assert_trees_all_equal(got | {"conv": None}, plain | {"conv": None})


def test_audit_sees_leaves_that_climb_where_the_sign_was_forgotten(optax_promotion):
    def audited(**options):
        base = optax.chain(optax.sgd(0.01), bnmask.hyperball(0.01, INVARIANT, **options))
        return {f.kind for f in bnmask.audit(base, PARAMS, ANALYSIS).findings}

    assert audited() - audited(flip_sign=False) == {"climbs"}


def test_axis_that_the_leaf_lacks_and_paths_that_the_mask_does_not_know_are_errors():
    with pytest.raises(StructureError, match=r"`axes`.*'head/kernel', whose shape is \(4, 3\)"):
        bnmask.hyperball(0.1, axes={"head/kernel": (2,)}).init(PARAMS)
    with pytest.raises(PathError, match=r"`axes`.*no leaf 'conv/kernle'"):
        bnmask.hyperball(0.1, INVARIANT, axes={"conv/kernle": (2,)})
    with pytest.raises(PathError, match=r"`radius`.*no leaf 'conv/kernle'"):
        bnmask.hyperball(0.1, INVARIANT, radius={"conv/kernle": 1.0})
    with pytest.raises(ValueError, match=r"`hyperball` needs the parameters"):
        bnmask.hyperball(0.1).update(PARAMS, bnmask.hyperball(0.1).init(PARAMS))


LAYERS, WIDTH, EXPERTS = 3, 8, 2


def stacked(params, x):
    """Layers by a scan, each with a fused kernel and experts that are all asked."""

    def layer(x, q):
        z = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-6)
        gate, up = jnp.split(z @ q["fused"], 2, -1)
        sent = jax.nn.softmax(z[:, :EXPERTS]).T[..., None] * (jax.nn.silu(gate) * up)[None]
        h = jnp.einsum("ebd,edf->ebf", sent, q["experts"])
        return x + jax.nn.gelu(h).sum(0), None

    return jax.lax.scan(layer, x, params)[0]


STACK = {
    "experts": jnp.asarray(RNG.normal(size=(LAYERS, EXPERTS, WIDTH, WIDTH)), jnp.float32),
    "fused": jnp.asarray(RNG.normal(size=(LAYERS, WIDTH, 2 * WIDTH)), jnp.float32),
}
STACKED = bnmask.analyze(stacked, STACK, jax.ShapeDtypeStruct((5, WIDTH), jnp.float32))


def test_axes_of_norms_come_from_the_analysis_for_layers_experts_and_output_channels():
    assert STACKED.norm_axes() == {"experts": (0, 1), "fused": (0,)}
    assert STACKED.norm_axes(channels=True) == {"experts": (0, 1, 3), "fused": (0, 2)}


def test_each_layer_each_expert_and_each_part_of_a_fused_kernel_turns_by_itself():
    """With the directions of Muon, whose axes come from the same analysis."""
    specs = STACKED.muon_dimension_numbers(positions=("input", "hidden", "head"))
    grads = jax.tree.map(jnp.cos, STACK)
    with jax.numpy_dtype_promotion("standard"):
        muon = optax.contrib.scale_by_muon(weight_dimension_numbers=specs)
        ball = bnmask.hyperball(0.1, axes=STACKED.norm_axes(), exact_angle=True)
        tx = bnmask.by_blocks(optax.chain(muon, ball), STACKED)
        updates, _ = jax.jit(tx.update)(grads, tx.init(STACK), STACK)
    after = wide(optax.apply_updates(STACK, updates))
    before = wide(STACK)
    np.testing.assert_allclose(angle(before["experts"], after["experts"], (0, 1)), 0.1, atol=1e-6)
    for part in (slice(0, WIDTH), slice(WIDTH, None)):
        parts = before["fused"][..., part], after["fused"][..., part]
        np.testing.assert_allclose(angle(*parts, (0,)), 0.1, atol=1e-6)
        np.testing.assert_allclose(norm(parts[1], (0,)), norm(parts[0], (0,)), rtol=5e-7)
