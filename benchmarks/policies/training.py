"""Training many runs at once: every rate, decay or angle, and seed of a sweep by `vmap`."""

import itertools
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.policies.policies import analysis_of, optimizer


class Run(NamedTuple):
    """One run, or with a leading axis many: its rate, its decay or angle, and its seed."""

    learning_rate: jax.Array
    second: jax.Array
    seed: jax.Array


class Score(NamedTuple):
    """What a run's network does on held-out data, on its running statistics."""

    accuracy: jax.Array
    cross_entropy: jax.Array


def grid(learning_rates, seconds, seeds) -> Run:
    """Every combination, in that order of axes."""
    rows = jnp.asarray(list(itertools.product(learning_rates, seconds)))
    seeds = jnp.asarray(seeds)
    return Run(
        jnp.repeat(rows[:, 0], len(seeds)),
        jnp.repeat(rows[:, 1], len(seeds)),
        jnp.tile(seeds, len(rows)),
    )


def trainer(task, policy, name, epochs):
    """The compiled training of many runs at a time, from `Run` to params and statistics.

    A seed sets the initial parameters and the order of the examples, the same for every policy.

    Args:
      task: The task.
      policy: One of `POLICIES`.
      name: One of `OPTIMIZERS`.
      epochs: Passes over the training data.
    """
    steps = len(task.train.labels) // task.batch_size
    make = optimizer(policy, name, analysis_of(task), steps, epochs)

    def trained(train, run: Run):
        tx = make(run.learning_rate, run.second)
        weights, order = jax.random.split(jax.random.key(run.seed))
        variables = task.network.init(weights, train.inputs[:1], train=True)

        def step(carry, batch):
            params, stats, state = carry
            grads, stats = jax.grad(_loss, argnums=1, has_aux=True)(
                task.network, params, stats, train.inputs[batch], train.labels[batch]
            )
            updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), stats, state), None

        def epoch(carry, key):
            drawn = jax.random.permutation(key, len(train.labels))[: steps * task.batch_size]
            return jax.lax.scan(step, carry, drawn.reshape(steps, task.batch_size))

        start = variables["params"], variables["batch_stats"], tx.init(variables["params"])
        (params, stats, _), _ = jax.lax.scan(epoch, start, jax.random.split(order, epochs))
        return params, stats

    every = jax.jit(jax.vmap(trained, in_axes=(None, 0)))
    return partial(every, task.train)


def scores(task, train, runs: Run, split, at_once) -> Score:
    """Trains all runs, so many at a time, and scores them on a split, with their leading axis."""
    total = len(runs.seed)
    order = np.arange(-(-total // at_once) * at_once) % total  # the last batch is filled up
    every = []
    for places in np.split(order, len(order) // at_once):
        trained = train(jax.tree.map(lambda column: column[places], runs))  # noqa: B023 - used now
        every.append(_scored(task.network, split, *trained))
    return jax.tree.map(lambda *parts: np.concatenate(parts)[:total], *every)


@partial(jax.jit, static_argnums=0)
def _scored(network, split, params, stats) -> Score:
    def one(variables):
        logits = network.apply(variables, split.inputs, train=False)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, split.labels)
        return Score(jnp.mean(jnp.argmax(logits, -1) == split.labels), jnp.mean(losses))

    return jax.lax.map(one, {"params": params, "batch_stats": stats})


def _loss(network, params, stats, inputs, labels):
    logits, updated = network.apply(
        {"params": params, "batch_stats": stats}, inputs, train=True, mutable=["batch_stats"]
    )
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return jnp.mean(losses), updated["batch_stats"]
