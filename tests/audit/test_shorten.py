"""Values that are computed alike are computed once, and what is computed stays what it was."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import optax_bnmask as bnmask
from optax_bnmask import compat
from optax_bnmask.audit.compiled_optimizer import CompiledOptimizer
from optax_bnmask.audit.deduplication import Labels, shortened
from optax_bnmask.audit.double_precision import evaluate
from optax_bnmask.audit.patterns import RUNS, checkerboard, gradient_pattern
from optax_bnmask.audit.update import traced

pytestmark = pytest.mark.usefixtures("optax_promotion")


def short(fn, *args, labels=None):
    """A program of float32 arguments, the inputs of one label where that is said."""
    program = jax.make_jaxpr(fn)(*args)
    return shortened(Labels(), program, labels or [*range(-len(args), 0)])


ONES = np.ones(3, np.float32)


@pytest.mark.parametrize(
    ("fn", "count"),
    [
        (lambda a, b: jnp.sin(a) + jnp.sin(b), 2),
        (lambda a, b: jax.jit(jnp.sin)(a) + jnp.sin(b), 2),
        (lambda a, b: 0.5 * a + jnp.float32(0.5) * b, 2),
        (lambda a, b: 0.5 * a + 0.25 * b, 3),
        (lambda a, b: (a, jnp.sin(b))[0] * a, 1),
    ],
    ids=["twice", "within a call", "equal constants", "others", "without use"],
)
def test_equal_inputs_are_computed_once(fn, count):
    assert len(short(fn, ONES, ONES, labels=[-1, -1]).operations) == count


def test_bodies_that_do_the_same_are_the_same():
    def loop(x):  # a new function, and so a new jaxpr, in each call
        return lax.fori_loop(0, 3, lambda _, y: jnp.sin(y) * 2, x)

    def other(x):
        return lax.fori_loop(0, 3, lambda _, y: jnp.cos(y) * 2, x)

    assert len(short(lambda a, b: loop(a) + loop(b), ONES, ONES, labels=[-1, -1]).operations) == 2
    assert len(short(lambda a, b: loop(a) + other(b), ONES, ONES, labels=[-1, -1]).operations) == 3


def size(program):
    """How many operations a program has, those of its branches included."""
    inner = [branch for each in program.operations for branch in each.branches]
    return len(program.operations) + sum(map(size, inner))


def test_what_branches_do_to_equal_values_is_done_once():
    def whole(x):
        return [jnp.sin(y) for y in x], [jnp.cos(y) for y in x]

    def chosen(*x):
        return lax.cond(x[0][0] > 0, lambda x: whole(x)[0], lambda x: whole(x)[1], x)

    few, many = (short(chosen, *[ONES] * n, labels=[-1] * n) for n in (1, 20))
    assert size(few) == size(many)
    assert len(set(many.results)) == 1


def test_an_update_within_a_branch_is_shortened_too():
    def operations(blocks):
        params = {f"block{i}": {"kernel": jnp.ones((4, 3))} for i in range(blocks)}
        tx = optax.MultiSteps(optax.adamw(1e-3), 4).gradient_transformation()
        update = traced(tx, params)
        labels = Labels()
        equal = [labels.of(x.aval) for x in compat.open_jaxpr(update.steps[0]).invars]
        return size(shortened(labels, update.steps[0], equal))

    assert operations(3) == operations(30)


PROGRAMS = {
    "cond of pairs": lambda a, b: lax.cond(
        a[0] > 0, lambda a, b: (a, a, b * a), lambda a, b: (b, b, a + 1), a, b
    ),
    "cond with constants": lambda a, b: lax.cond(
        a[0] < 0, lambda a: 0.1 * a, lambda a: 0.3 * a + np.arange(3, dtype=np.float32), a + b
    ),
    "switch": lambda a, b: lax.switch(
        jnp.int32(a[0]), [jnp.sin, jnp.cos, lambda x: lax.cond(x[1] > 0, jnp.exp, jnp.sin, x)], b
    ),
    "cond": lambda a, b: lax.cond(a[0] > 0, jnp.sin, jnp.cos, b),
    "while": lambda a, b: lax.while_loop(lambda x: x.sum() < 9, lambda x: x + jnp.abs(a), b),
    "scan": lambda a, b: lax.scan(lambda c, x: (c * x, c + b), a[0], a, reverse=True),
    "random": lambda a, b: a * jax.random.normal(jax.random.key(0), (3,)) + b,
    "casts": lambda a, b: a.astype(jnp.bfloat16).astype(jnp.float32) * b.astype(jnp.int32),
    "custom rule": lambda a, b: jax.nn.relu(a) + jax.nn.softmax(b),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_results_are_those_of_the_program(name):
    args = np.array([1.5, -2.25, 3.0], np.float32), np.array([0.5, 0.25, -1.0], np.float32)
    program = short(PROGRAMS[name], *args)
    with jax.enable_x64(True):
        found = evaluate(program, *(jnp.asarray(x, jnp.float64) for x in args))
    assert all(x.dtype in (np.float64, np.int32) for x in found)
    for one, other in zip(found, jax.tree.leaves(PROGRAMS[name](*args)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)


def test_constants_are_the_decimals_that_were_written():
    with jax.enable_x64(True):
        program = short(lambda a: 0.9 * a + (1 - 0.9) * a - a, ONES)
        (found,) = evaluate(program, jnp.full(3, np.pi))
    assert float(np.max(np.abs(found))) < 1e-15


OPTIMIZERS = {
    "adamw": optax.adamw(1e-3, weight_decay=0.1),
    "clipped": optax.chain(optax.clip_by_global_norm(0.1), optax.adam(1e-3)),
    "rprop, whose state is compared with the zeros that it starts as": optax.rprop(1e-3),
    "state that changes its form": optax.chain(optax.monitor({"n": optax.tree.norm}), optax.sgd(1)),
    "noise": optax.noisy_sgd(1e-3, key=0),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_updates_are_those_of_the_optimizer(name):
    tx = OPTIMIZERS[name]
    params = {"a": jnp.ones((2, 4)), "b": jnp.ones((2, 4)), "c": jnp.ones(4)}
    with jax.enable_x64(True):
        optimizer = CompiledOptimizer(traced(tx, params))
        steps = optimizer.steps(1.0, 1.0)
        found = [next(steps) for _ in range(4)]
    run = RUNS[4]
    params = {
        n: jnp.asarray(run.params * checkerboard(p.shape), p.dtype) for n, p in params.items()
    }
    gradient = {n: jnp.asarray(gradient_pattern(p.shape), p.dtype) for n, p in params.items()}
    state = tx.init(params)
    for number, made in enumerate(found):
        updates, state = tx.update(gradient, state, params)
        for place, update in enumerate(updates.values()):
            labels = optimizer.kinds[optimizer.kind_of[place]].updates
            label = labels[min(number, len(labels) - 1)]
            np.testing.assert_allclose(made[label][4], update, rtol=1e-4, atol=1e-7)


def test_work_does_not_grow_with_blocks_that_repeat():
    def kinds(blocks):
        params = {f"block{i}": {"kernel": jnp.ones((4, 3))} for i in range(blocks)}
        mask = bnmask.analyze_structure(params).decay_mask(never=["block0/*"])
        return len(
            CompiledOptimizer(traced(optax.adamw(1e-3, weight_decay=0.1, mask=mask), params)).kinds
        )

    assert kinds(3) == kinds(30) == 2
