"""Photos over workers and machines: Ray Data, one pass after another until none waits."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

# Before Ray is imported. Nothing is sent anywhere, and what its processes say is in its own logs.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
# Else workers and their ComfyUIs have a niceness of 15 and wait for all else that runs.
os.environ.setdefault("RAY_worker_niceness", "0")
# Else a thread that still waits for results when a run is stopped starts another Ray.
os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
# Else Ray keeps what became of each task, which grows, and counts what nobody looks at.
os.environ.setdefault("RAY_task_events_report_interval_ms", "0")
os.environ.setdefault("RAY_enable_metrics_collection", "0")
# A worker that was killed is nothing to act on; what is, such as a lack of memory, is still told.
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "unexpected system error|infinite retries")

import ray
import ray.data
from ray.data._internal.execution.streaming_executor import StreamingExecutor
from setup_host import REPO

from pfstorer_core.errors import PFStorerError, first_line

from .journal import Journal
from .manifest import Manifest
from .results import STOPPED, Result, Task
from .worker import Job, Worker, as_results, as_rows

ATTEMPTS = 2  # for each photo; the second on another machine, where there is one
OBJECT_STORE = 128 * 2**20  # bytes: it holds names and reports, no pictures
MOST_BLOCKS = 4000  # parts that Ray Data cuts the list into; it keeps some 2 KB for each
BLOCKS_EACH = 50  # for each worker at least, so that all end at about the same time
BLOCK = 8  # photos at most, unless there are more than MOST_BLOCKS of them
IN_FLIGHT = 2  # blocks at a worker: one that it works on, and the next
WAITING_RESULTS = 64  # blocks of results that wait to be written down
LOOK = 5.0  # seconds between two looks for machines that came or went
END_SECONDS = 30.0  # that Ray Data may take to end what it does
PATIENCE = 1.0  # seconds that results are collected before they are written down
PATHS = (REPO / "scripts", REPO)  # of what workers import


@dataclass(frozen=True)
class Machines:
    """Where workers run.

    Attributes:
        address: of a Ray cluster; None starts Ray on this machine alone.
        workers: at most; None as many as there is room for, on a machine without a GPU one.
        gpus: of a worker; None is one where there are any.
        cpus: of a worker; None is 1 beside a GPU, else an equal share of the machine's.
    """

    address: str | None = None
    workers: int | None = None
    gpus: float | None = None
    cpus: float | None = None


@dataclass(frozen=True)
class Pool:
    """How many workers there are, and what Ray reserves for each."""

    size: int
    gpus: float
    cpus: float


class MachinesChanged(Exception):
    """A machine was lost or has come: the photos are divided anew."""


@contextlib.contextmanager
def connected(machines: Machines) -> Iterator[None]:
    """Connects to the cluster, or starts Ray on this machine, for a block.

    Raises:
        PFStorerError: no cluster answers, or Ray does not start.
    """
    local = {"include_dashboard": False, "object_store_memory": OBJECT_STORE}
    python_path = os.pathsep.join([*map(str, PATHS), os.environ.get("PYTHONPATH", "")])
    on_stop = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(
            address=machines.address or "local",
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env={"env_vars": {"PYTHONPATH": python_path.rstrip(os.pathsep)}},
            **({} if machines.address else local),
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise PFStorerError(
            f"Ray does not start, or no cluster answers ({first_line(error)}); check --address "
            "and the cluster's RAY_AUTH_TOKEN, and see docs/archive.md."
        ) from error
    signal.signal(signal.SIGTERM, on_stop)  # Ray has put its own in place, which aborts the run
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        ray.shutdown()


def run(
    job: Job,
    manifest: Manifest,
    journal: Journal,
    machines: Machines,
    tell: Callable[[Sequence[Result]], object],
) -> None:
    """Restores all photos that wait.

    Args:
        job: what they have in common.
        manifest: in which it is written down what became of them.
        journal: of the output folder.
        machines: where workers run.
        tell: is given the results of photos that came to an end, some at a time, and none every
            second that brings none.

    Raises:
        PFStorerError: the run cannot go on; what was done is written down.
    """
    while manifest.waiting():
        with connected(machines), contextlib.suppress(MachinesChanged):
            while tasks := manifest.waiting():
                new = [task for task in tasks if not task.avoid]
                avoid = "" if new else tasks[0].avoid
                again = [task for task in tasks if task.avoid == avoid]
                with contextlib.closing(_pass(job, machines, new or again, avoid)) as passed:
                    for results in passed:
                        _write_down(manifest, journal, results, tell)


def _write_down(
    manifest: Manifest,
    journal: Journal,
    results: Sequence[Result],
    tell: Callable[[Sequence[Result]], object],
) -> None:
    reasons = [result.error for result in results if result.state == STOPPED]
    results = [result for result in results if result.state != STOPPED]
    ended = manifest.record(results, ATTEMPTS) if results else []
    for result in results:
        journal.forget(result.path)
    tell(ended)
    if reasons:
        raise PFStorerError(reasons[0])


def _pass(
    job: Job, machines: Machines, tasks: Sequence[Task], avoid: str
) -> Generator[list[Result], None, None]:
    """Yields the results of tasks, some at a time, often none.

    Args:
        job: what they have in common.
        machines: where workers run.
        tasks: the photos.
        avoid: machine on which they failed before, which another is preferred to.

    Raises:
        MachinesChanged: before all tasks have come to an end.
        PFStorerError: Ray gave up.
    """
    nodes = _nodes()
    elsewhere = {node for node in nodes if node != avoid}
    usable = elsewhere if elsewhere and _pool(machines, nodes, elsewhere, len(tasks)).size else {}
    pool = _pool(machines, nodes, usable or set(nodes), len(tasks))
    if not pool.size:
        raise PFStorerError(
            f"No machine has {pool.gpus:g} GPUs and {pool.cpus:g} processor cores for a worker; "
            "give --gpus-per-worker or --cpus-per-worker, or see whether 'ray status' shows all "
            "machines."
        )
    options: dict[str, Any] = {"num_cpus": pool.cpus, "num_gpus": pool.gpus}
    if avoid in nodes and usable:
        options["label_selector"] = {"ray.io/node-id": f"!{avoid}"}
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    blocks = blocks_of(len(tasks), pool.size)
    photos = ray.data.from_items(as_rows(tasks), override_num_blocks=blocks)
    results = photos.map_batches(
        Worker,
        fn_constructor_args=(job,),
        batch_size=None,
        compute=ray.data.ActorPoolStrategy(size=pool.size, max_tasks_in_flight_per_actor=IN_FLIGHT),
        **options,
    )
    with _fetched(results) as arrived:
        yield from _collected(arrived, len(tasks), set(nodes))


@contextlib.contextmanager
def _fetched(results: ray.data.Dataset) -> Iterator[queue.Queue[Any]]:
    """Fetches results in a thread for a block: batches, at the end None or what went wrong.

    Ray Data has nothing to stop it from outside; a thread of its own that still asks Ray for
    something after `ray.shutdown` ends the whole process. So its executor is ended here.
    """
    arrived: queue.Queue[Any] = queue.Queue(WAITING_RESULTS)

    def fetch() -> None:
        try:
            for batch in results.iter_batches(batch_size=None, prefetch_batches=0):
                arrived.put(batch)
            arrived.put(None)
        except BaseException as error:  # handed to the thread that waits
            arrived.put(error)

    fetching = threading.Thread(target=fetch, daemon=True)
    fetching.start()
    try:
        yield arrived
    finally:
        deadline = time.monotonic() + END_SECONDS
        while fetching.is_alive() and time.monotonic() < deadline:
            for thread in threading.enumerate():
                if isinstance(thread, StreamingExecutor):
                    thread.shutdown(force=True)
            with contextlib.suppress(queue.Empty):
                arrived.get(timeout=0.1)  # room for what it still has to say


def _collected(arrived: queue.Queue[Any], expected: int, nodes: set[str]) -> Iterator[list[Result]]:
    """Yields results as they come, often none, and looks after the machines meanwhile."""
    looked, count = time.monotonic(), 0
    while True:
        found = _take(arrived)
        batches = [item for item in found if isinstance(item, dict)]
        ready = [result for batch in batches for result in as_results(batch)]
        count += len(ready)
        yield ready
        ended = [item for item in found if not isinstance(item, dict)]
        if time.monotonic() - looked > LOOK or ended:
            looked = time.monotonic()
            if set(_nodes()) != nodes:
                raise MachinesChanged
        if ended and ended[0] is not None:
            raise PFStorerError(
                f"Ray gave up ({first_line(ended[0])}); run the same command again: it goes on "
                "where it stopped."
            ) from ended[0]
        if ended:
            if count < expected:
                raise PFStorerError(
                    f"Ray gave back {count} of {expected} photos; run the same command again: it "
                    "goes on where it stopped."
                )
            return


def _take(arrived: queue.Queue[Any]) -> list[Any]:
    """Returns what has arrived within PATIENCE."""
    found: list[Any] = []
    deadline = time.monotonic() + PATIENCE
    while (left := deadline - time.monotonic()) > 0 and len(found) < WAITING_RESULTS:
        with contextlib.suppress(queue.Empty):
            found.append(arrived.get(timeout=left))
            if not isinstance(found[-1], dict):
                break
    return found


def blocks_of(photos: int, workers: int) -> int:
    """Returns into how many blocks photos are cut; each costs Ray Data some time of a core."""
    together = min(BLOCK, max(1, photos // (workers * BLOCKS_EACH)))
    return min(-(-photos // together), MOST_BLOCKS)


def _nodes() -> dict[str, dict[str, float]]:
    """Returns the resources of each machine of the cluster that lives."""
    return {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}


def _pool(
    machines: Machines, nodes: dict[str, dict[str, float]], usable: set[str], tasks: int
) -> Pool:
    """Returns how many workers some machines have room for, and what each is given."""
    resources = [nodes[node] for node in usable]
    found = sum(node.get("GPU", 0.0) for node in resources)
    gpus = (1.0 if found else 0.0) if machines.gpus is None else machines.gpus
    cores = [node.get("CPU", 0.0) for node in nodes.values()]
    wanted = machines.workers or (len(resources) if not gpus else None)
    if machines.cpus is not None:
        cpus = machines.cpus
    elif gpus:
        cpus = 1.0
    else:  # an equal share of the smallest machine
        each = -(-(wanted or 1) // max(len(nodes), 1))
        cpus = max(1.0, min((c for c in cores if c), default=1.0) // each)
    room = sum(
        int(
            min(
                node.get("CPU", 0.0) / cpus if cpus else tasks,
                node.get("GPU", 0.0) / gpus if gpus else tasks,
            )
            + 1e-6
        )
        for node in resources
    )
    return Pool(min(room, tasks, wanted or room), gpus, cpus)
