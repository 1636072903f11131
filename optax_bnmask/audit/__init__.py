"""What an optimizer that someone already has really decays, found from outside."""

from optax_bnmask.audit.assertion import assert_decays
from optax_bnmask.audit.outcome import Audit, Finding
from optax_bnmask.audit.pipeline import audit

__all__ = ["Audit", "Finding", "assert_decays", "audit"]
