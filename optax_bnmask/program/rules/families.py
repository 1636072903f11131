"""All families of rules, so that importing this module fills the table."""

from optax_bnmask.program.rules import arithmetic, contraction, control, devices, indexing, shaping

FAMILIES = (arithmetic, shaping, contraction, indexing, control, devices)
