"""Archives whose workers, drivers and machines are killed, and whose disk is full."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import random
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
from tiny_models import write_bundled

sys.path.append(str(Path(__file__).absolute().parents[2] / "tools"))

from archives.photos import draw
from archives.runs import Run, Setting, pictures, problems, rows

from .disk import mounting
from .report import Outcome, Settings, Tally

STARVED = "faults.starved"  # as a module: beside it lies another `archives`
TINY = "tiny.safetensors"
FINE, SOME_FAILED = 0, 3  # how `archive.py` ends when all has come to an end
WORKERS = 2
PHOTOS, KILLS, DRIVER_KILLS = 300, 20, 5
QUICK_PHOTOS, QUICK_KILLS, QUICK_DRIVER_KILLS = 24, 1, 1
PATIENCE = 7200.0  # seconds for a run
POLL = 0.05
SPACE = 300_000  # bytes that a full disk has left


def run(settings: Settings) -> list[Outcome]:
    """Restores drawn archives, undisturbed and disturbed; nothing where Ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        print("  left out: Ray is not installed (requirements-archive.txt)")
        return []
    trial = Trial(settings.workspace, QUICK_PHOTOS if settings.quick else PHOTOS, settings.seed)
    kills = (QUICK_KILLS, QUICK_DRIVER_KILLS) if settings.quick else (KILLS, DRIVER_KILLS)
    return [*trial.killed(*kills), *trial.starved(), trial.machine_lost()]


class Trial:
    """A drawn archive, and what an undisturbed run makes of it.

    Args:
        workspace: scratch folder.
        count: of photos.
        seed: of all that is random.
    """

    def __init__(self, workspace: Path, count: int, seed: int) -> None:
        self.workspace, self.count, self.choose = workspace, count, random.Random(seed)
        base = workspace / "base"
        write_bundled(base / "models" / "pfstorer_restorers" / TINY)
        options = ("--set", f"1.restorer={TINY}", "--set", "3.steps=1", "--shown", "5")
        options += ("--workers", str(WORKERS), "--cpus-per-worker", "1")
        self.setting = Setting(workspace / "in", base, options)
        self.damaged = draw(self.setting.originals, count, seed)
        self.originals = pictures(self.setting.originals)
        undisturbed = Run(self.setting, workspace / "undisturbed")
        undisturbed.process.wait(PATIENCE)
        found = problems(undisturbed.output, self.setting.originals, self.damaged)
        if found or undisturbed.process.returncode not in (FINE, SOME_FAILED):
            log = undisturbed.log.read_text(errors="replace")[-2000:]
            raise RuntimeError(f"the undisturbed run is not fine: {found[:5]}\n{log}")
        self.whole = pictures(undisturbed.output)

    def failure(self, output: Path, code: int | None) -> str | None:
        """Says what is wrong with an archive that should be at its end."""
        found = problems(output, self.setting.originals, self.damaged)
        if code not in (FINE, SOME_FAILED):
            found.insert(0, f"archive.py ended with {code}")
        restored = pictures(output)
        different = [name for name in self.whole if restored.get(name) != self.whole[name]]
        found += [f"{name} differs from the undisturbed run's" for name in different]
        if pictures(self.setting.originals) != self.originals:
            found.append("an original was touched")
        return "; ".join(found[:5]) if found else None

    def killed(self, kills: int, driver_kills: int) -> list[Outcome]:
        """Kills workers, their ComfyUIs, and drivers at random moments, until all is done."""
        output = self.workspace / "killed"
        plan = ["worker"] * (kills - kills // 3) + ["comfyui"] * (kills // 3)
        plan += ["driver"] * driver_kills
        self.choose.shuffle(plan)
        most = max(len(plan), self.count * 9 // 10)
        moments = sorted(self.choose.sample(range(1, most + 1), len(plan)))
        tallies = {
            role: Tally(f"Archive: SIGKILL of {what} at a random moment", "The run goes on")
            for role, what in {
                "worker": "a worker",
                "comfyui": "a worker's ComfyUI",
                "driver": "the driver",
            }.items()
        }
        twice = Tally("Archive: photos done before a kill", "They are not done again")
        run, seen = Run(self.setting, output), Seen(output)
        deadline = time.monotonic() + PATIENCE
        for role, moment in zip(plan, moments, strict=True):
            if not self._reached(run, moment, role, deadline):
                tallies[role].add("the run ended before its moment")
                continue
            seen.look()
            if role == "driver":
                run.kill()
                run = Run(self.setting, output)
            else:
                self._kill_one(run, role)
            tallies[role].add()
        code = run.process.wait(max(1.0, deadline - time.monotonic()))
        for failure in seen.problems():
            twice.add(failure)
        twice.tried = max(twice.tried, len(seen.files))
        end = Tally(
            "Archive: run again after each kill until its end",
            "All photos are restored or named, bit for bit as in an undisturbed run; no original "
            "is touched",
        )
        end.add(self.failure(output, code))
        return [tally.outcome() for tally in (*tallies.values(), twice, end) if tally.tried]

    def _reached(self, run: Run, moment: int, role: str, deadline: float) -> bool:
        """Waits until so many photos have come to an end and there is something to kill."""
        while run.process.poll() is None and time.monotonic() < deadline:
            if run.ended() >= moment and run.find(role):
                time.sleep(self.choose.uniform(0, 1))
                return run.process.poll() is None
            time.sleep(POLL)
        return False

    def _kill_one(self, run: Run, role: str) -> None:
        if found := run.find(role):
            with contextlib.suppress(psutil.NoSuchProcess):
                self.choose.choice(found).send_signal(signal.SIGKILL)

    def starved(self) -> list[Outcome]:
        """Fills the disk of the output once."""
        tally = Tally(
            "Archive: disk full once, run again when there is room",
            "A sentence ends the first run; the second makes all bit for bit as undisturbed",
        )
        in_private = mounting()
        if not in_private:
            return []
        state = {"whole": self.whole, "damaged": self.damaged, "space": SPACE}
        state |= {"originals": str(self.setting.originals), "base": str(self.setting.base)}
        described = self.workspace / "starved.json"
        described.write_text(json.dumps(state | {"options": self.setting.options}))
        command = [*in_private, sys.executable, "-m", STARVED, str(described)]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
        lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
        if done.returncode or not lines:
            tally.add(f"ended with {done.returncode}: {done.stderr[-800:]}")
        else:
            tally.add(json.loads(lines[-1])["failure"])
        return [tally.outcome()]

    def machine_lost(self) -> Outcome:
        """Runs on a cluster of two machines on this one, and loses the second."""
        tally = Tally(
            "Archive: one of two machines of a Ray cluster lost",
            "The other goes on to the end; all is bit for bit as undisturbed",
        )
        output = self.workspace / "cluster"
        with cluster() as (address, second, environment):
            run = Run(self.setting, output, "--address", address, environment=environment)
            deadline = time.monotonic() + PATIENCE
            while run.process.poll() is None and time.monotonic() < deadline:
                machines = {row["machine"] for row in rows(output).values() if row["machine"]}
                if len(machines) > 1 and run.ended() >= self.count // 4:
                    break
                time.sleep(POLL)
            both = run.process.poll() is None
            kill_family(second)
            code = run.process.wait(max(1.0, deadline - time.monotonic()))
        tally.add(self.failure(output, code) if both else "it ended before both had done something")
        return tally.outcome()


class Seen:
    """Restored pictures that were seen to be done, to find out whether they are done again."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self.files: dict[Path, tuple[int, int]] = {}

    def look(self) -> None:
        """Takes note of what is done now."""
        for row in rows(self.output).values():
            if row["state"] == "done":
                path = self.output / row["output"]
                status = path.stat()
                self.files.setdefault(path, (status.st_ino, status.st_mtime_ns))

    def problems(self) -> list[str]:
        """Returns a sentence for each that was written anew."""
        found = []
        for path, seen in self.files.items():
            status = path.stat()
            if (status.st_ino, status.st_mtime_ns) != seen:
                found.append(f"{path.name} was written again")
        return found


@contextlib.contextmanager
def cluster() -> Iterator[tuple[str, subprocess.Popen[bytes], dict[str, str]]]:
    """Starts a Ray cluster of two machines, both this one, with a core each, and with a token.

    Yields:
        Its address, the process of the second machine, and the environment of who uses it.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"127.0.0.1:{port}"
    environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0"}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}
    start = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus", "1"]
    start += ["--node-ip-address", "127.0.0.1", "--object-store-memory", str(100 * 2**20)]
    head = ["--head", "--port", str(port), "--include-dashboard", "false"]
    started = []
    try:
        for more in (head, ["--address", address]):
            started.append(
                subprocess.Popen(
                    [*start, *more],
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
            )
            _wait_for_port(port)
        yield address, started[1], environment
    finally:
        for process in reversed(started):
            kill_family(process)


def _wait_for_port(port: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                time.sleep(5)  # it answers somewhat later
                return
        time.sleep(0.2)
    raise RuntimeError("Ray's head did not start")


def kill_family(process: subprocess.Popen[bytes]) -> None:
    """Kills a process and all that it started."""
    try:
        family = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return
    for member in [psutil.Process(process.pid), *family]:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    process.wait()
    psutil.wait_procs(family, timeout=60)
