"""The table and the picture of who gets which wrong are what the fixtures give."""

import pytest

import optax_bnmask as bnmask
from tests.support import muon_comparison
from tests.support.comparison import FRAME, OURS, PAGE, PICTURE, RULES, judged, picture, table
from tests.support.fixtures import FIXTURES


def test_page_and_picture_show_what_the_fixtures_give():
    again = "run `python -m tests.support.comparison`"
    assert FRAME.findall(PAGE.read_text(encoding="utf-8")) == [table()], again
    assert PICTURE.read_text(encoding="utf-8") == picture(), again


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
    mask = bnmask.decay_mask(params, stats, never=[*fixture.spared])
    assert len(mask) > 0
    assert all(not mask[path] for path in mask if fixture.truth(path) != "weight")


def test_the_page_on_muon_shows_what_its_networks_give():
    page = muon_comparison.PAGE.read_text(encoding="utf-8")
    again = "run `python -m tests.support.muon_comparison`"
    assert muon_comparison.FRAME.findall(page) == [muon_comparison.table()], again


def test_the_program_takes_the_hidden_matrices_and_no_other_leaf():
    wrong, _ = muon_comparison.judged()
    *others, ours = wrong.values()
    assert all(others)
    assert not ours
