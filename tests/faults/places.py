"""Saves and trains where the disk is full or read-only; prints a line of JSON for each case.

Run under `unshare --mount` it mounts small file systems in memory, which nobody else sees. Without
the right to do so, a limit on the size of files stands for a full disk and missing rights for a
read-only folder; as root, which no missing right stops, the read-only cases are then left out.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

TESTS = Path(__file__).absolute().parents[1]
SIZE = 64 * 2**20  # bytes of a mounted file system
Writer = Callable[[Path], None]


class Place:
    """A folder whose disk can be filled up and made read-only.

    Args:
        folder: made anew.
        size: of the file system, in bytes.
    """

    def __init__(self, folder: Path, size: int = SIZE) -> None:
        self.folder = folder
        folder.mkdir()
        options = ["-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        mounted = subprocess.run(["mount", *options], capture_output=True, check=False)
        self.mounted = mounted.returncode == 0
        self._filler = folder / "filler"

    @property
    def can_be_read_only(self) -> bool:
        """Whether this process can be kept from writing."""
        return self.mounted or os.geteuid() != 0

    @contextmanager
    def full(self, left: int = 0) -> Iterator[None]:
        """Leaves so many bytes."""
        if self.mounted:
            self.fill(left)
            try:
                yield
            finally:
                self._filler.unlink()
            return
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (left, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    def fill(self, left: int) -> None:
        """Writes until so many bytes are left."""
        stat = os.statvfs(self.folder)
        free = stat.f_bavail * stat.f_frsize
        with self._filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(1, free - left))

    @contextmanager
    def read_only(self) -> Iterator[None]:
        """Lets nobody write."""
        self._remount("ro", 0o555)
        try:
            yield
        finally:
            self._remount("rw", 0o755)

    def _remount(self, mode: str, rights: int) -> None:
        if self.mounted:
            command = ["mount", "-o", f"remount,{mode}", str(self.folder)]
            subprocess.run(command, capture_output=True, check=True)
        else:
            self.folder.chmod(rights)


def main() -> None:
    """Reads the command line and runs all cases."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--folder", type=Path, required=True)
    options = parser.parse_args()
    sys.path[:0] = [str(TESTS), str(TESTS.parent / "scripts")]
    if options.train:
        from in_process import use_comfyui

        use_comfyui()
    else:
        sys.path.append(str(TESTS.parent))
    logging.disable(logging.WARNING)
    options.folder.mkdir(parents=True)
    place = Place(options.folder / "place")
    save_cases(place, options.rounds, random.Random(options.seed))
    if options.train:
        training_cases(place, options.folder)


def tell(fault: str, failure: str | None) -> None:
    """Prints what came of a case."""
    print(json.dumps({"fault": fault, "failure": failure}), flush=True)


def refusal(write: Callable[[], Any]) -> str | None:
    """Says what is wrong with how something was refused that cannot be done."""
    from faults.loader import unclear
    from pfstorer_core.errors import PFStorerError

    try:
        write()
    except PFStorerError as error:
        return unclear(str(error), "'")
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:200]}"
    return "nothing was said"


def save_cases(place: Place, rounds: int, choose: random.Random) -> None:
    """Replaces files where there is no room, or no right to."""
    from faults.originals import write_original
    from faults.writers import write_state

    writers: dict[str, tuple[str, Writer]] = {
        "adapter": ("adapter.safetensors", lambda path: write_original("adapter", path)),
        "restorer": ("r.safetensors", write_restorer),
        "training state": ("state", lambda path: write_state(path, 1)),
    }
    for kind, (name, write) in writers.items():
        path = place.folder / name
        write(path)
        before, listed = path.read_bytes(), sorted(os.listdir(place.folder))

        def check(
            said: str | None,
            path: Path = path,
            before: bytes = before,
            listed: list[str] = listed,
        ) -> str | None:
            if said is None and path.read_bytes() != before:
                return "the old file was harmed"
            left = sorted(x for x in os.listdir(place.folder) if x != "filler")
            return said or (None if left == listed else f"left behind: {left}")

        for _ in range(rounds):
            room = choose.randrange(len(before) - 8192)
            with place.full(room):
                said = refusal(lambda write=write, path=path: write(path))
            tell(f"Full disk while a file is saved ({kind})", check(said))
        if place.can_be_read_only:
            for target in (path, place.folder / "new" / name):
                with place.read_only():
                    said = refusal(lambda write=write, target=target: write(target))
                tell(f"Read-only folder while a file is saved ({kind})", check(said))
        write(path)  # with room again
        again = path.read_bytes() == before or kind == "training state"
        tell("Saved once there is room again", None if again else f"{kind} differs")


def write_restorer(path: Path) -> None:
    """Writes a small restorer, for which ComfyUI is not needed."""
    from pfstorer_core.restorers.base import BaseRestorer
    from pfstorer_core.restorers.files import save
    from pfstorer_core.restorers.stablesr.encoder import EncoderConfig

    torch.manual_seed(0)
    sites = {"input_blocks.1.0": 32, "output_blocks.1.0": 64}
    encoder = EncoderConfig(4, 32, 32, 1, (2,), (1, 1), 4)
    save(BaseRestorer.initialise(sites, encoder, hidden=32), path)


def training_cases(place: Place, folder: Path) -> None:
    """Trains where the disk is full from the start, later, or at an interruption."""
    from faults.small import Stopped, at_step, load_small, same, stop, train

    loaded = load_small(folder)
    whole = train(loaded)
    runs = place.folder / "runs"
    seen: list[Any] = []
    start = "Training into a full or read-only folder is refused before its first view"
    if place.mounted:
        with place.full():
            said = refusal(lambda: train(loaded, seen.append, folder=runs))
        tell(start, said or ("views were made before" if seen else None))
    if place.can_be_read_only:
        with place.read_only():
            said = refusal(lambda: train(loaded, seen.append, folder=runs))
        tell(start, said or ("views were made before" if seen else None))
    if not place.mounted:
        return  # a limit on files would also hit what ComfyUI writes

    told: list[str] = []
    adapter = train(loaded, at_step(2, lambda: place.fill(0)), folder=runs, on_warning=told.append)
    (place.folder / "filler").unlink()
    fault = "Disk full in a training: it ends as without, with a warning, and can be saved"
    warned = any("could not be written" in sentence for sentence in told)
    adapter.save(folder / "saved.safetensors")
    tell(fault, None if warned and same(adapter, whole) else f"warned {warned}: {told}")

    fault = "Stopped while the disk is full: the state before is whole and goes on to the same end"
    try:
        train(loaded, at_step(2, stop), {"seed": 1}, folder=runs)
    except Stopped:
        pass

    def fill_and_stop() -> None:
        place.fill(0)
        stop()

    stopped = False
    try:
        train(loaded, at_step(3, fill_and_stop), {"seed": 1}, folder=runs)
    except Stopped:
        stopped = True
    (place.folder / "filler").unlink()
    steps: list[int] = []
    rest = train(loaded, lambda p: steps.append(p.done), {"seed": 1}, folder=runs)
    good = stopped and same(rest, train(loaded, config={"seed": 1}))
    tell(fault, None if good else f"stopped {stopped}, steps {steps}")


if __name__ == "__main__":
    main()
