"""Strengths of degradation, in finer steps than the presets'."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from pfstorer_core.degradation.config import DegradationConfig, StageConfig
from pfstorer_core.degradation.presets import PRESETS
from pfstorer_core.degradation.second_order import degrade

from .people import Person, derive_seed

STRENGTHS = {
    # A good photo saved once more.
    "trace": DegradationConfig(
        first=StageConfig(
            blur_sigma=(0.0, 0.5),
            noise_sigma=(0.0, 1.0),
            jpeg_quality=(90.0, 98.0),
            resize_weights=(0.0, 0.0, 1.0),
        ),
        second_order_probability=0.0,
        downsample=(1.0, 1.0),
        final_sinc_probability=0.0,
    ),
    "light": PRESETS["light"],
    "medium": PRESETS["medium"],
    "heavy": replace(
        PRESETS["medium"],
        first=replace(PRESETS["medium"].first, noise_sigma=(3.0, 15.0), jpeg_quality=(40.0, 80.0)),
        second_order_probability=1.0,
        downsample=(5.0, 7.0),
    ),
    "extreme": PRESETS["extreme"],
}


def degraded(person: Person, strength: str) -> tuple[Tensor, int]:
    """Returns a person's held-out pictures (M, 3, S, S), degraded, and the seed of it."""
    seed = derive_seed(0, person.name, strength)
    generator = torch.Generator().manual_seed(seed)
    return degrade(person.clean, STRENGTHS[strength], generator), seed
