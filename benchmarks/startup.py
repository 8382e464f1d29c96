"""Seconds that the plugin adds to ComfyUI's start.

Run as a program, it loads the plugin once in a fresh process and prints what that took as JSON.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from report import Section, table

TITLE = "Start of ComfyUI"
LOADS, FEW_LOADS = 9, 2  # fresh processes
FIRST_LOADS, FEW_FIRST_LOADS = 3, 1
STARTS, FEW_STARTS = 5, 0  # of the server with the plugin, and as many without


@dataclass(frozen=True)
class Load:
    """What loading the plugin took, in a process in which ComfyUI has loaded its own nodes.

    Args:
        seconds: wall time.
        cpu_seconds: of user and system.
        collecting: CPU seconds of it in which Python looked through all objects for garbage, those
            of ComfyUI above all; it does so after every so many new objects, whoever made them.
        own: number of the plugin's modules.
        foreign: names of all other modules that were not there before.
        connections: look-ups of names and connections of sockets.
    """

    seconds: float
    cpu_seconds: float
    collecting: float
    own: int
    foreign: list[str]
    connections: list[str]


def measure(quick: bool = False) -> Section:
    """Loads the plugin in fresh processes, and starts the server with and without it in turns."""
    with tempfile.TemporaryDirectory() as folder:
        load_in_process(Path(folder))
        loads = [load_in_process(Path(folder)) for _ in range(FEW_LOADS if quick else LOADS)]
    firsts = []
    for _ in range(FEW_FIRST_LOADS if quick else FIRST_LOADS):
        with tempfile.TemporaryDirectory() as folder:
            firsts.append(load_in_process(Path(folder)))
    starts: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    with tempfile.TemporaryDirectory() as folder:
        # servers inherit these; from the second start on they find all bytecode there
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        os.environ["PYTHONPYCACHEPREFIX"] = str(Path(folder, "bytecode"))
        for turn in range(FEW_STARTS if quick else STARTS + 1):
            for with_plugin in (turn % 2 == 0, turn % 2 == 1):
                taken = _start_server(Path(folder, f"base-{with_plugin}"), with_plugin)
                if turn:
                    starts[with_plugin].append(taken)
        os.environ.pop("PYTHONPYCACHEPREFIX")
    measured: dict[str, list[tuple[float, ...]]] = {
        "the plugin, as at every start": [_columns(x) for x in loads],
        "the plugin, first start after an installation": [_columns(x) for x in firsts],
        "server with the plugin": [*starts[True]],
        "server without": [*starts[False]],
    }
    rows = [
        [name, str(len(runs)), *map(_spread, zip(*runs, strict=True)), ""][:5]
        for name, runs in measured.items()
        if runs
    ]
    text = (
        "Loading the plugin by ComfyUI's own loader, in fresh processes in which ComfyUI has "
        f"loaded its own nodes: {loads[0].own} modules of the plugin, {len(loads[0].foreign)} "
        f"others that ComfyUI had not imported already, {len(loads[0].connections)} network "
        "connections. At the first start Python compiles the plugin as well. Now and then a "
        "search for garbage through all of ComfyUI's objects falls into it, which takes longer "
        "than the plugin; the last column is without it. Whole servers are started with and "
        "without the plugin in turns, until they answer. Median (least to most).\n\n"
        + table(["", "runs", "seconds", "CPU seconds", "without garbage collection"], rows)
    )
    return Section(TITLE, text)


def load_in_process(base: Path) -> Load:
    """Loads the plugin in a fresh process.

    Args:
        base: ComfyUI's base directory; bytecode is kept there for the next call.
    """
    command = [sys.executable, str(Path(__file__).resolve()), str(base)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the plugin could not be loaded:\n{done.stderr}")
    return Load(**json.loads(done.stdout.splitlines()[-1]))


def _load(base: Path) -> Load:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))
    from comfyui_server import PACK, link_pack
    from in_process import start_prompt_server, use_comfyui

    use_comfyui()
    from comfy.cli_args import args

    args.base_directory = str(base)
    loop = start_prompt_server()
    import nodes

    loop.run_until_complete(nodes.init_extra_nodes(init_custom_nodes=False, init_api_nodes=False))
    place = base / "custom_nodes" / PACK
    if not place.exists():
        link_pack(base)
    connections: list[str] = []

    def watch(event: str, values: tuple[object, ...]) -> None:
        if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname"):
            connections.append(event)

    collected: list[float] = []

    def watch_collector(phase: str, _: dict[str, int]) -> None:
        collected.append(time.process_time() * (1 if phase == "stop" else -1))

    sys.addaudithook(watch)
    gc.callbacks.append(watch_collector)
    # bytecode of its own, whether or not this checkout has some
    sys.pycache_prefix, sys.dont_write_bytecode = str(base / "bytecode"), False
    before = set(sys.modules)
    cpu, start = time.process_time(), time.perf_counter()
    loaded = loop.run_until_complete(nodes.load_custom_node(str(place)))
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
    collecting = sum(collected)
    gc.callbacks.remove(watch_collector)
    if not loaded:
        sys.exit("error: ComfyUI could not load the plugin; its log is above")
    new = set(sys.modules) - before
    own = {n for n in new if str(getattr(sys.modules[n], "__file__", "")).startswith(str(place))}
    return Load(seconds, cpu_seconds, collecting, len(own), sorted(new - own), connections)


def _start_server(base: Path, with_plugin: bool) -> tuple[float, float]:
    """Returns the seconds until a server answers, and the CPU seconds that it took for it."""
    import psutil
    from comfyui_server import Server
    from setup_host import find_comfyui

    comfyui = find_comfyui()
    assert comfyui is not None
    options = [] if with_plugin else ["--disable-all-custom-nodes"]
    others = set(psutil.Process().children())
    base.mkdir(exist_ok=True)
    start = time.perf_counter()
    with Server(comfyui, Path(sys.executable), base, cpu=True, options=options):
        seconds = time.perf_counter() - start
        (process,) = set(psutil.Process().children()) - others
        times = process.cpu_times()
    return seconds, times.user + times.system


def _columns(load: Load) -> tuple[float, float, float]:
    return load.seconds, load.cpu_seconds, load.cpu_seconds - load.collecting


def _spread(values: Sequence[float]) -> str:
    return f"{median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


if __name__ == "__main__":
    print(json.dumps(asdict(_load(Path(sys.argv[1])))))
