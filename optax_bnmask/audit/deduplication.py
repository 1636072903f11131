"""A program without its repetitions: what is computed twice from equal values is computed once.

An update of a thousand leaves is one little program a thousand times over. Here every value gets a
label, and values that are made by the same operation, with the same parameters, from values of the
same labels, have one label. In

    a = mul 0.1 g1      b = mul 0.1 g2      c = add a b

with one label for g1 and g2, `a` and `b` have one label too: two lines are left of three.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np

from optax_bnmask import compat

_CALLS: Final = frozenset(
    found
    for name in (
        *("jit_p", "closed_call_p", "call_p", "remat_p", "custom_jvp_call_p"),
        *("custom_vjp_call_p", "xla_metadata_call_p"),
    )
    if (found := compat.primitive(name)) is not None
)
"""Calls, which do what their body does."""

_SMALL: Final = 4096
"""Captured arrays of so many bytes are compared by what they hold, larger ones by identity."""


class Short(NamedTuple):
    """A program whose values are labels.

    Attributes:
      inputs: The labels of its inputs.
      known: The constants, by label.
      lines: Its operations, in their order, none twice and none without use.
      results: The labels of its outputs.
    """

    inputs: tuple[int, ...]
    known: Mapping[int, Any]
    lines: tuple["Line", ...]
    results: tuple[int, ...]

    def reads(self, result: int) -> set[int]:
        """The labels of the inputs that one of its outputs is made from."""
        lines = _needed(self.lines, [result])
        return {result, *(x for line in lines for x in line.ins)}.intersection(self.inputs)


class Line(NamedTuple):
    """One operation.

    Attributes:
      eqn: The equation that it comes from, for the primitive, the parameters and the dtypes.
      bodies: The programs in its parameters, in their order.
      ins: The labels that it reads.
      outs: The labels that it writes.
    """

    eqn: Any
    bodies: tuple[Short, ...]
    ins: tuple[int, ...]
    outs: tuple[int, ...]


class Labels:
    """Gives equal things one label; what it has once labelled, it keeps."""

    def __init__(self) -> None:
        self._of: dict[Hashable, int] = {}
        self._held: list[Any] = []  # what is labelled by its `id` must not be freed
        self._bodies: dict[int, Short] = {}

    def of(self, key: Hashable) -> int:
        """The label of whatever a key stands for."""
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

    def of_parameters(self, params: Mapping[str, Any], bodies: Sequence[Short]) -> Hashable:
        """What tells an operation from others of its primitive.

        A body is known by the labels of its results, since its inputs are labelled by their place.
        """
        plain = tuple((k, v) for k, v in params.items() if not _programs((v,)))
        inner = tuple((len(body.inputs), body.results) for body in bodies)
        try:
            hash(plain)
        except TypeError:  # not hashable: taken for equal to no other
            return self._kept(params), inner
        return plain, inner

    def body(self, program: Any) -> Short:  # noqa: ANN401 - a jaxpr
        """A program within another, its inputs labelled by their place."""
        if id(program) not in self._bodies:
            self._held.append(program)
            places = range(len(compat.open_jaxpr(program).invars))
            inputs = [self.of(("input", place)) for place in places]
            self._bodies[id(program)] = shortened(self, program, inputs)
        return self._bodies[id(program)]

    def _kept(self, value: Any) -> int:  # noqa: ANN401 - anything
        self._held.append(value)
        return id(value)


def shortened(labels: Labels, program: Any, inputs: Sequence[int]) -> Short:  # noqa: ANN401
    """A program of inputs of which some are known to be equal.

    Args:
      labels: What has been labelled so far.
      program: A jaxpr.
      inputs: The label of each of its inputs.

    Returns:
      The `Short`; calls within it are inlined.
    """
    writer = _Writer(labels)
    results = writer.run(program, inputs)
    lines = _needed(writer.lines, results)
    used = {x for line in lines for x in line.ins} | set(results)
    known = {x: value for x, value in writer.known.items() if x in used}
    return Short(tuple(dict.fromkeys(inputs)), known, tuple(lines), tuple(results))


class _Writer:
    """The lines of one program, while they are written."""

    def __init__(self, labels: Labels) -> None:
        self.labels = labels
        self.known: dict[int, Any] = {}
        self.lines: list[Line] = []
        self._written: set[int] = set()

    def run(self, program: Any, inputs: Sequence[int]) -> list[int]:  # noqa: ANN401 - a jaxpr
        """Writes what a program does, and returns the labels of its results."""
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
        self.known[label] = value
        return label

    def _outs(self, eqn: Any, ins: list[int]) -> Sequence[int]:  # noqa: ANN401 - as above
        """The labels of what an equation writes."""
        inner = _programs(eqn.params.values())
        if eqn.primitive in _CALLS and len(inner) == 1:
            return self.run(inner[0], ins)
        bodies = tuple(map(self.labels.body, inner))
        kinds = tuple((var.aval.shape, var.aval.dtype) for var in eqn.outvars)
        does = self.labels.of_parameters(eqn.params, bodies)
        made = self.labels.of((eqn.primitive, does, tuple(ins), kinds))
        outs = tuple(self.labels.of((made, place)) for place in range(len(kinds)))
        if made not in self._written:
            self._written.add(made)
            self.lines.append(Line(eqn, bodies, tuple(ins), outs))
        return outs


def _needed(lines: Sequence[Line], results: Iterable[int]) -> list[Line]:
    """The lines that some result needs."""
    wanted = set(results)
    kept: list[Line] = []
    for line in reversed(lines):
        if not wanted.isdisjoint(line.outs):
            wanted.update(line.ins)
            kept.append(line)
    return kept[::-1]


def _programs(values: Iterable[Any]) -> list[Any]:
    """The programs among the parameters of an operation."""
    found: list[Any] = []
    for value in values:
        items: Sequence[Any] = value if isinstance(value, Sequence) else (value,)
        found += [item for item in items if hasattr(compat.open_jaxpr(item), "eqns")]
    return found
