"""Measures `scripts/archive.py` on drawn photos: is all accounted for, memory, speed.

    python tools/archive_trial.py --count 2000 --folder FOLDER

Runs in ComfyUI's environment with Ray, on an otherwise idle machine. It draws an archive of people
with 3 in 100 files damaged, restores it, then lets as many bare loops as there are workers restore
the same photos at the same time, and prints what was found as JSON; FOLDER/samples.json has the
memory of all processes over time. `tests/fault_campaign.py --only archives` kills and starves such
runs.
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

import repository  # noqa: F401
import torch
from archives.photos import draw
from archives.runs import WORKFLOW, Run, Setting, growth, problems, restored_at, speed
from archiving.workflow import read_workflow
from setup_host import find_comfyui

BARE = Path(__file__).with_name("archives") / "bare.py"
SETTLED = 200  # photos after which no process may grow
MOST_GROWTH, LEAST_SPEED = 0.02, 0.9
SHOWN = 20  # problems


def bare_loops(setting: Setting, changes: list[str], workers: int, folder: Path) -> float:
    """Returns how many photos a minute bare loops end together, side by side.

    Args:
        setting: of the trial.
        changes: of the workflow.
        workers: loops, each with a share of the photos.
        folder: scratch folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    described = folder / "workflow.json"
    described.write_text(json.dumps(asdict(read_workflow(WORKFLOW, changes))), encoding="utf-8")
    photos = sorted(str(path) for path in setting.originals.rglob("*") if path.is_file())
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // workers))}
    loops = []
    for worker in range(workers):
        files = folder / f"{worker}.json"
        files.write_text(json.dumps(photos[worker::workers]), encoding="utf-8")
        command = [sys.executable, BARE, described, setting.base, folder / str(worker), files]
        loops.append(
            subprocess.Popen(
                [str(part) for part in command],
                stdout=subprocess.PIPE,
                env={**threads, **os.environ},
                text=True,
            )
        )
    return speed([end for loop in loops for end in json.loads(loop.communicate()[0])])


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
    samples = run.watch(options.timeout)
    kept = json.dumps([asdict(sample) for sample in samples])
    (folder / "samples.json").write_text(kept, encoding="utf-8")
    rate = speed(restored_at(run.output))
    grown = growth(samples, min(SETTLED, options.count // 10), options.count)
    wrong = problems(run.output, originals, damaged)
    found: dict[str, Any] = {
        "photos": options.count,
        "damaged": len(damaged),
        "ended with": run.process.returncode,
        "problems": len(wrong),
        "such as": wrong[:SHOWN],
        "minutes": round((time.monotonic() - began) / 60, 2),
        "photos a minute": round(rate, 1),
        "memory": grown,
        "most growth": max((m["growth"] for m in grown.values()), default=None),
    }
    if not options.no_bare:
        bare = bare_loops(setting, changes, options.workers, folder / "bare")
        found |= {"bare loops": round(bare, 1), "share of bare loops": round(rate / bare, 3)}
    return found


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
