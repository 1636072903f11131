"""How the seconds for a mask and for an analysis grow with what they are given."""

import contextlib
import gc

import optax_bnmask as bnmask
from benchmarks import audits
from benchmarks.masks import trees
from benchmarks.networks import chain, equations
from benchmarks.record import Growth
from benchmarks.timing import fastest, in_turns
from optax_bnmask.program.passes import analysis_of
from optax_bnmask.program.trace import traced

LEAVES = (100, 316, 1_000, 3_160, 10_000, 31_600, 100_000)
FEW_LEAVES = (100, 1_000, 10_000)
AUDITED = (200, 1_000, 5_000)
FEW_AUDITED = (100, 1_000)
EQUATIONS = (1_000, 3_000, 10_000, 30_000, 100_000)
FEW_EQUATIONS = (300, 1_000, 3_000)
KINDS = {"residual blocks with normalisers": True, "a chain without": False}


@contextlib.contextmanager
def undisturbed():
    """Keeps garbage collection before each turn from walking the objects of earlier experiments."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def of_masks(sizes, rounds):
    """Building masks with statistics, and calling them."""
    models = {size: trees(size) for size in sizes}
    masks = {size: bnmask.decay_mask(*model) for size, model in models.items()}
    builds = {("built", n): lambda n=n: bnmask.decay_mask(*models[n]) for n in sizes}
    called = {("called", n): lambda n=n: masks[n](models[n][0]) for n in sizes}
    with undisturbed():
        seconds = fastest(in_turns(builds | called, rounds, shortest=0.05))
    for what, name in (
        ("built", "`decay_mask(params, batch_stats)`"),
        ("called", "`mask(params)`"),
    ):
        yield Growth(name, "leaves", sizes, tuple(seconds[what, n] for n in sizes))


def of_analyses(kind, sizes, rounds):
    """Analysing programs of one kind, without tracing them."""

    def program(blocks):
        fn, params, args = chain(blocks, normalised=KINDS[kind])
        return traced(fn, params, args, {})

    few = 16
    each = equations(program(few).jaxpr) / few
    programs = [program(round(size / each)) for size in sizes]
    calls = {i: lambda p=p: analysis_of(p) for i, p in enumerate(programs)}
    with undisturbed():
        seconds = fastest(in_turns(calls, rounds, shortest=0.1))
    counts = tuple(equations(p.jaxpr) for p in programs)
    return Growth(f"the analysis, {kind}", "equations", counts, tuple(seconds.values()))


def growths_of_masks(*, quick):
    """For masks, from 100 leaves to 100,000, or fewer if quick."""
    yield from of_masks(FEW_LEAVES if quick else LEAVES, 5)


def growths_of_audits(*, quick):
    """For audits, from 200 leaves to 5,000, or fewer if quick."""
    yield audits.growth(FEW_AUDITED if quick else AUDITED, 1)


def growths_of_analyses(*, quick):
    """For analyses, from short programs to long ones, of two kinds."""
    for kind in KINDS:
        yield of_analyses(kind, FEW_EQUATIONS if quick else EQUATIONS, 2 if quick else 3)
