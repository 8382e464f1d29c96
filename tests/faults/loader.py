"""Loads damaged files one after another in a process of its own and prints what came of each.

A process of its own, so that memory can be measured and a crash be seen. One line of JSON per file:
its group, what was done, the failure if there was one, whether it loaded, seconds, and the MiB that
memory grew by.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import resource
import shutil
import sys
import time
from pathlib import Path

TESTS = Path(__file__).absolute().parents[1]
LONGEST_SENTENCE = 1100  # characters


def main() -> None:
    """Reads the command line and prints the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="+", help="kinds of file, or 'pickles'")
    parser.add_argument("--count", type=int, required=True, help="of each kind")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    options = parser.parse_args()
    sys.path[:0] = [str(TESTS), str(TESTS.parent / "scripts")]
    from in_process import use_comfyui

    use_comfyui()
    for kind in options.kinds:
        folder = options.folder / kind.replace(" ", "_")
        folder.mkdir(parents=True)
        if kind == "pickles":
            load_pickles(options.count, folder)
        else:
            load_mutants(kind, options.count, options.seed, folder)


def load_mutants(kind: str, count: int, seed: int, folder: Path) -> None:
    """Damages a file of a kind in `count` ways and loads each."""
    from faults.mutants import ARCHIVE, DESCRIBED, SAFETENSORS, Draft
    from faults.originals import SUFFIXES, load, write_original

    suffix = SUFFIXES[kind]
    original = folder / f"original{suffix}"
    write_original(kind, original)
    content = original.read_bytes()
    load(kind, original)  # what a first time imports and allocates is no file's fault
    if suffix == ".ckpt":
        ways = ARCHIVE
    else:
        ways = SAFETENSORS if kind == "CFW decoder" else DESCRIBED
    signed = b"pfstorer_sha256" in content
    for number in range(count):
        choose = random.Random(f"{kind} {seed} {number}")
        way = ways[number % len(ways)]
        path = folder / f"mutant_{number}{suffix}"
        way(Draft(content, choose, path))
        must_fail = way.__name__ == "not_finite" or (way.__name__ == "weight_bit" and signed)
        report(kind, way.__name__, kind, path, must_fail)
        remove(path)


def load_pickles(count: int, folder: Path) -> None:
    """Loads hostile checkpoints as restorer, adapter and CFW decoder; all of them for a 0."""
    from faults.originals import load, write_original
    from faults.pickles import write_pickles

    warm = folder / "warm.safetensors"
    write_original("adapter", warm)
    load("adapter", warm)
    marker = folder / "executed"
    for name, path in itertools.islice(write_pickles(folder, marker), count or None):
        for kind in ("restorer checkpoint", "adapter", "CFW decoder"):
            report("pickles", name, kind, path, must_fail=True, marker=marker)
        remove(path)


def report(
    group: str, fault: str, kind: str, path: Path, must_fail: bool, marker: Path | None = None
) -> None:
    """Loads one file and prints what came of it."""
    from faults.originals import load
    from pfstorer_core.errors import PFStorerError

    failure, loaded = None, False
    before, began = memory(reset=True), time.monotonic()
    try:
        weights = load(kind, path)
    except PFStorerError as error:
        failure = unclear(str(error), path.name)
    except Exception as error:
        failure = f"{type(error).__name__}: {str(error)[:200]}"
    else:
        loaded = True
        if not all(bool(tensor.isfinite().all()) for tensor in weights.values()):
            failure = "loaded with values that are not finite"
        elif must_fail:
            failure = "loaded though it is broken"
    if marker is not None and marker.exists():
        failure = "code of the file was run"
        marker.unlink()
    line = {
        "group": group,
        "fault": fault,
        "failure": None if failure is None else f"{kind}, {fault}, {path.name}: {failure}",
        "loaded": loaded,
        "seconds": time.monotonic() - began,
        "grown": memory() - before,
    }
    print(json.dumps(line), flush=True)


def unclear(sentence: str, name: str) -> str | None:
    """Says what is wrong with a sentence that is to tell a user about a file."""
    if len(sentence.splitlines()) != 1 or not sentence.isprintable():
        return f"more than one line: {sentence!r}"
    if name not in sentence:
        return f"does not name the file: {sentence}"
    if "Traceback" in sentence or not sentence.endswith(".") or len(sentence) > LONGEST_SENTENCE:
        return f"no sentence: {sentence[:300]}"
    return None


def memory(reset: bool = False) -> float:
    """Returns the most memory that this process has had in MiB, since the last reset on Linux."""
    if sys.platform == "linux":
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def remove(path: Path) -> None:
    """Removes whatever lies there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif os.path.lexists(path):
        path.unlink()


if __name__ == "__main__":
    main()
