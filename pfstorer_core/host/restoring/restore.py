"""Restores pictures of any size from pixels to pixels: scaling, tiles, samplers, colours, masks."""

from __future__ import annotations

import time
from typing import Any

import comfy.sample
import comfy.samplers
import comfy.utils
import torch
from torch import Tensor

from ...errors import PFStorerError
from ...pictures import color
from ...pictures.resizing import resize_bicubic
from ...tiling.upscaling import pass_sizes
from ...tiling.working_size import working_size
from ..base import base_of
from ..feedback import RestoreReport
from ..images import split_alpha
from ..patch.applied import AUTO, check_mask_counts
from ..patch.chosen_gammas import choose_gammas
from ..patch.model import compile_note, restorer_wrapper
from ..tiles.cropping import check_conditioning, check_nodes
from ..tiles.padding import relative_areas
from ..tiles.plan import check_pictures
from .passes import plan_pass, restore_pass, shape_of_latent
from .person_check import can_check_persons, check_persons
from .regions import feathered, known_factor
from .settings import RestoreSettings


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
    identities = restorer_wrapper(model).identities
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
    check_pictures(shape_of_latent(model, len(rgb), (height, width), cell), cell)
    started = time.monotonic()
    base = base_of(model)
    given = rgb.shape[2], rgb.shape[3]
    known = known_factor(identities, given, base.trained_size, base.portraits_only)
    sizes = pass_sizes(given, (height, width), chosen.upscaling, known, base.portraits_only)
    kept = torch.zeros(len(rgb), dtype=torch.bool)  # images that are left as they are
    if (
        base.portraits_only
        and known is not None
        and chosen.upscaling == "auto"
        and not chosen.tile_size
    ):
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
    note = compile_note(model)
    if note is not None:
        report.line(note)
    plans = [
        plan_pass(model, shape_of_latent(model, len(rgb), x, cell), cell, chosen) for x in sizes
    ]
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
        restored = restore_pass(model, vae, lq, original, prompts, plan, chosen, report)
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
    empty = base_of(model).empty_prompt
    if empty is None and (positive is None or negative is None):
        raise PFStorerError(
            "The checkpoint has no text encoder, so there is no empty prompt; connect positive "
            "and negative conditioning."
        )
    return positive or empty, negative or empty
