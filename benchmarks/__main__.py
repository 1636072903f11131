"""Measures what the package costs, prints a table of it, and checks it against limits.

Run with `python -m benchmarks`; `--help` lists the options. It takes some minutes on two cores
and writes results.json, results.md and results.png beside this file; `--quick` shows within a
minute that all of it works. `python -m benchmarks --show benchmarks/results.json` prints what is on
record. What audits, treatments and `verify` cost is on record by itself, from
`--only audit growth-of-audits treatments verify --output benchmarks/in_use.json`.
The exit status is 1 if a limit is exceeded.
"""

import argparse
import sys
import time
from pathlib import Path

from benchmarks import (
    analyses,
    audits,
    decoder,
    growth,
    masks,
    step_time,
    treatments,
    verifications,
)
from benchmarks.plots import picture
from benchmarks.record import Record, compared, environment
from benchmarks.tables import markdown, page

EXPERIMENTS = {
    # First, in a process that holds little: the less a step does, the more a full heap slows it.
    "growth-of-masks": growth.growths_of_masks,
    "mask": masks.rows,
    "analysis": analyses.rows,
    "audit": audits.rows,
    "step": step_time.rows,
    "treatments": treatments.rows,
    "decoder": decoder.rows,
    "verify": verifications.rows,
    "growth-of-audits": growth.growths_of_audits,
    "growth-of-analyses": growth.growths_of_analyses,
}
RESULTS = Path(__file__).with_name("results.json")


def parsed(arguments=None):
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, few rounds")
    parser.add_argument("--only", nargs="+", choices=EXPERIMENTS, help="in place of all")
    parser.add_argument(
        "--output",
        type=Path,
        help="the record to write, with a page and a picture beside it; by default results.json "
        "here after a whole run, nothing after --quick or --only",
    )
    parser.add_argument("--show", type=Path, help="measure nothing, print this record")
    options = parser.parse_args(arguments)
    if not (options.output or options.quick or options.only):
        options.output = RESULTS
    return options


def measured(*, only, quick) -> Record:
    """What the experiments yield, one after the other."""
    rows, growths = [], []
    for name in only or EXPERIMENTS:
        start = time.perf_counter()
        (growths if name.startswith("growth") else rows).extend(EXPERIMENTS[name](quick=quick))
        print(f"{name}: done in {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    return Record(environment(quick=quick), compared(rows), tuple(growths))


def judged(record) -> int:
    """The exit status of a record; prints every limit that is exceeded."""
    failed = [bar for bar in record.bars() if bar.met is False]
    for bar in failed:
        print(f"Not met: {bar.name} is {bar.found:.3g}, not at most {bar.limit:g}", file=sys.stderr)
    return 1 if failed else 0


def main(arguments=None):
    options = parsed(arguments)
    if options.show:
        record = Record.from_json(options.show.read_text(encoding="utf-8"))
    else:
        record = measured(only=options.only, quick=options.quick)
        if options.output:
            options.output.write_text(record.to_json(), encoding="utf-8")
            drawn = picture(record, options.output.with_suffix(".png"))
            text = page(record, picture=drawn)
            options.output.with_suffix(".md").write_text(text, encoding="utf-8")
    print(markdown(record))
    return judged(record)


if __name__ == "__main__":
    sys.exit(main())
