"""Sampling of loaded restorers in ComfyUI."""

from typing import Any

import comfy.sample
import torch

from pfstorer_core import host


def sample(model: Any, conditioning: Any, channels: int = 4, **settings: Any) -> torch.Tensor:
    """Samples a latent of one item, with one conditioning for both prompts."""
    latent = torch.zeros(1, channels, 16, 16)
    conditioned = host.condition_on_lq(model, torch.ones_like(latent) / 2)
    noise = comfy.sample.prepare_noise(latent, 1)
    settings = {"steps": 2, "cfg": 1.0, "sampler_name": "euler", "scheduler": "normal", **settings}
    return comfy.sample.sample(
        conditioned,
        noise,
        positive=conditioning,
        negative=conditioning,
        latent_image=latent,
        disable_pbar=True,
        seed=1,
        **settings,
    )
