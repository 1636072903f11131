"""Numeric checks: do proved symmetries hold at random parameters, and at the user's own?"""

from optax_bnmask.verify.frameworks import verify_equinox, verify_haiku, verify_linen, verify_nnx
from optax_bnmask.verify.gradients import Certificate, gradient_certificate
from optax_bnmask.verify.outcome import Verification, Weak
from optax_bnmask.verify.pipeline import verify

__all__ = [
    "Certificate",
    "Verification",
    "Weak",
    "gradient_certificate",
    "verify",
    "verify_equinox",
    "verify_haiku",
    "verify_linen",
    "verify_nnx",
]
