"""The second opinion: do the proved symmetries hold in numbers, and do they hold here?"""

from optax_bnmask.verify.certificate import verify
from optax_bnmask.verify.verification import Verification, Weak

__all__ = ["Verification", "Weak", "verify"]
