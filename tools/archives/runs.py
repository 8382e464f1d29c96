"""Runs of `scripts/archive.py`: started, watched, and compared."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
from archiving.listing import MANIFEST, OWN, REPORT
from setup_host import REPO

SCRIPT = REPO / "scripts" / "archive.py"
WORKFLOW = REPO / "example_workflows" / "api" / "archive.json"
EVERY = 5.0  # seconds between two looks, which cost a run some time, and bare loops have none
WINDOW = 0.1  # of the photos: what a median of memory is taken over


@dataclass(frozen=True)
class Setting:
    """What runs of one trial have in common.

    Attributes:
        originals: folder of the photos.
        base: folder whose `models` are used.
        options: of `archive.py`, beside input, output and base.
    """

    originals: Path
    base: Path
    options: tuple[str, ...] = ()


@dataclass
class Sample:
    """How far a run was at a moment, and the memory of its processes.

    Attributes:
        seconds: of a clock that only goes forward.
        ended: photos that are done or failed.
        memory: of each process, in bytes, by role and number; without what files back, which
            processes share, and which would seem to grow when one of them ends.
    """

    seconds: float
    ended: int
    memory: dict[str, int] = field(default_factory=dict)


class Run:
    """A run of `archive.py` in the background.

    Args:
        setting: of the trial.
        output: folder.
        more: further options.
        log: file for what it prints; beside the output if None.
        environment: of the process; this one's if None.
    """

    def __init__(
        self,
        setting: Setting,
        output: Path,
        *more: str,
        log: Path | None = None,
        environment: dict[str, str] | None = None,
    ) -> None:
        self.output = output
        output.mkdir(parents=True, exist_ok=True)
        self.log = log or output.with_suffix(".log")
        command = [sys.executable, SCRIPT, "--input", setting.originals, "--output", output]
        command += ["--workflow", WORKFLOW, "--base", setting.base, *setting.options, *more]
        with self.log.open("ab") as printed:
            self.process = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )

    def processes(self) -> list[psutil.Process]:
        """Returns the processes of the run that live, the driver first."""
        return family(self.process)

    def find(self, role: str) -> list[psutil.Process]:
        """Returns the processes of a role: "driver", "worker", "comfyui", "ray" or "guard"."""
        return [process for process in self.processes() if self._role(process) == role]

    def _role(self, process: psutil.Process) -> str:
        try:
            command = process.cmdline()
        except psutil.Error:
            return ""
        if process.pid == self.process.pid:
            return "driver"
        if command and command[0].startswith("ray::MapWorker"):
            return "worker"
        # Ray has a main.py too, until it names its process.
        if "--base-directory" in command and command[1].endswith("main.py"):
            return "comfyui"
        return "ray" if command else ""

    def ended(self) -> int:
        """Returns how many photos are done or failed."""
        return sum(1 for state in states(self.output).values() if state in ("done", "failed"))

    def sample(self) -> Sample:
        """Returns how far the run is now."""
        found = Sample(time.monotonic(), self.ended())
        for process in self.processes():
            try:
                role, memory = self._role(process), process.memory_info()
            except psutil.Error:
                continue
            # macOS does not tell what is shared
            found.memory[f"{role} {process.pid}"] = memory.rss - getattr(memory, "shared", 0)
        return found

    def watch(self, timeout: float) -> list[Sample]:
        """Waits for the end and returns samples. Whatever ends the waiting kills the run.

        Raises:
            subprocess.TimeoutExpired: it takes longer.
        """
        samples, deadline = [], time.monotonic() + timeout
        try:
            while self.process.poll() is None:
                samples.append(self.sample())
                if time.monotonic() > deadline:
                    raise subprocess.TimeoutExpired("archive.py", timeout)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(EVERY)
        except BaseException:  # Ctrl+C too, which does not reach a session of its own
            self.kill()
            raise
        return samples

    def kill(self) -> None:
        """Kills the driver alone, as a crash would, and waits until no worker or ComfyUI lives.

        Ray's agents, which nothing waits for, notice it after a minute.
        """
        waited_for = [p for p in self.processes() if self._role(p) in ("worker", "comfyui")]
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        psutil.wait_procs(waited_for, timeout=60)


def family(process: subprocess.Popen[Any]) -> list[psutil.Process]:
    """Returns a process and all that it started and that live; nothing once it has ended."""
    try:
        first = psutil.Process(process.pid)
        return [first, *first.children(recursive=True)] if process.poll() is None else []
    except psutil.NoSuchProcess:
        return []


def states(output: Path) -> dict[str, str]:
    """Returns the states of all files of an archive, by path; {} before there is a list."""
    return {path: row["state"] for path, row in rows(output).items()}


def rows(output: Path) -> dict[str, sqlite3.Row]:
    """Returns what the list of an archive says of each photo, by path."""
    try:
        table = sqlite3.connect(f"file:{output / MANIFEST}?mode=ro", uri=True, timeout=30)
        table.row_factory = sqlite3.Row
        found = {row["path"]: row for row in table.execute("SELECT * FROM photos")}
    except sqlite3.Error:  # it is not there yet
        return {}
    table.close()
    return found


def pictures(output: Path) -> dict[str, str]:
    """Returns the digests of all restored pictures, by path in the output folder."""
    found = {}
    for folder, inner, names in os.walk(output):
        inner[:] = [name for name in inner if name != OWN]
        for name in names:
            path = Path(folder, name)
            if name not in (MANIFEST, REPORT) and not name.startswith(MANIFEST):
                digest = hashlib.sha256(path.read_bytes()).hexdigest()
                found[path.relative_to(output).as_posix()] = digest
    return found


def problems(output: Path, originals: Path, damaged: dict[str, str]) -> list[str]:
    """Returns what is not as it should be at the end of a run, a sentence each.

    Args:
        output: of the archive.
        originals: of the archive.
        damaged: the photos that cannot be read, and why.
    """
    listed = rows(output)
    files = {p.relative_to(originals).as_posix() for p in originals.rglob("*") if p.is_file()}
    found = [f"{path} is not in the list" for path in sorted(files - set(listed))]
    restored = pictures(output)
    for path, row in listed.items():
        wanted = "failed" if path in damaged else "done"
        if row["state"] != wanted:
            kind = damaged.get(path, "whole")
            found.append(f"{path} ({kind}) is {row['state']} rather than {wanted}: {row['error']}")
        elif wanted == "failed" and not (row["error"] or "").endswith("."):
            found.append(f"{path} failed without a sentence: {row['error']!r}")
        elif wanted == "done" and restored.get(row["output"]) != row["output_digest"]:
            found.append(f"the picture of {path} is not the one in the list")
    strange = set(restored) - {row["output"] for row in listed.values() if row["state"] == "done"}
    return found + [f"{name} is a picture of nothing" for name in sorted(strange)]


def restored_at(output: Path) -> list[float]:
    """Returns when each photo of an archive was restored, in seconds of `time.time`."""
    ends = [row["ended"] for row in rows(output).values() if row["state"] == "done"]
    return [datetime.fromisoformat(end).timestamp() for end in ends]


def speed(ends: Sequence[float]) -> float:
    """Returns how many photos were restored in a minute, between the first and the last tenth.

    So the same photos are compared wherever runs take them in the same order: large ones take ten
    times as long as small ones. It is not a number where there are too few to tell.

    Args:
        ends: seconds at which each was restored, by any clock.
    """
    ends = sorted(ends)
    first, last = len(ends) // 10, len(ends) * 9 // 10
    if not ends or ends[last] == ends[first]:
        return float("nan")
    return 60 * (last - first) / (ends[last] - ends[first])


def growth(samples: list[Sample], first: int, photos: int) -> dict[str, Any]:
    """Returns by how much each process grew, as a share, and its memory in MiB.

    Args:
        samples: of a run.
        first: photo from which on memory counts.
        photos: of the archive.
    """
    early = [s for s in samples if first <= s.ended <= first + WINDOW * photos]
    late = [s for s in samples if photos * (1 - WINDOW) <= s.ended < photos]
    found = {}
    for name in {name for s in early for name in s.memory} & {n for s in late for n in s.memory}:
        before = statistics.median(s.memory[name] for s in early if name in s.memory)
        after = statistics.median(s.memory[name] for s in late if name in s.memory)
        if before:
            sizes = round(before / 2**20, 1), round(after / 2**20, 1)
            found[name] = {"growth": round(after / before - 1, 4), "MiB": sizes}
    return found
