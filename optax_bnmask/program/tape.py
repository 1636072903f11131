"""A traced function as one flat list of equations: the tape that every pass is a loop over.

Calls are inlined, loops, branches and meshes opened (`control`, `devices`), and primitives such as
`transpose` written as a few others (`lowering`), once, so that no pass ever opens anything again.
Every value has a number. What an equation reads and writes has *visible* axes, those of the array,
and behind them *hidden* ones: an axis for each loop that the equation is in (its iterations, the
outermost first), and for each mesh (its devices). ``h @ w`` in a scan of 5 layers over a stacked
``w`` of shape (5, 3, 3) reads

    h (2, 3 | 5)    w (3, 3 | 5)      the 5 layers are a hidden axis
"""

import dataclasses
import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

from optax_bnmask import compat
from optax_bnmask.program.dependence import needed
from optax_bnmask.program.registry import RULES, UNRULED, Kind, Map, Rule
from optax_bnmask.program.trace import Program


class Op:
    """An operation that only the tape has, beside the primitives of JAX."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name


MOVE = Op("move")
"""Renames axes, drops some of length 1, adds new ones: ``params["to"]`` is a `Map`."""
RESHAPE = Op("reshape")
"""Entries keep their order, and get other visible axes."""
SLICE = Op("slice")
"""``params["bounds"]`` and ``params["strides"]`` of each visible axis."""
CONTRACT = Op("contract")
"""A sum of products: ``params["to"]`` has a `Map` for each of two operands."""
COLLECT = Op("collect")
"""Entries of several devices moved or reduced: ``params["to"]`` is a `Map`, what it leaves out is
mixed; ``params["clips"]`` tells whether zeros may come in."""
CARRY = Op("carry")
"""A carry as the body of its loop reads it: has the degree of the operand, its starting value."""
CARRIED = Op("carried")
"""A carry after its loop: operands are the carry in the body, the body's new value of it, and for a
``while`` its test. The first two agree, the third does not scale."""
BRANCH = Op("branch")
"""One of several values, the first operand says which."""


@dataclasses.dataclass(slots=True, eq=False)  # read more often than anything: no tuple is as fast
class Equation:
    """One operation on numbered values.

    Attributes:
      op: A primitive of JAX, or an `Op`.
      params: Its parameters; those of the primitive where it is one.
      ins: The values that it reads.
      out: The value that it writes.
      place: Which result of the primitive that is, where it has several.
      source: The equation of the jaxpr that it comes from, for its place and dtypes.
      calls: The calls that this is nested in, outermost first.
      rule: The rule of the operation; `UNRULED` if it has none.
      kind: The kind of the rule, which every pass asks for.
    """

    op: Any
    params: Mapping[str, Any]
    ins: tuple[int, ...]
    out: int
    place: int
    source: Any
    calls: tuple[Any, ...]
    rule: Rule = dataclasses.field(init=False)
    kind: Kind = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        """Looks up the rule."""
        self.rule = RULES.get(self.op, UNRULED)
        self.kind = self.rule.kind

    @property
    def name(self) -> str:
        """What the user's program calls the operation."""
        return str(self.source.primitive.name)

    @property
    def where(self) -> str:
        """The user's file and line."""
        return compat.location(self.source, self.calls)


class Frame(NamedTuple):
    """The loops, meshes and calls around the equations that are written.

    Attributes:
      hidden: The lengths of the hidden axes.
      devices: For each axis of the mesh, by its name, which of the hidden axes it is.
      calls: The calls, outermost first.
    """

    hidden: tuple[int, ...] = ()
    devices: Mapping[Hashable, int] = {}
    calls: tuple[Any, ...] = ()


class Tape:
    """The equations of one program.

    Attributes:
      equations: In the order of execution, without those that no output needs.
      loops: Those with a carry after its loop.
      shapes: The visible shape of each value.
      hidden: The lengths of its hidden axes.
      full: The lengths of all of its axes, hidden ones last.
      floats: Whether its entries are real or complex numbers.
      literals: The values of the constants that the program spells out.
      captured: The values of the arrays that the function closes over.
      ins: For each input of the program, its value.
      outs: The values of its outputs; behind these, those that it puts into mutable references:
        where they are read again is not followed, so they count like outputs.
      live: A 1 for each value that some output needs.
      leaves: The live leaves of floating dtype, ``{value: number of the leaf}``, in the order in
        which the program first reads them.
    """

    def __init__(self, program: Program) -> None:
        self.equations: list[Equation] = []
        self.shapes: list[tuple[int, ...]] = []
        self.hidden: list[tuple[int, ...]] = []
        self.full: list[tuple[int, ...]] = []
        self.floats: list[bool] = []
        self.literals: dict[int, Any] = {}
        self.captured: dict[int, Any] = {}
        self._written: list[int] = []
        inner = compat.open_jaxpr(program.jaxpr)
        self.ins = [self.value(v.aval) for v in inner.invars]
        self.outs = [*self.run(program.jaxpr, self.ins, Frame()), *self._written]
        self.loops = [e for e in self.equations if e.op is CARRIED]
        self.live = needed(self, self.outs)
        self.equations = [e for e in self.equations if self.live[e.out]]
        self.loops = [e for e in self.loops if self.live[e.out]]
        number = dict(zip(self.ins, program.inputs, strict=True))
        read = (x for e in self.equations for x in e.ins if x in number)
        self.leaves = {
            x: i
            for x in dict.fromkeys((*read, *self.ins))
            if (i := number[x]) is not None and self.live[x] and self.floats[x]
        }

    @functools.cached_property
    def writers(self) -> dict[int, Equation]:
        """For each value the equation that writes it, if any does."""
        return {e.out: e for e in self.equations}

    @functools.cached_property
    def readers(self) -> dict[int, list[Equation]]:
        """For each value the equations that read it."""
        out: dict[int, list[Equation]] = {}
        for e in self.equations:
            for x in e.ins if len(e.ins) == 1 else {*e.ins}:
                out.setdefault(x, []).append(e)
        return out

    def value(self, aval: Any) -> int:  # noqa: ANN401 - an abstract array
        """Adds a value of that shape and dtype, without hidden axes; returns its number."""
        return self.add(aval.shape, (), floats=compat.is_inexact(aval.dtype))

    def add(self, shape: Sequence[int], hidden: tuple[int, ...], *, floats: bool) -> int:
        """Adds a value; returns its number."""
        shape = tuple(shape)
        self.shapes.append(shape)
        self.hidden.append(hidden)
        self.full.append(shape + hidden)
        self.floats.append(floats)
        return len(self.shapes) - 1

    def run(self, jaxpr: Any, ins: Sequence[int], frame: Frame) -> list[int]:  # noqa: ANN401
        """Writes the equations of a closed jaxpr, and returns its results."""
        inner = compat.open_jaxpr(jaxpr)
        env = dict(zip(inner.invars, ins, strict=True))
        for v, value in zip(inner.constvars, compat.consts_of(jaxpr), strict=True):
            env[v] = self.value(v.aval)
            self.captured[env[v]] = value

        literal = compat.Literal

        def constant(atom: Any) -> int:  # noqa: ANN401 - a literal
            x = self.value(atom.aval)
            self.literals[x] = atom.val
            return x

        for eqn in inner.eqns:
            given = tuple([constant(a) if type(a) is literal else env[a] for a in eqn.invars])
            lower = LOWERINGS.get(eqn.primitive)
            outs = lower(Writer(self, frame, eqn), *given) if lower else None
            if outs is None:
                outs = self._copy(eqn, given, frame)
            env.update(zip(eqn.outvars, outs, strict=True))
        return [constant(a) if type(a) is literal else env[a] for a in inner.outvars]

    def _copy(self, eqn: Any, given: tuple[int, ...], frame: Frame) -> list[int]:  # noqa: ANN401
        """Writes an equation of a jaxpr as it is, once for each of its results."""
        if eqn.effects and any(compat.is_reference(v.aval) for v in eqn.invars):
            self._written += given
        outs: list[int] = []
        for place, v in enumerate(eqn.outvars):
            out = self.add(v.aval.shape, frame.hidden, floats=compat.is_inexact(v.aval.dtype))
            e = Equation(eqn.primitive, eqn.params, given, out, place, eqn, frame.calls)
            self.equations.append(e)
            outs.append(out)
        return outs


class Writer(NamedTuple):
    """One equation of a jaxpr while it is written on the tape.

    Attributes:
      tape: The tape.
      frame: The loops, meshes and calls around it.
      eqn: The equation.
    """

    tape: Tape
    frame: Frame
    eqn: Any

    @property
    def params(self) -> Mapping[str, Any]:
        """The parameters of the equation."""
        return self.eqn.params

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of its first result."""
        return self.eqn.outvars[0].aval.shape

    def emit(
        self,
        op: Any,  # noqa: ANN401 - a primitive or an `Op`
        ins: Sequence[int],
        shape: Sequence[int],
        place: int | None = None,
        /,
        **params: Any,  # noqa: ANN401 - those of the primitive
    ) -> int:
        """Writes one operation, and returns its result.

        Args:
          op: What it does.
          ins: What it reads.
          shape: The visible shape of the result.
          place: Which result of the equation it is, for the dtype; if none, the first operand's is
            taken.
          **params: The parameters of the operation.
        """
        tape, eqn = self.tape, self.eqn
        if place is None:
            floats = tape.floats[ins[0]]
        else:
            floats = compat.is_inexact(eqn.outvars[place].aval.dtype)
        out = tape.add(shape, self.frame.hidden, floats=floats)
        e = Equation(op, params, tuple(ins), out, place or 0, eqn, self.frame.calls)
        tape.equations.append(e)
        return out

    def move(self, x: int, to: Map, shape: Sequence[int]) -> int:
        """Writes a `MOVE` of visible axes by `to`, the hidden ones behind; returns its result."""
        rank = len(self.tape.shapes[x])
        behind = {rank + j: len(shape) + j for j in range(len(self.tape.hidden[x]))}
        return self.emit(MOVE, (x,), shape, to={**behind, **to})

    def reshape(self, x: int, shape: Sequence[int]) -> int:
        """Writes a reshape of visible axes, or a `MOVE` if only axes of length 1 come or go."""
        old = self.tape.shapes[x]
        if tuple(shape) == old:
            return x
        before = [a for a, n in enumerate(old) if n != 1]
        after = [q for q, n in enumerate(shape) if n != 1]
        if [old[a] for a in before] == [shape[q] for q in after]:
            return self.move(x, dict(zip(before, after, strict=True)), shape)
        return self.emit(RESHAPE, (x,), shape)

    def within(self, hidden: Sequence[int] = (), devices: Mapping[Hashable, int] = {}) -> "Writer":
        """A writer for the jaxprs in the equation, whose values have more hidden axes."""
        own = self.frame
        calls = (*own.calls, self.eqn)
        return self._replace(frame=Frame((*own.hidden, *hidden), {**own.devices, **devices}, calls))

    def run(self, jaxpr: Any, *ins: int) -> list[int]:  # noqa: ANN401 - closed
        """Writes the equations of a jaxpr in the equation, and returns its results."""
        return self.tape.run(jaxpr, ins, self.frame)


Lowering = Callable[..., "list[int] | None"]
"""``(writer, *operands)`` to the results; `None` to write the equation as it is."""

LOWERINGS: dict[Any, Lowering] = {}
"""How to write an equation of a primitive; filled on import, and never after."""


def lowering(*names: str) -> Callable[[Lowering], Lowering]:
    """Registers how equations of the primitives of those attribute names are written."""

    def register(function: Lowering) -> Lowering:
        for name in names:
            key = compat.primitive(name)
            if key is not None:
                LOWERINGS[key] = function
        return function

    return register
