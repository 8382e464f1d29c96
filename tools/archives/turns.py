"""Programs that run by turns on the same cores: what else the machine does meets them alike."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence

import psutil

Find = Callable[[], Sequence[psutil.Process]]  # all processes of a program that live
Turn = tuple[float, float]  # from when to when a program ran, in seconds of `time.time`


def by_turns(
    programs: Sequence[Find],
    seconds: float,
    on_turn: Callable[[int], object] = lambda program: None,
) -> list[list[Turn]]:
    """Lets one program run at a time until one of them has ended; then all go on.

    Args:
        programs: how to find the processes of each.
        seconds: of a turn.
        on_turn: is told after each turn whose it was; all stand still then.

    Returns:
        The turns of each, the last without an end.
    """
    turns: list[list[Turn]] = [[] for _ in programs]
    try:
        for find in programs:
            _all_of(find, psutil.Process.suspend)
        while all(find() for find in programs):
            for number, find in enumerate(programs):
                began = time.time()
                _all_of(find, psutil.Process.resume)
                time.sleep(seconds)
                _all_of(find, psutil.Process.suspend)
                turns[number].append((began, time.time()))
                on_turn(number)
    finally:
        for number, find in enumerate(programs):
            turns[number].append((time.time(), float("inf")))
            _all_of(find, psutil.Process.resume)
    return turns


def _all_of(find: Find, what: Callable[[psutil.Process], None]) -> None:
    """Does something with all processes, those that they start meanwhile too."""
    done: set[psutil.Process] = set()
    while new := [process for process in find() if process not in done]:
        for process in new:
            with contextlib.suppress(psutil.NoSuchProcess):
                what(process)
        done.update(new)


def running(moments: Sequence[float], turns: Sequence[Turn]) -> list[float]:
    """Returns for how many seconds a program had run at each of some moments."""
    return [sum(max(0.0, min(moment, end) - begin) for begin, end in turns) for moment in moments]
