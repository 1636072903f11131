"""The analysis of a program beside its tracing, and beside another library's reading of programs.

The other is the automatic registration of layers in kfac-jax, which also traces a loss and finds
out from the program how each parameter is used.
"""

import gc
import warnings

import jax
import jax.numpy as jnp

import optax_bnmask as bnmask
from benchmarks.networks import NETWORKS, SMALL_NETWORKS, equations, of_linen
from benchmarks.record import Row
from benchmarks.timing import fastest, in_turns
from optax_bnmask.program.passes import analysis_of
from optax_bnmask.program.trace import traced

OF_TRACING, OF_REGISTRATION = 0.25, 1.0
TRACING, ANALYSIS = "`jax.make_jaxpr`", "analysis beyond tracing"
WHOLE, REGISTRATION = "`analyze`, tracing included", "kfac-jax `auto_register_tags`"


def registration(fn, params, args):
    """The call that registers a network's layers with kfac-jax, or `None` and why there is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it uses names that JAX has deprecated
            import kfac_jax  # noqa: PLC0415 - not everywhere, and slow
    except (ImportError, AttributeError) as error:
        why = str(error).splitlines()[0]
        return None, f"not measured, as kfac-jax cannot be imported: {why}"

    def loss(params, *args):
        out = fn(params, *args)
        logits = out.reshape(-1, out.shape[-1])
        labels = jnp.zeros(len(logits), jnp.int32)
        kfac_jax.register_softmax_cross_entropy_loss(logits, labels)
        return out.sum()

    return lambda: kfac_jax.tag_graph_matcher.auto_register_tags(loss, (params, *args)), ""


def afresh():
    """Forgets what was traced: a function that was traced before is not traced again."""
    gc.collect()
    jax.clear_caches()


def rows_of(name, module, x, rounds):
    """The rows of one network."""
    fn, params, args = of_linen(module, x)
    program = traced(fn, params, args, {})
    calls = {
        TRACING: lambda: jax.make_jaxpr(fn)(params, *args),
        ANALYSIS: lambda: analysis_of(program),
        WHOLE: lambda: bnmask.analyze(fn, params, *args),
    }
    register, note = registration(fn, params, args)
    if register:
        calls[REGISTRATION] = register
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        seconds = fastest(in_turns(calls, rounds, before=afresh))
    on = f"{name} ({equations(program.jaxpr):,} equations)"
    compared = (
        (TRACING, "", None),
        (ANALYSIS, TRACING, OF_TRACING),
        (REGISTRATION, TRACING, None),
        (WHOLE, REGISTRATION, OF_REGISTRATION),
    )
    for what, against, limit in compared:
        value, why = seconds.get(what), note if what == REGISTRATION else ""
        yield Row("analysis", on, what, value, "s", against, limit=limit, note=why)


def rows(*, quick):
    """Seconds for the analysis of networks in use."""
    networks = SMALL_NETWORKS if quick else NETWORKS
    for name, (module, x) in networks.items():
        yield from rows_of(name, module, x, 5 if quick else 4)
