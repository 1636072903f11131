"""What is stored in a checkpoint: the names, shapes and dtypes of its arrays, never the arrays."""

from optax_bnmask.checkpoints.reader import analyze_checkpoint, read
from optax_bnmask.checkpoints.stored import Kind, Stored

__all__ = ["Kind", "Stored", "analyze_checkpoint", "read"]
