"""Restores pictures of any size from pixels to pixels: scaling, tiles, samplers, colours, masks."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
import torch
from torch import Tensor

from .. import color
from ..areas import area_mean
from ..degradation import resize_bicubic
from ..errors import PFStorerError
from ..upscaling import UPSCALINGS, pass_sizes
from ..working_size import working_size
from . import patches, vae_tiles
from .automatic import choose_gammas
from .identities import AUTO, check_mask_counts
from .loading import restoration, trained_size
from .padding import pad_conditioning, pad_masks, padded_size, relative_areas
from .person_check import can_check_persons, check_persons
from .progress import RestoreReport
from .regions import feathered, known_factor, mask_report, region_of
from .sampling import VAE_ADVICE, check_finite, split_alpha
from .tile_conditions import check_conditioning, check_nodes
from .tile_plan import TilePlan, check_pictures, plan_tiles
from .tiles import TiledSteps, TileLayout, set_tiles

COLOR_FIXES = ("wavelet", "adain", "none")
STARTS = ("LQ image", "noise")
UNET_ADVICE = (
    "use another sampler or fewer steps, or let the UNet compute in float32 (start ComfyUI with "
    "--force-fp32)"
)
_PREVIEW_LATENT = 128  # latent pixels; the host's previewers decode what they get as a whole


@dataclass(frozen=True)
class RestoreSettings:
    """How pictures are restored.

    Args:
        steps: sampling steps.
        cfg: guidance scale; 1 is without guidance, at half the cost.
        sampler_name: one of ComfyUI's samplers.
        scheduler: one of ComfyUI's schedulers.
        seed: seed of the noise.
        denoise: share of the noise schedule that is run, in (0, 1].
        start: "LQ image" adds the noise to the LQ latent, "noise" starts from pure noise.
        color_fix: "wavelet", "adain" or "none": how the input gives its colours to the output.
        tile_size: side of a tile in pixels; 0 chooses it.
        overlap: what neighbouring tiles share at least, as a share of the tile, in [0, 0.75].
        tile_batch: tiles that the UNet gets at once; 0 takes what fits into the free memory.
        upscaling: "one pass", "progressive", "plain" or "auto", see `upscaling.pass_sizes`.
        fidelity: fusion weight w of a CFW decoder, in [0, 1]; 0 is its plain autoencoder.
        masked_only: whether only what lies in identities' masks is restored.
        feather: pixels over which a mask's inner edge fades, with `masked_only`.
        encoder_interval: evaluations of the model that share the encoder's features; 1 is exact.
        check_person: whether the report tells if a picture probably shows somebody else than the
            identities; costs four evaluations of a picture of the trained size for each identity.
            Only with restorers for which it is calibrated, see `person_check`.
    """

    steps: int = 20
    cfg: float = 1.0
    sampler_name: str = "euler"
    scheduler: str = "normal"
    seed: int = 0
    denoise: float = 1.0
    start: str = "LQ image"
    color_fix: str = "wavelet"
    tile_size: int = 0
    overlap: float = 0.25
    tile_batch: int = 0
    upscaling: str = "auto"
    fidelity: float = 0.0
    masked_only: bool = False
    feather: int = 16
    encoder_interval: int = 1
    check_person: bool = False

    def __post_init__(self) -> None:
        for name, known in (
            ("start", STARTS),
            ("color_fix", COLOR_FIXES),
            ("upscaling", UPSCALINGS),
        ):
            value = getattr(self, name)
            if value not in known:
                raise PFStorerError(f"{name} is '{value}'; choose one of {', '.join(known)}.")
        if self.steps < 1 or not 0 < self.denoise <= 1 or self.cfg < 0:
            raise PFStorerError(
                f"There are {self.steps} steps, denoise {self.denoise} and cfg {self.cfg}; choose "
                "1 step or more, denoise above 0 up to 1, and cfg of 0 or more."
            )
        if not 0 <= self.fidelity <= 1:
            raise PFStorerError(f"fidelity is {self.fidelity}; choose 0 (plain VAE) to 1.")
        if self.start == "noise" and self.denoise < 1:
            raise PFStorerError(
                f"The sampling shall start from noise with denoise {self.denoise}, which is no "
                "noise but a flat grey; set denoise to 1, or start to 'LQ image'."
            )
        if self.encoder_interval < 1 or self.feather < 0:
            raise PFStorerError(
                f"encoder_interval is {self.encoder_interval} and feather {self.feather}; choose 1 "
                "or more, and 0 or more."
            )


@torch.no_grad()  # as ComfyUI runs nodes; outside of it its VAE would record gradients
def restore(
    model: Any,
    vae: Any,
    image: Tensor,
    *,
    scale: float = 1.0,
    size: tuple[int, int] | None = None,
    positive: list[Any] | None = None,
    negative: list[Any] | None = None,
    report: RestoreReport | None = None,
    **settings: Any,
) -> Tensor:
    """Restores images of any size.

    All images of a batch get the noise of the first, so that each is restored as it would be
    alone (samplers that add noise at each step aside, and masks of heads of different sizes, of
    which the largest decides at which sizes "auto" works, as does the sharpest image). Grey images
    stay grey. Where a bundled restorer chooses sizes and tiles itself, sharp images of large
    faces stay as they are, see `working_size`.

    Args:
        model: MODEL of `load_base_restorer`, with or without identities.
        vae: its VAE, or a CFW decoder.
        image: (B, H, W, C) in [0, 1] with 1, 3 or 4 channels; a fourth is alpha and kept.
        scale: output size as a multiple of the input size, unless `size` is given.
        size: (height, width) of the output in pixels.
        positive: CONDITIONING; None is the empty prompt.
        negative: CONDITIONING; None is the empty prompt.
        report: takes what is worth telling the user.
        settings: fields of `RestoreSettings`.

    Returns:
        (B, height, width, C) in [0, 1], C being 3 or 4.

    Raises:
        PFStorerError: an input of wrong shape or value, or an output that does not fit into memory.

    Source: StableSR (arXiv 2305.07015), section 3 and its scripts; identities: PFStorer (arXiv
    2403.08436).
    """
    chosen = RestoreSettings(**settings)
    report = report or RestoreReport()
    if chosen.fidelity > 0 and not hasattr(vae, "decode_with"):
        raise PFStorerError(
            f"fidelity is {chosen.fidelity}, but the VAE has no CFW fusion layers; connect the VAE "
            "of 'Load CFW Decoder', or set fidelity to 0."
        )
    _check_noise_levels(model, chosen)
    prompts = _prompts(model, positive, negative)
    rgb, alpha = split_alpha(image)  # (B, 3, H, W), (B, 1, H, W)
    height, width = size or (round(rgb.shape[2] * scale), round(rgb.shape[3] * scale))
    if min(height, width) < 1:
        raise PFStorerError(
            f"The output would be {width} x {height} pixels; choose a larger scale or size."
        )
    identities = patches.restorer_wrapper(model).identities
    check_mask_counts(identities, len(rgb))
    if chosen.masked_only and all(identity.mask is None for identity in identities):
        raise PFStorerError(
            "Only masked faces shall be restored, but no identity has a mask; connect masks to "
            "'Apply Personalization', or switch masked_only off."
        )
    cell = vae.spacial_compression_encode()
    prompts = (
        relative_areas(prompts[0], (height, width), cell),
        relative_areas(prompts[1], (height, width), cell),
    )
    check_pictures(_latent_shape(model, len(rgb), (height, width), cell), cell)
    started = time.monotonic()
    # A bundled model is made for portraits of one size.
    bundled = restoration(model).info.bundled is not None
    given = rgb.shape[2], rgb.shape[3]
    known = known_factor(identities, given, trained_size(model), bundled)
    sizes = pass_sizes(given, (height, width), chosen.upscaling, known, bundled)
    kept = torch.zeros(len(rgb), dtype=torch.bool)  # images that are left as they are
    if bundled and known is not None and chosen.upscaling == "auto" and not chosen.tile_size:
        (full,) = sizes
        working, kept = working_size(rgb, full, known)
        sizes = [working]
        if working != full:
            report.line(
                f"The picture is blurred at {full[1]} x {full[0]} px, so it is made smaller"
            )
    if any(identity.strength == AUTO for identity in identities):
        model = choose_gammas(model, resize_bicubic(rgb, sizes[0]))
    if chosen.check_person and identities and can_check_persons(model):
        report.status("looking whose face it is")
        for line in check_persons(model, vae, rgb):
            report.line(str(line))
    note = patches.compile_note(model)
    if note is not None:
        report.line(note)
    plans = [_plan(model, _latent_shape(model, len(rgb), x, cell), cell, chosen) for x in sizes]
    most = max(len(plan.layout.tiles) for plan in plans)
    check_nodes(model, most)
    for prompt in prompts:
        check_conditioning(prompt, most)
    grey = color.is_grey(rgb)
    restored = rgb
    passes = [] if kept.all() else list(zip(sizes, plans, strict=True))
    for number, (pass_size, plan) in enumerate(passes, 1):
        report.begin(number, len(sizes), chosen.steps)
        original = resize_bicubic(rgb, pass_size).contiguous()  # (B, 3, *pass_size)
        lq = original if number == 1 else resize_bicubic(restored, pass_size)
        restored = _restore_pass(model, vae, lq, original, prompts, plan, chosen, report)
    report.end()
    if passes and sizes[-1] != (height, width):
        report.line(f"Scaled from {sizes[-1][1]} x {sizes[-1][0]} to {width} x {height} px")
    restored = resize_bicubic(restored, (height, width))
    if kept.any():
        report.line(
            f"{int(kept.sum())} of {len(kept)} images are so sharp that this restorer would only "
            "spoil them, so they stay as they are; upscaling 'one pass' restores them nevertheless"
        )
        original = resize_bicubic(rgb, (height, width)).to(restored)
        restored = torch.where(kept[:, None, None, None].to(restored.device), original, restored)
    for item in (k for k, is_grey in enumerate(grey) if is_grey):
        color.to_grey(restored[item : item + 1], out=restored[item : item + 1])
    if chosen.masked_only:
        share = feathered(identities, (len(rgb), 1, height, width), chosen.feather)
        original = resize_bicubic(rgb, (height, width)).to(restored)
        restored = torch.lerp(original, restored, share.to(restored))
    if any(grey):
        report.line(f"{sum(grey)} of {len(grey)} images are grey and stay so")
    report.line(f"Done in {time.monotonic() - started:.1f} s")
    if alpha is not None:
        alpha = resize_bicubic(alpha, (height, width)).to(restored)
        restored = torch.cat([restored, alpha], dim=1)  # (B, 4, height, width)
    return restored.movedim(1, -1)


def _restore_pass(
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
    """
    size = lq.shape[2], lq.shape[3]
    cell = vae.spacial_compression_encode()
    padded = padded_size(model, size, cell)
    model = pad_masks(model, size, padded, cell)
    identities = patches.restorer_wrapper(model).identities
    controls: dict[int, Any] = {}
    positive, negative = (pad_conditioning(prompt, size, padded, controls) for prompt in prompts)
    latent_shape = _latent_shape(model, len(lq), size, cell)
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
    latent = vae_tiles.encode(vae, lq, padded, around, report.line)  # (B, C, h, w)
    latent_format = model.get_model_object("latent_format")
    model = patches.set_lq_latent(
        model, latent_format.process_in(latent), settings.encoder_interval
    )
    model = set_tiles(model, TiledSteps(plan.layout, region, report.tiles, report.line))
    check_finite(latent, "The LQ latent that the VAE made", VAE_ADVICE)
    report.status("sampling")
    samples = _sample(model, latent, positive, negative, settings, report)
    report.status("decoding")
    fidelity = settings.fidelity
    restored = vae_tiles.decode(vae, samples, needed, fidelity=fidelity, lq=lq, tell=report.line)
    check_finite(restored, "The picture that the VAE decoded", VAE_ADVICE)
    restored = restored[:, :, : size[0], : size[1]]  # (B, 3, H, W)
    original = original.to(restored)
    if settings.color_fix == "wavelet":
        color.wavelet_fix(restored, original, out=restored)
    elif settings.color_fix == "adain":
        color.adain_fix(restored, original, out=restored)
    return restored


def _latent_shape(
    model: Any, batch: int, size: tuple[int, int], cell: int
) -> tuple[int, int, int, int]:
    """Returns the shape of the latent of pictures (height, width), once they are padded."""
    channels = restoration(model).info.encoder.in_channels
    height, width = padded_size(model, size, cell)
    return batch, channels, height // cell, width // cell


def _plan(
    model: Any, shape: tuple[int, int, int, int], cell: int, settings: RestoreSettings
) -> TilePlan:
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


def _check_noise_levels(model: Any, settings: RestoreSettings) -> None:
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


def _prompts(model: Any, positive: Any, negative: Any) -> tuple[Any, Any]:
    empty = restoration(model).empty_prompt
    if empty is None and (positive is None or negative is None):
        raise PFStorerError(
            "The checkpoint has no text encoder, so there is no empty prompt; connect positive "
            "and negative conditioning."
        )
    return positive or empty, negative or empty


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
