"""What is stored in a checkpoint: the names, shapes and dtypes of its arrays, never the arrays."""

from optax_bnmask.checkpoints.reader import Stored, analyze_checkpoint, read

__all__ = ["Stored", "analyze_checkpoint", "read"]
