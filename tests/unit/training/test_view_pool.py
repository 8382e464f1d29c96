"""Views made on all cores are those of one."""

import threading

import pytest
import torch
from torch import Tensor

from pfstorer_core.training import view_pool
from pfstorer_core.training.view_pool import drawn_together


class Source:
    """Pictures of their number, and minus it."""

    def __init__(self, count: int) -> None:
        self.count, self.threads = count, set()

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        self.threads.add(threading.get_ident())
        assert torch.get_num_threads() == 1
        picture = torch.full((3, 4, 4), float(number))
        return picture, -picture


@pytest.mark.parametrize("cores", [1, 3, 16])
def test_batches_come_in_order_whatever_the_cores(monkeypatch, cores: int) -> None:
    monkeypatch.setattr(view_pool, "cores", lambda: cores)
    source, told = Source(10), []
    before = torch.get_num_threads()
    made = list(drawn_together(source, 4, lambda *numbers: told.append(numbers)))
    assert [start for start, _, _ in made] == [0, 4, 8]
    assert told == [(0, 10), (4, 10), (8, 10)]
    views = torch.cat([views for _, views, _ in made])
    assert views[:, 0, 0, 0].tolist() == list(range(10))
    assert torch.equal(torch.cat([degraded for _, _, degraded in made]), -views)
    assert threading.get_ident() not in source.threads
    assert torch.get_num_threads() == before


def test_what_a_report_raises_ends_it(monkeypatch) -> None:
    class Stopped(BaseException):
        pass

    def stop(done: int, total: int) -> None:
        if done:
            raise Stopped

    source = Source(1000)
    monkeypatch.setattr(view_pool, "cores", lambda: 1)
    monkeypatch.setattr(view_pool, "_AHEAD", 1)
    with pytest.raises(Stopped):
        list(drawn_together(source, 4, stop))


def test_what_a_picture_raises_comes_out() -> None:
    class Broken(Source):
        def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
            raise ValueError(number)

    with pytest.raises(ValueError, match="0"):
        list(drawn_together(Broken(2), 1))
