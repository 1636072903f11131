"""Primitives of other libraries: ruled once the user has imported these, or by the user."""

import equinox.internal as eqxi
import jax
import jax.extend.core as core  # noqa: TID251 - the subject
import jax.numpy as jnp
import pytest

import optax_bnmask as bnmask
from optax_bnmask.program.registry import RULES, Kind, Law, rule

S = jax.ShapeDtypeStruct
PARAMS = {"w": S((4, 4), jnp.float32), "out": S((4, 3), jnp.float32)}
X = S((6, 4), jnp.float32)


@pytest.fixture(autouse=True)
def _users_promote():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def normed(z):
    return z * jax.lax.rsqrt(jnp.square(z).mean(-1, keepdims=True) + 1e-6)


def looped(kind):
    """A state of a differential equation, kept at every step."""

    def fn(p, x):
        def body(carry):
            i, h, kept = carry
            h = h + 0.1 * jnp.tanh(normed(h @ p["w"]))
            return i + 1, h, kept.at[i].set(h)

        start = (0, x, jnp.zeros((3, *x.shape)))
        _, _, kept = eqxi.while_loop(
            lambda carry: carry[0] < 3, body, start, max_steps=3, kind=kind, buffers=lambda c: c[2]
        )
        return normed(kept @ p["out"])

    return fn


@pytest.mark.parametrize("kind", ["lax", "checkpointed", "bounded"])
def test_equinoxs_loops_are_seen_through(kind):
    analysis = bnmask.analyze(looped(kind), PARAMS, X)
    assert analysis.unhandled == {}
    assert {leaf.path: str(leaf.scale) for leaf in analysis.leaves} == {
        "out": "invariant",
        "w": "invariant",
    }


def test_equinoxs_checks_are_identities():
    def fn(p, x):
        z = eqxi.nondifferentiable_backward(eqxi.nonbatchable(x @ p["w"]))
        return normed(z @ p["out"])

    analysis = bnmask.analyze(fn, PARAMS, X)
    assert analysis.unhandled == {}
    assert {str(leaf.scale) for leaf in analysis.leaves} == {"invariant"}


def test_what_equinox_keeps_from_being_inlined_is_pinned_and_counted():
    def fn(p, x):
        return normed(eqxi.noinline(lambda x: 2 * x)(x @ p["w"]) @ p["out"])

    analysis = bnmask.analyze(fn, PARAMS, X)
    assert analysis.unhandled == {"noinline": 1}
    assert str(analysis["w"].scale) == "sensitive"


def test_a_primitive_of_ones_own_is_ruled_by_one_line():
    doubled = core.Primitive("doubled")
    doubled.def_abstract_eval(lambda x: x)

    def fn(p, x):
        return normed(doubled.bind(x @ p["w"]))

    params = {"w": PARAMS["w"]}
    before = bnmask.analyze(fn, params, X)
    assert before.unhandled == {"doubled": 1}
    assert str(before["w"].scale) == "sensitive"
    rule(Kind.POWER, doubled)(Law())
    try:
        after = bnmask.analyze(fn, params, X)
    finally:
        del RULES[doubled]
    assert after.unhandled == {}
    assert str(after["w"].scale) == "invariant"
