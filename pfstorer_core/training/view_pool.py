"""Views that are cut and degraded on all cores before a training."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import torch
from torch import Tensor

_CORES = 32  # more would wait for each other
_AHEAD = 64 * 512 * 512  # pixels of views that are held at once: 1.5 GB


class PairSource(Protocol):
    """Pictures and what they became, by number; from several threads."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]: ...


def drawn_together(
    source: PairSource, batch: int, on_batch: Callable[[int, int], None] | None = None
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yields all pairs of a source in batches, made by as many threads as there are cores.

    Threads instead of processes: a process of its own would start ComfyUI anew on some systems.
    Each computes with one core, so that how many there are changes no picture.

    Args:
        source: pairs (3, H, W).
        batch: pairs that are yielded at once.
        on_batch: is told how many pairs of how many are done, before each batch.

    Yields:
        Number of the first; pictures and what they became, (B, 3, H, W) each.
    """
    total = len(source)
    starts = list(range(0, total, batch))
    threads, mkl = cores(), torch.get_num_threads()
    with ThreadPoolExecutor(threads) as pool:
        at_once = threads
        while starts:
            now, starts = starts[:at_once], starts[at_once:]
            made = [
                pool.submit(_one_core, source, start, min(batch, total - start)) for start in now
            ]
            try:
                pairs = []
                for start, future in zip(now, made, strict=True):
                    if on_batch is not None:
                        on_batch(start, total)
                    pairs.append(future.result())
            finally:
                for future in made:
                    future.cancel()
                torch.set_num_threads(mkl)
            for start, (views, degraded) in zip(now, pairs, strict=True):
                at_once = max(1, min(threads, _AHEAD // views[:, 0].numel()))
                yield start, views, degraded


def cores() -> int:
    """Returns how many cores this process may use, up to a bound."""
    allowed = getattr(os, "sched_getaffinity", None)  # not on every system
    count = len(allowed(0)) if allowed is not None else os.cpu_count() or 1
    return max(1, min(count, _CORES))


def _one_core(source: PairSource, start: int, count: int) -> tuple[Tensor, Tensor]:
    torch.set_num_threads(1)
    pairs = [source[number] for number in range(start, start + count)]
    views, degraded = zip(*pairs, strict=True)
    return torch.stack(views), torch.stack(degraded)
