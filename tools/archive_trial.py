"""Measures `scripts/archive.py` on drawn photos: is all accounted for, memory, speed.

    python tools/archive_trial.py --count 2000 --folder FOLDER

Runs in ComfyUI's environment with Ray, on an otherwise idle machine. It draws an archive of people
with 3 in 100 files damaged and restores it, while as many bare loops as there are workers restore
the same photos; the archive and the loops take turns, since a machine is not as fast in one hour as
in the next. It prints what was found as JSON; FOLDER/samples.json has the memory of all processes
over time. `tests/fault_campaign.py --only archives` kills and starves such runs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import repository  # noqa: F401
import torch
from archives.photos import draw
from archives.runs import (
    WORKFLOW,
    Run,
    Sample,
    Setting,
    family,
    growth,
    problems,
    restored_at,
    speed,
)
from archives.turns import by_turns, running
from archiving.workflow import read_workflow
from setup_host import find_comfyui

BARE = Path(__file__).with_name("archives") / "bare.py"
SETTLED = 200  # photos after which no process may grow
MOST_GROWTH, LEAST_SPEED = 0.02, 0.9
TURN = 5.0  # seconds
SHOWN = 20  # problems


class BareLoops:
    """Bare loops side by side, each with a share of the photos.

    Args:
        setting: of the trial.
        changes: of the workflow.
        workers: loops.
        folder: scratch folder.
    """

    def __init__(self, setting: Setting, changes: list[str], workers: int, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        described = folder / "workflow.json"
        described.write_text(json.dumps(asdict(read_workflow(WORKFLOW, changes))), encoding="utf-8")
        photos = sorted(str(path) for path in setting.originals.rglob("*") if path.is_file())
        threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // workers))}
        self._loops = []
        for worker in range(workers):
            files = folder / f"{worker}.json"
            files.write_text(json.dumps(photos[worker::workers]), encoding="utf-8")
            command = [sys.executable, BARE, described, setting.base, folder / str(worker), files]
            self._loops.append(
                subprocess.Popen(
                    [str(part) for part in command],
                    stdout=subprocess.PIPE,
                    env={**threads, **os.environ},
                    text=True,
                )
            )

    def processes(self) -> list[psutil.Process]:
        """Returns the processes of all loops that live."""
        return [process for loop in self._loops for process in family(loop)]

    def restored_at(self) -> list[float]:
        """Waits for the end, and returns when each photo was restored, in seconds."""
        return [end for loop in self._loops for end in json.loads(loop.communicate()[0])]

    def kill(self) -> None:
        """Ends those that go on; their ComfyUIs end with them."""
        for loop in self._loops:
            loop.kill()


def beside_bare_loops(
    run: Run, loops: BareLoops, timeout: float
) -> tuple[list[Sample], dict[str, float]]:
    """Waits for an archive and for bare loops, which take turns.

    Returns:
        Samples of the archive; photos a minute of both, and the ratio.

    Raises:
        subprocess.TimeoutExpired: it takes longer; both are killed.
    """
    samples: list[Sample] = []
    deadline = time.monotonic() + timeout

    def look(program: int) -> None:
        if program == 0:
            samples.append(run.sample())
        if time.monotonic() > deadline:
            raise subprocess.TimeoutExpired("archive.py", timeout)

    try:
        turns = by_turns([run.processes, loops.processes], TURN, look)
        samples += run.watch(deadline - time.monotonic())
        bare = speed(running(loops.restored_at(), turns[1]))
    except BaseException:
        run.kill()
        loops.kill()
        raise
    rate = speed(running(restored_at(run.output), turns[0]))
    return samples, {
        "photos a minute": round(rate, 1),
        "bare loops": round(bare, 1),
        "share of bare loops": round(rate / bare, 3),
    }


def trial(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Runs everything and returns what was found."""
    originals = folder / "in"
    damaged = draw(originals, options.count, options.seed)
    base = options.base or find_comfyui()
    changes = [f"3.steps={options.steps}", f"1.restorer={options.restorer}"]
    settings = [part for change in changes for part in ("--set", change)]
    settings += ["--workers", str(options.workers), "--shown", "20"]
    setting = Setting(originals, base, tuple(settings))
    began = time.monotonic()
    run = Run(setting, folder / "out")
    if options.no_bare:
        samples = run.watch(options.timeout)
        speeds = {"photos a minute": round(speed(restored_at(run.output)), 1)}
    else:
        loops = BareLoops(setting, changes, options.workers, folder / "bare")
        samples, speeds = beside_bare_loops(run, loops, options.timeout)
    kept = json.dumps([asdict(sample) for sample in samples])
    (folder / "samples.json").write_text(kept, encoding="utf-8")
    grown = growth(samples, min(SETTLED, options.count // 10), options.count)
    wrong = problems(run.output, originals, damaged)
    return {
        "photos": options.count,
        "damaged": len(damaged),
        "ended with": run.process.returncode,
        "problems": len(wrong),
        "such as": wrong[:SHOWN],
        "minutes": round((time.monotonic() - began) / 60, 2),
        **speeds,
        "memory": grown,
        "most growth": max((m["growth"] for m in grown.values()), default=None),
    }


def main() -> None:
    """Reads the command line, measures, and ends with 1 if something is not as it should be."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--count", type=int, default=2000, help="files (default: 2000)")
    add("--workers", type=int, default=2, help="workers, and bare loops (default: 2)")
    add("--steps", type=int, default=1, help="sampling steps (default: 1)")
    add("--restorer", default="mini (bundled)", help="of models/pfstorer_restorers")
    add("--base", type=Path, help="folder with models (default: ComfyUI's)")
    add("--seed", type=int, default=1)
    add("--timeout", type=float, default=6 * 3600, help="seconds for the run")
    add("--no-bare", action="store_true", help="leave out the bare loops")
    add("--folder", type=Path, help="scratch folder that stays (default: one that goes)")
    options = parser.parse_args()
    torch.set_num_threads(1)  # for small pictures: more threads wait for one another
    with tempfile.TemporaryDirectory(prefix="pfstorer-trial-") as scratch:
        found = trial(options, options.folder or Path(scratch))
    print(json.dumps(found, indent=2))
    fine = not found["problems"] and (found["most growth"] or 0) < MOST_GROWTH
    fine = fine and found.get("share of bare loops", 1) >= LEAST_SPEED
    sys.exit(0 if fine else 1)


if __name__ == "__main__":
    main()
