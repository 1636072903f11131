"""Weight-decay masks for JAX, decided from evidence instead of names."""

from optax_bnmask.analysis import Analysis, analyze_structure
from optax_bnmask.audit import Audit, Finding, assert_decays, audit
from optax_bnmask.categories import STANDARD, STRICT, WIDE
from optax_bnmask.comparison import Change, Difference, compare
from optax_bnmask.errors import CategoryError, PathError, StructureError, VerificationError
from optax_bnmask.frameworks.equinox import analyze_equinox
from optax_bnmask.frameworks.haiku import analyze_haiku
from optax_bnmask.frameworks.linen import analyze_linen
from optax_bnmask.frameworks.nnx import analyze_nnx
from optax_bnmask.labels import Labels
from optax_bnmask.mask import Mask, decay_mask
from optax_bnmask.program import analyze
from optax_bnmask.record import Assumption
from optax_bnmask.transforms import (
    CorrectedWeightDecayState,
    HyperballState,
    KeepNormState,
    MonitorScaleState,
    by_blocks,
    corrected_weight_decay,
    hyperball,
    keep_norm,
    monitor_scale,
)
from optax_bnmask.verify import (
    Certificate,
    Verification,
    gradient_certificate,
    verify,
    verify_equinox,
    verify_haiku,
    verify_linen,
    verify_nnx,
)
from optax_bnmask.vocabulary import Block, Dimensions, Evidence, Leaf, Position, Role, Scale

__version__ = "0.1.0"

__all__ = [
    "STANDARD",
    "STRICT",
    "WIDE",
    "Analysis",
    "Assumption",
    "Audit",
    "Block",
    "CategoryError",
    "Certificate",
    "Change",
    "CorrectedWeightDecayState",
    "Difference",
    "Dimensions",
    "Evidence",
    "Finding",
    "HyperballState",
    "KeepNormState",
    "Labels",
    "Leaf",
    "Mask",
    "MonitorScaleState",
    "PathError",
    "Position",
    "Role",
    "Scale",
    "StructureError",
    "Verification",
    "VerificationError",
    "analyze",
    "analyze_equinox",
    "analyze_haiku",
    "analyze_linen",
    "analyze_nnx",
    "analyze_structure",
    "assert_decays",
    "audit",
    "by_blocks",
    "compare",
    "corrected_weight_decay",
    "decay_mask",
    "gradient_certificate",
    "hyperball",
    "keep_norm",
    "monitor_scale",
    "verify",
    "verify_equinox",
    "verify_haiku",
    "verify_linen",
    "verify_nnx",
]
