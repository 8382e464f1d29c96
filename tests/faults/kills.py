"""The server killed while it trains and while it saves, and writers killed while they write."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from comfyui_client import TEXT_EVENT, Client
from comfyui_queue import ComfyUIError
from comfyui_server import Server

from pfstorer_core.errors import PFStorerError
from pfstorer_core.identities.adapter import IdentityAdapter

from . import served, writers
from .killer import Killer
from .report import Outcome, Settings, Tally
from .served import SAVE, TRAIN, Prompt

PERSON = 1_000_000
# A small training, but for its length; a state is saved every 50 steps.
SMALL = {"views_per_photo": 4, "batch": 1, "size": 64, "preview_every": 0, "tokens": 4}
STEPS, QUICK_STEPS = 300, 60
RANDOM, STATE, ADAPTER = "random", "state", "adapter"
KILLS = {RANDOM: 10, STATE: 6, ADAPTER: 4}
WRITER_KILLS, QUICK_WRITER_KILLS = 250, 15
# seconds, at most, from the appearance of a temporary file to the kill
INTO_WRITING = {STATE: 0.02, ADAPTER: 0.004}
HURRY = 0.3  # seconds, at most, from the first state to the kill in the quick form
ATTEMPTS = 3  # per kill: a training may end before its moment has come
RUN_FILES = {"state", "state.part", "complete"}
ABANDONED = 3600.0  # seconds: an age at which a temporary file is nobody's any more


def run(settings: Settings) -> list[Outcome]:
    """Kills the server and writers; see the module."""
    return [*kill_server(settings), *kill_writers(settings)]


def kill_writers(settings: Settings) -> list[Outcome]:
    """Kills processes at random moments of writing adapters and states, one file after another."""
    kills = QUICK_WRITER_KILLS if settings.quick else WRITER_KILLS
    outcomes = []
    for kind, what in (("adapter", "an adapter"), ("state", "a training state")):
        command = [sys.executable, str(Path(writers.__file__)), kind]
        command += ["--kills", str(kills), "--seed", str(settings.seed)]
        command += ["--folder", str(settings.workspace / f"writing_{kind}")]
        found = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        tally = Tally(
            f"SIGKILL of a process that writes {what} over and over",
            "The file loads and is one of those written, and what is left of others goes away",
        )
        for failure in found["failures"]:
            tally.add(failure)
        while tally.tried < found["kills"]:
            tally.add()
        outcomes.append(tally.outcome(f"{found['interrupted']} kills fell within writing"))
    return outcomes


@dataclass
class Victim:
    """A training that is killed and queued again until its end.

    Attributes:
        server: trains it; running.
        prompt: the training.
        steps: how many it has.
        whole: the adapter of an uninterrupted run.
        old: an adapter that has the file's name before.
        photos: digests of the user's pictures, by path.
        ends: tally of trainings that came to their end.
        saved: steps that the state on the disk has.
        pending: the tally of the last kill, and what was found wrong since.
        partial: temporary files that were there after the last kill, and their times.
        halves: by fault, the kills that left another one.
        runs: how often it was begun.
    """

    server: Server
    prompt: Prompt
    steps: int
    whole: dict[str, Any]
    old: IdentityAdapter
    photos: dict[Path, str]
    ends: Tally
    saved: int = 0
    pending: tuple[Tally, list[str]] | None = None
    partial: set[tuple[Path, int]] = field(default_factory=set)
    halves: Counter[str] = field(default_factory=Counter)
    runs: int = 0

    @property
    def target(self) -> Path:
        """The adapter's file."""
        return served.identities(self.server) / f"{self.prompt[SAVE]['inputs']['file_name']}"

    def begin(self, *, forget: bool) -> None:
        """Puts the old adapter back, and `forget`s what is kept of the training, for a new one."""
        self.runs += 1
        # Another name, so that ComfyUI does not answer from its cache; it is no part of the run.
        self.prompt[TRAIN]["inputs"]["name"] = f"person {self.runs}"
        self.old.save(self.target, dtype=None)
        if forget:
            shutil.rmtree(served.training_runs(self.server), ignore_errors=True)
            self.saved = 0

    def go(self, ready: Callable[[], bool] | None, delay: float, tally: Tally) -> bool:
        """Queues the training and kills the server; restarts it and says whether it was killed."""
        first: list[int] = []

        def see(event: dict[str, Any]) -> None:
            text = event["data"].get("text", "") if event["type"] == TEXT_EVENT else ""
            if not first and (found := re.match(r"Step (\d+) of", text)):
                first.append(int(found[1]))

        killer = Killer(self.server, ready or (lambda: False), delay)
        status = error = ""
        with Client(self.server.url) as client:
            self._check_list(client)
            killer.start()
            try:
                ended = client.run(self.prompt, on_event=see)
                status, error = ended.status, str(ended.error)
            except (ComfyUIError, OSError):  # as meant, unless nobody killed it
                if not killer.killed:
                    raise
            finally:
                killer.call_off()
        goes_on = min(self.saved + 1, self.steps)
        if first and first[0] != goes_on:
            self._note(f"went on with step {first[0]} rather than {goes_on}")
        if killer.killed:
            self.settle()
            self.pending = (tally, self._check_files())
            before, self.partial = self.partial, {(p, p.stat().st_mtime_ns) for p in self.parts()}
            self.halves[tally.fault] += not self.partial <= before
            print(f"  killed: {tally.fault}; the state has {self.saved} steps", flush=True)
            self.server.start()
            return True
        if status != "success":
            self._note(f"the training queued again ended with {status}: {error}")
        self.settle()
        self._check_end()
        return False

    def parts(self) -> list[Path]:
        """Returns the temporary files that are there."""
        folders = served.training_runs(self.server), served.identities(self.server)
        return [path for folder in folders for path in folder.rglob("*.part")]

    def writes(self, folder: Path, pattern: str) -> bool:
        """Says whether there is a temporary file other than what the last kill left."""
        with contextlib.suppress(FileNotFoundError):  # complete in the meantime
            return any((p, p.stat().st_mtime_ns) not in self.partial for p in folder.glob(pattern))
        return False

    def settle(self) -> None:
        """Counts the last kill, of which nothing more can be learned."""
        if self.pending is not None:
            tally, problems = self.pending
            tally.add("; ".join(problems) if problems else None)
        self.pending = None

    def _note(self, problem: str) -> None:
        if self.pending is None:
            self.ends.add(problem)
        else:
            self.pending[1].append(problem)

    def _check_end(self) -> None:
        try:
            same = served.equal(served.stored_weights(self.target), self.whole)
            self.ends.add(None if same else "the adapter differs from the uninterrupted run's")
        except PFStorerError as error:
            self.ends.add(str(error))
        self.saved = self.steps

    def _check_list(self, client: Client) -> None:
        folder = served.identities(self.server)
        files = {str(path.relative_to(folder)) for path in folder.rglob("*.safetensors")}
        if set(served.listed(client)) != files:
            self._note(f"the list of adapters is {served.listed(client)} rather than {files}")

    def _check_files(self) -> list[str]:
        """Returns what is wrong with the files after a kill, and takes note of the steps saved."""
        problems = []
        self.saved = 0
        for path in served.training_runs(self.server).glob("*/*"):
            if path.name not in RUN_FILES:
                problems.append(f"{path.name} lies in the folder of the run")
            if path.name == "state":
                try:
                    self.saved = torch.load(path, map_location="cpu", weights_only=True)["step"]
                except Exception as error:  # torch.load raises many types for a damaged file
                    problems.append(f"the training state cannot be read ({error})")
        for path in served.identities(self.server).rglob("*.safetensors"):
            try:
                weights = served.stored_weights(path)
            except PFStorerError as error:
                problems.append(str(error))
                continue
            if path == self.target:
                known = self.old.state_dict(), self.whole
                if not any(served.equal(weights, adapter) for adapter in known):
                    problems.append("the adapter's file is neither the old one nor the new one")
        if not self.target.is_file():
            problems.append("the old adapter is gone")
        if digests(list(self.photos)) != self.photos:
            problems.append("a photo has changed")
        return problems


def kill_server(settings: Settings) -> list[Outcome]:
    """Kills the server at random moments of a training, and while it writes."""
    moments = random.Random(settings.seed)
    server = served.new_server(settings.workspace / "server")
    steps = QUICK_STEPS if settings.quick else STEPS
    photos = served.write_photos(server, PERSON)
    with server:
        began = time.monotonic()
        with Client(server.url) as client:
            prompt = served.training(photos, "whole.safetensors", steps=steps, **SMALL)
            ended = client.run(prompt)
            if ended.status != "success":
                raise ComfyUIError(f"the uninterrupted training ended with {ended.error}")
        seconds = time.monotonic() - began
        whole = served.identities(server) / "whole.safetensors"
        old = IdentityAdapter.load(whole, dtype=None)
        for parameter in old.parameters():
            parameter.detach().mul_(0.5)
        victim = Victim(
            server,
            served.training(photos, "person.safetensors", steps=steps, **SMALL),
            steps,
            served.stored_weights(whole),
            old,
            digests([server.base / "input" / name for name in photos]),
            Tally(
                "Trainings that were killed, restarted and queued again until their end",
                "The adapter equals the uninterrupted run's bit for bit",
            ),
        )
        return _kill_all(victim, moments, seconds, settings.quick)


def _kill_all(victim: Victim, moments: random.Random, seconds: float, quick: bool) -> list[Outcome]:
    """Goes through all kills; `seconds` is how long an uninterrupted training takes."""
    server = victim.server
    expected = (
        "All files listed load or are the old ones, photos are untouched, and the workflow queued "
        "again goes on at the last saved step"
    )
    tallies = {
        RANDOM: Tally("SIGKILL of the server at a random moment of a training", expected),
        STATE: Tally("SIGKILL of the server as it writes a training state", expected),
        ADAPTER: Tally(
            "SIGKILL of the server as it saves the trained adapter",
            "The file is the old one or the new one, and the adapter is saved without training "
            "anew when the workflow is queued again",
        ),
    }
    runs, adapters = served.training_runs(server), served.identities(server)
    hits = {
        RANDOM: lambda: True,
        STATE: lambda: victim.writes(runs, "*/state.part"),
        ADAPTER: lambda: victim.writes(adapters, ".*.part"),
    }
    longest = {RANDOM: HURRY if quick else seconds / 2, **INTO_WRITING}
    if quick:
        hits[RANDOM] = lambda: any(runs.glob("*/state"))
        plan = [RANDOM]
    else:
        plan = [RANDOM] * KILLS[RANDOM] + [STATE] * KILLS[STATE]
        moments.shuffle(plan)
        plan += [ADAPTER] * KILLS[ADAPTER]
    victim.begin(forget=True)
    for kind in plan:
        for _ in range(ATTEMPTS):
            if kind == ADAPTER:
                victim.begin(forget=False)
            delay = moments.uniform(0, longest[kind])
            killed = victim.go(hits[kind], delay, tallies[kind])
            if killed:
                break
            if kind != ADAPTER:
                victim.begin(forget=True)
    temporary = victim.parts()
    then = time.time() - ABANDONED
    for path in temporary:
        os.utime(path, (then, then))
    victim.go(None, 0.0, victim.ends)
    remain = victim.parts()
    if remain:
        victim.ends.add(f"{len(remain)} temporary files were never removed")
    outcomes = [
        tally.outcome(f"{victim.halves[tally.fault]} kills left a file half written")
        for tally in tallies.values()
        if tally.tried
    ]
    left = f"Temporary files: {len(temporary)} after the last kill, {len(remain)} in the end"
    return [*outcomes, victim.ends.outcome(left)]


def digests(paths: list[Path]) -> dict[Path, str]:
    """Returns the SHA-256 of each file that exists, by path."""
    return {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in paths if p.is_file()}
