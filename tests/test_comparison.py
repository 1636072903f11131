"""The README's table of who gets which wrong is what the fixtures give."""

from pathlib import Path

import pytest

import optax_bnmask as bnmask
from tests.comparison import OURS, RULES, judged, table
from tests.fixtures import FIXTURES

README = Path(__file__).parents[1] / "README.md"


def test_readme_shows_the_table_that_the_fixtures_give():
    text = README.read_text(encoding="utf-8")
    shown = text.partition("<!-- comparison -->")[2].partition("<!-- /comparison -->")[0]
    assert table() in shown, "run `python -m tests.comparison` and paste the table"


def test_every_rule_gets_something_wrong_and_structure_gets_no_normaliser_wrong():
    wrong, _ = judged()
    assert all(wrong[rule] for rule in RULES)
    assert not [leaf for leaf in wrong[OURS] if leaf[2] in {"norm", "weight"}]


def test_what_structure_gets_wrong_it_lists_as_unknown():
    wrong, _ = judged()
    for fixture, path, _ in wrong[OURS]:
        leaf = bnmask.analyze_structure(*fixture.build())[path]
        assert leaf.role is bnmask.Role.UNKNOWN, path


@pytest.mark.parametrize("fixture", FIXTURES, ids=lambda fixture: fixture.name)
def test_every_glob_of_the_truth_names_a_leaf(fixture):
    params, stats = fixture.build()
    mask = bnmask.decay_mask(params, stats, never=fixture.spared)
    assert len(mask) > 0
    assert all(not mask[path] for path in mask if fixture.truth(path) != "weight")
