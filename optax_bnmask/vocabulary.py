"""The enums that describe a parameter (role, scale, position), and `Leaf`, which holds them."""

import dataclasses
import enum
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np


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
    """Nothing: it may be scaled by itself, or with no others than biases added to its output."""
    JOINT = "joint"
    """Nothing, if certain other leaves are scaled along with it, none the opposite way."""
    SENSITIVE = "sensitive"
    """No such symmetry was proved."""
    UNUSED = "unused"
    """No output depends on the leaf at all."""
    UNKNOWN = "unknown"
    """The evidence says nothing of scale, as structure alone never does."""


class Position(enum.StrEnum):
    """Where in the flow of the data a weight or an embedding stands."""

    INPUT = "input"
    """What it is contracted with, or looked up by, is data that no weight has met: gains and biases
    may have, as those of a norm."""
    HIDDEN = "hidden"
    """Between other weights."""
    HEAD = "head"
    """No other weight is applied to its output; of an embedding, to one of its outputs."""
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
    """A range of indices that the program uses apart from the rest of an axis, such as the keys.

    Attributes:
      start: Its first index.
      stop: One after its last.
      inner: The length of the equal runs, such as heads, that the program divides it into; its own
        length if it is not divided further.
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
"""By kind, why adding to a dead leaf changes no output, in words; ``{}`` stands for the place."""


class Cancellation(NamedTuple):
    """Why a leaf is dead: the operation at which whatever is added to the leaf cancels exactly.

    Attributes:
      kind: One of `CANCELLATIONS`.
      where: ``file:line (function)`` of the first such operation in the user's code; empty if
        nothing reads the leaf.

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
      invariant_blocks: By axis, the parts that may be scaled where not every index may be: in a
        fused kernel whose queries and keys alone are normalised, their columns. Each run of `inner`
        indices may be scaled by itself.
      position: Where it stands in the flow of the data, if it is a weight or an embedding.
      reached: Whether some gradient of some output flows to it.
      dead: Why no output depends on its value, proved from the program; `None` where that is not
        proved.
      parts: By axis with several blocks, a number for each block; blocks of equal number make one
        matrix. Where heads interleave queries, keys and values, every third block is of the
        queries; the two halves of a head that a rotary embedding mixes have one number.
      confirmed: Whether running statistics of its own show it to be a BatchNorm's.
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
    invariant_blocks: Mapping[int, tuple[Block, ...]] = dataclasses.field(
        default_factory=dict, hash=False
    )
    position: Position | None = None
    reached: bool = True
    dead: Cancellation | None = None
    parts: Mapping[int, tuple[int, ...]] = dataclasses.field(default_factory=dict, hash=False)
    confirmed: bool = False

    @property
    def size(self) -> int:
        """The number of elements."""
        return int(np.prod(self.shape, dtype=np.int64))
