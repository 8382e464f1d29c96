"""Pairs of clean and LQ latents that a training draws from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from ..degradation.config import DegradationConfig
from ..degradation.second_order import degrade
from ..errors import PFStorerError

# (B, 3, H, W) in [0, 1] -> (B, C, h, w), scaled like diffusion latents
Encode = Callable[[Tensor], Tensor]
WeightedDegradations = Sequence[tuple[float, DegradationConfig]]


class Pairs(Protocol):
    """Anything that gives pairs: a `LatentPool`, or a `feed.PairFeed` that is filled meanwhile."""

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Random pairs, clean and LQ: two (count, C, h, w) float32 tensors."""
        ...


class LatentPool:
    """Clean and LQ latents of the same pictures, all made beforehand.

    Attributes:
        clean, lq: (N, C, h, w) float16.
    """

    def __init__(self, clean: Tensor, lq: Tensor):
        if clean.shape != lq.shape:
            raise PFStorerError(
                f"Clean and LQ latents differ in shape: {tuple(clean.shape)}, {tuple(lq.shape)}."
            )
        self.clean, self.lq = clean, lq

    def __len__(self) -> int:
        return len(self.clean)

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Random pairs: two (count, C, h, w) float32 tensors."""
        index = torch.randint(len(self), (count,), generator=generator, device=generator.device)
        index = index.to(self.clean.device)
        return self.clean[index].float(), self.lq[index].float()


def degrade_mixed(
    images: Tensor, degradations: WeightedDegradations, generator: torch.Generator
) -> Tensor:
    """Degrades each of (B, 3, H, W) pictures in [0, 1] by one of the configs, drawn by weight."""
    weights = torch.tensor([weight for weight, _ in degradations])
    choice = torch.multinomial(weights, len(images), replacement=True, generator=generator)
    return torch.cat(
        [
            degrade(image[None], degradations[k][1], generator)
            for image, k in zip(images, choice, strict=True)
        ]
    )
