"""Sampling of tiny restorers tile by tile in ComfyUI, and what tests look at meanwhile."""

from dataclasses import dataclass
from typing import Any

import comfy.sample
import torch
from comfy.patcher_extension import WrappersMP
from tiny_models import prompt
from torch import Tensor

from pfstorer_core.host.tiles.layout import TileLayout
from pfstorer_core.host.tiles.steps import TiledSteps, set_tiles

KEY = "test"


def sample(model: Any, shape: tuple[int, ...], cfg: float = 3.0, **settings: Any) -> Tensor:
    """Samples latents of a shape (B, C, H, W); all items get the noise of the first."""
    latent = torch.zeros(shape)
    noise = comfy.sample.prepare_noise(latent, 1, [0] * shape[0])
    defaults = {"sampler_name": "euler", "scheduler": "normal", "seed": 1}
    settings = {**defaults, "positive": prompt(1), "negative": prompt(2), **settings}
    steps = settings.pop("steps", 2)
    return comfy.sample.sample(
        model, noise, steps, cfg=cfg, latent_image=latent, disable_pbar=True, **settings
    )


def tiled(
    model: Any, size: tuple[int, int], tile: int = 8, overlap: float = 0.25, **options: Any
) -> Any:
    """Returns a clone of a MODEL with an LQ latent that is sampled in tiles."""
    steps = {name: options.pop(name) for name in ("region", "on_tiles") if name in options}
    layout = TileLayout(*size, tile, overlap, **{"step": 2, **options})
    return set_tiles(model, TiledSteps(layout, **steps))


@dataclass
class Forward:
    """One run of the UNet."""

    x: Tensor
    control: Any
    conditions: dict[str, Any]


def record_forwards(model: Any) -> tuple[Any, list[Forward]]:
    """Returns a clone that notes what goes into the UNet."""
    forwards: list[Forward] = []

    def wrapper(executor, x, timesteps, context, y, control, *args, **kwargs):
        # the UNet takes the entries of `control` out
        given = control and {name: list(parts) for name, parts in control.items()}
        forwards.append(Forward(x.clone(), given, kwargs))
        return executor(x, timesteps, context, y, control, *args, **kwargs)

    model = model.clone()
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, KEY, wrapper)
    return model, forwards


def at_step(model: Any, function: Any) -> Any:
    """Returns a clone in each step of which `function(executor, model, conds, x, sigma, options)`
    is called, in the place of the tiles."""
    model = model.clone()

    def wrapper(executor, base, conds, x, sigma, options):
        function(executor, base, conds, x, sigma, options)
        return executor(base, conds, x, sigma, options)

    model.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, KEY, wrapper)
    return model
