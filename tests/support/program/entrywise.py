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
from optax_bnmask.program.demands import Axes
from optax_bnmask.program.equations import Form, System
from optax_bnmask.program.exponents import Degree
from optax_bnmask.program.facts import Facts
from optax_bnmask.program.flags import ANY_DEGREE
from optax_bnmask.program.indices import Segments, starts_of
from optax_bnmask.program.rules import load
from optax_bnmask.program.solve import Solution
from optax_bnmask.program.tape import Tape
from optax_bnmask.program.trace import Program

BASE = 2.0


class Assignment:
    """A value for each unknown that is still free, drawn when it is first asked for."""

    def __init__(self, system: System, rng: np.random.Generator) -> None:
        self.system = system
        self.rng = rng
        self.values: dict[int, np.ndarray] = {}

    def form(self, form: Form, shape: Sequence[int]) -> np.ndarray:
        """The value of a form for each choice of an entry of some atoms."""
        out = np.zeros(shape)
        for unknown, c in form.items():
            assert unknown not in self.system.solved, "a form that was not resolved"
            if unknown not in self.values:
                self.values[unknown] = self.rng.integers(-4, 5, shape) / 4
            assert self.values[unknown].shape == tuple(shape), "one unknown for two components"
            out += float(c) * self.values[unknown]
        return out

    def degree(
        self, d: Degree | None, axes: Sequence[Segments], shape: Sequence[int]
    ) -> np.ndarray:
        """The exponent of every entry of a value; NaN for every degree at once."""
        if d is None:
            return np.full(shape, np.nan)
        out = np.full(shape, np.inf)
        for cell, components in d.items():
            where = []
            for t, segments in zip(cell, axes, strict=True):
                ends = starts_of([*segments, ()])
                where.append(slice(ends[t], ends[t + 1]))
            sizes = [s.stop - s.start for s in where]
            part = np.zeros(sizes)
            for component, form in (components or {}).items():
                atoms = [axes[p][cell[p]][k].size for p, k in component]
                part = part + self._laid_out(component, self.form(form, atoms), cell, axes, sizes)
            out[tuple(where)] = np.nan if components is None else part
        assert not np.any(np.isinf(out)), "a cell is missing"
        return out

    @staticmethod
    def _laid_out(component, values, cell, axes, sizes) -> np.ndarray:
        """The values of a component, entry by entry of a cell."""
        places = {place: n for n, place in enumerate(component)}
        fine, order = [], []
        for p, t in enumerate(cell):
            for k, atom in enumerate(axes[p][t]):
                fine.append(atom.size if (p, k) in places else 1)
                if (p, k) in places:
                    order.append(places[p, k])
        every = [atom.size for p, t in enumerate(cell) for atom in axes[p][t]]
        grid = np.broadcast_to(values.transpose(order).reshape(fine), every)
        return grid.reshape(sizes)


class Reading:
    """The two passes over a function, and the degrees of what goes in and comes out.

    Attributes:
      solution: The second pass.
      jaxpr: The program.
      outs: The values of its outputs.
    """

    def __init__(self, fn, *operands, scaled=None) -> None:
        load()
        closed = jax.make_jaxpr(fn)(*operands)
        self.jaxpr = compat.open_jaxpr(closed)
        leaves = [i if scaled is None or scaled[i] else None for i in range(len(self.jaxpr.invars))]
        program = Program(closed, compat.consts_of(closed), (), (), (), tuple(leaves), (), ())
        tape = Tape(program)
        self.facts = Facts(tape)
        self.axes = Axes(self.facts)
        self.solution = Solution(self.axes)
        self.solution.read(tape.outs)
        self.ins, self.outs = tape.ins, tape.outs
        self.solution.finish()

    def settled(self, x: int) -> tuple[Degree | None, list[Segments]]:
        """The degree of a value, cell by cell, in terms of what is still free."""
        if x not in self.axes.of:
            axes = [((),) * n for n in self.facts.tape.shapes[x]]
            return None if self.facts.flags[x] & ANY_DEGREE else {}, axes
        solution, axes = self.solution, self.axes.segments(x)
        full = solution.arithmetic.full(solution.degrees[x], axes)
        resolve = solution.system.resolve
        return {
            c: None if d is None else {k: resolve(f) for k, f in d.items()} for c, d in full.items()
        }, axes


def powers_of(reading: Reading, given: Assignment, x: int, shape: Sequence[int]) -> np.ndarray:
    """The exponent of every entry of a value; NaN for every degree at once, 0 for constants."""
    d, axes = reading.settled(x)
    return np.zeros(shape) if d == {} else given.degree(d, axes, shape)


def read(fn: Callable[..., Any], *operands: Any, scaled: Sequence[bool] | None = None) -> Reading:
    """The two passes over a function."""
    return Reading(fn, *operands, scaled=scaled)


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
    reading = read(fn, *operands, scaled=scaled)
    flat, tree = jax.tree.flatten(operands)
    flat = [np.asarray(x) for x in flat]
    compute = run or jax.jit(fn)
    plain = [np.asarray(x) for x in jax.tree.leaves(compute(*operands))]
    for draw in range(draws):
        given = Assignment(reading.solution.system, np.random.default_rng(draw))
        moved = [
            (x * BASE ** np.nan_to_num(powers_of(reading, given, v, x.shape))).astype(x.dtype)
            if is_float(x)
            else x
            for x, v in zip(flat, reading.ins, strict=True)
        ]
        found = compute(*jax.tree.unflatten(tree, moved))
        for place, (v, before, after) in enumerate(
            zip(reading.outs, plain, jax.tree.leaves(found), strict=True)
        ):
            power = powers_of(reading, given, v, before.shape)
            promised = before * BASE ** np.nan_to_num(power) if is_float(before) else before
            trivial = (before == 0) | ~np.isfinite(before)
            assert np.all(trivial[np.isnan(power)]), f"result {place} has not every degree"
            _compare(show(place, promised), show(place, np.asarray(after)), rtol, place)
    return _free_entries(reading, flat)


def is_float(x: np.ndarray) -> bool:
    """Whether an array holds real or complex numbers."""
    return bool(np.issubdtype(x.dtype, np.inexact))


def _compare(promised: np.ndarray, found: np.ndarray, rtol: float, place: int) -> None:
    finite = np.isfinite(promised)
    error = np.abs(np.subtract(found, promised, dtype=np.result_type(promised, 1.0)))[finite]
    size = np.abs(promised[finite])
    assert np.all(error <= rtol * (size + 1e-3 * size.max(initial=0.0))), (
        f"result {place} does not scale as claimed: {found} where {promised} was promised"
    )


def _free_entries(reading: Reading, flat: Sequence[np.ndarray]) -> int:
    """The dimension of the space of exponents of all entries."""
    rows = []
    for draw in range(min(sum(x.size for x in flat) + 1, 60)):
        given = Assignment(reading.solution.system, np.random.default_rng((1, draw)))
        parts = [
            np.nan_to_num(powers_of(reading, given, v, x.shape)).ravel()
            for v, x in zip(reading.ins, flat, strict=True)
        ]
        rows.append(np.concatenate(parts))
    return int(np.linalg.matrix_rank(np.array(rows)))
