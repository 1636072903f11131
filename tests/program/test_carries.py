"""Loops whose carries are parameters: what is handed on as it is keeps its role and its degree."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax import lax

import optax_bnmask as bnmask
from tests.support.program.kinds import X, moved, normal, rms_normed

DEPTH, WIDTH = 3, 4


@pytest.fixture(autouse=True)
def _users_promote():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def parameters():
    return {
        "layers": {
            "gain": 1 + 0.1 * normal(1, DEPTH, WIDTH),
            "kernel": normal(2, DEPTH, WIDTH, WIDTH),
        },
        "head": normal(3, WIDTH, 2),
    }


def layer(h, p):
    """A kernel, a norm with its gain, a nonlinearity."""
    return jnp.tanh(rms_normed(h @ p["kernel"]) * p["gain"])


def body(carry, _):
    """One layer, of parameters that are stacked in the carry."""
    h, i, stack = carry
    p = jax.tree.map(lambda s: lax.dynamic_index_in_dim(s, i, keepdims=False), stack)
    return (layer(h, p), i + 1, stack), None


def scanned(step):
    """The stack as a scan over the layers."""

    def stack(carry):
        return lax.scan(step, carry, None, length=DEPTH)[0]

    return stack


def nested(inner, outer):
    """A scan of one layer within a scan over the layers, each with its own way to be called."""

    def one(carry, _):
        return lax.scan(inner(body), carry, None, length=1)[0], None

    return scanned(outer(one))


def plainly(f):
    return f


def under_a_custom_derivative(f):
    """A function that has a derivative of its own is called another way."""

    @jax.custom_vjp
    def g(carry):
        return f(carry, None)

    g.defvjp(lambda carry: (g(carry), carry), lambda carry, _: (carry,))
    return lambda carry, _: g(carry)


def behind_a_test(f):
    """Both branches hand the parameters on, and only one of them uses them."""

    def g(carry, _):
        return lax.cond(carry[1] < DEPTH, lambda c: f(c, None)[0], lambda c: c, carry), None

    return g


def while_there_are_layers(carry):
    return lax.while_loop(lambda c: c[1] < DEPTH, lambda c: body(c, None)[0], carry)


remat_that_saves_dots = functools.partial(
    jax.checkpoint, policy=jax.checkpoint_policies.dots_saveable, prevent_cse=False
)

STACKS = {
    "scan": scanned(body),
    "scan of remat": scanned(jax.checkpoint(body)),
    "scan of remat with a policy": scanned(remat_that_saves_dots(body)),
    "scan of jit": scanned(jax.jit(body)),
    "scan of remat of jit": scanned(jax.checkpoint(jax.jit(body))),
    "scan of jit of remat": scanned(jax.jit(jax.checkpoint(body))),
    "scan of a custom derivative": scanned(under_a_custom_derivative(body)),
    "scan of a test": scanned(behind_a_test(body)),
    "remat of scan": jax.checkpoint(scanned(body)),
    "jit of scan": jax.jit(scanned(body)),
    "fori loop": lambda carry: lax.fori_loop(0, DEPTH, lambda _, c: body(c, None)[0], carry),
    "while loop": while_there_are_layers,
    "scan of scan": nested(plainly, plainly),
    "scan of scan of remat": nested(jax.checkpoint, plainly),
    "scan of remat of scan": nested(plainly, jax.checkpoint),
    "scan of remat of scan of remat": nested(jax.checkpoint, jax.checkpoint),
    "scan of jit of scan of remat": nested(jax.checkpoint, jax.jit),
}

EVERY_STACK = pytest.mark.parametrize("name", STACKS)


def network(name):
    """The stack and a head."""

    def fn(p, x):
        h, _, _ = STACKS[name]((x, jnp.int32(0), p["layers"]))
        return h @ p["head"]

    return fn


@functools.cache
def analysis_of(name):
    return bnmask.analyze(network(name), parameters(), X)


@EVERY_STACK
def test_kernels_in_the_carry_are_invariant(name):
    leaf = analysis_of(name)["layers/kernel"]
    assert leaf.scale is bnmask.Scale.INVARIANT
    assert leaf.role is bnmask.Role.WEIGHT


@EVERY_STACK
def test_gains_in_the_carry_are_the_norms(name):
    leaf = analysis_of(name)["layers/gain"]
    assert leaf.scale is bnmask.Scale.SENSITIVE
    assert leaf.role is bnmask.Role.NORM_SCALE


@EVERY_STACK
def test_no_role_is_unknown(name):
    leaves = analysis_of(name).leaves
    assert [leaf.path for leaf in leaves if leaf.role is bnmask.Role.UNKNOWN] == []


@EVERY_STACK
def test_parameters_in_the_carry_are_as_those_that_are_closed_over(name):
    def closed(p, x):
        def step(carry, _):
            h, i = carry
            (h, i, _), _ = body((h, i, p["layers"]), None)
            return (h, i), None

        return lax.scan(step, (x, jnp.int32(0)), None, length=DEPTH)[0][0] @ p["head"]

    plain, carried = bnmask.analyze(closed, parameters(), X), analysis_of(name)
    for leaf in plain.leaves:
        other = carried[leaf.path]
        assert (other.role, other.scale) == (leaf.role, leaf.scale)
        assert other.invariant_axes == leaf.invariant_axes


@EVERY_STACK
def test_the_scale_of_kernels_in_the_carry_moves_nothing(name):
    def fn(p, x):
        return network(name)({"layers": {"gain": p["gain"], "kernel": p["kernel"]}, **p}, x)

    given = parameters()
    leaves = {**given["layers"], "head": given["head"]}
    assert moved(fn, leaves, (X,), {"kernel": 1}) <= 1e-6
    assert moved(fn, leaves, (X,), {"gain": 1}) >= 1e-2


def test_a_carry_that_is_handed_on_and_put_out_keeps_its_degree():
    def fn(p, x):
        (h, kernel), _ = lax.scan(
            jax.checkpoint(lambda c, _: ((rms_normed(c[0] @ c[1]), c[1]), None)),
            (x, p["kernel"]),
            None,
            length=2,
        )
        return h, kernel / jnp.linalg.norm(kernel)

    leaf = bnmask.analyze(fn, {"kernel": normal(4, WIDTH, WIDTH)}, X)["kernel"]
    assert leaf.scale is bnmask.Scale.INVARIANT


def test_a_carry_that_is_changed_on_the_way_is_not_taken_for_one_that_is_handed_on():
    def fn(p, x):
        def step(carry, _):
            h, kernel = carry
            return (rms_normed(h @ kernel), kernel + 0.1 * jnp.eye(WIDTH)), None

        return lax.scan(jax.checkpoint(step), (x, p["kernel"]), None, length=2)[0][0]

    params = {"kernel": normal(4, WIDTH, WIDTH)}
    assert moved(fn, params, (X,), {"kernel": 1}) >= 1e-2
    assert bnmask.analyze(fn, params, X)["kernel"].scale is bnmask.Scale.SENSITIVE


def test_carries_that_change_places_share_one_degree():
    def fn(p, x):
        def step(carry, _):
            h, a, b = carry
            return (rms_normed(h @ a), b, a), None

        return lax.scan(jax.checkpoint(step), (x, p["a"], p["b"]), None, length=2)[0][0]

    params = {"a": normal(4, WIDTH, WIDTH), "b": normal(5, WIDTH, WIDTH)}
    analysis = bnmask.analyze(fn, params, X)
    for symmetry in analysis.symmetries:
        assert moved(fn, params, (X,), symmetry) <= 1e-6
    assert all(leaf.scale is not bnmask.Scale.SENSITIVE for leaf in analysis.leaves)
