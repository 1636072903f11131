"""Reports: golden text, a page that escapes what it shows, JSON that keeps every field."""

import dataclasses
import html.parser
import json
import re
from fractions import Fraction

import jax.numpy as jnp
import pytest

from optax_bnmask import (
    Analysis,
    Assumption,
    Evidence,
    Leaf,
    Role,
    Scale,
    analyze_structure,
)
from optax_bnmask.report import to_html, to_json, to_text
from optax_bnmask.report.document import Document, Figure
from optax_bnmask.report.html_page import html_of
from optax_bnmask.report.text import text_of
from optax_bnmask.report.tree import MARKS, asset

F32 = jnp.dtype("float32")

RICH = Analysis(
    leaves=(
        Leaf("a/kernel", (3, 3, 16, 8), F32, Role.WEIGHT, Scale.INVARIANT, (3,), None, "before b"),
        Leaf("b/scale", (8,), F32, Role.NORM_SCALE, Scale.JOINT, (), 0, "gain of a normaliser"),
        Leaf("head/kernel", (8, 2), F32, Role.WEIGHT, Scale.SENSITIVE, (), None, "to the output"),
        Leaf("odd", (), F32, Role.UNKNOWN, Scale.UNUSED, (), None, "no output depends on it"),
    ),
    evidence=frozenset({Evidence.PROGRAM, Evidence.STRUCTURE}),
    symmetries=({"b/scale": Fraction(1), "a/kernel": Fraction(-1, 2)}, {"a/kernel": Fraction(1)}),
    groups=(frozenset({"b/scale", "a/kernel"}),),
    assumptions=(Assumption("epsilon", 1e-5, "add", "model.py:12 (Net.__call__)"),),
    unhandled={"pallas_call": 2, "my_op": 1},
    notes=("the statistics at 'x' are not BatchNorm's",),
)

GOLDEN = """\
4 leaves, 1,177 parameters, by program and structure.
A normaliser's: 1 leaf, 0.7 % of the parameters.
Of unknown role: 1 leaf, 0.1 % of the parameters.
Scale-invariant: 1 leaf, 97.9 % of the parameters.

path         shape           size  role        scale      axes  why
a/kernel     (3, 3, 16, 8)  1,152  weight      invariant  3     before b
b/scale      (8,)               8  norm_scale  joint [0]        gain of a normaliser
head/kernel  (8, 2)            16  weight      sensitive        to the output
odd          ()                 1  unknown     unused           no output depends on it

Jointly invariant groups
- [0] a/kernel, b/scale

Assumptions
- 1e-05 in `add` taken as 0, at model.py:12 (Net.__call__)

Primitives without a rule
- `my_op`, 1 time: its inputs were taken as sensitive
- `pallas_call`, 2 times: its inputs were taken as sensitive

Notes
- the statistics at 'x' are not BatchNorm's"""

GOLDEN_MASKED = """\
2 leaves, 80 parameters, by structure.
A normaliser's: 1 leaf, 10.0 % of the parameters.
Decayed: 1 leaf, 90.0 % of the parameters.

path         shape         size  role        decays  why
conv/kernel  (3, 3, 1, 8)    72  weight      yes     a filter
post/scale   (8,)             8  norm_scale  no      a mean and var are kept"""


@pytest.fixture
def small():
    leaves = (
        Leaf("conv/kernel", (3, 3, 1, 8), F32, Role.WEIGHT, reason="a filter"),
        Leaf("post/scale", (8,), F32, Role.NORM_SCALE, reason="a mean and var are kept"),
    )
    return Analysis(leaves, frozenset({Evidence.STRUCTURE}))


class _Page(html.parser.HTMLParser):
    """The tags, the attributes and the text of a page."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.texts = [], [], []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]

    def handle_data(self, data):
        self.texts.append(data)


def test_text_of_a_program_analysis_is_golden():
    assert to_text(RICH) == GOLDEN


def test_text_of_a_structure_analysis_with_its_mask_is_golden(small):
    assert to_text(small, mask=small.decay_mask()) == GOLDEN_MASKED


def test_str_of_an_analysis_is_its_text():
    assert str(RICH) == RICH.to_text() == GOLDEN


def test_text_of_no_leaves_is_a_heading():
    empty = Analysis((), frozenset({Evidence.STRUCTURE}))
    assert to_text(empty) == (
        "0 leaves, 0 parameters, by structure.\n\npath  shape  size  role  why"
    )


def test_text_keeps_each_leaf_on_one_line_whatever_its_key_holds():
    leaf = Leaf("a\nb\x1b[31m", (1,), F32, Role.UNKNOWN)
    text = to_text(Analysis((leaf,), frozenset({Evidence.STRUCTURE})))
    assert "a\\nb\\x1b[31m" in text
    assert "\x1b" not in text


def test_page_escapes_everything_the_user_named():
    evil = '<script>alert("1")</script>\'&'
    analysis = Analysis(
        leaves=(Leaf(evil, (1,), F32, Role.GAIN, Scale.SENSITIVE, (), None, evil),),
        evidence=frozenset({Evidence.PROGRAM}),
        groups=(frozenset({evil}),),
        assumptions=(Assumption("guard", 1.0, evil, evil),),
        unhandled={evil: 1},
        notes=(evil,),
    )
    whole = to_html(analysis, mask=analysis.decay_mask())
    page = _Page(whole)
    assert page.tags.count("script") == 1
    assert "".join(page.texts).count(evil) == 8
    assert re.findall(r"<script>\n(.*?)</script>", whole, re.DOTALL) == [asset("script.js")]


def test_script_and_style_hold_nothing_of_the_user(small):
    assert [_inside(tag, to_html(small)) for tag in ("script", "style")] == [
        _inside(tag, to_html(RICH)) for tag in ("script", "style")
    ]
    assert "script" not in _Page(html_of(Document("t", (), ()))).tags


def _inside(tag, page):
    return re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)


def test_page_asks_for_nothing_from_elsewhere():
    page = to_html(RICH)
    assert not re.search(r"https?:|@import|url\(", page)
    parsed = _Page(page)
    assert not {"link", "iframe"} & set(parsed.tags)
    assert not re.search(r"fetch|XMLHttp|import\(|innerHTML|eval", asset("script.js"))
    assert not [attr for attr in parsed.attributes if attr[1] in {"src", "href"}]


def test_page_serves_light_and_dark_and_narrow():
    page = to_html(RICH)
    assert "prefers-color-scheme: dark" in page
    assert "max-width: 700px" in page
    assert 'name="viewport"' in page


def test_page_styles_reach_nothing_outside_it():
    style = re.search(r"<style>(.*)</style>", to_html(RICH), re.DOTALL)[1]
    style = re.sub(r"/\*.*?\*/", "", style, flags=re.DOTALL)
    rules = re.sub(r"@(media|container)[^{]*\{", "", re.sub(r"\{[^{}]*\}", "{}", style))
    selectors = [part.strip(" }\n") for rule in rules.split("{}") for part in rule.split(",")]
    assert all(".bnmask" in selector for selector in selectors if selector)


def test_page_says_in_words_what_it_colours(small):
    page = to_html(small, mask=small.decay_mask())
    assert '<span class="decay yes">decays</span>' in page
    assert '<span class="decay no">exempt</span>' in page
    assert '<i aria-hidden="true">γ</i> norm_scale</span>' in page
    assert all(f".bnmask span.{tone}::before" in page for tone in ("yes", "no"))


def test_every_mark_is_another():
    assert len(set(MARKS.values())) == len(MARKS) == len(Role)


def test_page_has_all_that_the_text_has():
    text = "".join(_Page(to_html(RICH)).texts)
    for leaf in RICH.leaves:
        assert f"{leaf.reason[0].upper()}{leaf.reason[1:]}. float32" in text
    for line in GOLDEN.partition("Jointly")[2].splitlines()[1:]:
        assert line.removeprefix("- ").replace("`", "") in text
    assert "<code>add</code>" in to_html(RICH)
    assert "a/kernel · c^-1/2, b/scale · c" in text


def test_page_explains_what_is_proved_and_says_what_it_leaves_out():
    asked = []

    class Proof:
        def explain(self, path):
            asked.append(path)
            return f"{path} times c:\n  <no output> scales"

    leaves = tuple(
        Leaf(f"{name}{i}/w", (2, len(name)), F32, Role.WEIGHT)
        for name in ("a", "bb", "ccc")
        for i in range(3)
    )
    analysis = Analysis(leaves, frozenset({Evidence.PROGRAM}), proof=Proof())
    page = to_html(analysis)
    assert asked == ["ccc0/w", "bb0/w", "a0/w"]  # the first of each family, the largest first
    assert "bb0/w times c:\n  &lt;no output&gt; scales" in page
    assert "explains every leaf" not in page
    asked.clear()
    many = tuple(Leaf(f"x{'yz'[i % 2] * i}", (i + 1,), F32, Role.BIAS) for i in range(400))
    page = to_html(Analysis(many, frozenset({Evidence.PROGRAM}), proof=Proof()))
    assert len(asked) == 250
    assert "explains every leaf" in page


def test_notebook_shows_the_page(small):
    assert small._repr_html_() == to_html(small)


def test_figure_is_embedded_with_its_words():
    document = Document("t", (), (Figure("f", ("<svg></svg>",), 'two "lines"'),))
    page = html_of(document)
    assert 'role="img" aria-label="two &quot;lines&quot;">\n<svg></svg>\n' in page
    assert text_of(document) == ""


def test_json_has_every_field_of_analysis_and_leaf():
    record = json.loads(to_json(RICH))
    fields = {f.name for f in dataclasses.fields(Analysis)} - {"proof", "_by_path"}
    assert set(record) == fields | {"schema"}
    assert record["schema"] == "optax_bnmask/analysis/1"
    names = {f.name for f in dataclasses.fields(Leaf)} | {"size"}
    assert all(set(leaf) == names for leaf in record["leaves"])


def test_json_gives_back_what_went_in():
    record = json.loads(to_json(RICH))
    leaves = tuple(
        Leaf(
            leaf["path"], tuple(leaf["shape"]), jnp.dtype(leaf["dtype"]), Role(leaf["role"]),
            Scale(leaf["scale"]), tuple(leaf["invariant_axes"]), leaf["group"], leaf["reason"],
        )
        for leaf in record["leaves"]
    )  # fmt: skip
    again = Analysis(
        leaves,
        frozenset(map(Evidence, record["evidence"])),
        tuple({p: Fraction(s) for p, s in sym.items()} for sym in record["symmetries"]),
        tuple(map(frozenset, record["groups"])),
        tuple(Assumption(**assumption) for assumption in record["assumptions"]),
        record["unhandled"],
        tuple(record["notes"]),
    )
    assert again == RICH
    assert to_json(again) == to_json(RICH)


def test_json_does_not_depend_on_the_order_in_which_things_were_found():
    other = dataclasses.replace(
        RICH,
        unhandled=dict(reversed(RICH.unhandled.items())),
        symmetries=tuple(dict(reversed(s.items())) for s in RICH.symmetries),
    )
    assert to_json(other) == to_json(RICH)


def test_json_stays_json_where_a_constant_is_not_finite():
    analysis = dataclasses.replace(
        RICH, assumptions=(Assumption("guard", float("inf"), "select_n", "m.py:1 (f)"),)
    )
    record = json.loads(to_json(analysis), parse_constant=pytest.fail)
    assert record["assumptions"][0]["value"] == "inf"


def test_json_names_extended_dtypes():
    leaf = Leaf("w", (2,), jnp.dtype("bfloat16"), Role.WEIGHT)
    record = json.loads(to_json(Analysis((leaf,), frozenset({Evidence.STRUCTURE}))))
    assert record["leaves"][0]["dtype"] == "bfloat16"


def test_names_that_no_terminal_or_page_can_show_are_spelt_out():
    params = {"a\x00\x1b[31m\u202eb\ud800\n": {"kernel": jnp.ones((2, 3))}}
    analysis = analyze_structure(params)
    for text in (to_text(analysis), to_html(analysis)):
        assert r"a\x00\x1b[31m\u202eb\ud800\n" in text
        assert not any(c in text for c in "\x00\x1b\u202e\ud800")
        text.encode()
    text = to_json(analysis).encode()
    assert Analysis.from_json(text.decode()) == analysis
    repr(~analysis.decay_mask()).encode()
