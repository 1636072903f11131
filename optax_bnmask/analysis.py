"""`Analysis`, the result type for every kind of evidence: it makes masks, labels and reports."""

import dataclasses
from collections.abc import Collection, Iterable, Mapping
from fractions import Fraction
from typing import Any

import numpy as np

from optax_bnmask.arguments import keywords_alone
from optax_bnmask.labels import Labels
from optax_bnmask.mask import Mask, decay_mask_of, labels_of, selection
from optax_bnmask.matrices import MatrixSpecs, galore_specs, muon_specs
from optax_bnmask.record import Record
from optax_bnmask.report import fields_of, to_html, to_json, to_text
from optax_bnmask.structure import Reading, dtype_of, reading
from optax_bnmask.vocabulary import Evidence, Leaf


@dataclasses.dataclass(frozen=True, slots=True, repr=False, eq=False)
class Analysis(Record):
    """How each parameter is used and whether its scale matters.

    Attributes:
      leaves: One `Leaf` for each array of the params, in the order of `jax.tree.leaves`.
      evidence: Where this was read off: the structure, the program, or both.
      symmetries: A basis of the scale symmetries, each ``{path: exponent}`` without the zeros:
        scaling every leaf by ``c**exponent`` leaves the outputs as they are.
      groups: The jointly invariant groups of paths.
      assumptions: Every approximation that the proof leaned on.
      unhandled: Primitives without a rule, with their count: their inputs were taken as sensitive.
      notes: What the evidence found odd, in sentences, such as normalisers in inference mode.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax_bnmask as bnmask
      >>> params = {"conv": {"kernel": jnp.ones((3, 3, 1, 8))}, "post": {"scale": jnp.ones(8)}}
      >>> stats = {"post": {"mean": jnp.zeros(8), "var": jnp.ones(8)}}
      >>> analysis = bnmask.analyze_structure(params, stats)
      >>> analysis["post/scale"].role
      <Role.NORM_SCALE: 'norm_scale'>
    """

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

    def __repr__(self) -> str:
        """One line; `to_text` and `to_json` say it all."""
        kinds = " and ".join(sorted(self.evidence))
        return f"Analysis({len(self.leaves)} leaves, by {kinds})"

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

    @property
    def shift_axes(self) -> dict[str, tuple[int, ...]]:
        """By path, the axes along which adding one number to all entries changes no output, proved.

        The number may differ between the indices of the other axes: ``(1,)`` for a ``(features,
        classes)`` kernel of logits that only a softmax reads. The gradient sums to 0 along them.
        They are computed from the program when first asked for; an analysis without it, such as one
        read from JSON, has none. Dead leaves are left out.
        """
        return dict(getattr(self.proof, "shift_axes", {}))

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

    @keywords_alone
    def decay_mask(
        self,
        *,
        exempt: Collection[str] = ("norm",),
        always: Iterable[str] = (),
        never: Iterable[str] = (),
    ) -> Mask:
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
        return decay_mask_of(self, exempt=exempt, always=always, never=never)

    def select(self, *categories: str, by_blocks: bool = False) -> Mask:
        """The mask that is `True` where a leaf is in one of the categories.

        Args:
          *categories: As in `decay_mask`.
          by_blocks: For use inside of `bnmask.by_blocks`: the mask has the parts of fused leaves in
            place of the leaves, and ``"scale_invariant"`` is decided for each part: true of queries
            and keys that are normalised, false of values beside them that are not.

        Returns:
          A `Mask`, for `optax.masked` and its kin.

        Raises:
          CategoryError: An unknown category, or one that this evidence cannot show.
        """
        return selection(self, categories, by_blocks=by_blocks)

    @keywords_alone
    def labels(
        self,
        *,
        categories: Collection[str] | Mapping[str, str] = ("norm",),
        default: str = "decay",
    ) -> Labels:
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
        return labels_of(self, categories=categories, default=default)

    @keywords_alone
    def muon_dimension_numbers(self, *, positions: Collection[str] = ("hidden",)) -> MatrixSpecs:
        """The axes along which each leaf is a matrix, for `optax.contrib.muon`.

        By default, Muon takes every leaf with two axes for a matrix, and no other: biases that a
        scan stacks, and not the kernels beside them. From the program, a leaf is a matrix if
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
        return muon_specs(self, positions)

    @keywords_alone
    def galore_dimension_numbers(
        self, *, positions: Collection[str] = ("input", "hidden", "head")
    ) -> MatrixSpecs:
        """The axes along which each leaf is a matrix, for `optax.contrib.galore`.

        `muon_dimension_numbers` says which leaves are matrices. Optax's GaLore knows no stacks: a
        leaf with axes that index independent matrices is left to the base optimizer.

        Args:
          positions: Which matrices to take: any of ``"input"``, ``"hidden"`` and ``"head"``.

        Returns:
          A callable from a params tree to the tree of `optax.contrib.GaLoreDimensionNumbers` and
          `None`, for the argument `weight_dimension_numbers`.

        Raises:
          CategoryError: An unknown position, or this analysis is by structure alone.

        Example:
          >>> import jax, jax.numpy as jnp, optax
          >>> import optax_bnmask as bnmask
          >>> def fn(p, x):
          ...     heads = jax.nn.relu(jnp.einsum("btd,dhk->bthk", x, p["q"]))
          ...     return jnp.einsum("bthk,hkd->btd", heads, p["o"])
          >>> params = {"q": jnp.ones((16, 4, 8)), "o": jnp.ones((4, 8, 16))}
          >>> analysis = bnmask.analyze(fn, params, jax.ShapeDtypeStruct((2, 5, 16), "float32"))
          >>> specs = analysis.galore_dimension_numbers()
          >>> specs["o"]
          GaLoreDimensionNumbers(reduction_axis=(0, 1), output_axis=(2,))
          >>> tx = optax.contrib.galore(1e-3, rank=4, weight_dimension_numbers=specs)

        References:
          Zhao et al., GaLore, 2024, arXiv:2403.03507.
        """
        return galore_specs(self, positions)

    def to_text(self) -> str:
        """The analysis as an aligned table."""
        return to_text(self)

    def to_html(self) -> str:
        """The analysis as one self-contained HTML page."""
        return to_html(self)

    def to_json(self) -> str:
        """The analysis as JSON, with a versioned schema."""
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
        return Analysis(**fields_of(text))

    def __str__(self) -> str:
        """The table of `to_text`."""
        return self.to_text()

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return self.to_html()


def _unpickled(
    leaves: tuple[Leaf, ...],
    evidence: tuple[Evidence, ...],
    symmetries: tuple[Mapping[str, Fraction], ...],
    groups: tuple[tuple[str, ...], ...],
    *rest: Any,  # noqa: ANN401 - as in `Analysis`
) -> Analysis:
    """An `Analysis` from what `Analysis.__reduce__` kept."""
    return Analysis(leaves, frozenset(evidence), symmetries, tuple(map(frozenset, groups)), *rest)


def analyze_structure(params: Any, batch_stats: Any = None) -> Analysis:  # noqa: ANN401 - any pytree
    """What the params tree and the tree of statistics tell of each leaf's role.

    A BatchNorm is a scope whose counterpart in `batch_stats` holds `mean` *and* `var` of one shape,
    and whose `scale` and `bias` have that shape too, whatever the module is called and whatever
    else is in the scope. LayerNorm, GroupNorm, RMSNorm leave no statistics; they are told by
    convention (a scope with only a `scale` and perhaps a `bias` of the same shape). Of *scale*,
    structure says nothing: every leaf's `scale` is ``"unknown"``.

    Args:
      params: Any pytree of arrays (any shapes), `jax.ShapeDtypeStruct`s or tracers; an
        `nnx.Module` or `nnx.State` brings its own statistics.
      batch_stats: The tree of statistics beside it: Linen's `batch_stats`, Haiku's `state`.

    Returns:
      An `Analysis` whose leaves have a role and a reason. Candidates that were refused are in its
      `notes`.

    Raises:
      StructureError: The two trees are not of one model, or a leaf is not an array.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax_bnmask as bnmask
      >>> params = {"odd_name": {"scale": jnp.ones(8), "bias": jnp.zeros(8)}}
      >>> stats = {"odd_name": {"mean": jnp.zeros(8), "var": jnp.ones(8)}}
      >>> print(bnmask.analyze_structure(params, stats).explain("odd_name/bias"))
      odd_name/bias: norm_bias. a running mean and var of its shape are kept in its scope
    """
    return structure_of(reading(params, batch_stats))


def structure_of(read: Reading) -> Analysis:
    """The `Analysis` of the params and statistics that were read."""
    verdicts = read.verdicts()
    refusals = [f"{path!r}: {v.refused}" for path, v in verdicts.items() if v.refused]
    leaves = tuple(
        Leaf(
            path,
            np.shape(array),
            dtype_of(array),
            verdicts[path].role,
            reason=verdicts[path].reason,
            confirmed=verdicts[path].confirmed,
        )
        for path, array in read.params.leaves.items()
    )
    return Analysis(leaves, frozenset({Evidence.STRUCTURE}), notes=(*refusals, *read.oddities))
