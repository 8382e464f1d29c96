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
from ...errors import PFStorerError
from ...pictures import color
from ...pictures.resizing import resize_bicubic
from ..feedback import RestoreReport
from ..images import VAE_ADVICE, check_finite
from ..patch.model import restorer_wrapper, set_lq_latent
from ..patch.supir import centre_function, recentred, supir_vae
from ..tiles.layout import TileLayout
from ..tiles.padding import pad_conditioning, pad_masks
from ..tiles.steps import TiledSteps, set_tiles
from ..tiles.vae import decode, encode
from .job import Job, Pass
from .regions import mask_report, region_of
from .settings import RestoreSettings

UNET_ADVICE = (
    "use another sampler or fewer steps, or let the UNet compute in float32 (start ComfyUI with "
    "--force-fp32)"
)
_PREVIEW_LATENT = 128  # latent pixels; the host's previewers decode what they get as a whole


def restore_pass(job: Job, work: Pass, lq: Tensor) -> Tensor:
    """Restores pictures at the size of a pass, with the colours of the originals.

    With `masked_only`, tiles outside all masks come back as they were.

    Args:
        job: what is restored, and how.
        work: the pass.
        lq: (B, 3, H, W) the pictures, or what the pass before made of them.

    Returns:
        (B, 3, *work.size) in [0, 1].
    """
    report, settings, plan = job.report, job.settings, work.plan
    original = resize_bicubic(job.rgb, work.size).contiguous()
    lq = original if lq is job.rgb else resize_bicubic(lq, work.size)
    model = pad_masks(job.model, job.identities, work.size, work.padded, work.latent_shape)
    identities = restorer_wrapper(model).identities
    report.line(f"{work.size[1]} x {work.size[0]} px in {plan}")
    report.add(mask_report(identities, work.latent_shape, plan.layout))
    region = needed = None
    if settings.masked_only:
        region = region_of(identities, work.latent_shape)  # (B, 1, h, w)
        needed = region.amax((0, 1)) > 0  # (h, w)
        if not needed.any():
            report.line("All masks are empty, so the picture is only scaled")
            return original.clone()  # it may be the user's own picture
    report.status("encoding")
    around = needed if needed is None else _windows(plan.layout, needed)
    lq_vae = supir_vae(restorer_wrapper(model).restorer, job.vae)
    latent = encode(lq_vae, lq, work.padded, around, report.line)  # (B, C, h, w)
    check_finite(latent, "The LQ latent that the VAE made", VAE_ADVICE)
    model = _with_lq(model, latent, job, work)
    model = set_tiles(model, TiledSteps(plan.layout, region, report.tiles, report.line))
    report.status("sampling")
    controls: dict[int, Any] = {}
    prompts = [pad_conditioning(x, work.size, work.padded, controls) for x in job.prompts]
    samples = _sample(model, latent, prompts, settings, report)
    report.status("decoding")
    fidelity = settings.fidelity
    restored = decode(job.vae, samples, needed, fidelity=fidelity, lq=lq, tell=report.line)
    check_finite(restored, "The picture that the VAE decoded", VAE_ADVICE)
    restored = restored[:, :, : work.size[0], : work.size[1]]
    original = original.to(restored)
    if settings.color_fix == "wavelet":
        color.wavelet_fix(restored, original, out=restored)
    elif settings.color_fix == "adain":
        color.adain_fix(restored, original, out=restored)
    return restored


def _with_lq(model: Any, latent: Tensor, job: Job, work: Pass) -> Any:
    """Returns a clone of a MODEL that restores an LQ latent (B, C, h, w), as the VAE gave it."""
    scale = model.get_model_object("latent_format").process_in
    function = centre_function(model)
    given = set_lq_latent(model, scale(latent), job.settings.encoder_interval)
    if function is not None:  # SUPIR pulls towards what the LQ latent shows, seen by the plain VAE
        shown = decode(job.vae, latent, tell=job.report.line)
        centre = scale(encode(job.vae, shown, work.padded, tell=job.report.line))
        given.set_model_sampler_post_cfg_function(recentred(function, centre))
    return given


def check_noise_levels(model: Any, settings: RestoreSettings) -> None:
    """Checks that scheduler and steps give noise levels that can be sampled.

    Raises:
        PFStorerError: they do not.
    """
    sampler = comfy.samplers.KSampler(
        model,
        settings.steps,
        model.load_device,
        settings.sampler_name,
        settings.scheduler,
        settings.denoise,
        model.model_options,
    )
    if not sampler.sigmas.isfinite().all():
        raise PFStorerError(
            f"The scheduler '{settings.scheduler}' gives no finite noise levels for "
            f"{settings.steps} step(s); choose another scheduler or more steps."
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
    prompts: Sequence[Any],
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
        *prompts,
        start,
        denoise=settings.denoise,
        seed=settings.seed,
        callback=on_step,
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
    )
    return sampled
