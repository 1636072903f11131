"""What changed between two reports: every kind of change, nothing that is prose, never by order."""

import dataclasses
import json

import jax.numpy as jnp
import pytest

import optax_bnmask as bnmask
from optax_bnmask.comparison import Difference, compare
from optax_bnmask.errors import StructureError

PARAMS = {"head": {"kernel": jnp.ones((4, 2))}, "norm": {"bias": jnp.ones(4), "scale": jnp.ones(4)}}
OLD = bnmask.analyze_structure(PARAMS)


def changed(**fields):
    """The analysis with its first leaf changed."""
    first, *rest = OLD.leaves
    return dataclasses.replace(OLD, leaves=(dataclasses.replace(first, **fields), *rest))


def test_an_analysis_is_the_same_as_itself():
    found = compare(OLD, OLD)
    assert found == Difference()
    assert found.same
    assert str(found) == "No difference."


def test_prose_and_order_do_not_count():
    other = dataclasses.replace(OLD, leaves=OLD.leaves[::-1], notes=("another",))
    assert compare(OLD, other).same
    assert compare(OLD, changed(reason="another")).same


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"role": bnmask.Role.EMBEDDING}, "~ head/kernel: role weight -> embedding"),
        ({"scale": bnmask.Scale.INVARIANT}, "~ head/kernel: scale unknown -> invariant"),
        ({"shape": (2, 4)}, "~ head/kernel: shape (4, 2) -> (2, 4)"),
        ({"dtype": jnp.dtype("bfloat16")}, "~ head/kernel: dtype float32 -> bfloat16"),
        ({"invariant_axes": (1,)}, "~ head/kernel: invariant_axes () -> (1,)"),
        ({"path": "tail/kernel"}, "+ tail/kernel\n- head/kernel"),
    ],
)
def test_each_change_is_a_line(fields, said):
    found = compare(OLD, changed(**fields))
    assert not found.same
    assert str(found) == said


def test_masks_and_pairs_are_compared_by_their_decisions():
    old, new = OLD.decay_mask(), OLD.decay_mask(exempt=(), never=["head/*"])
    said = (
        "~ head/kernel: decays yes -> no\n"
        "~ norm/bias: decays no -> yes\n"
        "~ norm/scale: decays no -> yes"
    )
    assert str(compare(old, new)) == said
    assert str(compare((OLD, old), (OLD, new))) == said


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (OLD, OLD.decay_mask(), "Only one of them says: decays, dtype, invariant_axes, role"),
        (OLD, (OLD, OLD.decay_mask()), "Only one of them says: decays. Make both in the same way"),
        (OLD, "a report", "Found a str. Read reports with"),
    ],
)
def test_what_cannot_be_compared_is_a_sentence(old, new, said):
    with pytest.raises(StructureError, match=said):
        compare(old, new)


def test_nothing_against_something_is_all_added():
    empty = dataclasses.replace(OLD, leaves=())
    assert compare(empty, OLD).added == ("head/kernel", "norm/bias", "norm/scale")
    assert compare(OLD, empty).removed == ("head/kernel", "norm/bias", "norm/scale")


def test_json_holds_all_of_it():
    record = json.loads(compare(OLD, changed(shape=(2, 4))).to_json())
    assert record == {
        "schema": "optax_bnmask/difference/1",
        "same": False,
        "added": [],
        "removed": [],
        "changed": [{"path": "head/kernel", "what": "shape", "old": "(4, 2)", "new": "(2, 4)"}],
    }


def test_a_key_cannot_write_lines_of_its_own():
    assert str(compare(OLD, changed(path="a\n- norm/bias"))).count("\n") == 1
