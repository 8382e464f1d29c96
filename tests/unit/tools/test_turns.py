"""Tests of programs that take turns."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from archives.runs import family
from archives.turns import by_turns, running

TICKS = """
import sys, time
for _ in range(int(sys.argv[1])):
    print(time.time(), flush=True)
    time.sleep(0.01)
"""
CHILD = "import subprocess, sys; subprocess.run([sys.executable, '-c', *sys.argv[1:]])"


@pytest.mark.skipif(os.name == "nt", reason="stops processes as on Linux and macOS")
def test_one_program_runs_at_a_time_with_its_children(tmp_path: Path) -> None:
    programs = []
    for ticks, name in ((150, "first"), (10_000, "second")):
        command = [sys.executable, "-c", CHILD, TICKS, str(ticks)]
        with (tmp_path / name).open("w") as told:
            programs.append(subprocess.Popen(command, stdout=told))
    told_of: list[int] = []
    try:
        turns = by_turns([lambda p=p: family(p) for p in programs], 0.2, told_of.append)
        assert programs[0].poll() == 0 and programs[1].poll() is None
        time.sleep(0.3)  # the second goes on
    finally:
        for process in [p for program in programs for p in family(program)]:
            process.kill()
    assert told_of[:4] == [0, 1, 0, 1]
    for name, own in zip(("first", "second"), turns, strict=True):
        moments = [float(line) for line in (tmp_path / name).read_text().split()]
        began = own[0][0]  # before it, they were about to be stopped
        inside = [any(a <= moment <= b for a, b in own) for moment in moments if moment > began]
        assert len(inside) > 50 and all(inside)
    assert running([turns[1][-1][0]], turns[1])[0] == pytest.approx(
        sum(end - begin for begin, end in turns[1][:-1])
    )


def test_seconds_are_counted_while_a_program_runs() -> None:
    turns = [(10.0, 12.0), (15.0, 17.0), (20.0, float("inf"))]
    assert running([9.0, 11.0, 13.0, 16.0, 25.0], turns) == [0.0, 1.0, 2.0, 3.0, 9.0]
