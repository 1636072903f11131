"""A mask, a perturbation or noise that is an argument takes nothing from what a leaf is."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

import optax_bnmask as bnmask

pytestmark = pytest.mark.usefixtures("optax_promotion")


def shape(*n, dtype="float32"):
    return jax.ShapeDtypeStruct(n, dtype)


X = shape(2, 6, 5)
TOKENS = shape(2, 6, dtype="int32")
SHAPES = {
    "table": (11, 5),
    "positions": (6, 5),
    "into": (5, 8),
    "bias": (8,),
    "filters": (3, 1, 8),
    "gain": (8,),
    "query": (7, 8),
    "wq": (8, 8),
    "bq": (8,),
    "wk": (8, 8),
    "up": (3, 8, 4),
    "down": (3, 4, 8),
    "head": (8, 2),
}
ROLES = {
    "table": ("embedding", "input"),
    "positions": ("embedding", "learned"),
    "into": ("weight", "hidden"),  # what it meets knows the table
    "bias": ("bias", None),
    "filters": ("weight", "hidden"),
    "gain": ("norm_scale", None),
    "query": ("weight", "hidden"),
    "wq": ("weight", "hidden"),
    "bq": ("bias", None),
    "wk": ("weight", "hidden"),
    "up": ("weight", "hidden"),
    "down": ("weight", "hidden"),
    "head": ("weight", "head"),
}
PARAMS = {name: shape(*n) for name, n in SHAPES.items()}


def network(p, tokens):
    """A table, positions, a depthwise convolution, a norm, learned queries and experts."""
    x = jnp.tanh((p["table"][tokens] + p["positions"]) @ p["into"] + p["bias"])
    spec = ("NHC", "HIO", "NHC")
    filtered = lax.conv_general_dilated(
        x, p["filters"], (1,), "SAME", dimension_numbers=spec, feature_group_count=8
    )
    x = jnp.tanh(filtered)
    x = x * lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-6) * p["gain"]
    x = jnp.einsum(
        "tef,efd->ted", jax.nn.relu(jnp.einsum("td,edf->tef", x[:, 0], p["up"])), p["down"]
    )
    q = p["query"] @ p["wq"] + p["bq"]
    return jax.nn.softmax(jnp.einsum("qd,ted->tqe", q, x @ p["wk"])) @ x @ p["head"]


def seen(analysis):
    return {
        leaf.path: (leaf.role.value, leaf.position and leaf.position.value) for leaf in analysis
    }


def masked(p, masks, tokens):
    return network({name: p[name] * masks[name] for name in p}, tokens)


def thresholded(p, scores, tokens):
    return network({name: jnp.where(scores[name] > 0, p[name], 0) for name in p}, tokens)


def perturbed(p, away, tokens):
    return network({name: p[name] + 0.05 * away[name] for name in p}, tokens)


def both(p, others, tokens):
    return network({name: p[name] * others[name] + jnp.square(others[name]) for name in p}, tokens)


def noisy(p, key, tokens):
    keys = dict(zip(p, jax.random.split(key, len(p)), strict=True))
    return network(
        {name: p[name] + 0.1 * jax.random.normal(keys[name], p[name].shape) for name in p}, tokens
    )


def test_the_network_alone_is_read_right():
    assert seen(bnmask.analyze(network, PARAMS, TOKENS).leaves) == ROLES


@pytest.mark.parametrize("fn", [masked, thresholded, perturbed, both])
def test_arguments_of_the_shapes_of_leaves_change_no_role(fn):
    plain = bnmask.analyze(network, PARAMS, TOKENS)
    found = bnmask.analyze(fn, PARAMS, PARAMS, TOKENS)
    assert seen(found.leaves) == ROLES
    assert [leaf.dimensions for leaf in found.leaves] == [leaf.dimensions for leaf in plain.leaves]


def test_noise_changes_no_role():
    assert seen(bnmask.analyze(noisy, PARAMS, jax.random.key(0), TOKENS).leaves) == ROLES


def test_an_example_without_a_batch_belongs_to_no_table():
    def fn(p, x):
        return jnp.tanh((x + p["positions"]) @ p["into"] + p["bias"]) @ p["head"]

    names = ("positions", "into", "bias", "head")
    found = bnmask.analyze(fn, {name: PARAMS[name] for name in names}, shape(6, 5))
    assert seen(found.leaves) == {name: ROLES[name] for name in names}


def test_an_example_without_a_batch_beside_tokens_belongs_to_no_table():
    def fn(p, frames, tokens):
        h = jnp.tanh((frames + p["positions"]) @ p["into"] + p["bias"])
        q = p["table"][tokens] @ p["into"]
        return jax.nn.softmax(jnp.einsum("btd,kd->btk", q, h)) @ h @ p["head"]

    names = ("positions", "into", "bias", "table", "head")
    found = bnmask.analyze(fn, {name: PARAMS[name] for name in names}, shape(6, 5), TOKENS)
    assert seen(found.leaves) == {name: ROLES[name] for name in names}


def test_running_statistics_belong_to_no_gain():
    def fn(p, x, mean, var):
        y = (x @ p["into"] - mean) * (lax.rsqrt(var + 1e-5) * p["gain"]) + p["bias"]
        return jnp.tanh(y) @ p["head"]

    names = ("into", "gain", "bias", "head")
    params = {name: PARAMS[name] for name in names}
    with pytest.warns(UserWarning, match=r"normaliser at .*test_belonging.* that it is given here"):
        found = bnmask.analyze(fn, params, X, shape(8), shape(8))
    assert found["gain"].role is bnmask.Role.NORM_SCALE
    assert found["bias"].role is bnmask.Role.NORM_BIAS


def test_data_that_are_used_otherwise_too_belong_to_no_leaf():
    def fn(p, x, y):
        z = (x @ p["into"])[:, 0]
        return jnp.tanh(z + y * p["scale"] + y @ p["skip"]) @ p["head"]

    params = {
        "into": PARAMS["into"],
        "scale": shape(2, 8),
        "skip": shape(8, 8),
        "head": PARAMS["head"],
    }
    found = bnmask.analyze(fn, params, X, shape(2, 8))
    assert found["scale"].role is bnmask.Role.GAIN


def styled(p, x, style):
    """StyleGAN's first layer: a learned constant, convolved with modulated kernels."""

    def convolved(kernel):
        numbers = ("NHWC", "HWIO", "NHWC")
        image = p["constant"][None]
        return jax.lax.conv_general_dilated(
            image, kernel, (1, 1), "SAME", dimension_numbers=numbers
        )

    y = jax.vmap(convolved)(p["w"] * style[:, None, None, :, None])[:, 0] + p["b"]
    return jnp.tanh(y).mean((1, 2)) @ p["head"] + x


@pytest.mark.parametrize("where", ["inside", "outside"])
def test_a_kernel_that_is_modulated_before_any_data_is_a_weight(where):
    def of_one(p, x, style):
        return styled(p, x, style[None])[0]

    fn = styled if where == "outside" else jax.vmap(of_one, (None, 0, 0))
    params = {"constant": shape(4, 4, 5), "w": shape(3, 3, 5, 6), "b": shape(6)}
    found = bnmask.analyze(fn, params | {"head": shape(6, 2)}, shape(3, 2), shape(3, 5))
    assert found["w"].role is bnmask.Role.WEIGHT
    assert found["w"].dimensions == bnmask.Dimensions((0, 1, 2), (3,), ())
    assert found["b"].role is bnmask.Role.BIAS
