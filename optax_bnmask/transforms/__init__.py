"""Treatments: what to do with parameters whose scale a normaliser hides."""

from optax_bnmask.transforms.blocks import by_blocks
from optax_bnmask.transforms.correction import CorrectedWeightDecayState, corrected_weight_decay
from optax_bnmask.transforms.hyperball import HyperballState, hyperball
from optax_bnmask.transforms.monitor import MonitorScaleState, monitor_scale
from optax_bnmask.transforms.norms import KeepNormState, keep_norm

__all__ = [
    "CorrectedWeightDecayState",
    "HyperballState",
    "KeepNormState",
    "MonitorScaleState",
    "by_blocks",
    "corrected_weight_decay",
    "hyperball",
    "keep_norm",
    "monitor_scale",
]
