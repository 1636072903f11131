"""The HTML report in a real browser: no errors, a search, folds, alone and in a notebook."""

import functools
import html
import json
import re
import shutil
import subprocess
import time

import jax.numpy as jnp
import pytest

from optax_bnmask import Analysis, Assumption, Evidence, Leaf, Role, Scale
from optax_bnmask.report import to_html

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--enable-logging=stderr", "--v=0", "--disable-dev-shm-usage"),
)
F32 = jnp.dtype("float32")
EVIL = "</script><b onclick=alert(1)>\"'`$x"

pytestmark = pytest.mark.skipif(
    BROWSER is None, reason=f"needs a browser on PATH, one of {', '.join(NAMES)}"
)


@pytest.fixture
def load(tmp_path):
    """Loads a page, runs a function in it, gives what that returns; errors on the console fail."""

    def loaded(page, script="null"):
        call = (
            "<script>addEventListener('load', () => {"
            "const result = document.createElement('pre');"
            f"result.className = 'result'; result.textContent = JSON.stringify({script});"
            "document.body.append(result);})</script>"
        )
        file = tmp_path / "page.html"
        file.write_text(page.replace("</body>\n</html>", f"{call}</body>\n</html>"), "utf-8")
        done = subprocess.run(
            [
                BROWSER,
                *FLAGS,
                f"--user-data-dir={tmp_path / 'profile'}",
                "--dump-dom",
                file.as_uri(),
            ],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
        assert console == []
        (result,) = re.findall(r'<pre class="result">(.*?)</pre>', done.stdout, re.DOTALL)
        return json.loads(html.unescape(result))

    return loaded


@functools.cache
def network(depth, *, alike=True):
    """A network of blocks of four leaves, alike or all of different widths."""
    facts = [
        ("bn/bias", (8,), Role.NORM_BIAS, Scale.JOINT),
        ("bn/scale", (8,), Role.NORM_SCALE, Scale.INVARIANT),
        ("conv/kernel", (3, 3, 8, 8), Role.WEIGHT, Scale.INVARIANT),
        (EVIL, (8, 8), Role.WEIGHT, Scale.SENSITIVE),
    ]
    leaves = tuple(
        Leaf(
            f"block{i}/{name}", shape if alike else (*shape, i), F32, role, scale,
            group=i if scale is Scale.JOINT else None,
            reason=f"contracted at net.py:12 (__call__) in Net/block{i}; a normaliser hides it",
        )
        for i in range(depth)
        for name, shape, role, scale in facts
    )  # fmt: skip
    return Analysis(
        leaves,
        frozenset({Evidence.PROGRAM}),
        groups=tuple(frozenset({f"block{i}/bn/bias", f"block{i}/bn/scale"}) for i in range(depth)),
        assumptions=(Assumption("epsilon", 1e-5, "add", EVIL),),
        notes=(EVIL,),
    )


FIND = """(() => {
  const report = document.querySelectorAll(".leaves")[%d];
  const input = report.querySelector("input");
  const seen = (query) => {
    input.value = query;
    input.dispatchEvent(new Event("input"));
    const rows = [...report.querySelectorAll("details.leaf")];
    report.getBoundingClientRect();  // the layout is part of the time that a search takes
    const shown = rows.filter((row) => !row.closest("[hidden], .scope:not([open])"));
    const items = shown.flatMap((row) => [...row.querySelectorAll(".members li:not([hidden])")]);
    return [report.querySelector("output").textContent, items.map((item) => item.textContent)];
  };
  return %s.map(seen);
})()"""


def found(load, page, *queries, report=0):
    return load(page, FIND % (report, json.dumps(queries).replace("</", "<\\/")))


def test_search_finds_by_path_role_scale_and_decay(load):
    analysis = network(12)
    page = to_html(analysis, mask=analysis.decay_mask())
    paths = {leaf.path: leaf for leaf in analysis.leaves}
    wanted = {
        "block7/": [path for path in paths if path.startswith("block7/")],
        "BLOCK7/CONV": ["block7/conv/kernel"],
        "kernel weight": [path for path in paths if path.endswith("kernel")],
        "role:norm_bias": [path for path in paths if path.endswith("bias")],
        "scale:joint": [path for path in paths if path.endswith("bias")],
        "decay:exempt block11": ["block11/bn/bias", "block11/bn/scale"],
        "</script>": [path for path in paths if path.endswith(EVIL)],
        "role:nothing": [],
    }
    for (said, items), (query, paths_found) in zip(
        found(load, page, *wanted), wanted.items(), strict=True
    ):
        assert said == f"{len(paths_found)} of 48 leaves", query
        assert sorted(items) == sorted(paths_found), query


def test_an_emptied_search_puts_everything_back(load):
    page = to_html(network(50, alike=False))
    script = """(() => {
      const input = document.querySelector(".find input");
      const look = () => [...document.querySelectorAll(".tree details")].map((x) => x.open);
      const say = (text) => { input.value = text; input.dispatchEvent(new Event("input")); };
      const before = look();
      say("block7/conv");
      const during = look();
      say("");
      const after = look();
      const hidden = document.querySelectorAll(".tree [hidden]").length;
      return [before, during, after, hidden, document.querySelector("output").textContent];
    })()"""
    before, during, after, hidden, said = load(page, script)
    assert before == after != during
    assert (hidden, said) == (0, "")


def test_scopes_and_leaves_open_and_close(load):
    script = """(() => {
      const open = () => document.querySelectorAll(".scope[open]").length;
      const [opens, closes] = document.querySelectorAll(".find button");
      const leaf = document.querySelector("details.leaf");
      const counts = [open()];
      for (const each of [closes, opens, closes]) { each.click(); counts.push(open()); }
      document.querySelector(".scope > summary").click();
      counts.push(open());
      leaf.querySelector("summary").click();
      return [counts, leaf.open, leaf.querySelector(".more").textContent];
    })()"""
    (first, *counts), opened, more = load(to_html(network(12)), script)
    assert first == 2  # few lines: all are open at first
    assert counts == [0, 2, 0, 1]
    assert opened
    assert "Contracted at net.py:12" in more
    assert "block11/bn/bias" in more


def test_names_of_the_user_are_text_and_nothing_else(load):
    script = """[document.querySelectorAll("b, [onclick]").length, document.scripts.length,
      [...document.querySelectorAll(".members li")].map((item) => item.textContent)]"""
    bold, scripts, items = load(to_html(network(2)), script)
    assert (bold, scripts) == (0, 2)
    assert f"block1/{EVIL}" in items


def test_reports_in_one_notebook_page_do_not_meet(load):
    first, second = to_html(network(3)), to_html(network(5))
    cells = "".join(f"<div>{_in_a_div(each)}</div>" for each in (first, second))
    page = f"<!DOCTYPE html><body><p>mine</p>{cells}\n</body>\n</html>"
    script = """[getComputedStyle(document.querySelector("p")).font, Object.keys(window).filter(
      (name) => ["SCRIPT", "start", "rows", "report"].includes(name)),
      document.querySelectorAll("[id]").length]"""
    bare = load("<!DOCTYPE html><body><p>mine</p>\n</body>\n</html>", script)
    assert load(page, script) == bare
    ((said, items),) = found(load, page, "block4/conv", report=1)
    assert (said, items) == ("1 of 20 leaves", ["block4/conv/kernel"])
    ((said, _),) = found(load, page, "block4/conv", report=0)
    assert said == "0 of 12 leaves"


def _in_a_div(page):
    """What a notebook makes of a page that it puts into a cell's output."""
    return re.sub(r"<!DOCTYPE html>|</?(html|head|body|title)[^>]*>", "", page)


def test_without_its_script_the_page_has_no_search_and_all_else(load):
    page = re.sub(r"<script>.*?</script>", "", to_html(network(12)), flags=re.DOTALL)
    script = """(() => {
      document.querySelector("details.leaf > summary").click();
      return [document.querySelector(".find").checkVisibility(),
        document.querySelector(".leaf .more").checkVisibility(),
        document.querySelectorAll(".members li").length];
    })()"""
    assert load(page, script) == [False, True, 48]


@pytest.mark.parametrize("width", [1280, 400])
def test_nothing_is_wider_than_the_page(load, width):
    analysis = network(12)
    report = html.escape(to_html(analysis, mask=analysis.decay_mask()))
    frame = f'<iframe style="width:{width}px;height:900px;border:0" srcdoc="{report}"></iframe>'
    script = """(() => {
      const page = document.querySelector("iframe").contentDocument;
      page.querySelectorAll("details").forEach((each) => { each.open = true; });
      return [page.documentElement.clientWidth, page.documentElement.scrollWidth];
    })()"""
    page, needed = load(f"<!DOCTYPE html><body>{frame}\n</body>\n</html>", script)
    assert needed == page <= width


@pytest.mark.parametrize(("alike", "most"), [(True, 600_000), (False, 5_500_000)])
def test_five_thousand_leaves_load_within_seconds_and_bounds(load, alike, most):
    analysis = network(1250, alike=alike)
    assert len(analysis.leaves) == 5000
    start = time.perf_counter()
    page = to_html(analysis, mask=analysis.decay_mask())
    assert time.perf_counter() - start < 10
    assert len(page.encode()) < most
    find = FIND % (0, json.dumps(["block1249/conv", ""]))
    script = f"[performance.now(), {find}, performance.now()]"
    loaded, ((said, items), _), searched = load(page, script)
    assert (said, items) == ("1 of 5,000 leaves", ["block1249/conv/kernel"])
    assert loaded < 10_000
    assert searched - loaded < 5_000
