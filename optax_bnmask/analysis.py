"""What is known of each parameter: the one result type, whichever evidence made it."""

import dataclasses
import enum
from collections.abc import Collection, Iterable, Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

import numpy as np

from optax_bnmask.arguments import wrong_kind
from optax_bnmask.errors import CategoryError, PathError
from optax_bnmask.paths import nearest

if TYPE_CHECKING:
    from optax_bnmask.mask import Labels, Mask
    from optax_bnmask.matrices import MatrixSpecs


class Role(enum.StrEnum):
    """How a leaf is used."""

    WEIGHT = "weight"
    """Contracted with the data: a dot product or a convolution."""
    EMBEDDING = "embedding"
    """Looked up."""
    GAIN = "gain"
    """Multiplied elementwise."""
    BIAS = "bias"
    """Added."""
    NORM_SCALE = "norm_scale"
    """The gain of a normaliser, gamma in the papers."""
    NORM_BIAS = "norm_bias"
    """The bias of a normaliser, beta in the papers."""
    UNUSED = "unused"
    """No output depends on it."""
    UNKNOWN = "unknown"
    """The evidence does not tell."""


NORMS: Final = frozenset({Role.NORM_SCALE, Role.NORM_BIAS})
"""What a normaliser owns."""
GAINS: Final = frozenset({Role.GAIN, Role.NORM_SCALE})
"""What is multiplied elementwise."""
BIASES: Final = frozenset({Role.BIAS, Role.NORM_BIAS})
"""What is added."""


class Scale(enum.StrEnum):
    """What scaling a leaf by a positive factor does to the outputs."""

    INVARIANT = "invariant"
    """Nothing: it may be scaled alone, together with the biases added to its own output."""
    JOINT = "joint"
    """Nothing, as long as named others are scaled with it, none of them down."""
    SENSITIVE = "sensitive"
    """No such symmetry was proved."""
    UNUSED = "unused"
    """No output depends on the leaf at all."""
    UNKNOWN = "unknown"
    """The evidence says nothing of scale, as structure alone never does."""


class Position(enum.StrEnum):
    """Where in the flow of the data a weight or an embedding stands."""

    INPUT = "input"
    """What it is contracted with, or looked up by, is data that no parameter has touched."""
    HIDDEN = "hidden"
    """Between other weights."""
    HEAD = "head"
    """No other weight is applied to what it makes of the last hidden value."""
    LEARNED = "learned"
    """A learned input: tokens, queries, positions, the same whatever the data are."""


class Evidence(enum.StrEnum):
    """Where an `Analysis` comes from."""

    STRUCTURE = "structure"
    """The params tree against the tree of statistics."""
    PROGRAM = "program"
    """The traced function."""


class Dimensions(NamedTuple):
    """The axes of a leaf that is a matrix, or a stack of matrices.

    Attributes:
      reduction: The axes that are summed over.
      output: The axes that appear in the result.
      batch: The axes that index independent matrices: layers, experts, heads of their own.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import optax_bnmask as bnmask
      >>> fn = lambda p, x: jnp.einsum("btd,dhk->bthk", x, p["q"])
      >>> q = jax.ShapeDtypeStruct((16, 4, 8), "float32")
      >>> bnmask.analyze(fn, {"q": q}, jax.ShapeDtypeStruct((2, 5, 16), "float32"))["q"].dimensions
      Dimensions(reduction=(0,), output=(1, 2), batch=())
    """

    reduction: tuple[int, ...]
    output: tuple[int, ...]
    batch: tuple[int, ...]

    def __str__(self) -> str:
        """In words."""
        said = (f"sums over {_axes(self.reduction)}", f"puts out {_axes(self.output)}")
        batch = f"one for each index of {_axes(self.batch)}" if self.batch else ""
        return ", ".join((*said, batch) if batch else said)


def _axes(axes: Sequence[int]) -> str:
    return f"{'axis' if len(axes) == 1 else 'axes'} {', '.join(map(str, axes))}"


class Block(NamedTuple):
    """A part of an axis that the program treats apart.

    Attributes:
      start: Its first index.
      stop: One after its last.
      inner: It consists of runs of so many indices that the program treats apart from each other,
        such as heads; its own length if it is not divided further.
    """

    start: int
    stop: int
    inner: int


CANCELLATIONS: Final = {
    "mean": "the mean subtracted at {} takes it away",
    "maximum": "the maximum subtracted at {}, as in a softmax, takes it away",
    "comparison": "it shifts both sides of the comparison at {}",
    "difference": "it shifts both sides of the subtraction at {}",
    "zero": "it is multiplied by 0 at {}",
    "unread": "no output depends on it",
}
"""What may become of what is added to a leaf whose value does not matter, by kind, in words."""


class Cancellation(NamedTuple):
    """Why the value of a leaf does not matter: where what is added to it goes away, exactly.

    Attributes:
      kind: One of `CANCELLATIONS`.
      where: ``file:line (function)`` in the user's code, where it goes away first; empty if nothing
        reads it.

    Example:
      >>> str(Cancellation("mean", "net.py:7 (norm)"))
      'the mean subtracted at net.py:7 (norm) takes it away'
    """

    kind: str
    where: str

    def __str__(self) -> str:
        """In words, with the value of the leaf as "it"."""
        return CANCELLATIONS[self.kind].format(self.where)


@dataclasses.dataclass(frozen=True, slots=True)
class Leaf:
    """One array of the params pytree and what is known of it.

    Attributes:
      path: Its canonical name, ``"block1/conv/kernel"``.
      shape: Its shape.
      dtype: Its dtype.
      role: How it is used.
      scale: What scaling it does to the outputs.
      invariant_axes: The axes along which *every index* may be scaled on its own; ``(3,)`` for an
        HWIO kernel before BatchNorm, ``()`` before LayerNorm.
      group: The index in `Analysis.groups` of the group it may be scaled with, if it is in one.
      reason: In a few words, what this rests on.
      dimensions: Which of its axes make a matrix of it; `None` where it is no matrix.
      blocks: By axis, the parts that the program treats apart, one after the other: queries, keys
        and values of a fused kernel, the gates of a cell. Axes that are whole are left out.
      position: Where it stands in the flow of the data, if it is a weight or an embedding.
      reached: Whether some gradient of some output flows to it.
      dead: If its value does not matter, whatever it is, why; proved from the program. `None` if it
        matters, for all that is known.
    """

    path: str
    shape: tuple[int, ...]
    dtype: Any
    role: Role
    scale: Scale = Scale.UNKNOWN
    invariant_axes: tuple[int, ...] = ()
    group: int | None = None
    reason: str = ""
    dimensions: Dimensions | None = None
    blocks: Mapping[int, tuple[Block, ...]] = dataclasses.field(default_factory=dict, hash=False)
    position: Position | None = None
    reached: bool = True
    dead: Cancellation | None = None

    @property
    def size(self) -> int:
        """The number of elements."""
        return int(np.prod(self.shape, dtype=np.int64))


@dataclasses.dataclass(frozen=True, slots=True, order=True)
class Assumption:
    """One approximation that a proof leans on.

    Attributes:
      kind: ``"epsilon"`` (a small constant taken as 0), ``"infinity"`` (a dtype's largest finite
        value taken as infinite), ``"guard"`` (a constant chosen only where a value is 0) or
        ``"zeros"`` (an array that the function closes over, all 0 now and taken to stay so).
      value: The constant.
      primitive: The name of the operation that takes the constant.
      where: ``file:line (function)`` in the user's code, as far as the trace knows it.
    """

    kind: str
    value: float
    primitive: str
    where: str

    def __str__(self) -> str:
        """One line for a person."""
        return f"{self.in_words}, at {self.where}"

    @property
    def in_words(self) -> str:
        """What is taken for what, wherever that is."""
        taken = {
            "epsilon": "taken as 0",
            "infinity": "taken as infinite",
            "guard": "chosen only where the guarded value is 0",
            "zeros": "in all of an array that the function closes over, taken to stay so",
        }[self.kind]
        return f"{self.value:g} in `{self.primitive}` {taken}"


class Proof(Protocol):
    """What an analysis by program can still be asked, kept out of its value."""

    def explain(self, path: str) -> str:
        """The chain of operations from the leaf to where its scale cancels or is pinned."""
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class Analysis:
    """How each parameter is used and whether its scale matters.

    Attributes:
      leaves: One `Leaf` for each array of the params, in the order of `jax.tree.leaves`.
      evidence: Where this was read off: the structure, the program, or both.
      symmetries: A basis of the scale symmetries, each ``{path: exponent}`` without the zeros:
        scaling every leaf by ``c**exponent`` leaves the outputs as they are.
      groups: The jointly invariant groups of paths.
      assumptions: Every approximation that the proof leaned on.
      unhandled: Primitives without a rule, with their count: their inputs were taken as sensitive.
      notes: What the evidence found odd, in sentences: candidates refused, statistics without
        parameters, normalisers traced on their running statistics.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax_bnmask as bnmask
      >>> params = {"conv": {"kernel": jnp.ones((3, 3, 1, 8))}, "post": {"scale": jnp.ones(8)}}
      >>> stats = {"post": {"mean": jnp.zeros(8), "var": jnp.ones(8)}}
      >>> analysis = bnmask.analyze_structure(params, stats)
      >>> analysis["post/scale"].role
      <Role.NORM_SCALE: 'norm_scale'>
    """

    leaves: tuple[Leaf, ...]
    evidence: frozenset[Evidence]
    symmetries: tuple[Mapping[str, Fraction], ...] = ()
    groups: tuple[frozenset[str], ...] = ()
    assumptions: tuple[Assumption, ...] = ()
    unhandled: Mapping[str, int] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    proof: Proof | None = dataclasses.field(default=None, compare=False, repr=False)
    _by_path: dict[str, Leaf] = dataclasses.field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        """Indexes the leaves by path."""
        object.__setattr__(self, "_by_path", {leaf.path: leaf for leaf in self.leaves})

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        """Pickles the same bytes in every process, and without the program."""
        return _unpickled, (
            self.leaves,
            tuple(sorted(self.evidence)),
            self.symmetries,
            tuple(tuple(sorted(group)) for group in self.groups),
            self.assumptions,
            self.unhandled,
            self.notes,
        )

    def __bool__(self) -> bool:
        """Refuses: as a `mask` of Optax's, an analysis would count as true for every leaf."""
        raise TypeError(
            "An `Analysis` cannot stand for a bool, and so it is no `mask`. Found one where a bool "
            "is wanted. Pass `analysis.decay_mask()` or `analysis.select(...)` as `mask`."
        )

    def __repr__(self) -> str:
        """One line; `to_text` and `to_json` say it all."""
        kinds = " and ".join(sorted(self.evidence))
        return f"Analysis({len(self.leaves)} leaves, by {kinds})"

    def __getitem__(self, path: str) -> Leaf:
        """The leaf of that canonical path."""
        try:
            return self._by_path[path]
        except KeyError:
            raise PathError(
                f"`path` must name a leaf of this analysis. It has no leaf {path!r}"
                f"{nearest(path, self._by_path)}."
            ) from None

    def __contains__(self, path: str) -> bool:
        """Whether there is a leaf of that canonical path."""
        return path in self._by_path

    @property
    def invariant_axes(self) -> dict[str, tuple[int, ...]]:
        """By path, `Leaf.invariant_axes` where there are any: the `axes` of `keep_norm`."""
        return {leaf.path: leaf.invariant_axes for leaf in self.leaves if leaf.invariant_axes}

    @property
    def dead(self) -> tuple[str, ...]:
        """The paths of the leaves whose value does not matter, proved: `Leaf.dead` says why.

        Whatever is added to them, to one or to all at once, no output changes: a bias before a
        BatchNorm, the bias of the keys of an attention, what nothing reads.
        """
        return tuple(leaf.path for leaf in self.leaves if leaf.dead)

    def norm_axes(self, *, channels: bool = False) -> dict[str, tuple[int, ...]]:
        """By path, the axes along which each index of a matrix has a norm of its own.

        Those that index independent matrices, `Dimensions.batch`: layers of a stack, experts, heads
        that are matrices of their own. The `axes` of `keep_norm` and `hyperball`.

        Args:
          channels: Whether each output channel has a norm of its own as well.

        Returns:
          Only leaves that have such axes.
        """
        known = {leaf.path: leaf.dimensions for leaf in self.leaves if leaf.dimensions}
        axes = {
            path: tuple(sorted(has.batch + (has.output if channels else ())))
            for path, has in known.items()
        }
        return {path: own for path, own in axes.items() if own}

    def decay_mask(
        self,
        *,
        exempt: Collection[str] = ("norm",),
        always: Iterable[str] = (),
        never: Iterable[str] = (),
    ) -> "Mask":
        """The mask of the leaves that weight decay should touch.

        Args:
          exempt: The categories that do not decay: any of ``"norm"``, ``"bias"``, ``"gain"``,
            ``"embedding"``; ``"scale_invariant"``, ``"jointly_invariant"``; ``"input"``,
            ``"hidden"``, ``"head"``, ``"learned"`` (see `Position`); ``"scalar"`` (one entry);
            ``"dead"`` (see `dead`); or a preset such as `optax_bnmask.STANDARD`. Leaves that no
            gradient reaches (``"unreached"``) do not decay whatever is named: decay alone would
            move them, to 0.
          always: Globs of paths that decay whatever `exempt` says.
          never: Globs of paths that do not decay whatever `exempt` says.

        Returns:
          A `Mask`: pass it as `mask` (or `weight_decay_mask`) to any Optax alias.

        Raises:
          CategoryError: An unknown category, or one that this evidence cannot show.
          PathError: A glob matches nothing, or one leaf is in both `always` and `never`.
        """
        from optax_bnmask.mask import decay_mask_of  # noqa: PLC0415 - the decision is a layer above

        return decay_mask_of(self, exempt=exempt, always=always, never=never)

    def select(self, *categories: str) -> "Mask":
        """The mask that is `True` where a leaf is in one of the categories.

        Args:
          *categories: As in `decay_mask`.

        Returns:
          A `Mask`, for `optax.masked` and its kin.

        Raises:
          CategoryError: An unknown category, or one that this evidence cannot show.
        """
        from optax_bnmask.mask import selection  # noqa: PLC0415 - the decision is a layer above

        return selection(self, categories)

    def labels(
        self,
        *,
        categories: Collection[str] | Mapping[str, str] = ("norm",),
        default: str = "decay",
    ) -> "Labels":
        """The labels of the leaves for `optax.partition`.

        Args:
          categories: The categories to tell apart, as in `decay_mask`; a leaf's label is the first
            that it is in. With a mapping, its label is that category's value.
          default: The label of all other leaves.

        Returns:
          A callable from a params tree to the tree of labels, in the tree's own containers.

        Raises:
          CategoryError: An unknown category, or one that this evidence cannot show.
        """
        from optax_bnmask.mask import labels_of  # noqa: PLC0415 - the decision is a layer above

        return labels_of(self, categories=categories, default=default)

    def muon_dimension_numbers(self, *, positions: Collection[str] = ("hidden",)) -> "MatrixSpecs":
        """The axes along which each leaf is a matrix, for `optax.contrib.muon`.

        Left to itself it takes every leaf with two axes for a matrix, and no other: biases that are
        stacked by a scan, and not the kernels beside them. From the program, a leaf is a matrix if
        it is contracted, along the axes that are summed over and those that are put out; layers
        and experts index matrices of their own. Embeddings, gains, biases, filters of depthwise
        convolutions and matrices of one row or column are none.

        Args:
          positions: Which matrices to take: any of ``"input"``, ``"hidden"`` and ``"head"``, see
            `Position`. All others are left to Adam.

        Returns:
          A callable from a params tree to the tree of `optax.contrib.MuonDimensionNumbers` and
          `None`. Its `labels` are for `optax.partition`.

        Raises:
          CategoryError: An unknown position, or this analysis is by structure alone.

        Example:
          >>> import jax, jax.numpy as jnp, optax
          >>> import optax_bnmask as bnmask
          >>> def fn(p, x):  # two layers, stacked
          ...     step = lambda h, layer: (jnp.tanh(h @ layer["w"] + layer["b"][None]), None)
          ...     return jax.lax.scan(step, x @ p["in"], p["layers"])[0] @ p["out"]
          >>> params = {"in": jnp.ones((3, 8)), "out": jnp.ones((8, 2)),
          ...           "layers": {"w": jnp.ones((2, 8, 8)), "b": jnp.ones((2, 8))}}
          >>> analysis = bnmask.analyze(fn, params, jax.ShapeDtypeStruct((5, 3), "float32"))
          >>> specs = analysis.muon_dimension_numbers()
          >>> specs["layers/w"]
          MuonDimensionNumbers(reduction_axis=(1,), output_axis=(2,))
          >>> print(specs["layers/b"], specs["in"], specs["out"])
          None None None
          >>> decay = analysis.decay_mask(exempt=bnmask.STANDARD)
          >>> tx = optax.partition({
          ...     "muon": optax.contrib.muon(0.02, muon_weight_dimension_numbers=specs),
          ...     "adam": optax.adamw(1e-3, weight_decay=0.1, mask=decay),
          ... }, specs.labels)

        References:
          Jordan et al., Muon: An optimizer for hidden layers in neural networks, 2024.
        """
        from optax_bnmask.matrices import matrix_specs  # noqa: PLC0415 - a layer above

        return matrix_specs(self, positions)

    def explain(self, path: str) -> str:
        """Why a leaf is what it is: its reason and, from a program, the chain of operations.

        Args:
          path: The canonical path of a leaf.

        Returns:
          Lines of text: the chain from the leaf to the normaliser that makes it invariant, or to
          the place that pins its scale, with the user's file and line.

        Raises:
          PathError: There is no such leaf.
        """
        leaf = self[path]
        if self.proof is None:
            return f"{path}: {leaf.role}. {leaf.reason}"
        return "\n".join([self.proof.explain(path), *_in_words(leaf)])

    def to_text(self) -> str:
        """The analysis as an aligned table."""
        from optax_bnmask.report import to_text  # noqa: PLC0415 - showing is a layer above

        return to_text(self)

    def to_html(self) -> str:
        """The analysis as one self-contained HTML page."""
        from optax_bnmask.report import to_html  # noqa: PLC0415 - showing is a layer above

        return to_html(self)

    def to_json(self) -> str:
        """The analysis as JSON, with a versioned schema."""
        from optax_bnmask.report import to_json  # noqa: PLC0415 - showing is a layer above

        return to_json(self)

    @staticmethod
    def from_json(text: str) -> "Analysis":
        """The analysis that `to_json` wrote, without the program.

        Args:
          text: What `to_json` gave.

        Returns:
          An equal `Analysis`.

        Raises:
          StructureError: The text is no such report.
        """
        from optax_bnmask.report import from_json  # noqa: PLC0415 - reading is a layer above

        return from_json(text)

    def __str__(self) -> str:
        """The table of `to_text`."""
        return self.to_text()

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return self.to_html()


def _in_words(leaf: Leaf) -> list[str]:
    """What is known of a leaf's axes, and whether a gradient reaches it, a line each."""
    said = [f"as a matrix: {leaf.dimensions}"] if leaf.dimensions else []
    for axis, blocks in leaf.blocks.items():
        sizes = [
            f"{b.stop - b.start}" + f" by {b.inner}" * (b.inner < b.stop - b.start) for b in blocks
        ]
        said.append(f"axis {axis} in parts of {', '.join(sizes)}")
    return [*said, *([] if leaf.reached else ["no gradient reaches it"])]


def _unpickled(
    leaves: tuple[Leaf, ...],
    evidence: tuple[Evidence, ...],
    symmetries: tuple[Mapping[str, Fraction], ...],
    groups: tuple[tuple[str, ...], ...],
    *rest: Any,  # noqa: ANN401 - as in `Analysis`
) -> Analysis:
    """An `Analysis` from what `Analysis.__reduce__` kept."""
    return Analysis(leaves, frozenset(evidence), symmetries, tuple(map(frozenset, groups)), *rest)


def require_program(analysis: Analysis, what: str) -> None:
    """Fails unless an analysis was read off a program.

    Raises:
      CategoryError: It rests on structure alone, which does not tell `what`.
    """
    if Evidence.PROGRAM not in analysis.evidence:
        raise CategoryError(
            f"{what} cannot be told from structure alone: they are a property of the program. Use "
            f"`bnmask.analyze(fn, params, ...)`, `analyze_linen` or `analyze_nnx`."
        )


def require_analysis(value: object) -> None:
    """Fails unless the argument `analysis` is one.

    Raises:
      TypeError: It is something else, such as a mask.
    """
    if not isinstance(value, Analysis):
        raise wrong_kind(
            "analysis",
            "an `Analysis`, as `bnmask.analyze` and its kin return it",
            value,
            "Masks and labels are made from one, and tell less.",
        )
