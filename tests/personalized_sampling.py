"""Sampling of tiny restorers with identities in ComfyUI, and what tests look at meanwhile."""

import dataclasses
from typing import Any

import comfy.sample
import torch
from comfy.patcher_extension import WrappersMP
from tiny_models import prompt
from torch import Tensor

from pfstorer_core.host.base import RESTORER_KEY

SIZE = (16, 16)


def sample(model: Any, batch: int = 1, cfg: float = 3.0, **settings: Any) -> Tensor:
    size = settings.pop("size", SIZE)
    noise = settings.pop("noise", None)
    latent = torch.zeros(batch, 4, *size)
    if noise is None:
        noise = comfy.sample.prepare_noise(latent, 1)
    steps = settings.pop("steps", 2)
    defaults = {"sampler_name": "euler", "scheduler": "normal", "seed": 1}
    settings = {**defaults, "positive": prompt(1), "negative": prompt(2), **settings}
    return comfy.sample.sample(
        model, noise, steps, cfg=cfg, latent_image=latent, disable_pbar=True, **settings
    )


@dataclasses.dataclass
class Forward:
    """One run of the UNet, with the conditions that it was given."""

    x: Tensor
    timesteps: Tensor
    context: Tensor
    conditions: dict[str, Any]
    out: Tensor


def record_forwards(model: Any) -> tuple[Any, list[Forward]]:
    """Returns a clone that notes what goes into the UNet and what comes out."""
    forwards: list[Forward] = []

    def wrapper(executor, x, timesteps, context, *args, **kwargs):
        out = executor(x, timesteps, context, *args, **kwargs)
        forwards.append(Forward(x, timesteps, context, kwargs, out))
        return out

    model = model.clone()
    # re-added, ours is the inner one, which takes its conditions out
    (ours,) = model.get_wrappers(WrappersMP.DIFFUSION_MODEL, RESTORER_KEY)
    model.remove_wrappers_with_key(WrappersMP.DIFFUSION_MODEL, RESTORER_KEY)
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "test", wrapper)
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, RESTORER_KEY, ours)
    return model, forwards
