"""A program without its repetitions, found by value numbering: equal values are computed once.

An update of a thousand leaves is one little program a thousand times over. Every value gets a
label. Values made by one operation, with equal parameters, from values of equal labels, have one
label. In

    a = mul 0.1 g1      b = mul 0.1 g2      c = add a b

with one label for g1 and g2, `a` and `b` have one label too: two of three operations are left.
Branches are read with the labels of what they are given: a whole update within a `cond`, as that of
`optax.MultiSteps`, is shortened like any other.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np

from optax_bnmask import compat
from optax_bnmask.program.control import CALLS, body_of_call
from optax_bnmask.verify.widening import programs_in

_COND: Final = compat.primitive("cond_p")

_SMALL: Final = 4096
"""The bytes of an array up to which arrays are compared by content; larger ones by identity."""


class ShortProgram(NamedTuple):
    """A program whose values are labels.

    Attributes:
      inputs: The labels of its inputs.
      constants: The values of its constants, by label.
      operations: Its operations, in their order, none twice and none without use.
      results: The labels of its outputs.
    """

    inputs: tuple[int, ...]
    constants: Mapping[int, Any]
    operations: tuple["Operation", ...]
    results: tuple[int, ...]

    def reads(self, result: int) -> set[int]:
        """The labels of the inputs that one of its outputs is made from."""
        needed = _needed(self.operations, [result])
        return {result, *(x for each in needed for x in each.ins)}.intersection(self.inputs)


class Operation(NamedTuple):
    """One operation.

    Attributes:
      eqn: The equation of the jaxpr that it comes from.
      ins: The labels that it reads.
      outs: The labels that it writes.
      branches: For a `cond`, in the place of its jaxprs: programs of `ins` but for the first, which
        says which of them to run.
    """

    eqn: Any
    ins: tuple[int, ...]
    outs: tuple[int, ...]
    branches: tuple[ShortProgram, ...] = ()


class Labels:
    """Gives equal things one label."""

    def __init__(self) -> None:
        self._of: dict[Hashable, int] = {}
        self._held: list[Any] = []  # what is labelled by its `id` must stay alive
        self._bodies: dict[int, ShortProgram] = {}

    def of(self, key: Hashable) -> int:
        """The label of a key: a new number unless an equal key has one."""
        return self._of.setdefault(key, len(self._of))

    def of_constant(self, value: Any) -> int:  # noqa: ANN401 - a number or an array
        """The label of a constant."""
        if getattr(value, "nbytes", 0) <= _SMALL:
            try:
                array = np.asarray(value)
                return self.of(("constant", array.dtype, array.shape, array.tobytes()))
            except TypeError:  # keys of random numbers are no arrays to NumPy
                pass
        return self.of(("object", self._kept(value)))

    def of_parameters(self, params: Mapping[str, Any], bodies: Sequence[ShortProgram]) -> Hashable:
        """A key for the parameters of an operation.

        Programs among them count as equal if they have as many inputs and results of equal labels.
        """
        plain = tuple((k, v) for k, v in params.items() if not programs_in({k: v}))
        inner = tuple((len(body.inputs), body.results) for body in bodies)
        try:
            hash(plain)
        except TypeError:  # not hashable: equal to no other
            return self._kept(params), inner
        return plain, inner

    def body(self, program: Any) -> ShortProgram:  # noqa: ANN401 - a jaxpr
        """An inner program, shortened, whose inputs are labelled by their place."""
        if id(program) not in self._bodies:
            self._held.append(program)
            places = range(len(compat.open_jaxpr(program).invars))
            inputs = [self.of(("input", place)) for place in places]
            self._bodies[id(program)] = shortened(self, program, inputs)
        return self._bodies[id(program)]

    def _kept(self, value: Any) -> int:  # noqa: ANN401 - anything
        self._held.append(value)
        return id(value)


def shortened(labels: Labels, program: Any, inputs: Sequence[int]) -> ShortProgram:  # noqa: ANN401
    """A program without repetitions, of inputs of which some may be equal.

    Args:
      labels: What has been labelled so far.
      program: A jaxpr.
      inputs: The label of each of its inputs.

    Returns:
      The `ShortProgram`; calls within it are inlined.
    """
    writer = _Writer(labels)
    results = writer.run(program, inputs)
    needed = _needed(writer.operations, results)
    used = {x for each in needed for x in each.ins} | set(results)
    constants = {x: value for x, value in writer.constants.items() if x in used}
    return ShortProgram(tuple(dict.fromkeys(inputs)), constants, tuple(needed), tuple(results))


class _Writer:
    """Collects the operations of one program."""

    def __init__(self, labels: Labels) -> None:
        self.labels = labels
        self.constants: dict[int, Any] = {}
        self.operations: list[Operation] = []
        self._written: set[int] = set()

    def run(self, program: Any, inputs: Sequence[int]) -> list[int]:  # noqa: ANN401 - a jaxpr
        """Adds the operations of a program, and returns the labels of its results."""
        jaxpr = compat.open_jaxpr(program)
        env = dict(zip(jaxpr.invars, inputs, strict=True))
        constants = zip(jaxpr.constvars, compat.consts_of(program), strict=True)
        env |= {var: self._constant(value) for var, value in constants}

        def read(atom: Any) -> int:  # noqa: ANN401 - JAX keeps its type private
            if isinstance(atom, compat.Literal):
                dtype = getattr(atom.aval, "dtype", None)
                return self._constant(np.asarray(atom.val, dtype))
            return env[atom]

        for eqn in jaxpr.eqns:
            env.update(zip(eqn.outvars, self._outs(eqn, [*map(read, eqn.invars)]), strict=True))
        return [*map(read, jaxpr.outvars)]

    def _constant(self, value: Any) -> int:  # noqa: ANN401 - a number or an array
        label = self.labels.of_constant(value)
        self.constants[label] = value
        return label

    def _outs(self, eqn: Any, ins: list[int]) -> Sequence[int]:  # noqa: ANN401 - as above
        """The labels of what an equation writes."""
        if eqn.primitive in CALLS and (body := body_of_call(eqn.params, len(ins))) is not None:
            return self.run(body, ins)
        if eqn.primitive is _COND:
            return self._chosen(eqn, ins)
        bodies = [self.labels.body(program) for program in programs_in(eqn.params)]
        kinds = tuple((var.aval.shape, var.aval.dtype) for var in eqn.outvars)
        does = self.labels.of_parameters(eqn.params, bodies)
        made = self.labels.of((eqn.primitive, does, tuple(ins), kinds))
        outs = tuple(self.labels.of((made, place)) for place in range(len(kinds)))
        self._write(made, Operation(eqn, tuple(ins), outs))
        return outs

    def _chosen(self, eqn: Any, ins: list[int]) -> Sequence[int]:  # noqa: ANN401 - as above
        """The labels of what a `cond` writes: one for results that are equal in each branch."""
        which, *given = ins
        branches = [shortened(self.labels, branch, given) for branch in eqn.params["branches"]]
        cases = [*zip(*(branch.results for branch in branches), strict=True)]
        distinct = dict.fromkeys(cases)
        labels = {case: self.labels.of(("chosen", which, case)) for case in distinct}
        short = (
            branch._replace(results=tuple(results))
            for branch, results in zip(branches, zip(*distinct, strict=True), strict=True)
        )
        reads = which, *dict.fromkeys(given)
        self._write(
            self.labels.of(("cond", *labels.values())),
            Operation(eqn, reads, tuple(labels.values()), tuple(short)),
        )
        return [labels[case] for case in cases]

    def _write(self, made: int, operation: Operation) -> None:
        """Adds an operation, unless one of the same label was added before."""
        if made not in self._written:
            self._written.add(made)
            self.operations.append(operation)


def _needed(operations: Sequence[Operation], results: Iterable[int]) -> list[Operation]:
    """The operations that some result needs."""
    wanted = set(results)
    kept: list[Operation] = []
    for each in reversed(operations):
        if not wanted.isdisjoint(each.outs):
            wanted.update(each.ins)
            kept.append(each)
    return kept[::-1]
