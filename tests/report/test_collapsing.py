"""Repeated blocks are shown once, and what is shown stands for exactly the leaves there are."""

import dataclasses
import itertools
import re
import time
from fractions import Fraction

import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optax_bnmask import Analysis, Assumption, Evidence, Leaf, Role, Scale
from optax_bnmask.families import families, folded_lines
from optax_bnmask.mask import Mask
from optax_bnmask.report import to_text
from optax_bnmask.report.content import leaf_table
from optax_bnmask.report.document import Leaves
from optax_bnmask.report.repetition import group_lines, leaf_families, symmetry_lines
from optax_bnmask.vocabulary import Block, Cancellation, Dimensions

F32 = jnp.dtype("float32")


def _numbers(braces):
    for part in braces.split(","):
        first, _, last = part.partition("..")
        for number in range(int(first), int(last or first) + 1):
            yield f"{number:0{len(first)}}" if first[0] == "0" else str(number)


def expanded(pattern):
    """All that a pattern stands for; written anew, so that it does not share the fold's errors."""
    pieces = re.split(r"\{([0-9.,]+)\}", pattern)
    choices = [[p] if at % 2 == 0 else list(_numbers(p)) for at, p in enumerate(pieces)]
    return ["".join(choice) for choice in itertools.product(*choices)]


def patterns(paths, kinds=None):
    return [family.pattern for family in families(paths, kinds)]


def _check_whole(paths, found):
    """Every path is in one family, whose pattern stands for its members and nothing else."""
    assert sorted(n for family in found for n in family.members) == list(range(len(paths)))
    for family in found:
        if len(family.members) > 1:
            assert sorted(expanded(family.pattern)) == sorted(paths[n] for n in family.members)
        else:
            assert family.pattern == paths[family.members[0]]


@pytest.mark.parametrize(
    ("paths", "found"),
    [
        ([f"block{i}/conv/kernel" for i in range(36)], ["block{0..35}/conv/kernel"]),
        ([f"layers/{i}/w" for i in range(3)], ["layers/{0..2}/w"]),
        ([f"Block_{i}/w" for i in range(3)], ["Block_{0..2}/w"]),
        ([f"h.{i}/w" for i in range(3)], ["h.{0..2}/w"]),
        ([f"h.{i}.attn.w" for i in range(3)], ["h.{0..2}.attn.w"]),
        ([f"{i}" for i in range(3)], ["{0..2}"]),
        ([f"block{i}/w" for i in (0, 2, 3, 4, 5)], ["block{0,2..5}/w"]),
        ([f"block{i}/w" for i in (10, 9, 1)], ["block{1,9,10}/w"]),
        ([f"b{i:02}/w" for i in range(12)], ["b{00..11}/w"]),
        (["b1/w", "b01/w", "b2/w", "b02/w"], ["b{1,2}/w", "b{01,02}/w"]),
        ([f"s{i}/b{j}/w" for i in range(4) for j in range(3)], ["s{0..3}/b{0..2}/w"]),
        ([f"s{i}b{j}_w" for i in range(4) for j in range(3)], ["s{0..3}b{0..2}_w"]),
        (
            [f"s{i}/b{j}/w" for i in range(2) for j in range(3 + i)],
            ["s0/b{0..2}/w", "s1/b{0..3}/w"],
        ),
        (["a", "b/w", "c/d/e"], ["a", "b/w", "c/d/e"]),
        (["b0/w", "b1/w", "b1/v"], ["b0/w", "b1/w", "b1/v"]),
        (["b0/w", "b1/v"], ["b0/w", "b1/v"]),
        (["x0", "x1", "x{0,1}", "y{0}/w", "y{1}/w"], ["x{0,1}", "x{0,1}", "y{0}/w", "y{1}/w"]),
        (["a0", "a0/w", "a1", "a1/w"], ["a{0,1}", "a{0,1}/w"]),
        (["", "/", "a//1", "a//2"], ["", "/", "a//{1,2}"]),
        ([f"run{2**70 + i}/w" for i in range(2)], [f"run{2**70 + i}/w" for i in range(2)]),
    ],
)
def test_paths_that_differ_in_one_number_are_one(paths, found):
    assert patterns(paths) == found
    _check_whole(paths, families(paths))


def test_only_what_is_of_one_kind_below_is_put_together():
    paths = [f"b{i}/{name}" for i in range(4) for name in ("v", "w")]
    kinds = ["wide" if path == "b0/w" else "narrow" for path in paths]
    assert patterns(paths, kinds) == ["b0/v", "b0/w", "b{1..3}/v", "b{1..3}/w"]


names = st.text("ab01_.{}/", max_size=4)
few_paths = st.lists(st.lists(names, min_size=1, max_size=3).map("/".join), unique=True)


@given(few_paths, st.data())
def test_a_pattern_stands_for_its_members_and_nothing_else(paths, data):
    kinds = [data.draw(st.integers(0, 1)) for _ in paths]
    found = families(paths, kinds)
    _check_whole(paths, found)
    assert all(len({kinds[n] for n in family.members}) == 1 for family in found)
    assert [family.members for family in found] == sorted(family.members for family in found)


def expanded_line(line):
    """As `expanded`, with equal ranges for one number."""
    pieces = re.split(r"(\{[0-9.,]+\})", line)
    ranges = list(dict.fromkeys(pieces[1::2]))
    for numbers in itertools.product(*(_numbers(each[1:-1]) for each in ranges)):
        chosen = dict(zip(ranges, numbers, strict=True))
        yield "".join(chosen.get(piece, piece) for piece in pieces)


def test_a_number_that_a_line_names_twice_is_one_number():
    lines = [f"block{i}/b, at net.py:7 (Net/block{i})" for i in range(9)]
    assert folded_lines(lines) == ["block{0..8}/b, at net.py:7 (Net/block{0..8})"]
    assert folded_lines(["1 1", "1 2", "2 1", "2 2"]) == ["1 {1,2}", "2 {1,2}"]


@given(few_paths)
def test_lines_stand_for_all_the_lines_there_were(lines):
    plain = [line for line in lines if not set("{}") & set(line)]
    told = [each for line in folded_lines(plain) for each in expanded_line(line)]
    assert sorted(told) == sorted(plain)
    assert set(lines) - set(plain) <= set(folded_lines(lines))


FACTS = {
    "shape": (2,),
    "dtype": jnp.dtype("bfloat16"),
    "role": Role.BIAS,
    "scale": Scale.SENSITIVE,
    "invariant_axes": (0,),
    "group": 0,
    "confirmed": True,
    "dimensions": Dimensions((0,), (1,), ()),
    "blocks": {1: (Block(0, 1, 1), Block(1, 3, 2))},
    "invariant_blocks": {1: (Block(0, 1, 1),)},
    "dead": Cancellation("mean", "net.py:7 (norm)"),
}


@pytest.mark.parametrize("fact", FACTS)
def test_leaves_that_differ_in_a_fact_stay_apart(fact):
    leaf = Leaf("b0/w", (3, 3), F32, Role.WEIGHT, reason="as in b0")
    other = dataclasses.replace(leaf, path="b1/w", **{fact: FACTS[fact]})
    analysis = Analysis((leaf, other), frozenset(), groups=(frozenset({"b1/w"}),))
    assert len(leaf_families(analysis)) == 2
    alike = dataclasses.replace(leaf, path="b1/w", reason="as in b1")
    assert len(leaf_families(Analysis((leaf, alike), frozenset()))) == 1


def test_leaves_that_are_decided_otherwise_stay_apart():
    leaves = tuple(Leaf(f"b{i}/w", (3, 3), F32, Role.WEIGHT) for i in range(3))
    analysis = Analysis(leaves, frozenset({Evidence.STRUCTURE}))
    mask = analysis.decay_mask(never=["b1/w"])
    assert [f.pattern for f in leaf_families(analysis, mask)] == ["b{0,2}/w", "b1/w"]


def network(depth):
    """A residual network: a group across its blocks, and one in each of them."""
    facts = [
        ("bn/bias", (8,), Role.NORM_BIAS, Scale.JOINT),
        ("bn/scale", (8,), Role.NORM_SCALE, Scale.JOINT),
        ("conv/kernel", (3, 3, 8, 8), Role.WEIGHT, Scale.INVARIANT),
        ("out", (8, 8), Role.WEIGHT, Scale.JOINT),
    ]
    leaves = [
        Leaf(
            f"block{i}/{name}", shape, F32, role, scale, (3,) if len(shape) == 4 else (),
            None if scale is Scale.INVARIANT else i + 1 if "bn" in name else 0,
            f"as 'block{i}/{name}' is used at net.py:12",
        )
        for i in range(depth)
        for name, shape, role, scale in facts
    ]  # fmt: skip
    leaves.append(Leaf("stem", (4, 8), F32, Role.WEIGHT, Scale.JOINT, (), 0, "read first"))
    own = [frozenset({f"block{i}/bn/bias", f"block{i}/bn/scale"}) for i in range(depth)]
    shared = frozenset({"stem", *(f"block{i}/out" for i in range(depth))})
    symmetries = [dict.fromkeys(group, Fraction(1)) for group in (shared, *own)]
    symmetries += [{f"block{i}/conv/kernel": Fraction(-1, 2)} for i in range(depth)]
    return Analysis(
        tuple(leaves),
        frozenset({Evidence.PROGRAM}),
        symmetries=tuple(symmetries),
        groups=(shared, *own),
        assumptions=tuple(
            Assumption("epsilon", 1e-5, "add", f"net.py:9 (f) in Net/block{i}/bn")
            for i in range(depth)
        ),
        unhandled={"my_op": depth},
        notes=tuple(f"the statistics at 'block{i}/ema' are no normaliser's" for i in range(depth)),
    )


COLLAPSED = """\
145 leaves, 23,648 parameters, by program.
A normaliser's: 72 leaves, 2.4 % of the parameters.
Scale-invariant: 36 leaves, 87.7 % of the parameters.
Decayed: 73 leaves, 97.6 % of the parameters.

path                      shape         count  total size  role        scale          axes  decays  why
block{0..35}/bn/bias      (8,)             36         288  norm_bias   joint [1..36]        no      as 'block0/bn/bias' is used at net.py:12
block{0..35}/bn/scale     (8,)             36         288  norm_scale  joint [1..36]        no      as 'block0/bn/scale' is used at net.py:12
block{0..35}/conv/kernel  (3, 3, 8, 8)     36      20,736  weight      invariant      3     yes     as 'block0/conv/kernel' is used at net.py:12
block{0..35}/out          (8, 8)           36       2,304  weight      joint [0]            yes     as 'block0/out' is used at net.py:12
stem                      (4, 8)            1          32  weight      joint [0]            yes     read first

Jointly invariant groups
- [0] block{0..35}/out, stem
- [1..36] one in each of block{0..35}/bn: bias, scale

Assumptions
- 1e-05 in `add` taken as 0, at net.py:9 (f) in Net/block{0..35}/bn

Primitives without a rule
- `my_op`, 36 times: its inputs were taken as sensitive

Notes
- the statistics at 'block{0..35}/ema' are no normaliser's"""  # noqa: E501


def test_text_of_a_network_of_36_blocks_is_golden():
    analysis = network(36)
    mask = analysis.decay_mask()
    assert to_text(analysis, mask=mask) == COLLAPSED


def test_text_on_request_has_a_line_for_each_leaf():
    analysis = network(36)
    lines = to_text(analysis, collapse=False).splitlines()
    assert all(any(line.startswith(f"{leaf.path} ") for line in lines) for leaf in analysis.leaves)
    assert "{" not in "".join(lines)


def test_the_table_says_of_its_families_what_it_said_of_each_leaf():
    analysis = network(12)
    told = {}
    table = leaf_table(Leaves(analysis))
    names = [column.name for column in table.columns]
    for row in table.rows:
        cells = dict(zip(names, (cell.text for cell in row), strict=True))
        paths = expanded(cells["path"])
        assert len(paths) == int(cells["count"])
        for path in paths:
            size = int(cells["total size"].replace(",", "")) // len(paths)
            told[path] = (cells["shape"], size, cells["role"], cells["scale"].split()[0])
    assert told == {
        leaf.path: (str(leaf.shape), leaf.size, leaf.role, leaf.scale) for leaf in analysis.leaves
    }


def _sets(lines):
    """The sets that lines stand for."""
    for line in lines:
        scopes, _, members = line.rpartition(": ")
        _, _, scope = scopes.partition(" in each of ")
        for each in expanded(scope) if scope else [""]:
            prefix = f"{each}/" if each else ""
            names = [expanded(name.split(" ·")[0]) for name in members.split(", ")]
            yield frozenset(prefix + name for group in names for name in group)


def test_groups_and_symmetries_stand_for_all_there_were():
    analysis = network(12)
    lines = [re.sub(r"^\[[^]]*\] ", "", line) for line in group_lines(analysis, collapse=True)]
    assert len(lines) == 2
    assert set(_sets(lines)) == set(analysis.groups)
    lines = list(symmetry_lines(analysis))
    assert lines == [
        "block{0..11}/out · c, stem · c",
        "12, one in each of block{0..11}/bn: bias · c, scale · c",
        "12, one in each of block{0..11}/conv: kernel · c^-1/2",
    ]
    assert set(_sets(lines)) == {frozenset(each) for each in analysis.symmetries}


def test_five_thousand_leaves_take_no_time_and_few_lines():
    analysis = network(1250)
    start = time.perf_counter()
    text = to_text(analysis, mask=Mask({leaf.path: True for leaf in analysis.leaves}))
    assert time.perf_counter() - start < 5
    assert len(text.splitlines()) < 30
    assert len(leaf_table(Leaves(analysis, collapse=False)).rows) == 5001
