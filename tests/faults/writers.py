"""Kills a process again and again while it writes adapters or training states; prints what is left.

A program of its own, because its children are forks: those of a process that has used several
threads would hang. The result is one JSON object: kills, how many of them left a temporary file,
and a sentence for each file that did not read as one of those written.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).absolute().parents[2]))

from pfstorer_core.errors import PFStorerError
from pfstorer_core.training.state import load_state, save_state
from pfstorer_core.weights.reading import read_weights
from pfstorer_core.weights.writing import write_safetensors

SHAPE = 256, 1024  # of the one tensor, 1 MiB: about as much as an adapter of the mini restorer
OLD = 0.0  # what the file holds before anything is killed
LONGEST = 0.05  # seconds until a kill, some ten times what one file takes
ABANDONED = 3600.0  # seconds: an age at which a temporary file is nobody's any more


class Weights:
    """One tensor, as a part of a training's state."""

    def __init__(self, value: float = OLD) -> None:
        self.tensor = torch.full(SHAPE, value)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Returns the tensor."""
        return {"weight": self.tensor}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Takes a tensor up."""
        self.tensor = state["weight"]


def write_adapter(path: Path, number: int) -> None:
    """Writes a file all of whose values are `number`, which its metadata say."""
    write_safetensors(path, {"weight": torch.full(SHAPE, float(number))}, {"number": str(number)})


def read_adapter(path: Path) -> tuple[int, torch.Tensor]:
    """Returns what the metadata say and the tensor."""
    tensors, metadata = read_weights(path)
    return int(metadata["number"]), tensors["weight"]


def write_state(path: Path, number: int) -> None:
    """Writes a training state all of whose values are `number`, the steps done."""
    save_state(path, {"weights": Weights(number)}, number, {"config": {"seed": 0}})


def read_state(path: Path) -> tuple[int, torch.Tensor]:
    """Returns the steps done and the tensor."""
    weights = Weights()
    step = load_state(path, {"weights": weights}, seed=0)
    return step, weights.tensor


KINDS = {
    "adapter": ("adapter.safetensors", write_adapter, read_adapter),
    "state": ("state", write_state, read_state),
}


def kill_one(write: Callable[[Path, int], None], path: Path, delay: float) -> None:
    """Kills a child that writes one file after another, `delay` seconds after it began to."""
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writes, b"!")
        number = 1
        while True:
            write(path, number)
            number += 1
    os.close(writes)
    if os.read(reads, 1) != b"!":
        raise RuntimeError("the writer did not begin")
    os.close(reads)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status):
        raise RuntimeError(f"the writer ended by itself ({status}) before it was killed")


def kill_writers(kind: str, kills: int, seed: int, folder: Path) -> dict[str, object]:
    """Kills writers of one kind and returns the counts.

    Args:
        kind: of KINDS.
        kills: how many.
        seed: of the moments.
        folder: empty, for the files.
    """
    name, write, read = KINDS[kind]
    moments = random.Random(seed)
    path = folder / name
    write(path, int(OLD))
    failures, interrupted = [], 0
    for _ in range(kills):
        delay = moments.uniform(0, LONGEST)
        before = {file: file.stat().st_mtime_ns for file in folder.iterdir() if file != path}
        kill_one(write, path, delay)
        try:
            number, tensor = read(path)
            if not (tensor == number).all():
                failures.append(f"killed after {delay:.6f} s, a file of mixed content was left")
        except (PFStorerError, OSError) as error:
            failures.append(f"killed after {delay:.6f} s: {error}")
        after = {file: file.stat().st_mtime_ns for file in folder.iterdir() if file != path}
        interrupted += after != before
    for file in folder.iterdir():
        then = time.time() - ABANDONED
        os.utime(file, (then, then))
    write(path, kills)
    stay = [file.name for file in folder.iterdir() if file != path]
    if stay:
        failures.append(f"{len(stay)} temporary files were never removed")
    return {"kills": kills, "interrupted": interrupted, "failures": failures}


def main() -> None:
    """Reads the command line and prints the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--kills", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # before anything makes threads, which no fork would have
    arguments.folder.mkdir(parents=True)
    result = kill_writers(arguments.kind, arguments.kills, arguments.seed, arguments.folder)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
