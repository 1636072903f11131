"""Which leaves are matrices, along which axes: what Muon and GaLore ask for."""

from collections.abc import Callable, Collection
from typing import Any

from optax.contrib import GaLoreDimensionNumbers, MuonDimensionNumbers

from optax_bnmask.arguments import strings
from optax_bnmask.errors import CategoryError
from optax_bnmask.labels import Labels
from optax_bnmask.record import Record, require_program
from optax_bnmask.vocabulary import Dimensions, Leaf, Position, Role


class MatrixSpecs(Labels):
    """The dimension numbers of each leaf that is a matrix, `None` for each other one.

    A callable for the `muon_weight_dimension_numbers` argument of `optax.contrib.muon`, or the
    `weight_dimension_numbers` of `optax.contrib.galore`, aligned by path as a `Mask` is, so that it
    serves on trees with holes and on updates as on params.
    """

    __slots__ = ()

    @property
    def labels(self) -> Labels:
        """``"muon"`` for each leaf with dimension numbers and ``"adam"`` for the others."""
        return Labels({path: "adam" if self[path] is None else "muon" for path in self})


def muon_specs(analysis: Record, positions: Collection[str]) -> MatrixSpecs:
    """Implements `Analysis.muon_dimension_numbers`."""
    return _specs(analysis, positions, lambda d: MuonDimensionNumbers(d.reduction, d.output))


def galore_specs(analysis: Record, positions: Collection[str]) -> MatrixSpecs:
    """Implements `Analysis.galore_dimension_numbers`."""

    def spec(d: Dimensions) -> GaLoreDimensionNumbers | None:
        # Optax's GaLore refuses a leaf with axes beside those of reduction and output.
        return None if d.batch else GaLoreDimensionNumbers(d.reduction, d.output)

    return _specs(analysis, positions, spec)


def _specs(
    analysis: Record, positions: Collection[str], spec: Callable[[Dimensions], Any]
) -> MatrixSpecs:
    """The specs of the matrices at some positions that a gradient reaches."""
    require_program(analysis, "Matrices, and which of their axes are summed over,")
    names = [str(position) for position in Position]
    chosen = strings(positions, "positions")
    if not chosen or not set(chosen) <= set(names):
        raise CategoryError(
            f"`positions` must be a collection of {', '.join(map(repr, names))}. Found "
            f"{positions!r}."
        )
    found = {leaf.path: _dimensions(leaf, chosen) for leaf in analysis.leaves}
    return MatrixSpecs({path: spec(own) if own else None for path, own in found.items()})


def _dimensions(leaf: Leaf, positions: Collection[str]) -> Dimensions | None:
    """The dimensions of a leaf, if it is a weight at these positions that a gradient reaches."""
    is_wanted = leaf.role is Role.WEIGHT and leaf.reached and leaf.position in positions
    return leaf.dimensions if is_wanted else None
