"""What a claimed degree means in numbers: every entry of a result scales as it says.

``check(fn, *operands)`` gives every entry of every operand an exponent that the equations of the
program leave free, scales the operands entry by entry, and compares each entry of the results with
what its degree promises.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from optax_bnmask import compat
from optax_bnmask.program.context import Symmetry
from optax_bnmask.program.degree import ZERO, Degree
from optax_bnmask.program.forms import Form, Profile
from optax_bnmask.program.interpreter import walk
from optax_bnmask.program.rules import families
from optax_bnmask.program.symmetries import leaf_degree
from optax_bnmask.program.unknowns import Unknowns

FAMILIES = families.FAMILIES
BASE = 2.0


class Assignment:
    """A value for each unknown that is still free, drawn when it is first asked for."""

    def __init__(self, unknowns: Unknowns, rng: np.random.Generator) -> None:
        self.unknowns = unknowns
        self.rng = rng
        self.values: dict[int, np.ndarray] = {}

    def of(self, key: int, length: int) -> np.ndarray:
        """The entries of a free unknown, seen along a segment."""
        source, size = self.unknowns.source(key), self.unknowns.size[key]
        if source not in self.values:
            self.values[source] = self.rng.integers(-4, 5, size) / 4
        inner = 1 if size == 1 else self.unknowns.inner(key)
        if size == 1:
            return np.full(length, self.values[source][0])
        period = size * inner
        assert length % period == 0, f"a view of period {period} on {length} entries"
        return np.tile(np.repeat(self.values[source], inner), length // period)

    def form(self, form: Form, length: int = 1) -> np.ndarray:
        """The entries of a form along a segment."""
        out = np.zeros(length)
        for key, c in form.items():
            assert key not in self.unknowns.solved, "a form that was not resolved"
            out += float(c) * self.of(key, length)
        return out

    def profile(self, profile: Profile) -> np.ndarray:
        """The entries of a profile; NaN where the values have every degree at once."""
        parts = [
            np.full(n, np.nan) if form is None else self.form(form, n)
            for n, form in self.unknowns.resolve_along(profile)
        ]
        return np.concatenate(parts) if parts else np.zeros(0)

    def degree(self, d: Degree, shape: Sequence[int]) -> np.ndarray:
        """The exponent of every entry of a value; NaN for every degree at once."""
        if d.level is None:
            return np.full(shape, np.nan)
        out = np.full(shape, self.form(self.unknowns.resolve(d.level))[0])
        for key, profile in d.along.items():
            axes = [axis for axis, _ in key]
            for axis, n in key:
                assert axis >= 0, f"an axis of a loop is left in {d}"
                assert shape[axis] == n, f"{key} on a value of shape {shape}"
            grid = self.profile(profile).reshape([n for _, n in key])
            order = sorted(range(len(axes)), key=axes.__getitem__)
            grid = grid.transpose(order)
            out = out + grid.reshape([n if a in axes else 1 for a, n in enumerate(shape)])
        return out


def read(
    fn: Callable[..., Any], *operands: Any, scaled: Sequence[bool] | None = None
) -> tuple[Symmetry, list[Degree], list[Degree], Any]:
    """The degrees of the operands and of the results of a function, and its jaxpr."""
    closed = jax.make_jaxpr(fn)(*operands)
    jaxpr = compat.open_jaxpr(closed)
    reading = Symmetry(Unknowns())
    leaves = [
        leaf_degree(reading.unknowns, v.aval.shape)
        if np.issubdtype(v.aval.dtype, np.inexact) and (scaled is None or scaled[i])
        else ZERO
        for i, v in enumerate(jaxpr.invars)
    ]
    outs = walk(reading, jaxpr, leaves, compat.consts_of(closed))
    return reading, leaves, outs, jaxpr


def settled(reading: Symmetry, degrees: Sequence[Degree]) -> list[Degree]:
    """The degrees in terms of what is still free."""
    return list(reading.layouts.settled(dict(enumerate(degrees))).values())


def check(
    fn: Callable[..., Any],
    *operands: Any,
    scaled: Sequence[bool] | None = None,
    run: Callable[..., Sequence[np.ndarray]] | None = None,
    draws: int = 3,
    rtol: float = 1e-6,
    show: Callable[[int, np.ndarray], np.ndarray] = lambda place, x: x,
) -> int:
    """Compares every entry with what its degree promises.

    Args:
      fn: Takes the operands, returns arrays.
      *operands: Arrays; those of floating dtype are scaled.
      scaled: Which operands to scale at all.
      run: What computes the values, in place of `fn`.
      draws: How many assignments of exponents to try.
      rtol: How far entries may be off, relative to the largest of their array.
      show: ``(place, result)`` to what to compare of it.

    Returns:
      The number of exponents that are free among the operands' entries.
    """
    reading, leaves, outs, jaxpr = read(fn, *operands, scaled=scaled)
    degrees = settled(reading, [*leaves, *outs])
    leaves, outs = degrees[: len(leaves)], degrees[len(leaves) :]
    flat, tree = jax.tree.flatten(operands)
    flat = [np.asarray(x) for x in flat]
    compute = run or jax.jit(fn)
    plain = [np.asarray(x) for x in jax.tree.leaves(compute(*operands))]
    for draw in range(draws):
        given = Assignment(reading.unknowns, np.random.default_rng(draw))
        moved = [
            (x * BASE ** given.degree(d, x.shape)).astype(x.dtype) if d is not ZERO else x
            for x, d in zip(flat, leaves, strict=True)
        ]
        found = compute(*jax.tree.unflatten(tree, moved))
        powers = [given.degree(d, v.aval.shape) for d, v in zip(outs, jaxpr.outvars, strict=True)]
        for place, (power, before, after) in enumerate(
            zip(powers, plain, jax.tree.leaves(found), strict=True)
        ):
            promised = before * BASE ** np.nan_to_num(power) if is_float(before) else before
            trivial = (before == 0) | ~np.isfinite(before)
            assert np.all(trivial[np.isnan(power)]), f"result {place} has not every degree"
            _compare(show(place, promised), show(place, np.asarray(after)), rtol, outs[place])
    return _free_entries(reading, leaves, flat)


def is_float(x: np.ndarray) -> bool:
    """Whether an array holds real or complex numbers."""
    return bool(np.issubdtype(x.dtype, np.inexact))


def _compare(promised: np.ndarray, found: np.ndarray, rtol: float, d: Degree) -> None:
    finite = np.isfinite(promised)
    error = np.abs(np.subtract(found, promised, dtype=np.result_type(promised, 1.0)))[finite]
    size = np.abs(promised[finite])
    assert np.all(error <= rtol * (size + 1e-3 * size.max(initial=0.0))), (
        f"a result of degree {d} does not scale so: {found} where {promised} was promised"
    )


def _free_entries(reading: Symmetry, leaves: Sequence[Degree], flat: Sequence[np.ndarray]) -> int:
    """The dimension of the space of exponents of all entries."""
    rows = []
    for draw in range(min(sum(x.size for x in flat) + 1, 60)):
        given = Assignment(reading.unknowns, np.random.default_rng((1, draw)))
        parts = [given.degree(d, x.shape).ravel() for d, x in zip(leaves, flat, strict=True)]
        rows.append(np.concatenate(parts))
    return int(np.linalg.matrix_rank(np.array(rows)))
