"""Full disks and read-only folders, in file systems of a process's own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

from .report import Outcome, Settings, Tally

PLACES = Path(__file__).with_name("places.py")
ROUNDS = 100  # amounts of room left, for each kind of file
QUICK_ROUNDS = 3
PATIENCE = 1200  # seconds
EXPECTED = "One sentence, the old file as it was, nothing left behind"


def run(settings: Settings) -> list[Outcome]:
    """Saves where it cannot be; the full form also trains there."""
    rounds = QUICK_ROUNDS if settings.quick else ROUNDS
    command = [sys.executable, str(PLACES), "--rounds", str(rounds)]
    command += ["--seed", str(settings.seed), "--folder", str(settings.workspace / "disk")]
    command += [] if settings.quick else ["--train"]
    done = subprocess.run(
        [*mounting(), *command], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    tallies: dict[str, Tally] = {}
    for line in (json.loads(x) for x in done.stdout.splitlines() if x.startswith("{")):
        fault = line["fault"]
        expected = EXPECTED if "while a file" in fault else "as said"
        tallies.setdefault(fault, Tally(fault, expected)).add(line["failure"])
    if done.returncode:
        ended = Tally("Full disk and read-only folder", "All cases run")
        ended.add(f"ended with {done.returncode}: {done.stderr[-500:]}")
        tallies[ended.fault] = ended
    return [tally.outcome() for tally in tallies.values()]


def mounting() -> list[str]:
    """Returns what gives a command file systems of its own; nothing where that is not allowed."""
    for options in (["--mount"], ["--mount", "--map-root-user"]):
        command = ["unshare", *options]
        if shutil.which("unshare"):
            tried = subprocess.run([*command, "true"], capture_output=True, check=False)
            if tried.returncode == 0:
                return command
    return []
