"""Sweeps, chooses by validation, tests once, and writes what came out.

Run with `python -m benchmarks.policies`; `--help` lists the options. Twenty minutes on one large
GPU, most of a day on two cores of a CPU; `--quick` shows in some minutes that all of it works.
`python -m benchmarks.policies --show benchmarks/policies/results.json` prints what is on record.
"""

import argparse
import dataclasses
import itertools
import json
import time
from pathlib import Path

import jax
import numpy as np

from benchmarks.policies.comparing import Result, chosen_rates, load, markdown
from benchmarks.policies.policies import OPTIMIZERS, POLICIES, swept, turns
from benchmarks.policies.tasks import TASKS
from benchmarks.policies.training import grid, scores, trainer

CHOOSING_SEEDS = range(10)
TESTING_SEEDS = range(1000, 1040)


def compared(task, policy, name, options) -> Result:
    """One policy: the best rates of the sweep by mean validation accuracy, tested on new seeds."""
    train = trainer(task, policy, name, options.epochs or task.epochs)
    known = {(r.task, r.optimizer, r.policy): r for r in options.known}
    chosen = known.get((task.name, name, policy)) or _chosen(task, policy, name, train, options)
    second = chosen.angle if turns(policy) else chosen.weight_decay
    fresh = grid((chosen.learning_rate,), (second,), TESTING_SEEDS[: options.testing_seeds])
    tested = scores(task, train, fresh, task.test, options.at_once)
    return dataclasses.replace(
        chosen,
        accuracies=tuple(np.asarray(tested.accuracy, float).round(6).tolist()),
        cross_entropies=tuple(np.asarray(tested.cross_entropy, float).round(6).tolist()),
    )


def _chosen(task, policy, name, train, options) -> Result:
    """The rates that validate best, and nothing tested yet."""
    rates, seconds = (values[:: options.every] for values in swept(policy, name))
    what = "angle" if turns(policy) else "decay"
    runs = grid(rates, seconds, CHOOSING_SEEDS[: options.seeds])
    found = scores(task, train, runs, task.validation, options.at_once)
    accuracy = np.nan_to_num(np.asarray(found.accuracy)).reshape(len(rates), len(seconds), -1)
    loss = np.asarray(found.cross_entropy).reshape(accuracy.shape).mean(-1)
    mean = accuracy.mean(-1)
    ties = np.where(mean == mean.max(), np.nan_to_num(loss, nan=np.inf), np.inf)
    i, j = np.unravel_index(ties.argmin(), ties.shape)
    return Result(
        task.name,
        name,
        policy,
        rates[i],
        0.0 if what == "angle" else seconds[j],
        tuple(
            f"{end} {kind}"
            for kind, place, values in (("rate", i, rates), (what, j, seconds))
            for end, edge in (("lowest", 0), ("highest", len(values) - 1))
            if len(values) > 1 and place == edge
        ),
        (),
        (),
        seconds[j] if what == "angle" else 0.0,
    )


def parsed():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--optimizers", nargs="+", choices=OPTIMIZERS, default=list(OPTIMIZERS))
    parser.add_argument("--policies", nargs="+", choices=POLICIES, default=list(POLICIES))
    parser.add_argument("--seeds", type=int, default=len(CHOOSING_SEEDS), help="to choose with")
    parser.add_argument(
        "--testing-seeds", type=int, default=len(TESTING_SEEDS), help="to test with"
    )
    parser.add_argument("--epochs", type=int, help="in place of each task's own number")
    parser.add_argument("--every", type=int, default=1, help="take every n-th rate, decay, angle")
    parser.add_argument(
        "--rates-of",
        type=Path,
        nargs="+",
        default=[],
        help="results whose rates, decays and angles are taken as chosen, where they have them",
    )
    parser.add_argument("--at-once", type=int, default=40, help="runs trained at a time")
    parser.add_argument("--output", type=Path, default=Path("policies.json"))
    parser.add_argument("--quick", action="store_true", help="2 seeds, 1 epoch, 2 by 2 rates")
    parser.add_argument("--show", type=Path, nargs="+", help="train nothing, print these results")
    options = parser.parse_args()
    options.known = load(options.rates_of)
    if options.quick:
        options.seeds, options.testing_seeds, options.epochs, options.every = 2, 8, 1, 2
    return options


def trained(options):
    """Every policy with every optimizer on every task; written down after each."""
    results = []
    record = {"device": jax.devices()[0].device_kind, "jax": jax.__version__}
    record |= {"epochs": options.epochs, "seeds": options.seeds, "every": options.every}
    for task in (TASKS[name]() for name in options.tasks):
        for name, policy in itertools.product(options.optimizers, options.policies):
            start = time.perf_counter()
            results.append(compared(task, policy, name, options))
            took, mean = time.perf_counter() - start, 100 * np.mean(results[-1].accuracies)
            print(f"{took:6.1f} s  {task.name:8}  {name:5}  {policy:22}  {mean:.2f} %", flush=True)
            record["results"] = [dataclasses.asdict(result) for result in results]
            options.output.write_text(json.dumps(record) + "\n", encoding="utf-8")
    return results


def main():
    options = parsed()
    with jax.default_matmul_precision("float32"):  # a GPU's default would round to 10 bits
        results = load(options.show) if options.show else trained(options)
    print(f"\n{markdown(results)}\n\n{chosen_rates(results)}")


if __name__ == "__main__":
    main()
