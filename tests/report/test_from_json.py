"""Reading an analysis back: equal to what was written, or a sentence that says what is wrong."""

import dataclasses
import json
from fractions import Fraction

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st

import optax_bnmask as bnmask
from optax_bnmask import Analysis, Assumption, Evidence, Leaf, Role, Scale
from optax_bnmask.report import to_json, to_text
from optax_bnmask.vocabulary import Block, Cancellation, Dimensions

F32 = jnp.dtype("float32")

DTYPES = [
    *("float32", "float16", "bfloat16", "float64", "int8", "uint32", "bool", "complex64"),
    *("float8_e4m3fn", "float8_e5m2", "int4"),
]
KEYS = ["threefry2x32", "rbg", "unsafe_rbg"]

exponents = st.fractions(-3, 3, max_denominator=7).filter(bool)
numbers = st.floats(allow_nan=False, width=32)
words = st.text(max_size=6)


@st.composite
def analyses(draw):
    paths = draw(st.lists(words, max_size=5, unique=True))
    subsets = st.frozensets(st.sampled_from(paths)) if paths else st.just(frozenset())
    groups = tuple(draw(st.lists(subsets, max_size=3)))
    shapes = {path: tuple(draw(st.lists(st.integers(0, 9), max_size=3))) for path in paths}
    leaves = tuple(
        Leaf(
            path,
            shapes[path],
            jnp.dtype(draw(st.sampled_from(DTYPES))),
            draw(st.sampled_from(Role)),
            draw(st.sampled_from(Scale)),
            tuple(axis for axis in range(len(shapes[path])) if draw(st.booleans())),
            draw(st.sampled_from([None, *range(len(groups))])),
            draw(words),
        )
        for path in paths
    )
    assumption = st.builds(
        Assumption, st.sampled_from(["epsilon", "infinity", "guard"]), numbers, words, words
    )
    return Analysis(
        leaves,
        draw(st.frozensets(st.sampled_from(Evidence))),
        tuple({path: draw(exponents) for path in draw(subsets)} for _ in range(2)),
        groups,
        tuple(draw(st.lists(assumption, max_size=2))),
        draw(st.dictionaries(words, st.integers(0, 9), max_size=2)),
        tuple(draw(st.lists(words, max_size=2))),
    )


@given(analyses())
def test_reading_gives_back_what_was_written(analysis):
    text = to_json(analysis)
    assert bnmask.Analysis.from_json(text) == analysis
    assert to_json(bnmask.Analysis.from_json(text)) == text


@pytest.mark.parametrize("name", DTYPES)
def test_dtypes_come_back_as_dtypes(name):
    analysis = Analysis((Leaf("w", (2,), jnp.dtype(name), Role.WEIGHT),), frozenset())
    dtype = bnmask.Analysis.from_json(to_json(analysis))["w"].dtype
    assert dtype == jnp.dtype(name)
    assert isinstance(dtype, type(jnp.dtype(name)))


@pytest.mark.parametrize("impl", KEYS)
def test_random_keys_come_back_with_their_own_dtype(impl):
    params = {"key": jax.random.key(0, impl=impl), "kernel": jnp.ones((2, 3))}
    analysis = bnmask.analyze_structure(params)
    again = bnmask.Analysis.from_json(to_json(analysis))
    assert again == analysis
    assert jnp.issubdtype(again["key"].dtype, jax.dtypes.prng_key)


def test_an_analysis_by_program_comes_back_without_its_program():
    def net(p, x):
        z = x @ p["w"]
        return jnp.tanh(z * jax.lax.rsqrt((z * z).mean(-1, keepdims=True) + 1e-6) * p["c"])

    params = {"w": jnp.ones((4, 8)), "c": jnp.ones((1, 8))}
    analysis = bnmask.analyze(net, params, jnp.ones((2, 4)))
    again = bnmask.Analysis.from_json(to_json(analysis))
    assert again == analysis
    assert again.symmetries[0]["w"] == Fraction(1)
    assert again.decay_mask(exempt=["norm", "bias"]) == analysis.decay_mask(exempt=bnmask.STANDARD)
    assert to_text(again) == to_text(analysis)
    assert again.explain("w").startswith("w: weight.")


def test_fields_of_a_later_version_are_passed_over():
    record = json.loads(to_json(SMALL))
    record["made_by"] = "a later version"
    record["leaves"][0]["colour"] = None
    assert bnmask.Analysis.from_json(json.dumps(record)) == SMALL


SMALL = Analysis(
    (
        Leaf("a", (2, 3), F32, Role.WEIGHT, Scale.JOINT, (1,), 0, "why"),
        Leaf("b", (3,), F32, Role.BIAS, Scale.JOINT, (), 0, "why"),
    ),
    frozenset({Evidence.PROGRAM}),
    symmetries=({"a": Fraction(1, 2), "b": Fraction(1)},),
    groups=(frozenset({"a", "b"}),),
    assumptions=(Assumption("epsilon", 1e-5, "add", "m.py:1 (f)"),),
    unhandled={"my_op": 1},
    notes=("odd",),
)


FULL = dataclasses.replace(
    SMALL.leaves[0],
    shape=(2, 6),
    dimensions=Dimensions((0,), (1,), ()),
    blocks={1: (Block(0, 3, 3), Block(3, 6, 3))},
    invariant_blocks={1: (Block(0, 3, 3),)},
    position=bnmask.Position.HIDDEN,
    reached=False,
    dead=Cancellation("mean", "net.py:7 (norm)"),
    parts={1: (0, 1)},
    confirmed=True,
)


def test_every_field_comes_back():
    analysis = dataclasses.replace(SMALL, leaves=(FULL, *SMALL.leaves[1:]))
    assert bnmask.Analysis.from_json(to_json(analysis)) == analysis
    defaults = Leaf("a", (2, 6), F32, Role.WEIGHT)
    names = [field.name for field in dataclasses.fields(Leaf)]
    assert all(getattr(FULL, name) != getattr(defaults, name) for name in names[4:])


def _changed(change):
    record = json.loads(to_json(SMALL))
    change(record)
    return json.dumps(record)


def _set(*keys, to):
    def change(record):
        for key in keys[:-1]:
            record = record[key]
        record[keys[-1]] = to

    return change


def _drop(*keys):
    def change(record):
        for key in keys[:-1]:
            record = record[key]
        del record[keys[-1]]

    return change


TWICE = {"reduction": [0], "output": [0], "batch": []}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("schema", to="optax_bnmask/analysis/2"), "of 'optax_bnmask/analysis/2'"),
        (_set("schema", to=None), "`schema` of the whole must be a string"),
        (_drop("schema"), "must have a field `schema`"),
        (_drop("leaves"), "must have a field `leaves`"),
        (_drop("leaves", 1, "role"), r"`leaves\[1\]` must have a field `role`"),
        (_set("leaves", to={}), "`leaves` of the whole must be a list"),
        (_set("leaves", 0, to=3), r"`leaves\[0\]` must be an object. Found 3"),
        (_set("leaves", 0, "role", to="Weight"), "must be one of 'weight'"),
        (_set("leaves", 0, "shape", to=[2, -3]), "must hold no negative number"),
        (_set("leaves", 0, "shape", to=[2, True]), "must be an integer. Found True"),
        (
            _set("leaves", 0, "shape", to=[10**30, 4]),
            "hold at most 9,223,372,036,854,775,807 entries",
        ),
        (_set("leaves", 0, "invariant_axes", to=[7]), r"must have the axes \[7\]"),
        (_set("leaves", 0, "blocks", to={"9": [[0, 1, 1]]}), r"must have the axes .*9"),
        (_set("leaves", 0, "blocks", to={"0": [[0, 10**9, 1]]}), "must lie within their axes"),
        (_set("leaves", 0, "blocks", to={"0": [[0, 1, 2]]}), "must lie within their axes"),
        (_set("leaves", 0, "blocks", to={"0": 1}), "`blocks` of .* must be a list. Found 1"),
        (_set("leaves", 0, "invariant_blocks", to={"x": None}), "must be a list. Found None"),
        (_set("leaves", 0, "parts", to={"0": [1, 2]}), "must have a number for each block"),
        (_set("leaves", 0, "parts", to={"x": [1]}), "must hold a list by axis"),
        (_set("unhandled", "my_op", to=-1), "must hold no negative number"),
        (_set("leaves", 0, "reached", to="no"), "must be true or false. Found 'no'"),
        (_set("leaves", 0, "dimensions", to=TWICE), r"must name each axis once. Found \[0, 0\]"),
        (_set("leaves", 0, "dtype", to="float33"), "must be a dtype that this JAX knows"),
        (_set("leaves", 0, "dtype", to="key<mine>"), "must be a dtype that this JAX knows"),
        (_set("leaves", 0, "dtype", to="(2,"), "must be a dtype that this JAX knows"),
        (_set("leaves", 0, "group", to="0"), "`group` of `leaves.0.` must be an integer"),
        (_set("leaves", 0, "group", to=4), "must have a group for 'a'. Found 4"),
        (_set("leaves", 0, "path", to="b"), "must name each leaf once. Found 'b'"),
        (_set("evidence", to=["hearsay"]), "must be one of 'structure', 'program'"),
        (_set("symmetries", 0, "a", to="1e9"), "must be an exponent such as '1/2'. Found '1e9'"),
        (_set("symmetries", 0, "a", to="1/0"), "must be an exponent"),
        (_set("symmetries", 0, "a", to=1), "must be a string"),
        (_set("symmetries", 0, "z", to="1"), "`symmetries` of the whole must name leaves only"),
        (_set("groups", 0, to=["a", "z"]), "`groups` of the whole must name leaves only"),
        (_set("groups", 0, to="ab"), "must be a list"),
        (_set("assumptions", 0, "kind", to="hope"), "must be one of 'epsilon'"),
        (_set("assumptions", 0, "value", to="much"), "must be a number. Found 'much'"),
        (_set("assumptions", 0, "value", to=[1]), "must be a number"),
        (_set("unhandled", "my_op", to="1"), "must be an integer"),
        (_set("notes", to=[None]), "must be a string. Found None"),
        (_set("notes", to="n" * 99), "Found 'nnnnn.*n[.]{3}[.]"),
    ],
)
def test_what_does_not_fit_the_schema_is_a_sentence(change, message):
    with pytest.raises(bnmask.StructureError, match=message):
        bnmask.Analysis.from_json(_changed(change))


def _places(value, *keys):
    """The keys to every value in a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    for key, each in inner:
        yield (*keys, key)
        if isinstance(each, dict | list):
            yield from _places(each, *keys, key)


ODD = [None, True, -1, 1.5, 10**40, "x", "-1", [], {}, [[]], [0, 0, 0], {"a": 1}, {"0": [[0, 1]]}]


@pytest.mark.parametrize("odd", ODD, ids=repr)
def test_whatever_a_value_is_replaced_with_is_read_or_refused_in_a_sentence(odd):
    analysis = dataclasses.replace(SMALL, leaves=(FULL, *SMALL.leaves[1:]))
    text, refused = to_json(analysis), 0
    for keys in _places(json.loads(text)):
        record = json.loads(text)
        _set(*keys, to=odd)(record)
        try:
            bnmask.Analysis.from_json(json.dumps(record))
        except bnmask.StructureError as error:
            assert "Found" in str(error) or "schema" in str(error)  # noqa: PT017 - or it is read
            refused += 1
    assert refused > 20


@pytest.mark.parametrize("text", ["", "{", to_json(SMALL)[:-9], "[" * 99_999, "nul", None, b"\xff"])
def test_what_is_no_json_is_a_sentence(text):
    with pytest.raises(bnmask.StructureError, match="`text` must be JSON"):
        bnmask.Analysis.from_json(text)


@pytest.mark.parametrize("text", ["[]", "3", '"a"', "null", "true"])
def test_json_of_something_else_is_a_sentence(text):
    with pytest.raises(bnmask.StructureError, match="the whole must be an object"):
        bnmask.Analysis.from_json(text)
