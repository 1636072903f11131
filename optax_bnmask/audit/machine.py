"""Runs a traced optimizer on the params of all `RUNS` at once; leaves treated alike run once."""

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
from optax_bnmask.audit.patterns import CHANGES, RUNS, aside, board, mixed, push
from optax_bnmask.audit.update import Update
from optax_bnmask.verify.interpreter import wide

Form = Callable[[ShortProgram], Callable[[list[Any]], list[Any]]]
"""Compiles a shortened program into a function of a list of arrays."""


class Kind(NamedTuple):
    """Leaves of one shape and dtype to which the optimizer does the same.

    Attributes:
      leaf: Their shape and dtype.
      updates: The label of their update in each stage.
    """

    leaf: jax.ShapeDtypeStruct
    updates: tuple[int, ...]


class _Stage(NamedTuple):
    """One program, shortened and compiled.

    Attributes:
      inputs: The labels of what it reads.
      results: The labels of what it returns, each once.
      run: The program, on arrays of which each row is a run.
    """

    inputs: tuple[int, ...]
    results: tuple[int, ...]
    run: Callable[[list[Any]], list[Any]]

    def of(self, values: Mapping[int, Any]) -> dict[int, Any]:
        """What it returns, by label."""
        outs = self.run([values[label] for label in self.inputs])
        return dict(zip(self.results, outs, strict=True))


class Machine:
    """The compiled update of an optimizer, to be started on any params.

    Attributes:
      kinds: The kinds of leaf.
      kind_of: For each leaf, the number of its kind.
    """

    kinds: tuple[Kind, ...]
    kind_of: tuple[int, ...]

    def __init__(
        self, update: Update, apart: Sequence[Hashable] = (), form: Form = over_runs
    ) -> None:
        """Compiles an update.

        Args:
          update: The update.
          apart: For each leaf, a key that tells it from others of its shape and dtype; empty unless
            leaves are started differently.
          form: How to compile a program.
        """
        labels = Labels()
        leaves = [
            (leaf.shape, leaf.dtype, *own)
            for leaf, *own in zip(update.leaves, *([apart] if apart else []), strict=True)
        ]
        starts = [labels.of(("start", leaf)) for leaf in leaves]
        self._params = [labels.of(("params", leaf)) for leaf in leaves]
        self._gradient = [labels.of(("gradient", leaf)) for leaf in leaves]
        inputs = zip(starts, self._gradient, update.leaves, strict=True)
        self._leaves = dict(zip(self._params, inputs, strict=True))
        begin = shortened(labels, update.start, starts)
        self._begin = _stage(begin, form)
        self._stages: list[_Stage] = []
        state: Sequence[int] = begin.results
        made: list[Sequence[int]] = []
        for program in update.steps[:-1]:
            short = self._step(labels, program, state)
            made.append(short.results[: len(leaves)])
            after = short.results[len(leaves) :]
            self._stages.append(_stage(short, form))
            state = after
        self._first, (last, state) = state, self._repeated(labels, update.steps[-1], state)
        made.append(last.results[: len(leaves)])
        self._next = dict(zip(state, last.results[len(leaves) :], strict=True))
        self._stages.append(_stage(last, form))
        self._state = state
        ways = [*zip(self._params, *made, strict=True)]
        numbers = {way: number for number, way in enumerate(dict.fromkeys(ways))}
        self.kinds = tuple(Kind(self._leaves[way[0]][-1], way[1:]) for way in numbers)
        self._places = tuple(way[0] for way in numbers)
        self._reads = tuple(last.reads(way[-1]) for way in numbers)
        self.kind_of = tuple(numbers[way] for way in ways)

    def _step(self, labels: Labels, program: Any, state: Sequence[int]) -> ShortProgram:  # noqa: ANN401
        return shortened(labels, program, (*self._gradient, *self._params, *state))

    def _repeated(
        self,
        labels: Labels,
        program: Any,  # noqa: ANN401 - a jaxpr
        state: Sequence[int],
    ) -> tuple[ShortProgram, Sequence[int]]:
        """The program of all further steps, and labels of the state that are valid in all of them.

        Two parts of the state that are equal now, as the two zeros that Adam starts from, have one
        label only if they are equal after each step too: labels are split until that is so. And no
        label is that of a constant that the state started as.
        """
        state = [labels.of(("carried", label)) for label in state]
        while True:
            short = self._step(labels, program, state)
            after = short.results[len(self._params) :]
            refined = [labels.of(("carried", *pair)) for pair in zip(state, after, strict=True)]
            if len(set(refined)) == len(set(state)):
                return short, state
            state = refined

    def steps(self, scale: float, pushed: float) -> Iterator[Mapping[int, np.ndarray]]:
        """Starts on the params of `RUNS` and takes steps without end; only the state moves.

        Args:
          scale: What the params of all runs are multiplied with.
          pushed: What the gradients are multiplied with.

        Yields:
          The updates of a step by label, each with one row for each run.
        """
        given: dict[int, Any] = {}
        begun: dict[int, Any] = {}
        for params, (start, _, leaf) in self._leaves.items():
            here, there, other = (f(leaf.shape) for f in (board, aside, mixed))
            now = [scale * run.params * (other if run.uneven else here) for run in RUNS]
            given[params] = _rows(leaf, now)
            begun[start] = _rows(
                leaf, [scale * there if r.moved else x for r, x in zip(RUNS, now, strict=True)]
            )
        values = self._begin.of(begun)
        *once, last = self._stages
        for number in itertools.count():
            if number < CHANGES:
                given |= self._gradients(pushed, number)
            if number == len(once):
                values = self._repeating(values)
            values = (once[number] if number < len(once) else last).of(given | values)
            yield self._updates(values, min(number, len(once)))
            if number >= len(once):
                values = {now: values[then] for now, then in self._next.items()}

    def _gradients(self, pushed: float, number: int) -> dict[int, Any]:
        """The gradients of a step, by label."""
        out = {}
        for _, gradient, leaf in self._leaves.values():
            same, other = push(leaf.shape), push(leaf.shape, number)
            rows = [pushed * r.gradient * (other if r.changing else same) for r in RUNS]
            out[gradient] = _rows(leaf, rows)
        return out

    def walk(
        self, values: Sequence[float], dtypes: Sequence[Any], stride: int
    ) -> Iterator[tuple[int, Sequence[np.ndarray], Sequence[bool]]]:
        """Starts on leaves filled with one number each, and adds the updates for zero gradients.

        Args:
          values: The number for each leaf.
          dtypes: For each leaf, the dtype that it is rounded to in every step.
          stride: How many steps to take at once.

        Yields:
          How many steps were taken; for each kind of leaf the params, and whether its update reads
          a part of the state of its shape that has changed.
        """
        rounded = dict(zip(self._params, dtypes, strict=True))
        numbers = dict(zip(self._params, values, strict=True))
        zero, begun, params = dict[int, Any](), dict[int, Any](), dict[int, Any]()
        for label, (start, gradient, leaf) in self._leaves.items():
            params[label] = begun[start] = jnp.full(leaf.shape, numbers[label], leaf.dtype)
            zero[gradient] = jnp.zeros(leaf.shape, leaf.dtype)
        *once, last = self._stages

        def moved(params: dict[int, Any], made: Mapping[int, Any], number: int) -> dict[int, Any]:
            out = dict(params)
            for label, kind in zip(self._places, self.kinds, strict=True):
                new = (params[label] + made[kind.updates[number]]).astype(rounded[label])
                out[label] = new.astype(kind.leaf.dtype)
            return out

        state = self._begin.of(begun)
        for number, stage in enumerate(once):
            state = stage.of(zero | params | state)
            params = moved(params, state, number)

        def step(_: int, carry: tuple[Any, Any]) -> tuple[Any, Any]:
            params, state = carry
            made = last.of(zero | params | state)
            state = {now: made[then] for now, then in self._next.items()}
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
                [np.asarray(carry[0][label]) for label in self._places],
                [
                    any(first[label].shape == kind.leaf.shape for label in reads & changed)
                    for kind, reads in zip(self.kinds, self._reads, strict=True)
                ],
            )

    def _repeating(self, values: Mapping[int, Any]) -> dict[int, Any]:
        """The state by the labels that it has in all further steps."""
        return {label: values[x] for x, label in zip(self._first, self._state, strict=True)}

    def _updates(self, values: Mapping[int, Any], number: int) -> dict[int, np.ndarray]:
        """The updates that a stage made, by label."""
        wanted = dict.fromkeys(kind.updates[number] for kind in self.kinds)
        return {label: np.asarray(values[label]) for label in wanted}


def _stage(short: ShortProgram, form: Form) -> _Stage:
    results = tuple(dict.fromkeys(short.results))
    return _Stage(short.inputs, results, form(short._replace(results=results)))


def _rows(leaf: jax.ShapeDtypeStruct, rows: Sequence[np.ndarray]) -> Any:  # noqa: ANN401 - an array
    """One array with a row for each run, floats in the wide dtype that is computed in."""
    return jnp.asarray(np.stack(rows).astype(wide(leaf.dtype)))
