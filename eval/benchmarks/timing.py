"""Contenders timed in turn, so that what slows the machine down slows all of them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from typing import Any

Call = Callable[[], Any]
Times = dict[str, list[float]]
BURST_SECONDS, LONGEST_BURST = 0.004, 16


def race(contenders: Mapping[str, Sequence[Call]], seconds: float, *, rounds: range, wall: bool = False) -> Times:
    """Seconds a call of each contender, round by round, until `seconds` have passed.

    `rounds` bounds their number. A contender is one call for each copy of its weights, taken in turn, several a round
    where they are short. Clocks: the CPU time of this thread, or with `wall` (several threads) the time that passes.
    """
    clock = time.perf_counter if wall else time.thread_time
    turns = {name: cycle(calls) for name, calls in contenders.items()}
    # Every copy once, untimed: some libraries rearrange a weight when it is first used.
    bursts = {name: _burst(min(_timed(turns[name], 1, clock) for _ in calls)) for name, calls in contenders.items()}
    times: Times = {name: [] for name in contenders}
    started = time.perf_counter()
    for done in range(rounds.stop):
        if done >= rounds.start and time.perf_counter() - started > seconds:
            break
        for name, turn in turns.items():
            times[name].append(_timed(turn, bursts[name], clock))
    return times


def _timed(turn: cycle[Call], count: int, clock: Callable[[], float]) -> float:
    calls = [next(turn) for _ in range(count)]
    started = clock()
    for call in calls:
        call()
    return (clock() - started) / count


def _burst(seconds: float) -> int:
    return max(1, min(LONGEST_BURST, math.ceil(BURST_SECONDS / max(seconds, 1.0e-9))))
