"""Pairs of clean and LQ pictures, made by worker processes while a training runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from .pool import Encode, WeightedDegradations, degrade_mixed

CHUNK = 16  # pairs that a worker makes at once


class PictureSource(Protocol):
    """Gives clean pictures, for example `photo_views.PhotoViews`."""

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """`count` pictures (count, 3, H, W) in [0, 1]."""
        ...


Part = tuple[float, PictureSource, WeightedDegradations]  # weight among all, what, how degraded


class _Chunks(Dataset[Tensor]):
    """The n-th chunk of pairs, a function of n and the seed: (2, CHUNK, 3, H, W) uint8."""

    def __init__(self, parts: Sequence[Part], seed: int) -> None:
        self.parts, self.seed = parts, seed

    def __getitem__(self, index: int) -> Tensor:
        # the CPU generator looks at the low 32 bits of a seed only
        generator = torch.Generator().manual_seed((self.seed * 0x9E3779B1 + index) & 0xFFFFFFFF)
        weights = torch.tensor([weight for weight, _, _ in self.parts])
        chosen = torch.multinomial(weights, CHUNK, replacement=True, generator=generator)
        pairs = []
        for count, (_, source, degradations) in zip(
            chosen.bincount(minlength=len(weights)).tolist(), self.parts, strict=True
        ):
            if count:
                clean = source.draw(count, generator)
                lq = degrade_mixed(clean, degradations, generator)
                pairs.append(torch.stack([clean, lq]))  # (2, count, 3, H, W)
        return torch.cat(pairs, 1).clamp(0, 1).mul(255).round().to(torch.uint8)


class PairFeed:
    """A ring of the newest encoded pairs on the training's device, filled by worker processes.

    A pair is drawn `reuse` times on average while it is in the ring. What the ring holds at a draw
    depends on the number of draws before it and the seed alone, so keep the feed in the training's
    state (`fit(kept=...)`): a resumed run then fills the ring with what it held.

    Args:
        parts: kinds of pictures, each with degradations of its own; pickled to the workers.
        encode: applied once to each picture of a pair, on `device`.
        device: of the ring.
        workers: processes that make pairs; 0 makes them in this one.
        capacity: pairs in the ring.
        first: pairs that are made before the first draw.
        reuse: how often a pair is drawn, on average.
        seed: of pictures and degradations.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        encode: Encode,
        *,
        device: torch.device | str = "cpu",
        workers: int = 0,
        capacity: int = 16_384,
        first: int = 1024,
        reuse: float = 2.0,
        seed: int = 0,
    ) -> None:
        self._chunks = _Chunks(parts, seed)
        self._encode, self._device, self._workers = encode, torch.device(device), workers
        self._capacity = max(1, capacity // CHUNK)  # chunks
        self._first, self._reuse = max(1, first // CHUNK), reuse
        self._drawn = 0  # pairs, by this run and those that it goes on from
        self._made = 0  # chunks, likewise
        self._loader: Iterator[Tensor] | None = None
        self._ring: Tensor | None = None  # (2, capacity, ...) float16

    def state_dict(self) -> dict[str, int]:
        """Returns how far the feed is."""
        return {"drawn": self._drawn}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Goes on where another feed of the same settings was."""
        self._drawn, self._loader, self._ring = state["drawn"], None, None

    def shown(self, count: int) -> tuple[Tensor, Tensor]:
        """The first (at most CHUNK) pairs, for sample sheets: two (count, ...) tensors."""
        clean, lq = self._encoded(self._chunks[0])[:, :count].float()
        return clean, lq

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Random pairs of those in the ring: two (count, ...) float32 tensors on the device.

        Args:
            count: number of pairs.
            generator: draws them; on the CPU or the ring's device.
        """
        due = self._first + int(self._drawn / self._reuse) // CHUNK
        if self._loader is None:
            self._made = max(0, due - self._capacity)
            self._loader = self._start(self._made)
        while self._made < due:
            self._take(next(self._loader))
        self._drawn += count
        ring = self._ring
        assert ring is not None  # at least one chunk was taken
        filled = min(self._made, self._capacity) * CHUNK
        index = torch.randint(filled, (count,), generator=generator, device=generator.device)
        clean, lq = ring[:, index.to(ring.device)].float()
        return clean, lq

    def _start(self, index: int) -> Iterator[Tensor]:
        settings: dict[str, Any] = {}
        if self._workers:
            settings = {"prefetch_factor": 4, "multiprocessing_context": "spawn"}
        loader = DataLoader(
            self._chunks,
            batch_size=None,
            sampler=range(index, 2**31),
            num_workers=self._workers,
            pin_memory=self._device.type == "cuda",
            worker_init_fn=_one_thread,
            **settings,
        )
        return iter(loader)

    def _take(self, chunk: Tensor) -> None:
        pairs = self._encoded(chunk)
        if self._ring is None:
            self._ring = pairs.new_zeros(2, self._capacity * CHUNK, *pairs.shape[2:])
        at = self._made % self._capacity * CHUNK
        self._ring[:, at : at + CHUNK] = pairs
        self._made += 1

    def _encoded(self, chunk: Tensor) -> Tensor:
        pictures = chunk.flatten(0, 1).to(self._device, non_blocking=True).float() / 255
        with torch.no_grad():
            encoded = self._encode(pictures).half().to(self._device)
        return encoded.unflatten(0, (2, CHUNK))  # (2, CHUNK, ...)


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)  # as many processes as cores share the work
