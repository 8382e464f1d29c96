"""What each of an archive's processes does with its photos."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime, timezone
from pathlib import Path, PurePosixPath
from typing import Any

import ray

from pfstorer_core.errors import PFStorerError, first_line

from .host import Host, HostError, Place
from .journal import MOST_DEATHS, Journal, OutputError
from .pictures import BY_EXTENSION, digest_of, encoded, read_bytes, read_original
from .results import DONE, FAILED, KEPT, STOPPED, Result, Task
from .workflow import Workflow

AT_ONCE = 2  # photos in hand: ComfyUI has one while the other is read or written


@dataclass(frozen=True)
class Job:
    """What all photos of a run have in common.

    Attributes:
        originals: folder of the originals, seen by all machines.
        output: folder of the restored pictures, seen by all machines.
        workflow: what is done with each.
        settings: digest of all that a result depends on beside its photo.
        quality: of JPEG and WebP files.
        place: of ComfyUI.
        python_path: the driver's PYTHONPATH, which ComfyUI shall have.
    """

    originals: Path
    output: Path
    workflow: Workflow
    settings: str
    quality: int
    place: Place
    python_path: str | None


class Worker:
    """Restores photos of a job; one process of Ray Data's pool of actors.

    Args:
        job: the job.
    """

    def __init__(self, job: Job) -> None:
        # Ours, which lets this process import the archive's modules, is not ComfyUI's.
        os.environ.pop("PYTHONPATH", None)
        if job.python_path is not None:
            os.environ["PYTHONPATH"] = job.python_path
        self.job = job
        self.journal = Journal(job.output)
        self.host = Host(job.place, job.workflow)
        self.machine = ray.get_runtime_context().get_node_id()
        self.name = f"{socket.gethostname()}:{os.getpid()}"

    def __call__(self, batch: dict[str, Sequence[Any]]) -> dict[str, list[Any]]:
        """Restores the photos of a block of tasks and returns their results."""
        columns = [batch[field.name] for field in fields(Task)]
        tasks = [Task(*(str(value) for value in values)) for values in zip(*columns, strict=True)]
        # Whoever had a photo in hand and ended has it alone now: no other is blamed for it.
        alone = any(self.journal.deaths(task.path) for task in tasks)
        results: list[Result] = []
        pool = ThreadPoolExecutor(1 if alone else AT_ONCE)
        for result in pool.map(self._done, tasks):
            results.append(result)
            if result.state == STOPPED:
                break
        pool.shutdown(cancel_futures=True)
        return {
            field.name: [getattr(result, field.name) for result in results]
            for field in fields(Result)
        }

    def _done(self, task: Task) -> Result:
        began = time.monotonic()
        state, error, digest = FAILED, "", ""
        try:
            if not (self.job.originals.is_dir() and self.journal.partial.is_dir()):
                raise HostError(
                    f"The machine {self.name} does not see '{self.job.originals}' and "
                    f"'{self.job.output}'; give it the shared folders under the same names."
                )
            recorded = self.journal.read(task.path, task.output)
            content = read_bytes(self.job.originals / task.path)
            digest = digest_of(content)
            if recorded and (recorded.digest, recorded.settings) == (digest, self.job.settings):
                return recorded
            if digest == task.done and self._kept(task):
                return Result(task.path, KEPT, digest, self.job.settings)
            return self._restored(task, content)
        except PFStorerError as failure:
            error = str(failure)
        except (HostError, OutputError) as failure:
            state, error = STOPPED, str(failure)
        except MemoryError:
            error = "There was not enough memory for it; scale it down, or run fewer workers."
        except Exception as failure:  # one strange photo must not end the run
            error = f"{type(failure).__name__}: {first_line(failure)}."
        with contextlib.suppress(OSError):
            self.journal.end(task.path)
        result = Result(task.path, state, digest, self.job.settings, error=error)
        return self._named(result, time.monotonic() - began)

    def _kept(self, task: Task) -> bool:
        try:
            return digest_of((self.job.output / task.output).read_bytes()) == task.kept
        except OSError:
            return False

    def _restored(self, task: Task, content: bytes) -> Result:
        original = read_original(content, PurePosixPath(task.path).name)
        if not self.journal.begin(task.path):
            raise PFStorerError(
                f"{MOST_DEATHS} workers ended over it, for lack of memory perhaps; scale it down."
            )
        restored = self.host.restore(original.picture)
        kind = BY_EXTENSION[PurePosixPath(task.output).suffix.lower()]
        file = encoded(original, restored.picture, kind, self.job.quality)
        lines = "\n".join([*dict.fromkeys(original.notes), *restored.lines])
        result = Result(
            task.path,
            DONE,
            original.digest,
            self.job.settings,
            report=lines,
            output_digest=digest_of(file),
            output_size=len(file),
        )
        result = self._named(result, restored.seconds)
        self.journal.write(result, task.output, file)
        self.journal.end(task.path)
        return result

    def _named(self, result: Result, seconds: float) -> Result:
        """Adds who did it, when, and how long it took."""
        return replace(
            result,
            seconds=round(seconds, 3),
            worker=self.name,
            machine=self.machine,
            ended=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        )


def as_rows(tasks: Sequence[Task]) -> list[dict[str, str]]:
    """Returns tasks as Ray Data's rows."""
    return [asdict(task) for task in tasks]


def as_results(batch: dict[str, Sequence[Any]]) -> list[Result]:
    """Returns the results that a worker's block holds."""
    columns = [batch[field.name] for field in fields(Result)]
    kinds = {"float": float, "int": int, "str": str}
    casts = [kinds[str(field.type)] for field in fields(Result)]
    return [
        Result(*(cast(value) for cast, value in zip(casts, values, strict=True)))
        for values in zip(*columns, strict=True)
    ]
