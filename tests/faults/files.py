"""Damaged weight files and hostile checkpoints, loaded by processes of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from .report import Outcome, Settings, Tally

LOADER = Path(__file__).with_name("loader.py")
MUTANTS = {  # damaged files of each kind
    "adapter": 500,
    "bundled restorer": 350,
    "restorer checkpoint": 150,
    "embedding": 75,
    "CFW decoder": 75,
}
QUICK = 19  # of each kind, one per way of damage
MOST_MEMORY = 512.0  # MiB that loading a file of at most 1 MiB may take
MOST_SECONDS = 60.0
PATIENCE = 1800  # seconds for all files of a kind
REFUSAL = (
    "Loaded with finite values, or refused in one sentence that names the file; at most "
    f"{MOST_MEMORY:.0f} MiB and {MOST_SECONDS:.0f} s"
)


def run(settings: Settings) -> list[Outcome]:
    """Loads damaged files of each kind, then hostile checkpoints."""
    tallies = {kind: Tally(f"Damaged files: {kind}", REFUSAL) for kind in MUTANTS}
    tallies["pickles"] = Tally(
        "Hostile checkpoints", "Nothing is run, refused in one sentence; memory and time as above"
    )
    if settings.quick:  # one process, for it takes longer to start than to load some files
        lines = _loaded(list(tallies), QUICK, settings, tallies["pickles"])
    else:
        lines = []
        for kind, tally in tallies.items():
            lines += _loaded([kind], MUTANTS.get(kind, 0), settings, tally)
    outcomes = []
    for kind, tally in tallies.items():
        found = [line for line in lines if line["group"] == kind]
        for line in found:
            tally.add(_failure(line))
        if not found:
            tally.add("nothing was loaded")
        loaded = sum(line["loaded"] for line in found)
        grown = max((line["grown"] for line in found), default=0.0)
        slowest = max((line["seconds"] for line in found), default=0.0)
        figures = f"{loaded} loaded; at most {grown:.0f} MiB and {slowest:.1f} s for a file"
        outcomes.append(tally.outcome(figures))
    return outcomes


def _loaded(kinds: list[str], count: int, settings: Settings, tally: Tally) -> list[dict[str, Any]]:
    """Lets a loader load files of some kinds and returns what it says of each."""
    command = [sys.executable, str(LOADER), *kinds, "--count", str(count)]
    command += ["--seed", str(settings.seed), "--folder", str(settings.workspace / "files")]
    log = settings.workspace / "loader.log"
    with log.open("w") as errors:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, timeout=PATIENCE, check=False
        )
    if done.returncode:
        end = log.read_text(errors="replace").strip().splitlines()[-1:]
        tally.add(f"the process ended with {done.returncode} ({' '.join(end)})")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def _failure(line: dict[str, Any]) -> str | None:
    if line["failure"] is not None:
        return str(line["failure"])
    if line["grown"] > MOST_MEMORY:
        return f"{line['fault']}: took {line['grown']:.0f} MiB"
    if line["seconds"] > MOST_SECONDS:
        return f"{line['fault']}: took {line['seconds']:.0f} s"
    return None
