"""A worker has two photos in hand, unless one of them may have ended a worker."""

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from archiving.host import HostError, Restored
from archiving.journal import Journal
from archiving.results import DONE, STOPPED, Result, Task
from archiving.worker import Worker, as_results, as_rows
from PIL import Image

NAMES = [f"{k}.png" for k in range(5)]
LONGEST = 10.0  # seconds to wait for what must come
MEANWHILE = 0.3  # seconds to wait for what must not


class Restoring:
    """Stands in for a worker's ComfyUI: notes how many photos are in hand while it has one."""

    def __init__(self, journal: Journal, until: int, patience: float) -> None:
        self.journal, self.until, self.patience = journal, until, patience
        self.in_hand: list[int] = []

    def restore(self, picture: Image.Image) -> Restored:
        patience = MEANWHILE if self.in_hand else self.patience
        deadline = time.monotonic() + patience
        while (count := len(list(self.journal.begun.iterdir()))) < self.until:
            if time.monotonic() > deadline:
                break
            time.sleep(0.01)
        self.in_hand.append(count)
        return Restored(picture, ["as it was"], 1.5)


@pytest.fixture
def worker(tmp_path: Path) -> Worker:
    """A worker outside of Ray, with five photos, whose ComfyUI each test chooses."""
    (tmp_path / "in").mkdir()
    for k, name in enumerate(NAMES):
        Image.new("RGB", (8, 8), (k, k, k)).save(tmp_path / "in" / name)
    made = Worker.__new__(Worker)
    made.journal = Journal(tmp_path / "out")
    made.journal.prepare()
    made.job = SimpleNamespace(originals=tmp_path / "in", settings="same", quality=95)
    made.machine, made.name = "machine", "worker"
    return made


def given(worker: Worker, host: Any) -> list[Result]:
    worker.host = host
    rows = as_rows([Task(name, name) for name in NAMES])
    return as_results(worker({key: [row[key] for row in rows] for key in rows[0]}))


def test_one_photo_is_read_while_comfyui_has_another(worker: Worker) -> None:
    host = Restoring(worker.journal, until=2, patience=LONGEST)
    results = given(worker, host)
    assert [(r.path, r.state, r.seconds) for r in results] == [(n, DONE, 1.5) for n in NAMES]
    assert host.in_hand[0] == 2 and max(host.in_hand) == 2
    assert [worker.journal.read(name, name) for name in NAMES] == results
    assert not list(worker.journal.begun.iterdir())


def test_who_may_have_ended_a_worker_is_alone(worker: Worker) -> None:
    worker.journal.begin(NAMES[3])
    host = Restoring(worker.journal, until=3, patience=MEANWHILE)
    assert [result.state for result in given(worker, host)] == [DONE] * len(NAMES)
    assert host.in_hand == [2, 2, 2, 1, 1], "the mark of the fourth, and the one in hand"


def test_what_ends_the_run_leaves_the_photos_that_follow(worker: Worker) -> None:
    class Refusing:
        calls = 0

        def restore(self, picture: Image.Image) -> Restored:
            self.calls += 1
            time.sleep(MEANWHILE)
            raise HostError("It does not start.")

    host = Refusing()
    assert [(r.state, r.error) for r in given(worker, host)] == [(STOPPED, "It does not start.")]
    assert host.calls < len(NAMES)
