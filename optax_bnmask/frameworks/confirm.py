"""Combines what a model's program proves with the roles that its running statistics show."""

import dataclasses
from typing import Any

from optax_bnmask.analysis import Analysis, structure_of
from optax_bnmask.frameworks.call import Call
from optax_bnmask.structure import reading
from optax_bnmask.vocabulary import NORMS, Evidence, Leaf


def confirmed(call: Call) -> Analysis:
    """The analysis by program of a model, with what its statistics say beside it.

    Args:
      call: The model, and what it is called with.

    Returns:
      The analysis on both kinds of evidence. A leaf that statistics of its own show to be a
      BatchNorm's keeps that role where the trace does not confirm it, and a note says so.
    """
    from optax_bnmask.program.passes import (  # noqa: PLC0415 - what `import` need not wait for
        analysis_of,
    )
    from optax_bnmask.program.running import warn_of_running_statistics  # noqa: PLC0415
    from optax_bnmask.program.trace import traced  # noqa: PLC0415

    program = traced(
        call.fn, call.params, (*call.state, *call.args), call.kwargs, has_aux=call.has_aux
    )
    analysis = _compared(analysis_of(program), call.params, call.statistics)
    warn_of_running_statistics(analysis)
    return analysis


def _compared(analysis: Analysis, params: Any, batch_stats: Any) -> Analysis:  # noqa: ANN401
    """An analysis by program, completed by what the structure tells."""
    read = reading(params, batch_stats)
    verdicts = read.verdicts()
    leaves: list[Leaf] = []
    notes: list[str] = []
    for leaf in analysis.leaves:
        known = verdicts.get(leaf.path)
        if known is None or not known.confirmed:
            leaves.append(leaf)
            continue
        role, reason = leaf.role, leaf.reason
        if role not in NORMS:
            notes.append(
                f"{leaf.path!r} is a BatchNorm's by its statistics, which the trace does not "
                f"confirm: there it is {role} ({reason})"
            )
            role, reason = known.role, f"{known.reason}; not confirmed by the trace"
        leaves.append(dataclasses.replace(leaf, role=role, reason=reason, confirmed=True))
    return dataclasses.replace(
        analysis,
        leaves=tuple(leaves),
        evidence=frozenset({*analysis.evidence, Evidence.STRUCTURE}),
        notes=(*analysis.notes, *structure_of(read).notes, *notes),
    )
