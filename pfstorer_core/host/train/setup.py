"""What stays the same in an identity training: the base, and how it is trained on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import comfy.model_management as mm
import torch
from torch import Tensor

from ...errors import PFStorerError
from ...training.devices import check_precision
from ...training.identity import IdentityTrainingConfig
from ..base import Base, base_of, pooled_embedding
from ..patch.model import restorer_wrapper
from ..patch.supir import supir_vae
from .from_model import scaled_encoder, training_schedule

if TYPE_CHECKING:
    from diffusers import DDPMScheduler


@dataclass(frozen=True)
class Setup:
    """What stays the same in an identity training.

    Args:
        model: a restorer's MODEL.
        vae: its VAE.
        base: what the MODEL carries along.
        config: settings.
        schedule: noise schedule of the base.
        size: side of the views in pixels.
        precision: "no", "bf16" or "fp16".
    """

    model: Any
    vae: Any
    base: Base
    config: IdentityTrainingConfig
    schedule: DDPMScheduler
    size: int
    precision: str

    @property
    def device(self) -> torch.device:
        """Where it is trained."""
        return self.model.load_device

    def prompt(self) -> Tensor:
        """The text embedding (tokens, width) of the empty prompt, as a copy of its own."""
        assert self.base.empty_prompt is not None  # `set_up` refuses others
        return self.base.empty_prompt[0][0][0].float().cpu().clone()

    def pooled(self) -> Tensor | None:
        """The `y` (1, P) beside it for a view, None where the UNet takes none."""
        return pooled_embedding(self.model, self.base.empty_prompt, (self.size, self.size))

    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] to latents (B, C, h, w), scaled like the diffusion latents."""
        return scaled_encoder(self.model, self.vae)(images)

    def encode_lq(self, images: Tensor) -> Tensor:
        """The same for LQ pictures, for which some restorers have an encoder of their own."""
        vae = supir_vae(restorer_wrapper(self.model).restorer, self.vae)
        return scaled_encoder(self.model, vae)(images)


def set_up(
    model: Any, vae: Any, config: IdentityTrainingConfig, warn: Callable[[str], None]
) -> Setup:
    """Finds out how a base is trained on, and whether it can be.

    Raises:
        PFStorerError: a MODEL without restorer or text encoder, or settings that do not suit it.
    """
    base = base_of(model)
    if base.empty_prompt is None:
        raise PFStorerError(
            "The checkpoint has no text encoder; choose one with a text encoder for training."
        )
    schedule = training_schedule(model)
    step = base.cell * base.size_step
    if config.size % step:
        raise PFStorerError(
            f"The views' size is {config.size} pixels; choose a multiple of {step}."
        )
    precision = _precision(config.mixed_precision, model.load_device, warn)
    check_precision(precision, model.load_device)
    config.blocks()  # refuses sizes that make no sense
    return Setup(
        model=model,
        vae=vae,
        base=base,
        config=config,
        schedule=schedule,
        size=config.size or base.trained_size,
        precision=precision,
    )


def _precision(wanted: str, device: torch.device, warn: Callable[[str], None]) -> str:
    if wanted == "fp16" and device.type == "cpu":
        raise PFStorerError("A CPU does not train in fp16; choose auto, bf16 or no.")
    if wanted != "auto":
        return wanted
    if device.type == "cpu":
        # without the instructions, bf16 on a CPU is emulated and slow
        native = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
        return "bf16" if native() else "no"
    if mm.should_use_bf16(device):  # the host knows what each device has
        return "bf16"
    if device.type == "cuda" and mm.should_use_fp16(device):
        return "fp16"
    warn(
        f"ComfyUI computes in float32 on this device ({device.type}), so the training does too, "
        "which takes more time and memory; precision bf16 or fp16 may be tried."
    )
    return "no"
