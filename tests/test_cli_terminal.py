"""What the commands show on a terminal: as wide as that is, in colours, each block once."""

import functools
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent / "support"
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


WIDTHS = (40, 80, 200)
CODE = """
import os, sys
from optax_bnmask_cli import main
for width in sys.stdin.read().split():
    os.environ["COLUMNS"] = width
    try:
        main()
    except SystemExit:
        pass
    print(end="\\f", flush=True)
"""
"""Runs a command once for each width: most of the time is importing JAX, which takes seconds."""


@functools.cache
def on_terminals(*arguments):
    """What a command prints where its standard output is a terminal, by the terminal's width."""
    ours, theirs = pty.openpty()
    environment = {k: v for k, v in os.environ.items() if k not in {"NO_COLOR", "FORCE_COLOR"}}
    with subprocess.Popen(
        [sys.executable, "-c", CODE, *arguments],
        stdin=subprocess.PIPE,
        stdout=theirs,
        stderr=theirs,
        cwd=HERE,
        env=environment | {"TERM": "xterm-256color"},
    ) as process:
        os.close(theirs)
        process.stdin.write(" ".join(map(str, WIDTHS)).encode())
        process.stdin.close()
        pieces = []
        while True:
            try:
                piece = os.read(ours, 1 << 16)
            except OSError:  # so Linux says that the other end is closed
                break
            if not piece:
                break
            pieces.append(piece)
        os.close(ours)
    *shown, rest = b"".join(pieces).decode().replace("\r\n", "\n").split("\f")
    assert not rest
    return dict(zip(WIDTHS, shown, strict=True))


BLOCKS = ("inspect", "inspected:blocks", "--input", "16,8", "--exempt", "norm,bias")


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(
    "arguments",
    [
        BLOCKS,
        (*BLOCKS, "--explain", "*/kernel"),
        ("audit", "optimizers:unmasked"),
        ("audit", "optimizers.unmasked"),
    ],
)
def test_nothing_is_wider_than_the_terminal(arguments, width):
    lines = COLOUR.sub("", on_terminals(*arguments)[width]).splitlines()
    assert lines
    assert max(map(len, lines)) <= width


@pytest.mark.parametrize("width", [80, 200])
def test_repeated_blocks_are_shown_once_and_in_colours(width):
    shown = on_terminals(*BLOCKS)[width]
    assert COLOUR.search(shown)
    plain = " ".join(COLOUR.sub("", shown).split())
    assert "a_block_with_a_long_name_{0..3}/dense/kernel" in plain
    assert "a_block_with_a_long_name_{0..4}/dense/bias never reaches an output" in plain
    assert "a_block_with_a_long_name_3/" not in plain


def test_there_are_no_colours_elsewhere_and_a_leaf_has_one_line():
    code = "from optax_bnmask_cli import main\nmain()"
    done = subprocess.run(
        [sys.executable, "-c", code, *BLOCKS], capture_output=True, text=True, cwd=HERE, check=True
    )
    assert "\x1b" not in done.stdout + done.stderr
    (line,) = (x for x in done.stdout.splitlines() if "{0..3}/dense/kernel" in x)
    assert line.endswith("a normaliser hides its scale")
