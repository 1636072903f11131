"""Which leaves are matrices, along which axes: the dimension numbers that Muon asks for."""

from collections.abc import Collection

from optax.contrib import MuonDimensionNumbers

from optax_bnmask.analysis import Analysis, Leaf, Position, Role, require_program
from optax_bnmask.errors import CategoryError
from optax_bnmask.mask import Labels


class MatrixSpecs(Labels):
    """The dimension numbers of each leaf that is a matrix, `None` for each other one.

    A callable for the `muon_weight_dimension_numbers` argument of `optax.contrib.muon`, aligned by
    path as a `Mask` is, so that it serves on trees with holes and on updates as on params.
    """

    __slots__ = ()

    @property
    def labels(self) -> Labels:
        """``"muon"`` for each leaf with dimension numbers and ``"adam"`` for the others."""
        return Labels({path: "adam" if self[path] is None else "muon" for path in self})


def matrix_specs(analysis: Analysis, positions: Collection[str]) -> MatrixSpecs:
    """`Analysis.muon_dimension_numbers`."""
    require_program(analysis, "Matrices, and which of their axes are summed over,")
    names = [str(position) for position in Position]
    if isinstance(positions, str) or not set(positions) <= set(names):
        raise CategoryError(
            f"`positions` must be a collection of {', '.join(map(repr, names))}. Found "
            f"{positions!r}."
        )
    return MatrixSpecs({leaf.path: _spec(leaf, positions) for leaf in analysis.leaves})


def _spec(leaf: Leaf, positions: Collection[str]) -> MuonDimensionNumbers | None:
    """The dimension numbers of one leaf, if it is a matrix that a gradient reaches."""
    found = leaf.dimensions
    is_wanted = leaf.role is Role.WEIGHT and leaf.reached and leaf.position in positions
    return MuonDimensionNumbers(found.reduction, found.output) if found and is_wanted else None
