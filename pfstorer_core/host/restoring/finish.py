"""What is done to restored pictures at the end: size, pictures that stay, grey, masks, alpha."""

from __future__ import annotations

import torch
from torch import Tensor

from ...pictures import color
from ...pictures.resizing import resize_bicubic
from .job import Job
from .regions import feathered


def finished(job: Job, restored: Tensor) -> Tensor:
    """Returns the result as an IMAGE (B, height, width, 3 or 4) in [0, 1].

    Args:
        job: what was restored.
        restored: (B, 3, H, W), what the last pass gave.
    """
    height, width = job.target
    if job.passes and tuple(restored.shape[2:]) != job.target:
        size = f"{restored.shape[3]} x {restored.shape[2]}"
        job.report.line(f"Scaled from {size} to {width} x {height} px")
    restored = resize_bicubic(restored, job.target)
    original = restored  # looked at only where some of it comes back
    if job.settings.masked_only or job.kept.any():
        original = resize_bicubic(job.rgb, job.target).to(restored)
    alpha = None if job.alpha is None else resize_bicubic(job.alpha, job.target).to(restored)
    if job.kept.any():
        job.report.line(
            f"{int(job.kept.sum())} of {len(job.kept)} images are so sharp that this restorer "
            "would only spoil them, so they stay as they are; upscaling 'one pass' restores them "
            "nevertheless"
        )
        kept = job.kept[:, None, None, None].to(restored.device)
        restored = torch.where(kept, original, restored)
    grey = color.is_grey(job.rgb)
    for item in (k for k, is_grey in enumerate(grey) if is_grey):
        color.to_grey(restored[item : item + 1], out=restored[item : item + 1])
    if job.settings.masked_only:
        shape = len(restored), 1, height, width
        share = feathered(job.identities, shape, job.settings.feather).to(restored)
        restored = torch.lerp(original, restored, share)
    if any(grey):
        job.report.line(f"{sum(grey)} of {len(grey)} images are grey and stay so")
    if alpha is not None:
        restored = torch.cat([restored, alpha], dim=1)  # (B, 4, height, width)
    return restored.movedim(1, -1)
