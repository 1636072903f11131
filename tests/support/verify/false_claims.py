# ruff: noqa: T201
"""True and false claims about random networks, of which `verify` must accept and refuse all.

``python -m tests.support.verify.false_claims --networks 200 --false 200`` verifies so many analyses
as they are, and so many that were made false, and prints every network at which `verify` is wrong.
That a claim is false is found by `tests.support.program.soundness`, which shares nothing with
`verify`.
"""

import argparse
import collections
import dataclasses
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import optax_bnmask as bnmask
from optax_bnmask import Analysis, Scale
from optax_bnmask.vocabulary import Cancellation
from tests.support.program.networks import Network, seeded_network
from tests.support.program.soundness import Setting, analysis_of, at_index, errors_of, jitter

CLEARLY = 1e-5
"""A claim is false beyond doubt if it moves an output by more than this part of the largest."""


@dataclasses.dataclass(frozen=True)
class FalseClaim:
    """An analysis made false.

    Attributes:
      kind: In which way.
      said: Of what.
      analysis: The analysis.
      fn: The function that it is false of.
    """

    kind: str
    said: str
    analysis: Analysis
    fn: Callable[..., Any]


def accepts(network: Network, false: FalseClaim | None = None) -> bool:
    """Whether `verify` finds nothing wrong with a network's analysis, or with a false one."""
    return verified(network, false) is not None


def verified(network: Network, false: FalseClaim | None = None) -> bnmask.Verification | None:
    """What `verify` says of a network's analysis, or of a false one; nothing if it refuses it."""
    analysis = analysis_of(network) if false is None else false.analysis
    fn = network.fn if false is None else false.fn
    params, x = _given(network)
    _forget(network)
    try:
        return bnmask.verify(analysis, fn, params, x, key=jax.random.key(len(params)))
    except bnmask.VerificationError:
        return None


def _given(network: Network) -> tuple[dict[str, Any], Any]:
    """The parameters and the input of a network, as a user would have them."""
    params = {path: jnp.asarray(v, jnp.float32) for path, v in network.params.items()}
    is_index = np.issubdtype(network.x.dtype, np.integer)
    return params, jnp.asarray(network.x, jnp.int32 if is_index else jnp.float32)


def _has_outputs(network: Network) -> bool:
    """Whether any output is finite: not so where the norm of what is 0 by itself is divided by."""
    _forget(network)
    return bool(np.any(np.isfinite(network.fn(*_given(network)))))


def _forget(network: Network) -> None:
    """Lets JAX trace all of a network anew.

    The layer called "raw" reads what an earlier layer left behind: in a block that JAX has traced
    before, and keeps, that is a value of a trace that is over.
    """
    if any("raw" in said for said in network.said):
        jax.clear_caches()


def false_claims(network: Network, seed: int) -> Iterator[FalseClaim]:
    """One false claim of each kind, as far as the network has something to be wrong about."""
    analysis, rng = analysis_of(network), np.random.default_rng(seed)
    for kind in (_invariant, _axis, _group, _dead, _shift, _in_the_limit):
        candidates = list(kind(network, analysis, rng))
        for place in rng.permutation(len(candidates)):
            false, settings = candidates[place]
            if _is_false(network, false, settings):
                yield false
                break


Candidate = tuple[FalseClaim, list[Setting]]


def _is_false(network: Network, false: FalseClaim, settings: list[Setting]) -> bool:
    network = dataclasses.replace(network, fn=false.fn)
    _forget(network)
    found = errors_of(network, [Setting(("base",), {}), *jitter(network), *settings])
    error = found[settings[0].question]
    noise = max(e for question, e in found.items() if question[0] == "jitter")
    return bool(np.isfinite(error) and error > max(CLEARLY, 1e3 * noise))


def _with(analysis: Analysis, path: str, **changes: Any) -> Analysis:
    leaves = (dataclasses.replace(x, **changes) if x.path == path else x for x in analysis.leaves)
    return dataclasses.replace(analysis, leaves=tuple(leaves))


def _invariant(network: Network, analysis: Analysis, _: Any) -> Iterator[Candidate]:
    """A sensitive leaf is called invariant."""
    paths = [leaf.path for leaf in analysis.leaves]
    for i, leaf in enumerate(analysis.leaves):
        if leaf.scale is Scale.SENSITIVE:
            false = _with(analysis, leaf.path, scale=Scale.INVARIANT)
            own = [paths[j] for j in analysis.proof.biases[i]]
            factors = dict.fromkeys((leaf.path, *own), 1.7)
            claim = FalseClaim("invariant", leaf.path, false, network.fn)
            yield claim, [Setting(("false",), factors)]


def _axis(network: Network, analysis: Analysis, rng: Any) -> Iterator[Candidate]:
    """One axis too many is called invariant index by index."""
    paths = [leaf.path for leaf in analysis.leaves]
    for i, leaf in enumerate(analysis.leaves):
        if leaf.scale is not Scale.INVARIANT:
            continue
        own = [paths[j] for j in analysis.proof.found.witness[i] if j != i]
        for axis, size in enumerate(leaf.shape):
            if axis in leaf.invariant_axes or size == 1:
                continue
            false = _with(analysis, leaf.path, invariant_axes=(*leaf.invariant_axes, axis))
            index = int(rng.integers(size))
            settings = at_index(network, ("false",), leaf.path, axis, index, 1.7, own)
            claim = FalseClaim("axis", f"{axis} of {leaf.path}", false, network.fn)
            yield claim, list(settings)


def _group(network: Network, analysis: Analysis, rng: Any) -> Iterator[Candidate]:
    """A joint group lacks a leaf, or has a sensitive one too many."""
    cone = {analysis.leaves[i].path: float(s) for i, s in analysis.proof.found.cone.items()}
    sensitive = [leaf.path for leaf in analysis.leaves if leaf.scale is Scale.SENSITIVE]
    for n, group in enumerate(analysis.groups):
        fewer = [group - {path} for path in sorted(group)] if len(group) > 2 else []
        more = [group | {path} for path in sensitive]
        for wrong in (*fewer, *more):
            groups = (*analysis.groups[:n], wrong, *analysis.groups[n + 1 :])
            false = dataclasses.replace(analysis, groups=groups)
            factors = {path: 1.7 ** cone.get(path, 1.0) for path in wrong}
            claim = FalseClaim("group", " ".join(sorted(wrong)), false, network.fn)
            yield claim, [Setting(("false",), factors)]


def _dead(network: Network, analysis: Analysis, rng: Any) -> Iterator[Candidate]:
    """A leaf that matters is called dead."""
    for leaf in analysis.leaves:
        if not leaf.dead:
            false = _with(analysis, leaf.path, dead=Cancellation("difference", ""))
            value = network.params[leaf.path]
            size = float(np.sqrt(np.mean(value**2))) or 1.0
            values = {leaf.path: value + size * rng.normal(size=value.shape)}
            claim = FalseClaim("dead", leaf.path, false, network.fn)
            yield claim, [Setting(("false",), {}, values)]


def with_shift_axes(analysis: Analysis, path: str, axes: tuple[int, ...]) -> Analysis:
    """An analysis that says so of a leaf."""
    proof = dataclasses.replace(analysis.proof)
    vars(proof)["shift_axes"] = analysis.shift_axes | {path: axes}
    return dataclasses.replace(analysis, proof=proof)


def _shift(network: Network, analysis: Analysis, rng: Any) -> Iterator[Candidate]:
    """A leaf is said to be free to be shifted along an axis along which it is not."""
    for leaf in analysis.leaves:
        for axis, n in enumerate(leaf.shape):
            own = analysis.shift_axes.get(leaf.path, ())
            if not leaf.dead and n > 1 and axis not in own:
                false = with_shift_axes(analysis, leaf.path, (*own, axis))
                value = network.params[leaf.path]
                size = float(np.sqrt(np.mean(value**2))) or 1.0
                along = [1 if a == axis else m for a, m in enumerate(value.shape)]
                values = {leaf.path: value + size * rng.normal(size=along)}
                claim = FalseClaim("shift", f"{axis} of {leaf.path}", false, network.fn)
                yield claim, [Setting(("false",), {}, values)]


def _in_the_limit(network: Network, analysis: Analysis, rng: Any) -> Iterator[Candidate]:
    """A constant is added to an invariant leaf: far out, its scale does not matter either."""
    for i, leaf in enumerate(analysis.leaves):
        if leaf.scale is not Scale.INVARIANT:
            continue
        value = network.params[leaf.path]
        size = float(np.sqrt(np.mean(value**2))) * 10 ** rng.uniform(-2.0, 0.0)
        shift = size * rng.normal(size=value.shape)

        def fn(p: Any, x: Any, path: str = leaf.path, shift: Any = shift) -> Any:
            return network.fn({**p, path: p[path] + jnp.asarray(shift, p[path].dtype)}, x)

        witness = analysis.proof.found.witness[i]
        factors = {analysis.leaves[j].path: 1.7 ** float(s) for j, s in witness.items()}
        yield FalseClaim("limit", leaf.path, analysis, fn), [Setting(("false",), factors)]


def main() -> int:
    """Tries networks by seed and prints where `verify` is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", type=int, default=10_000)
    parser.add_argument("--false", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    wrong = _wrongly_refused(range(given.seed, given.seed + given.networks))
    return int(wrong + _wrongly_accepted(given.seed, given.false) > 0)


def _wrongly_refused(seeds: Sequence[int]) -> int:
    """The number of networks whose analysis is refused, or which cannot be tried."""
    started, found = time.time(), collections.Counter[str]()
    for seed in seeds:
        network = seeded_network(seed)
        try:
            if accepts(network):
                continue
            what = "false alarms" if _has_outputs(network) else "without a finite output"
            print(f"{what.upper()} {seed} {network}", flush=True)
        except Exception as error:
            what = "failed"
            print(f"FAILED {seed} {_place(error)} {network}", flush=True)
        found[what] += 1
    took = f"{time.time() - started:.0f} s"
    print(f"{len(seeds)} networks from seed {seeds[0]}: {dict(found) or 'all accepted'}, in {took}")
    return found["false alarms"] + found["failed"]


def _wrongly_accepted(first: int, n_claims: int) -> int:
    """The number of false claims, about networks from a seed on, that are accepted."""
    started, seed = time.time(), first
    tried, passed = collections.Counter[str](), collections.Counter[str]()
    while tried.total() < n_claims:
        network = seeded_network(seed)
        for false in false_claims(network, seed):
            tried[false.kind] += 1
            try:
                found = verified(network, false)
            except Exception as error:
                passed["failed"] += 1
                print(f"FAILED {seed} {_place(error)} {network}", flush=True)
                continue
            if found is not None:
                what = "passes" if not found.unseen else "not looked at"
                passed[what] += 1
                print(f"{what.upper()} {seed} {false.kind}: {false.said} {network}", flush=True)
        seed += 1
    print(
        f"{tried.total() - passed.total()} of {tried.total()} false claims caught ({dict(tried)}; "
        f"of the rest: {dict(passed)}), about networks from seed {first} to {seed - 1}, in "
        f"{time.time() - started:.0f} s"
    )
    return passed["passes"] + passed["failed"]


def _place(error: Exception) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} {error} at {last.name}"


if __name__ == "__main__":
    raise SystemExit(main())
