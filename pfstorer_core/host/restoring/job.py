"""What a restoration is given, and what is worked out from it before it begins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...tiling.upscaling import Size
from ..base import Base
from ..feedback import RestoreReport
from ..patch.applied import AppliedIdentity
from ..tiles.plan import TilePlan
from .settings import RestoreSettings


@dataclass(frozen=True)
class Inputs:
    """What `restore` is given; see there.

    Args:
        size: (height, width) of the output in pixels, or a multiple of the input's.
    """

    model: Any
    vae: Any
    image: Tensor
    size: Size | float
    positive: list[Any] | None
    negative: list[Any] | None


@dataclass(frozen=True)
class Pass:
    """One pass of the restorer over the pictures.

    Args:
        size: (height, width) of the pictures in pixels.
        padded: their size once they are padded, see `tiles.padding.padded_size`.
        latent_shape: (B, C, h, w) of their latent.
        plan: its tiles.
    """

    size: Size
    padded: Size
    latent_shape: tuple[int, int, int, int]
    plan: TilePlan


@dataclass(frozen=True)
class Job:
    """Pictures to restore, and how.

    Args:
        model: a restorer's MODEL, with the identities that are applied.
        vae: its VAE, or a CFW decoder.
        base: what the MODEL carries along.
        identities: those that are applied to it; their masks belong to the pictures.
        rgb: (B, 3, H, W) in [0, 1].
        alpha: (B, 1, H, W), or None.
        target: (height, width) of the output in pixels.
        prompts: positive and negative CONDITIONING.
        passes: of the restorer, one after the other.
        kept: (B,) bool on the CPU, the pictures that stay as they are.
        settings: of the restoration.
        report: takes what is worth telling the user.
    """

    model: Any
    vae: Any
    base: Base
    identities: tuple[AppliedIdentity, ...]
    rgb: Tensor
    alpha: Tensor | None
    target: Size
    prompts: tuple[Any, Any]
    passes: tuple[Pass, ...]
    kept: Tensor
    settings: RestoreSettings
    report: RestoreReport
