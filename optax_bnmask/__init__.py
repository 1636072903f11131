"""Weight-decay masks for JAX, decided from evidence instead of names."""

from optax_bnmask.analysis import Analysis, Assumption, Evidence, Leaf, Role, Scale
from optax_bnmask.errors import CategoryError, PathError, StructureError, VerificationError
from optax_bnmask.frameworks.linen import analyze_linen
from optax_bnmask.frameworks.nnx import analyze_nnx
from optax_bnmask.mask import STANDARD, STRICT, Labels, Mask, decay_mask
from optax_bnmask.program.analyze import analyze
from optax_bnmask.structure import analyze_structure

__all__ = [
    "STANDARD",
    "STRICT",
    "Analysis",
    "Assumption",
    "CategoryError",
    "Evidence",
    "Labels",
    "Leaf",
    "Mask",
    "PathError",
    "Role",
    "Scale",
    "StructureError",
    "VerificationError",
    "analyze",
    "analyze_linen",
    "analyze_nnx",
    "analyze_structure",
    "decay_mask",
]
