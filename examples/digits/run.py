"""The demo from end to end: analyse, train each policy, measure, show."""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from examples.digits.data import Digits, digits
from examples.digits.measure import final, mean_gains
from examples.digits.outcome import Outcome
from examples.digits.plot import png_of
from examples.digits.show import document_of
from examples.digits.train import MODEL, Policy, Recipe, trainer
from optax_bnmask.analysis import Analysis, analyze_structure
from optax_bnmask.frameworks.linen import analyze_linen
from optax_bnmask.mask import Mask
from optax_bnmask.report.document import Leaves
from optax_bnmask.report.html_page import html_of
from optax_bnmask.vocabulary import Role
from optax_bnmask_cli.terminal import renderables


def run(*, seeds: int, epochs: int, out: Path) -> tuple[Outcome, ...]:
    """Trains, measures and shows both policies.

    Args:
      seeds: Runs for each policy; two at least.
      epochs: Passes over the training images.
      out: The directory for ``report.html`` and ``policies.png``; made if it is not there.

    Returns:
      The outcomes: decay on everything, then decay with the mask.
    """
    out.mkdir(parents=True, exist_ok=True)
    console = Console()
    data, recipe = digits(), Recipe(epochs)
    structure, analysis = _analyses()
    mask = analysis.decay_mask()
    norm_scale = Mask({leaf.path: leaf.role is Role.NORM_SCALE for leaf in analysis.leaves})
    policies = (Policy("decay everything", None), Policy("decay by mask", mask))
    with _progress(console) as progress:
        outcomes = tuple(
            outcome_of(
                data,
                recipe,
                policy,
                seeds=seeds,
                norm_scale=norm_scale,
                tick=_ticks(progress, policy, recipe),
            )
            for policy in policies
        )
    document = document_of(structure, analysis, mask, recipe, outcomes)
    results = [block for block in document.blocks if not isinstance(block, Leaves)]
    for renderable in renderables(dataclasses.replace(document, blocks=tuple(results)), console):
        console.print(renderable)
    console.print("\nWhich leaves decay, and why, is in the report.")
    files = {"report.html": html_of(document).encode(), "policies.png": png_of(outcomes)}
    for name, content in files.items():
        (out / name).write_bytes(content)
        console.print(f"Wrote {out / name}", markup=False, highlight=False, soft_wrap=True)
    return outcomes


def outcome_of(
    data: Digits,
    recipe: Recipe,
    policy: Policy,
    *,
    seeds: int,
    norm_scale: Mask,
    tick: Callable[[], object],
) -> Outcome:
    """Trains and measures one policy; `tick` is called after each epoch."""
    state, epoch = trainer(data, recipe, policy, seeds)
    sizes: list[np.ndarray] = []
    losses: list[np.ndarray] = []
    for _ in range(recipe.epochs):
        state, loss = epoch(state)
        sizes.append(np.asarray(mean_gains(state.params, norm_scale)))
        losses.append(np.asarray(loss))
        tick()
    decays_gains = policy.mask is None or any(policy.mask[path] for path in norm_scale.decayed)
    accuracies, rates = final(
        state._replace(opt_state=()),  # not measured, and not the same for every policy
        recipe.weight_decay if decays_gains else 0.0,
        data,
        norm_scale=norm_scale,
        batch_size=recipe.batch_size,
    )
    return Outcome(
        policy.name,
        np.asarray(accuracies),
        np.stack(sizes),
        np.stack(losses),
        np.asarray(rates.gradient),
        np.asarray(rates.effective),
    )


def _analyses() -> tuple[Analysis, Analysis]:
    """What the structure of the network tells, and what its program does, from shapes alone."""
    images = jax.ShapeDtypeStruct((32, 8, 8, 1), jnp.float32)
    init = partial(MODEL.init, train=True)
    variables = jax.eval_shape(init, jax.random.key(0), images)
    structure = analyze_structure(variables["params"], variables["batch_stats"])
    return structure, analyze_linen(MODEL, variables, images, train=True)


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("epoch {task.completed:.0f}/{task.total:.0f}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )


def _ticks(progress: Progress, policy: Policy, recipe: Recipe) -> Callable[[], None]:
    task = progress.add_task(policy.name, total=recipe.epochs)
    return lambda: progress.advance(task)
