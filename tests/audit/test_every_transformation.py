"""Every transformation of Optax that takes a decay and a mask, found in its modules, is audited.

A new one appears here by itself. What it decays, with the mask and without a decay, is what it is
told; where its pull is not in proportion to the leaf, that is said.
"""

import inspect

import jax.numpy as jnp
import optax
import pytest
from optax import contrib

import optax_bnmask as bnmask

PARAMS = {
    "dense": {"kernel": jnp.ones((4, 6)), "bias": jnp.ones(6)},
    "norm": {"scale": jnp.ones(6)},
}
ANALYSIS = bnmask.analyze_structure(PARAMS)
MASK = ANALYSIS.decay_mask(exempt=bnmask.STANDARD)

_DECAYS = ("weight_decay", "weight_decay_rate")
_MASKS = ("mask", "weight_decay_mask")
_GIVEN = {"learning_rate": 1e-3}

COUPLED = {"adadelta", "cocob", "dog", "dowg"}
"""Those that divide by the size of what a decay is a part of."""

CLIMB = {"adadelta"}
"""It has no learning rate by default, and its first steps are as small as if it had one."""

pytestmark = pytest.mark.usefixtures("optax_promotion")


def found():
    for module in (optax, contrib):
        for name, make in sorted(vars(module).items()):
            if name.startswith("_") or not inspect.isfunction(make):
                continue
            parameters = inspect.signature(make).parameters
            decay = next((known for known in _DECAYS if known in parameters), None)
            if decay and required(make) <= {*_GIVEN, decay}:  # others wrap a transformation
                yield name, make, decay, next((m for m in _MASKS if m in parameters), None)


def required(make):
    parameters = inspect.signature(make).parameters.values()
    return {p.name for p in parameters if p.default is p.empty and p.kind != p.VAR_KEYWORD}


def built(make, **options):
    given = {name: value for name, value in _GIVEN.items() if name in required(make)}
    return make(**given, **options)


FOUND = list(found())


def test_there_are_many():
    assert len(FOUND) > 20
    assert {name for name, *_ in FOUND} >= COUPLED | {"adamw", "muon", "prodigy", "lion"}


@pytest.mark.parametrize(("name", "make", "decay", "mask"), FOUND, ids=[row[0] for row in FOUND])
def test_what_decays_is_what_it_was_told(name, make, decay, mask):
    options = {mask: MASK} if mask else {}
    audit = bnmask.audit(built(make, **{decay: 0.1}, **options), PARAMS, ANALYSIS)
    kinds = {finding.kind for finding in audit.findings} - {"coupled"}
    assert ("climbs" in kinds) == (name in CLIMB)
    kinds -= {"climbs"}
    if mask:
        assert (audit.decayed, kinds) == ({"dense/kernel"}, set())
    else:
        assert kinds == {"everything_decayed"}
    if name in COUPLED:
        assert "coupled" in [finding.kind for finding in audit.findings]
    bare = bnmask.audit(built(make, **{decay: 0.0}, **options), PARAMS, ANALYSIS)
    assert (bare.decayed, [finding.kind for finding in bare.findings]) == (
        set(),
        ["nothing_decayed"],
    )
