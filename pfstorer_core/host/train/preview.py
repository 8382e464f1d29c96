"""Pictures of an identity training: one view of a photo, restored as far as it is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ...degradation.presets import PRESETS as DEGRADATIONS
from ...degradation.second_order import degrade
from ...pictures.views import random_view
from ...training.base import restore_latents
from ...training.identity import VIEWS
from ...training.loop import Sampler
from ..memory import is_out_of_memory
from .from_model import decoded
from .setup import Setup

PREVIEW_STEPS = 10
PREVIEW_DEGRADATION = "extreme"


def preview_sampler(setup: Setup, photo: Tensor, warn: Callable[[str], None]) -> Sampler:
    """Restores one degraded view of a photo: (3, 3, size, size) pictures of LQ, now and clean.

    Where memory runs out, which is told once, the picture of now is grey: a training is worth more
    than its previews.
    """
    size, seed = setup.size, setup.config.seed
    generator = torch.Generator().manual_seed(seed)
    views = dataclasses.replace(VIEWS, window=(1.0, 1.0), rotation=0.0)
    clean = random_view(photo, size, views, generator)[None]  # (1, 3, size, size)
    lq = degrade(clean, DEGRADATIONS[PREVIEW_DEGRADATION], generator)
    lq_latent = setup.encode_lq(lq)
    warned = False

    def restored_view(network: nn.Module) -> Tensor:
        device = next(network.parameters()).device
        restored = restore_latents(
            network, setup.schedule, lq_latent.to(device), steps=PREVIEW_STEPS, seed=seed
        )
        return decoded(setup.model, setup.vae, restored)[:, :, :size, :size].float()

    def draw(network: nn.Module) -> Tensor:
        nonlocal warned
        now = torch.full_like(clean, 0.5)
        try:
            now = restored_view(network)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if not warned:
                warn("Out of memory in the preview, which is left out; the training goes on.")
            warned = True
        return torch.cat([lq, now, clean]).clamp(0, 1)

    return draw
