"""Rules that people copy, on networks that people write: the audit finds what they get wrong."""

import jax
import optax
import pytest

import optax_bnmask as bnmask
from optax_bnmask.paths import tree_index
from tests.support.comparison import RULES
from tests.support.fixtures import FIXTURES

pytestmark = pytest.mark.usefixtures("optax_promotion")


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("fixture", FIXTURES, ids=lambda fixture: fixture.name)
def test_audit_measures_what_the_rule_decides_and_names_the_norms_that_it_decays(fixture, rule):
    params, stats = fixture.build()
    analysis = bnmask.analyze_structure(params, stats)

    def mask(tree):
        leaves = tree_index(tree).leaves
        decays = RULES[rule](leaves)
        return jax.tree.unflatten(jax.tree.structure(tree), [decays[path] for path in leaves])

    audit = bnmask.audit(optax.adamw(1e-3, weight_decay=0.1, mask=mask), params, analysis)
    decays = RULES[rule]({leaf.path: leaf for leaf in analysis.leaves})
    assert audit.decayed == {path for path, decayed in decays.items() if decayed}

    if not audit.decayed:
        assert [finding.kind for finding in audit.findings] == ["nothing_decayed"]
        return
    named = {path for finding in audit.findings for path in finding.paths}
    roles = {leaf.path: leaf.role for leaf in analysis.leaves}
    norms = {path for path in audit.decayed if roles[path] in {"norm_scale", "norm_bias"}}
    weights = {path for path, role in roles.items() if role == "weight"} - audit.decayed
    assert norms | weights <= named
    assert audit.ok == (not norms and not weights)
    kinds = {finding.kind for finding in audit.findings}
    whole = {"everything_decayed", "inverted"}
    if not kinds & whole:  # which say it of all
        unknown = {path for path in audit.decayed if roles[path] == "unknown"}
        assert ("unknown_decayed" in kinds) == bool(unknown)
    assert kinds <= whole | {"norm_decayed", "weight_exempt", "unknown_decayed"}
