"""A compiled optimizer that runs on the params of all `RUNS`; leaves treated alike run once."""

import itertools
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from optax_bnmask import compat
from optax_bnmask.audit.deduplication import Labels, ShortProgram, shortened
from optax_bnmask.audit.double_precision import over_runs
from optax_bnmask.audit.patterns import (
    CHANGING_STEPS,
    RUNS,
    checkerboard,
    gradient_pattern,
    orthogonal_checkerboard,
    uneven_checkerboard,
)
from optax_bnmask.audit.update import Update
from optax_bnmask.verify.widening import wide

Compiler = Callable[[ShortProgram], Callable[[list[Any]], list[Any]]]
"""Compiles a shortened program into a function of a list of arrays."""


class LeafKind(NamedTuple):
    """Leaves of one shape and dtype to which the optimizer does the same.

    Attributes:
      leaf: Their shape and dtype.
      updates: The label of their update in each of `Update.steps`.
      held: The label of the norms that the state holds them at, None where it holds none.
    """

    leaf: jax.ShapeDtypeStruct
    updates: tuple[int, ...]
    held: int | None


class _CompiledStep(NamedTuple):
    """A shortened program, compiled.

    Attributes:
      inputs: The labels of what it reads.
      results: The labels of what it returns, each once.
      run: The program, on arrays of which each row is a run.
    """

    inputs: tuple[int, ...]
    results: tuple[int, ...]
    run: Callable[[list[Any]], list[Any]]

    def results_of(self, values: Mapping[int, Any]) -> dict[int, Any]:
        """What it returns, by label."""
        outs = self.run([values[label] for label in self.inputs])
        return dict(zip(self.results, outs, strict=True))


class CompiledOptimizer:
    """The compiled update of an optimizer, to be started on any params.

    Attributes:
      kinds: The kinds of leaf.
      kind_of: For each leaf, the number of its kind.
    """

    kinds: tuple[LeafKind, ...]
    kind_of: tuple[int, ...]

    def __init__(
        self,
        update: Update,
        distinguished_by: Sequence[Hashable] = (),
        compiler: Compiler = over_runs,
    ) -> None:
        """Compiles an update.

        Args:
          update: The update.
          distinguished_by: For each leaf, a key for its initial value; leaves of one shape, dtype
            and key start equal. Empty where the key is the same for all.
          compiler: How to compile a program.
        """
        labels = Labels()
        keys = distinguished_by or [None] * len(update.leaves)
        leaves = [(x.shape, x.dtype, key) for x, key in zip(update.leaves, keys, strict=True)]
        starts = [labels.of(("start", leaf)) for leaf in leaves]
        self._params = [labels.of(("params", leaf)) for leaf in leaves]
        self._gradient = [labels.of(("gradient", leaf)) for leaf in leaves]
        inputs = zip(starts, self._gradient, update.leaves, strict=True)
        self._leaves = dict(zip(self._params, inputs, strict=True))
        begin = shortened(labels, update.start, starts)
        self._init = _compiled(begin, compiler)
        self._steps: list[_CompiledStep] = []
        state: Sequence[int] = begin.results
        made: list[Sequence[int]] = []
        for program in update.steps[:-1]:
            short = self._shortened(labels, program, state)
            made.append(short.results[: len(leaves)])
            after = short.results[len(leaves) :]
            self._steps.append(_compiled(short, compiler))
            state = after
        self._state_before, (last, state) = state, self._repeated(labels, update.steps[-1], state)
        made.append(last.results[: len(leaves)])
        self._next_state = dict(zip(state, last.results[len(leaves) :], strict=True))
        self._steps.append(_compiled(last, compiler))
        self._state = state
        places = update.held or [None] * len(update.leaves)
        held = [None if place is None else begin.results[place] for place in places]
        ways = [*zip(self._params, held, *made, strict=True)]
        numbers = {way: number for number, way in enumerate(dict.fromkeys(ways))}
        self.kinds = tuple(
            LeafKind(self._leaves[params][-1], tuple(updates), norms)
            for params, norms, *updates in numbers
        )
        self._params_of_kind = tuple(way[0] for way in numbers)
        self._inputs_of_kind = tuple(last.reads(way[-1]) for way in numbers)
        self.kind_of = tuple(numbers[way] for way in ways)

    def _shortened(self, labels: Labels, program: Any, state: Sequence[int]) -> ShortProgram:  # noqa: ANN401
        return shortened(labels, program, (*self._gradient, *self._params, *state))

    def _repeated(
        self,
        labels: Labels,
        program: Any,  # noqa: ANN401 - a jaxpr
        state: Sequence[int],
    ) -> tuple[ShortProgram, Sequence[int]]:
        """The program of all further steps, and labels of the state that hold in each of them.

        Two parts of the state that start equal, as the two zeros of Adam, have one label only if
        they are equal after each step too: labels are split until that is so. No part has the label
        of a constant, though the state may start as one.
        """
        state = [labels.of(("carried", label)) for label in state]
        while True:
            short = self._shortened(labels, program, state)
            after = short.results[len(self._params) :]
            refined = [labels.of(("carried", *pair)) for pair in zip(state, after, strict=True)]
            if len(set(refined)) == len(set(state)):
                return short, state
            state = refined

    def steps(self, scale: float, gradient_scale: float) -> Iterator[Mapping[int, np.ndarray]]:
        """Takes steps without end on the params of `RUNS`, which stay: only the state moves.

        Args:
          scale: What the params of all runs are multiplied with.
          gradient_scale: What the gradients are multiplied with.

        Yields:
          The updates of a step by label, each with one row for each run.
        """
        given, starts = self._params_and_starts(scale)
        values = self._init.results_of(starts)
        *once, last = self._steps
        for number in itertools.count():
            if number < CHANGING_STEPS:
                given |= self._gradients(gradient_scale, number)
            if number == len(once):
                values = self._repeating(values)
            values = (once[number] if number < len(once) else last).results_of(given | values)
            yield self._updates(values, min(number, len(once)))
            if number >= len(once):
                values = {now: values[then] for now, then in self._next_state.items()}

    def held_norms(self, scale: float) -> list[np.ndarray | None]:
        """For each kind of leaf, the norm that the state holds it at in each run, if it holds one.

        Args:
          scale: What the params of all runs are multiplied with.
        """
        values = self._init.results_of(self._params_and_starts(scale)[1])
        return [None if kind.held is None else _norms(values[kind.held]) for kind in self.kinds]

    def _params_and_starts(self, scale: float) -> tuple[dict[int, Any], dict[int, Any]]:
        """The params of `RUNS` by label, and those that `init` gets."""
        given: dict[int, Any] = {}
        starts: dict[int, Any] = {}
        for params, (start, _, leaf) in self._leaves.items():
            even, uneven = checkerboard(leaf.shape), uneven_checkerboard(leaf.shape)
            own = [scale * r.params * (uneven if r.uneven_params else even) for r in RUNS]
            other = scale * orthogonal_checkerboard(leaf.shape)
            given[params] = _rows(leaf, own)
            starts[start] = _rows(
                leaf, [other if r.other_start else x for r, x in zip(RUNS, own, strict=True)]
            )
        return given, starts

    def _gradients(self, gradient_scale: float, number: int) -> dict[int, Any]:
        """The gradients of a step, by label."""
        out = {}
        for _, gradient, leaf in self._leaves.values():
            same, other = gradient_pattern(leaf.shape), gradient_pattern(leaf.shape, number)
            rows = [
                gradient_scale * r.gradient * (other if r.changing_gradient else same) for r in RUNS
            ]
            out[gradient] = _rows(leaf, rows)
        return out

    def steps_without_gradient(
        self, values: Sequence[float], dtypes: Sequence[Any], stride: int
    ) -> Iterator[tuple[int, Sequence[np.ndarray], Sequence[bool]]]:
        """Takes steps without end with gradients of 0, from leaves filled with one number each.

        Args:
          values: The number for each leaf.
          dtypes: For each leaf, the dtype that it is rounded to in every step.
          stride: How many steps to take at once.

        Yields:
          How many steps were taken; for each kind of leaf its params, and whether its update reads
          a part of the state of its shape that changes.
        """
        rounded = dict(zip(self._params, dtypes, strict=True))
        numbers = dict(zip(self._params, values, strict=True))
        zero, starts, params = dict[int, Any](), dict[int, Any](), dict[int, Any]()
        for label, (start, gradient, leaf) in self._leaves.items():
            params[label] = starts[start] = jnp.full(leaf.shape, numbers[label], leaf.dtype)
            zero[gradient] = jnp.zeros(leaf.shape, leaf.dtype)
        *once, last = self._steps

        def moved(params: dict[int, Any], made: Mapping[int, Any], number: int) -> dict[int, Any]:
            out = dict(params)
            for label, kind in zip(self._params_of_kind, self.kinds, strict=True):
                new = (params[label] + made[kind.updates[number]]).astype(rounded[label])
                out[label] = new.astype(kind.leaf.dtype)
            return out

        state = self._init.results_of(starts)
        for number, each in enumerate(once):
            state = each.results_of(zero | params | state)
            params = moved(params, state, number)

        def step(_: int, carry: tuple[Any, Any]) -> tuple[Any, Any]:
            params, state = carry
            made = last.results_of(zero | params | state)
            state = {now: made[then] for now, then in self._next_state.items()}
            return moved(params, made, len(once)), state

        steps = jax.jit(partial(lax.fori_loop, 0, stride, step))
        first = self._repeating(state)
        carry = params, first
        for number in itertools.count(1):
            carry = steps(carry)
            changed = {
                label
                for label, value in carry[1].items()
                if compat.is_inexact(value.dtype) and not np.array_equal(value, first[label])
            }
            yield (
                len(once) + number * stride,
                [np.asarray(carry[0][label]) for label in self._params_of_kind],
                [
                    any(first[label].shape == kind.leaf.shape for label in reads & changed)
                    for kind, reads in zip(self.kinds, self._inputs_of_kind, strict=True)
                ],
            )

    def _repeating(self, values: Mapping[int, Any]) -> dict[int, Any]:
        """The state by the labels that it has in all further steps."""
        return {label: values[x] for x, label in zip(self._state_before, self._state, strict=True)}

    def _updates(self, values: Mapping[int, Any], number: int) -> dict[int, np.ndarray]:
        """The updates among the results of a step, by label."""
        wanted = dict.fromkeys(kind.updates[number] for kind in self.kinds)
        return {label: np.asarray(values[label]) for label in wanted}


def _compiled(short: ShortProgram, compiler: Compiler) -> _CompiledStep:
    results = tuple(dict.fromkeys(short.results))
    return _CompiledStep(short.inputs, results, compiler(short._replace(results=results)))


def _norms(norms: Any) -> np.ndarray:  # noqa: ANN401 - an array
    """The norm of a whole leaf in each run, from those of its slices."""
    return np.linalg.norm(np.reshape(norms, (len(RUNS), -1)), axis=1)


def _rows(leaf: jax.ShapeDtypeStruct, rows: Sequence[np.ndarray]) -> Any:  # noqa: ANN401 - an array
    """One array with a row for each run, in double precision if the leaf is one of floats."""
    return jnp.asarray(np.stack(rows).astype(wide(leaf.dtype)))
