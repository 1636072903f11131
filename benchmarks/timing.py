"""Seconds of calls that take turns.

A shared machine is slow for minutes at a time. So nothing is timed to its end before the next is
begun, as pytest-benchmark would: in every round each call has its turn, and what is reported is
ratios of the fastest turns. Python's work is timed by the seconds of the process, which other
processes do not lengthen; compiled steps, which run in other threads, by the clock on the wall.
"""

import gc
import time


def in_turns(calls, rounds, *, before=gc.collect, shortest=0.0, clock=time.process_time):
    """Seconds of one call, for each name and round.

    Args:
      calls: Functions without arguments, by name.
      rounds: How often each has its turn.
      before: Called ahead of every turn, not timed.
      shortest: The least seconds of a turn: quick calls are repeated until they fill it.
      clock: What to time with.

    Returns:
      A list of ``rounds`` seconds for each name.
    """
    repeats = {name: _repeats(call, shortest, clock) for name, call in calls.items()}
    taken = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            before()
            taken[name].append(_seconds(call, repeats[name], clock) / repeats[name])
    return taken


def fastest(taken):
    """The least seconds for each name: interruptions only add."""
    return {name: min(seconds) for name, seconds in taken.items()}


def _seconds(call, repeats, clock):
    start = clock()
    for _ in range(repeats):
        call()
    return clock() - start


def _repeats(call, shortest, clock):
    """How many calls fill the shortest turn; finding it out warms them up."""
    repeats = 1
    while (taken := _seconds(call, repeats, clock)) < shortest:
        repeats = max(2 * repeats, int(repeats * shortest / max(taken, shortest / 100)))
    return repeats
