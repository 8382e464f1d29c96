"""Restores many pictures for an evaluation, with what its command line says."""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import Tensor

BATCH = 16  # pictures restored at once


def add_sampling_options(parser: argparse.ArgumentParser, color_fix: str) -> None:
    """Adds a group of options that `sampling_settings` reads; steps are the script's own."""
    add = parser.add_argument_group("sampling").add_argument
    add("--sampler", default="euler")
    add("--scheduler", default="normal")
    add("--color-fix", choices=("wavelet", "adain", "none"), default=color_fix)
    add("--start", choices=("LQ image", "noise"), default="LQ image")


def sampling_settings(options: argparse.Namespace) -> dict[str, Any]:
    """Returns fields of `host.restoring.settings.RestoreSettings`."""
    return {
        "sampler_name": options.sampler,
        "scheduler": options.scheduler,
        "color_fix": options.color_fix,
        "start": options.start,
    }


def sampling_text(options: argparse.Namespace, steps: str) -> str:
    """Returns the settings in words."""
    return (
        f"{steps} steps of {options.sampler}/{options.scheduler}, start from {options.start}, "
        f"colour fix {options.color_fix}, seed {options.seed}"
    )


def restore_pictures(model: Any, vae: Any, lq: Tensor, **settings: Any) -> Tensor:
    """Restores pictures (B, 3, H, W) in [0, 1], some at once; the result lies on the CPU."""
    from pfstorer_core.host import restore

    parts = [restore(model, vae, part.movedim(1, -1), **settings) for part in lq.split(BATCH)]
    return torch.cat(parts).movedim(-1, 1).cpu()
