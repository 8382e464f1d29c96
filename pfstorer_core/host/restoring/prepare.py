"""Works out how pictures are restored, and checks that they can be, before any of it begins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...errors import PFStorerError
from ...pictures.resizing import resize_bicubic
from ...tiling.upscaling import Size, pass_sizes
from ...tiling.working_size import working_size
from ..base import Base, base_of
from ..feedback import RestoreReport
from ..images import split_alpha
from ..patch.applied import AUTO, AppliedIdentity, check_mask_counts
from ..patch.chosen_gammas import choose_gammas
from ..patch.model import compile_note, restorer_wrapper
from ..tiles.cropping import check_conditioning, check_nodes
from ..tiles.padding import padded_size, relative_areas
from ..tiles.plan import TileChoice, check_pictures, plan_tiles
from .job import Inputs, Job, Pass
from .passes import check_noise_levels
from .person_check import check_persons
from .regions import known_factor
from .settings import RestoreSettings


def prepared(given: Inputs, settings: RestoreSettings, report: RestoreReport) -> Job:
    """Works out how images are restored.

    Raises:
        PFStorerError: as `restore`.
    """
    model, base = given.model, base_of(given.model)
    identities = restorer_wrapper(model).identities
    _check_vae(given.vae, base, settings)
    check_noise_levels(model, settings)
    rgb, alpha = split_alpha(given.image)  # (B, 3, H, W), (B, 1, H, W)
    target = _target(rgb, given.size)
    _check_identities(identities, len(rgb), settings)
    prompts = _prompts(base, given, target)
    check_pictures(_latent_shape(base, len(rgb), target), base.cell)
    sizes, kept = _sizes(rgb, target, base, identities, settings, report)
    if any(identity.strength == AUTO for identity in identities):
        model = choose_gammas(model, resize_bicubic(rgb, sizes[0]))
        identities = restorer_wrapper(model).identities
    if settings.check_person and identities:
        report.status("looking whose face it is")
        report.add(map(str, check_persons(model, given.vae, rgb)))
    report.add(compile_note(model))
    passes = [_planned(model, base, len(rgb), size, settings) for size in sizes]
    most = max(len(work.plan.layout.tiles) for work in passes)
    check_nodes(model, most)
    for prompt in prompts:
        check_conditioning(prompt, most)
    return Job(
        model=model,
        vae=given.vae,
        base=base,
        identities=identities,
        rgb=rgb,
        alpha=alpha,
        target=target,
        prompts=prompts,
        passes=() if kept.all() else tuple(passes),
        kept=kept,
        settings=settings,
        report=report,
    )


def _check_vae(vae: Any, base: Base, settings: RestoreSettings) -> None:
    if settings.fidelity > 0 and not hasattr(vae, "decode_with"):
        raise PFStorerError(
            f"fidelity is {settings.fidelity}, but the VAE has no CFW fusion layers; connect the "
            "VAE of 'Load CFW Decoder', or set fidelity to 0."
        )
    cell = vae.spacial_compression_encode()
    if cell != base.cell:
        raise PFStorerError(
            f"The VAE makes one latent pixel of {cell} x {cell} pixels, but restorer "
            f"'{base.info.name}' needs {base.cell} x {base.cell}; connect the VAE that 'Load Base "
            "Restorer' gives."
        )


def _target(rgb: Tensor, size: Size | float) -> Size:
    if isinstance(size, tuple):
        height, width = size
    else:
        height, width = round(rgb.shape[2] * size), round(rgb.shape[3] * size)
    if min(height, width) < 1:
        raise PFStorerError(
            f"The output would be {width} x {height} pixels; choose a larger scale or size."
        )
    return height, width


def _check_identities(
    identities: Sequence[AppliedIdentity], images: int, settings: RestoreSettings
) -> None:
    check_mask_counts(identities, images)
    if settings.masked_only and all(identity.mask is None for identity in identities):
        raise PFStorerError(
            "Only masked faces shall be restored, but no identity has a mask; connect masks to "
            "'Apply Personalization', or switch 'only in masks' (masked_only) off."
        )


def _prompts(base: Base, given: Inputs, target: Size) -> tuple[Any, Any]:
    if base.empty_prompt is None and (given.positive is None or given.negative is None):
        raise PFStorerError(
            "The checkpoint has no text encoder, so there is no empty prompt; connect positive "
            "and negative conditioning."
        )
    positive, negative = (
        relative_areas(prompt or base.empty_prompt or [], target, base.cell)
        for prompt in (given.positive, given.negative)
    )
    return positive, negative


def _latent_shape(base: Base, batch: int, size: Size) -> tuple[int, int, int, int]:
    height, width = padded_size(size, base.cell * base.size_step)
    return batch, base.latent_channels, height // base.cell, width // base.cell


def _sizes(
    rgb: Tensor,
    target: Size,
    base: Base,
    identities: Sequence[AppliedIdentity],
    settings: RestoreSettings,
    report: RestoreReport,
) -> tuple[list[Size], Tensor]:
    """Returns the size of each pass, and which of the pictures (B,) stay as they are."""
    given = rgb.shape[2], rgb.shape[3]
    known = known_factor(identities, given, base.trained_size, base.portraits_only)
    sizes = pass_sizes(given, target, settings.upscaling, known, base.portraits_only)
    automatic = settings.upscaling == "auto" and not settings.tile_size
    if not base.portraits_only or known is None or not automatic:
        return sizes, torch.zeros(len(rgb), dtype=torch.bool)
    (full,) = sizes
    working, kept = working_size(rgb, full, known)
    if working != full:
        report.line(f"The picture is blurred at {full[1]} x {full[0]} px, so it is made smaller")
    return [working], kept


def _planned(model: Any, base: Base, batch: int, size: Size, settings: RestoreSettings) -> Pass:
    shape = _latent_shape(base, batch, size)
    padded = shape[2] * base.cell, shape[3] * base.cell
    choice = TileChoice(settings.tile_size, settings.overlap, settings.tile_batch, settings.cfg)
    return Pass(size, padded, shape, plan_tiles(model, shape, base.cell, choice))
