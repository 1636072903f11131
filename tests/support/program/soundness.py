# ruff: noqa: T201
"""Claims of invariance against numbers, on random networks.

``python -m tests.support.program.soundness --count 10000 --seed 0`` examines that many and prints
every claim that fails, and every leaf that is invariant in numbers but was not claimed, by what the
network is built of. Nothing here is shared with `optax_bnmask.verify`.
"""

import argparse
import collections
import dataclasses
import itertools
import sys
import time
import traceback
import zlib
from collections.abc import Iterator, Mapping
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

import optax_bnmask as bnmask
from tests.support.program import layers
from tests.support.program.evaluating import traced
from tests.support.program.networks import Network, seeded_network

_CLAIMS = ("invariant", "symmetry", "axis", "cone")
_JITTERS = range(1, 6)
SAME = 1e-6
"""Two outputs that differ by less, relative to the largest entry, are the same."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """A way to change the parameters, and what it tells.

    Attributes:
      question: ``(kind, ...)``: settings with one question are alternatives, one must hold.
      factors: What each leaf is multiplied with.
      values: What some leaves are replaced by.
    """

    question: tuple[Any, ...]
    factors: Mapping[str, Any]
    values: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Examined:
    """What came out.

    Attributes:
      wrong: Claims that fail, with the relative error.
      missed: Leaves, or axes of leaves, invariant in numbers and not claimed.
      claims: How many claims were checked.
      skipped: Why nothing could be said.
    """

    wrong: tuple[str, ...] = ()
    missed: tuple[str, ...] = ()
    claims: int = 0
    skipped: str = ""


def analysis_of(network: Network) -> bnmask.Analysis:
    """The analysis, from shapes alone and in single precision as users have it."""
    params = {k: jax.ShapeDtypeStruct(v.shape, jnp.float32) for k, v in network.params.items()}
    kind = jnp.int32 if np.issubdtype(network.x.dtype, np.integer) else jnp.float32
    return bnmask.analyze(network.fn, params, jax.ShapeDtypeStruct(network.x.shape, kind))


def examine(network: Network, analysis: bnmask.Analysis | None = None) -> Examined:
    """Checks all that an analysis says of a network."""
    analysis = analysis_of(network) if analysis is None else analysis
    settings = [Setting(("base",), {}), *jitter(network)]
    claims = list(_claims(network, analysis))
    settings += claims
    settings += _absences(network, analysis)
    errors = errors_of(network, settings)
    if any(q[0] in _CLAIMS and not error < SAME for q, error in errors.items()):
        with mock.patch.object(layers, "EPS", 1e-22):  # was it the epsilons, taken as 0?
            jax.clear_caches()
            fresh = errors_of(network, settings)
        jax.clear_caches()
        errors.update({q: min(error, fresh[q]) for q, error in errors.items() if q[0] in _CLAIMS})
        errors.update({q: max(e, fresh[q]) for q, e in errors.items() if q[0] == "jitter"})
    noise = max(1e-15, *(errors.pop(("jitter", seed)) for seed in _JITTERS))
    if not np.isfinite(noise) or noise * 1e3 > SAME:
        return Examined(skipped=f"ill-conditioned: {noise:.1e}")
    failing = [q for q, error in errors.items() if q[0] in _CLAIMS and not error < SAME]
    wrong = [
        f"{' '.join(map(str, q))}: {errors[q]:.1e}"
        for q in failing
        if not errors[q] < 10 * _noise_at(network, [s for s in claims if s.question == q])
    ]
    missed = []
    for question, error in errors.items():
        if question[0] == "absent" and error < max(1e-10, 30 * noise):
            path = question[1]
            if errors["dead", path] > 1e-4:
                leaf, together = analysis[path], "+".join(question[2])
                missed.append(f"{path} {together} ({leaf.scale}, {leaf.role})")
        if question[0] == "absent_axis" and error < max(1e-10, 30 * noise):
            missed.append(f"axis {question[2]} of {question[1]} {analysis[question[1]].shape}")
    questions = {setting.question for setting in claims}
    return Examined(tuple(wrong), tuple(missed), len(questions))


def _noise_at(network: Network, settings: list[Setting]) -> float:
    """How far rounding moves the outputs at scaled parameters, which may be worse off than others.

    A statistic that cancels, such as ``mean(x**2) - mean(x)**2``, loses more digits the larger a
    bias is that it takes away.
    """
    noise = 0.0
    for setting in settings:
        there = dataclasses.replace(network, params=_applied(network.params, setting))
        found = errors_of(there, [Setting(("base",), {}), *jitter(there)])
        noise = max(noise, *found.values())
    return noise


def jitter(network: Network) -> Iterator[Setting]:
    """Changes of the size of rounding; a constant minus its mean may be exactly 0 under one."""
    for seed in _JITTERS:
        rng = np.random.default_rng(seed)
        factors = {k: 1 + 1e-13 * rng.normal(size=v.shape) for k, v in network.params.items()}
        yield Setting(("jitter", seed), factors)


def _claims(network: Network, analysis: bnmask.Analysis) -> Iterator[Setting]:  # noqa: C901 - one loop a kind of claim
    paths = [leaf.path for leaf in analysis.leaves]
    found = analysis.proof.found  # ty: the explainer of a program
    for number, vector in enumerate(analysis.symmetries):
        top = max(abs(float(c)) for c in vector.values())
        for c in (2.3, 0.4):
            factors = {k: c ** (float(s) / max(1.0, top / 2)) for k, s in vector.items()}
            yield Setting(("symmetry", number, c, tuple(vector)), factors)
    if found.cone:
        top = max(float(c) for c in found.cone.values())
        factors = {paths[i]: 50 ** (float(s) / top) for i, s in found.cone.items()}
        yield Setting(("cone", tuple(factors)), factors)
    for leaf in analysis.leaves:
        if leaf.scale is not bnmask.Scale.INVARIANT:
            continue
        witness = {paths[i]: float(s) for i, s in found.witness[paths.index(leaf.path)].items()}
        for c in (3.1, 0.3, 117.0):
            yield Setting(
                ("invariant", leaf.path, c, tuple(witness)), {k: c**s for k, s in witness.items()}
            )
        for axis in leaf.invariant_axes:
            index = zlib.crc32(leaf.path.encode()) % leaf.shape[axis]
            for c in (2.7, 0.2):
                yield from at_index(
                    network,
                    ("axis", leaf.path, axis, c),
                    leaf.path,
                    axis,
                    index,
                    c,
                    [k for k in witness if k != leaf.path],
                )


def at_index(
    network: Network,
    question: tuple[Any, ...],
    path: str,
    axis: int,
    index: int,
    c: float,
    biases: list[str],
) -> Iterator[Setting]:
    """One index of one axis, with each way that the biases may go along."""
    value = network.params[path]

    def factor(shape: tuple[int, ...], axis: int) -> np.ndarray:
        out = np.ones(shape)
        out[(slice(None),) * axis + (index,)] = c
        return out

    def ways(shape: tuple[int, ...]) -> Iterator[np.ndarray]:
        yield np.ones(shape)
        for place, n in enumerate(shape):
            if n % value.shape[axis] == 0:  # as many entries to an index as the bias has of it
                split = (*shape[:place], value.shape[axis], n // value.shape[axis])
                yield factor((*split, *shape[place + 1 :]), place).reshape(shape)

    own = {path: factor(value.shape, axis)}
    for chosen in itertools.product(*(ways(network.params[bias].shape) for bias in biases)):
        yield Setting(question, {**own, **dict(zip(biases, chosen, strict=True))})
    if biases:
        yield Setting(question, {**own, **{b: np.full(network.params[b].shape, c) for b in biases}})


def _absences(network: Network, analysis: bnmask.Analysis) -> Iterator[Setting]:
    """What would show that something was missed."""
    rng = np.random.default_rng(2)
    for leaf in analysis.leaves:
        path = leaf.path
        if leaf.scale in (bnmask.Scale.SENSITIVE, bnmask.Scale.JOINT):
            own = network.own.get(path, [])
            yield Setting(("dead", path), {}, {path: rng.normal(size=leaf.shape)})
            for together in [(path,), (path, *own)] if own else [(path,)]:
                everything = dict.fromkeys(together, 2.1)
                yield Setting(("absent", path, together), everything)
        elif leaf.scale is bnmask.Scale.INVARIANT:
            for axis, n in enumerate(leaf.shape):
                if axis in leaf.invariant_axes or n == 1:
                    continue
                for index in range(n):
                    question = ("absent_axis_part", path, axis, index)
                    yield from at_index(
                        network, question, path, axis, index, 2.2, network.own.get(path, [])
                    )


def errors_of(network: Network, settings: list[Setting]) -> dict[tuple[Any, ...], float]:
    """For each question the least relative change of the outputs among its alternatives."""
    evaluate = traced(network.fn, network.params, network.x)
    rows = [evaluate(_applied(network.params, s), network.x) for s in settings]
    joined = [np.stack(column) for column in zip(*rows, strict=True)]
    base = [y[0] for y in joined]
    errors: dict[tuple[Any, ...], float] = {}
    for row, setting in enumerate(settings):
        error = max(_relative(y[row], a) for y, a in zip(joined, base, strict=True))
        errors[setting.question] = min(error, errors.get(setting.question, np.inf))
    for question in [q for q in errors if q[0] == "absent_axis_part"]:
        error = errors.pop(question)
        whole = ("absent_axis", *question[1:3])
        errors[whole] = max(error, errors.get(whole, 0.0))
    return errors


def _relative(y: np.ndarray, base: np.ndarray) -> float:
    size = float(np.max(np.abs(base), initial=0.0))
    if not np.isfinite(size) or not np.all(np.isfinite(y)):
        return np.inf
    return float(np.max(np.abs(y - base), initial=0.0)) / max(size, 1e-300)


def _applied(params: Mapping[str, np.ndarray], setting: Setting) -> dict[str, np.ndarray]:
    return {k: setting.values.get(k, v) * setting.factors.get(k, 1.0) for k, v in params.items()}


def main() -> int:
    """Examines networks by seed and prints what is odd."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quiet", action="store_true", help="do not list what was missed")
    given = parser.parse_args()
    started, claims, wrong, skipped, failed = time.time(), 0, 0, 0, 0
    missed: collections.Counter[str] = collections.Counter()
    scales: collections.Counter[str] = collections.Counter()
    for seed in range(given.seed, given.seed + given.count):
        network = seeded_network(seed)
        try:
            analysis = analysis_of(network)
            got = examine(network, analysis)
        except Exception as error:
            failed += 1
            last = traceback.extract_tb(error.__traceback__)[-1]
            print(f"FAILED {seed} {type(error).__name__} {error} at {last.name} {network}")
            continue
        scales.update(str(leaf.scale) for leaf in analysis.leaves)
        claims += got.claims
        skipped += bool(got.skipped)
        for line in got.wrong:
            wrong += 1
            print(f"WRONG {seed} {line} {network}")
        for line in got.missed:
            kind = "axis" if line.startswith("axis") else line.split("/")[-1]
            missed[kind] += 1
            if not given.quiet:
                print(f"missed {seed} {line} {network}")
        sys.stdout.flush()
    print(
        f"{given.count} networks from seed {given.seed}: {claims} claims, {wrong} wrong, "
        f"{sum(missed.values())} missed, {skipped} ill-conditioned, {failed} failed, leaves "
        f"{dict(scales)}, in {time.time() - started:.0f} s\nmissed by kind: {dict(missed)}"
    )
    return int(wrong > 0 or failed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
