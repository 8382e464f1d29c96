"""One pass of the restorer over pictures at one size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
import torch
from torch import Tensor

from ...areas import area_mean
from ...pictures import color
from ..base import base_of
from ..feedback import RestoreReport
from ..images import VAE_ADVICE, check_finite
from ..patch.model import restorer_wrapper, set_lq_latent
from ..tiles.layout import TileLayout
from ..tiles.padding import pad_conditioning, pad_masks, padded_size
from ..tiles.plan import TilePlan, plan_tiles
from ..tiles.steps import TiledSteps, set_tiles
from ..tiles.vae import decode, encode
from .regions import mask_report, region_of
from .settings import RestoreSettings

UNET_ADVICE = (
    "use another sampler or fewer steps, or let the UNet compute in float32 (start ComfyUI with "
    "--force-fp32)"
)
_PREVIEW_LATENT = 128  # latent pixels; the host's previewers decode what they get as a whole


def restore_pass(
    model: Any,
    vae: Any,
    lq: Tensor,
    original: Tensor,
    prompts: tuple[Any, Any],
    plan: TilePlan,
    settings: RestoreSettings,
    report: RestoreReport,
) -> Tensor:
    """Restores LQ images (B, 3, H, W) at their size, with the colours of the originals.

    With `masked_only`, tiles outside all masks come back as the LQ images.

    Args:
        model: a restorer's MODEL.
        vae: its VAE, or a CFW decoder.
        lq: what is restored.
        original: (B, 3, H, W) what gives its colours.
        prompts: positive and negative CONDITIONING.
        plan: tiles, see `plan_pass`.
        settings: how it is restored.
        report: takes what is worth telling the user.
    """
    size = lq.shape[2], lq.shape[3]
    cell = vae.spacial_compression_encode()
    padded = padded_size(model, size, cell)
    model = pad_masks(model, size, padded, cell)
    identities = restorer_wrapper(model).identities
    controls: dict[int, Any] = {}
    positive, negative = (pad_conditioning(prompt, size, padded, controls) for prompt in prompts)
    latent_shape = shape_of_latent(model, len(lq), size, cell)
    report.line(f"{size[1]} x {size[0]} px in {plan}")
    for line in mask_report(identities, latent_shape, plan.layout):
        report.line(line)
    region = needed = None
    if settings.masked_only:
        region = region_of(identities, latent_shape)  # (B, 1, h, w)
        needed = region.amax((0, 1)) > 0  # (h, w)
        if not needed.any():
            report.line("All masks are empty, so the picture is only scaled")
            return original.clone()  # it may be the user's own picture
    around = needed if needed is None else _windows(plan.layout, needed)
    report.status("encoding")
    latent = encode(vae, lq, padded, around, report.line)  # (B, C, h, w)
    latent_format = model.get_model_object("latent_format")
    model = set_lq_latent(model, latent_format.process_in(latent), settings.encoder_interval)
    model = set_tiles(model, TiledSteps(plan.layout, region, report.tiles, report.line))
    check_finite(latent, "The LQ latent that the VAE made", VAE_ADVICE)
    report.status("sampling")
    samples = _sample(model, latent, positive, negative, settings, report)
    report.status("decoding")
    fidelity = settings.fidelity
    restored = decode(vae, samples, needed, fidelity=fidelity, lq=lq, tell=report.line)
    check_finite(restored, "The picture that the VAE decoded", VAE_ADVICE)
    restored = restored[:, :, : size[0], : size[1]]  # (B, 3, H, W)
    original = original.to(restored)
    if settings.color_fix == "wavelet":
        color.wavelet_fix(restored, original, out=restored)
    elif settings.color_fix == "adain":
        color.adain_fix(restored, original, out=restored)
    return restored


def shape_of_latent(
    model: Any, batch: int, size: tuple[int, int], cell: int
) -> tuple[int, int, int, int]:
    """Returns the shape of the latent of pictures (height, width), once they are padded."""
    channels = base_of(model).latent_channels
    height, width = padded_size(model, size, cell)
    return batch, channels, height // cell, width // cell


def plan_pass(
    model: Any, shape: tuple[int, int, int, int], cell: int, settings: RestoreSettings
) -> TilePlan:
    """Returns the tiles of a pass whose latent has a shape (B, C, h, w), see `plan_tiles`."""
    return plan_tiles(
        model,
        shape,
        cell,
        tile_size=settings.tile_size,
        overlap=settings.overlap,
        tile_batch=settings.tile_batch,
        cfg=settings.cfg,
    )


def _windows(layout: TileLayout, needed: Tensor) -> Tensor:
    """Marks (h, w) the tiles that meet `needed`, and what smaller tiles in their place may meet."""
    windows = torch.zeros_like(needed)
    margin = layout.tile // 2
    for tile in layout.tiles:
        if tile.crop(needed).any():
            y0, x0 = max(0, tile.y0 - margin), max(0, tile.x0 - margin)
            windows[y0 : tile.y1 + margin, x0 : tile.x1 + margin] = True
    return windows


def _sample(
    model: Any,
    lq_latent: Tensor,
    positive: Sequence[Any],
    negative: Sequence[Any],
    settings: RestoreSettings,
    report: RestoreReport,
) -> Tensor:
    start = lq_latent if settings.start == "LQ image" else torch.zeros_like(lq_latent)
    preview = latent_preview.prepare_callback(model, settings.steps)

    def on_step(step: int, denoised: Tensor, x: Tensor, steps: int) -> None:
        report.step(step + 1)
        check_finite(denoised, f"The latent after step {step + 1} of {steps}", UNET_ADVICE)
        scale = min(1.0, _PREVIEW_LATENT / max(denoised.shape[2:]))
        if scale < 1:
            height, width = (max(1, int(side * scale)) for side in denoised.shape[2:])
            denoised = area_mean(denoised[:1], (height, width))
        preview(step, denoised, x, steps)

    sampled: Tensor = comfy.sample.sample(
        model,
        comfy.sample.prepare_noise(start, settings.seed, [0] * len(start)),
        settings.steps,
        settings.cfg,
        settings.sampler_name,
        settings.scheduler,
        positive,
        negative,
        start,
        denoise=settings.denoise,
        seed=settings.seed,
        callback=on_step,
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
    )
    return sampled
