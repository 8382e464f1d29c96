"""Restores images with a restorer's MODEL: the LQ latent in, ComfyUI's own samplers, colours."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import comfy.sample
import comfy.utils
import latent_preview
import torch
from torch import Tensor
from torch.nn import functional as F

from .. import color
from ..degradation import resize_bicubic
from ..errors import PFStorerError
from . import patches
from .loading import restoration, trained_size
from .sites import size_step

TILE_LATENT = 128  # latent pixels: 1024 px with Stable Diffusion, 512 px with the mini restorer
COLOR_FIXES = ("wavelet", "adain", "none")
STARTS = ("LQ image", "noise")


def condition_on_lq(model: Any, lq_latent: Tensor) -> Any:
    """Returns a clone of a restorer's MODEL that restores one LQ latent, with any KSampler.

    A sampler with another batch size than the latent's repeats or cuts the LQ latents.

    Args:
        model: MODEL of `load_base_restorer`; stays as it is.
        lq_latent: (B, C, H, W) samples of a LATENT, as the VAE gives them.

    Raises:
        PFStorerError: a MODEL without restorer, or a latent of another VAE.
    """
    info = restoration(model).info
    channels = info.encoder.in_channels
    if lq_latent.ndim != 4 or lq_latent.shape[1] != channels:
        raise PFStorerError(
            f"The LQ latent has the shape {tuple(lq_latent.shape)}, but restorer '{info.name}' "
            f"takes (batch, {channels}, height, width); use the VAE that 'Load Base Restorer' "
            "gives."
        )
    latent_format = model.get_model_object("latent_format")
    return patches.set_lq_latent(model, latent_format.process_in(lq_latent))


def encode_lq(vae: Any, image: Tensor) -> Tensor:
    """Returns the LQ latent (B, C, h, w) of an IMAGE (B, H, W, 1 | 3 | 4), alpha left out.

    Raises:
        PFStorerError: another shape.
    """
    rgb, _ = _split_alpha(image)
    return vae.encode(rgb.movedim(1, -1))


def encode_references(model: Any, vae: Any, photos: Sequence[Tensor]) -> list[Tensor]:
    """Encodes photos of a person as references for `apply_identity`.

    Large ones are scaled down to the size that the restorer was made for, as in the training.

    Args:
        model: MODEL of `load_base_restorer`.
        vae: its VAE.
        photos: IMAGE batches (B, H, W, 1 | 3 | 4) of any sizes.

    Returns:
        One (B, C, h, w) latent per batch.
    """
    step = vae.spacial_compression_encode() * size_step(model.model.diffusion_model)
    latents = []
    for photo in photos:
        rgb, _ = _split_alpha(photo)  # (B, 3, H, W)
        scale = min(1.0, trained_size(model) / min(rgb.shape[2:]))
        height, width = (max(2, round(side * scale / step)) * step for side in rgb.shape[2:])
        latents.append(vae.encode(resize_bicubic(rgb, (height, width)).movedim(1, -1)))
    return latents


def restore(
    model: Any,
    vae: Any,
    image: Tensor,
    *,
    scale: float = 1.0,
    size: tuple[int, int] | None = None,
    steps: int = 20,
    cfg: float = 1.0,
    sampler_name: str = "euler",
    scheduler: str = "normal",
    seed: int = 0,
    denoise: float = 1.0,
    start: str = "LQ image",
    color_fix: str = "wavelet",
    positive: list[Any] | None = None,
    negative: list[Any] | None = None,
) -> Tensor:
    """Restores images of any size that fits one tile.

    All images of a batch get the noise of the first, so that each is restored as it would be
    alone (samplers that add noise at each step aside).

    Args:
        model: MODEL of `load_base_restorer`.
        vae: its VAE.
        image: (B, H, W, C) in [0, 1] with 1, 3 or 4 channels; a fourth is alpha and kept.
        scale: output size as a multiple of the input size, unless `size` is given.
        size: (height, width) of the output in pixels.
        steps: sampling steps.
        cfg: guidance scale; 1 is without guidance, at half the cost.
        sampler_name: one of ComfyUI's samplers.
        scheduler: one of ComfyUI's schedulers.
        seed: seed of the noise.
        denoise: share of the noise schedule that is run, in (0, 1].
        start: "LQ image" adds the noise to the LQ latent, "noise" starts from pure noise.
        color_fix: "wavelet", "adain" or "none": how the input gives its colours to the output.
        positive: CONDITIONING; None is the empty prompt.
        negative: CONDITIONING; None is the empty prompt.

    Returns:
        (B, height, width, C) in [0, 1], C being 3 or 4.

    Raises:
        PFStorerError: an input of wrong shape or value, or an output that does not fit one tile.

    Source: StableSR (arXiv 2305.07015), its scripts for whole images.
    """
    for name, value, known in (("start", start, STARTS), ("color_fix", color_fix, COLOR_FIXES)):
        if value not in known:
            raise PFStorerError(f"{name} is '{value}'; choose one of {', '.join(known)}.")
    positive, negative = _prompts(model, positive, negative)
    rgb, alpha = _split_alpha(image)  # (B, 3, H, W), (B, 1, H, W)
    height, width = size or (round(rgb.shape[2] * scale), round(rgb.shape[3] * scale))
    cell = vae.spacial_compression_encode()
    padded_size = _padded_size(model, height, width, cell)
    upscaled = resize_bicubic(rgb, (height, width))  # (B, 3, height, width)
    model = _with_padded_masks(model, (height, width), padded_size)
    lq = vae.encode(_pad(upscaled, *padded_size).movedim(1, -1))  # (B, C, h, w)
    samples = _sample(
        condition_on_lq(model, lq),
        lq if start == "LQ image" else torch.zeros_like(lq),
        steps=steps,
        cfg=cfg,
        sampler_name=sampler_name,
        scheduler=scheduler,
        seed=seed,
        denoise=denoise,
        positive=positive,
        negative=negative,
    )
    restored = vae.decode(samples).movedim(-1, 1)[:, :, :height, :width]  # (B, 3, height, width)
    upscaled = upscaled.to(restored)
    if color_fix == "wavelet":
        restored = color.wavelet_fix(restored, upscaled)
    elif color_fix == "adain":
        restored = color.adain_fix(restored, upscaled)
    if alpha is not None:
        alpha = resize_bicubic(alpha, (height, width)).to(restored)
        restored = torch.cat([restored, alpha], dim=1)  # (B, 4, height, width)
    return restored.movedim(1, -1)


def target_size(image: Tensor, scale: float, longest_side: int) -> tuple[int, int]:
    """Returns (height, width) of the output for an IMAGE (B, H, W, C).

    Args:
        image: the input.
        scale: used if `longest_side` is 0.
        longest_side: pixels of the output's longer side, or 0.
    """
    height, width = image.shape[1:3]
    if longest_side:
        scale = longest_side / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def _prompts(model: Any, positive: Any, negative: Any) -> tuple[Any, Any]:
    empty = restoration(model).empty_prompt
    if empty is None and (positive is None or negative is None):
        raise PFStorerError(
            "The checkpoint has no text encoder, so there is no empty prompt; connect positive "
            "and negative conditioning."
        )
    return positive or empty, negative or empty


def _split_alpha(image: Tensor) -> tuple[Tensor, Tensor | None]:
    if image.ndim != 4 or image.shape[-1] not in (1, 3, 4) or 0 in image.shape:
        raise PFStorerError(
            f"The image has the shape {tuple(image.shape)}; expected (batch, height, width, "
            "channels) with 1, 3 or 4 channels."
        )
    image = image.movedim(-1, 1)  # (B, C, H, W)
    if image.shape[1] == 4:
        return image[:, :3], image[:, 3:]
    return image.expand(-1, 3, -1, -1), None


def _padded_size(model: Any, height: int, width: int, cell: int) -> tuple[int, int]:
    """Returns the size at which each level of the UNet has whole latent pixels, two or more."""
    step = cell * size_step(model.model.diffusion_model)
    limit = TILE_LATENT * cell
    if max(height, width) > limit:
        raise PFStorerError(
            f"The output would be {width} x {height} pixels, but one tile takes at most {limit} x "
            f"{limit} with this restorer; choose a smaller scale or size (restoration in several "
            "tiles comes with a later version)."
        )
    if min(height, width) < 1:
        raise PFStorerError(
            f"The output would be {width} x {height} pixels; choose a larger scale or size."
        )
    return max(2, -(-height // step)) * step, max(2, -(-width // step)) * step


def _with_padded_masks(model: Any, size: tuple[int, int], padded: tuple[int, int]) -> Any:
    identities = patches.restorer_wrapper(model).identities
    if size == padded or all(identity.mask is None for identity in identities):
        return model
    fitted = []
    for identity in identities:
        if identity.mask is not None:
            mask = F.interpolate(identity.mask[:, None], size, mode="area")  # (M, 1, H, W)
            identity = dataclasses.replace(identity, mask=_pad(mask, *padded)[:, 0])
        fitted.append(identity)
    return patches.set_identities(model, fitted)


def _pad(images: Tensor, height: int, width: int) -> Tensor:
    """Extends images (B, C, H, W) to the right and below by their mirror image."""
    rows = _mirrored(images.shape[2], height, images.device)
    columns = _mirrored(images.shape[3], width, images.device)
    return images[:, :, rows][:, :, :, columns]  # (B, C, height, width)


def _mirrored(length: int, padded: int, device: torch.device) -> Tensor:
    # Unlike `F.pad`, also for images smaller than their padding.
    period = max(1, 2 * (length - 1))
    index = torch.arange(padded, device=device) % period  # (padded,)
    return torch.minimum(index, period - index).clamp(max=length - 1)


def _sample(model: Any, latent: Tensor, *, steps: int, seed: int, **settings: Any) -> Tensor:
    noise = comfy.sample.prepare_noise(latent, seed, [0] * latent.shape[0])
    return comfy.sample.sample(
        model,
        noise,
        steps,
        latent_image=latent,
        seed=seed,
        callback=latent_preview.prepare_callback(model, steps),
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        **settings,
    )
