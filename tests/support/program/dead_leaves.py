"""What is called dead of a program, and what is in numbers."""

import warnings

import jax
import jax.numpy as jnp
from jax import lax

import optax_bnmask as bnmask
from tests.support.program.dead import SAME, change, drawn, gradient
from tests.support.program.evaluating import traced

EPS = 1e-5
IMAGE, ROWS, TOKENS = (4, 5, 5, 3), (8, 3), (2, 5, 4)


def analysed(fn, params, *args):
    shapes = [jax.tree.map(lambda v: jax.ShapeDtypeStruct(v.shape, jnp.float32), params), *args]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return bnmask.analyze(fn, *shapes)


def in_numbers(fn, params, *args):
    """Which leaves move no output in double precision, whatever is added to them."""
    apply = traced(fn, params, *args)
    paths = {
        "/".join(str(k.key if hasattr(k, "key") else k.name) for k in path): value
        for path, value in jax.tree.leaves_with_path(params)
    }

    def run(values):
        return apply(jax.tree.unflatten(jax.tree.structure(params), values.values()), *args)

    return tuple(p for p in paths if change(run, paths, [(p, None)]) < SAME)


def agrees(fn, shapes, *args):
    """The leaves that are called dead, which are those that are so in numbers."""
    params = drawn(shapes)
    dead = analysed(fn, params, *args).dead
    assert dead == in_numbers(fn, params, *args)
    sizes = jax.tree.leaves_with_path(gradient(fn, params, *args))
    flat = {path[0].key: size for path, size in sizes}
    assert all(flat[path] < 1e-10 for path in dead), flat
    return dead


def conv(h, w, padding):
    return lax.conv_general_dilated(
        h, w, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
