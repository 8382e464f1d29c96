"""Restores pictures of any size from pixels to pixels: scaling, tiles, samplers, colours, masks."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from ..feedback import RestoreReport
from .finish import finished
from .job import Inputs
from .passes import restore_pass
from .prepare import prepared
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
    stay grey. Where a restorer of portraits alone chooses sizes and tiles itself, sharp images of
    large faces stay as they are, see `working_size`.

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
    started = time.monotonic()
    report = report or RestoreReport()
    chosen = RestoreSettings(**settings)
    inputs = Inputs(model, vae, image, size or scale, positive, negative)
    job = prepared(inputs, chosen, report)
    restored = job.rgb
    for number, work in enumerate(job.passes, 1):
        report.begin(number, len(job.passes), chosen.steps)
        restored = restore_pass(job, work, restored)
    report.end()
    restored = finished(job, restored)
    report.line(chosen.summary())
    report.line(f"Done in {time.monotonic() - started:.1f} s")
    return restored
