"""Training of a base restorer: encoder and SFT blocks, or from nothing UNet and prompt too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from ..errors import PFStorerError
from .loop import Objective, on_device
from .losses import diffusion_loss, diffusion_target, stratified_timesteps
from .pool import Pairs

if TYPE_CHECKING:
    from diffusers import DDPMScheduler


class RestorerNetwork(Protocol):
    """A UNet with SFT, as `host` builds it; latents and prediction are (B, C, h, w)."""

    def __call__(self, noisy: Tensor, timesteps: Tensor, lq_latent: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class BaseTrainingConfig:
    """What a step of base training draws.

    Attributes:
        batch: pairs per step and process.
        noise_lq_probability: share of pairs whose LQ latent is pure noise. The generative
            regularizer of the identity training asks the base for an input without LQ information,
            so it must know such input.
        snr_gamma: of the min-SNR weighting; None for none.
        lq_noise: standard deviation of noise on the LQ latent, drawn per item in [0, lq_noise].
    """

    batch: int = 24
    noise_lq_probability: float = 0.1
    snr_gamma: float | None = 5.0
    lq_noise: float = 0.05

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise PFStorerError(f"The batch must have at least one pair, got {self.batch}.")
        if not 0 <= self.noise_lq_probability <= 1:
            raise PFStorerError(
                f"A probability must be in [0, 1], got {self.noise_lq_probability}."
            )


def restore_latents(
    network: RestorerNetwork, schedule: DDPMScheduler, lq_latent: Tensor, *, steps: int, seed: int
) -> Tensor:
    """Restores LQ latents (B, C, h, w) from pure noise by deterministic DDIM, for sample sheets."""
    from diffusers import DDIMScheduler

    sampler = DDIMScheduler.from_config(schedule.config, timestep_spacing="trailing")
    sampler.set_timesteps(steps)
    latent = torch.randn(lq_latent.shape, generator=torch.Generator().manual_seed(seed))
    latent = latent.to(lq_latent)
    for timestep in sampler.timesteps:
        prediction = network(latent, timestep.expand(len(latent)).to(latent.device), lq_latent)
        latent = sampler.step(prediction, timestep, latent).prev_sample
    return latent


def restoration_objective(
    pairs: Pairs, schedule: DDPMScheduler, config: BaseTrainingConfig
) -> Objective:
    """The diffusion loss of restoring pictures.

    Source: StableSR (arXiv 2305.07015), section 3.1; the pure-noise share is ours.
    """

    def objective(model: nn.Module, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        device = next(model.parameters()).device
        generator = on_device(generator, device)
        latent, lq_latent = (x.to(device) for x in pairs.draw(config.batch, generator))
        count = len(latent)  # of (B, C, h, w) each
        place: dict[str, Any] = {"generator": generator, "device": device}
        noise = torch.randn(latent.shape, **place)
        timesteps = stratified_timesteps(schedule, count, generator)
        blind = torch.rand(count, 1, 1, 1, **place) < config.noise_lq_probability
        lq_noise = torch.randn(latent.shape, **place)
        spread = torch.rand(count, 1, 1, 1, **place) * config.lq_noise
        lq_latent = torch.where(blind, lq_noise, lq_latent + spread * lq_noise)
        noisy = schedule.add_noise(latent, noise, timesteps)
        target = diffusion_target(schedule, latent, noise, timesteps)
        prediction = model(noisy, timesteps, lq_latent)
        losses = diffusion_loss(schedule, prediction, target, timesteps, config.snr_gamma)
        seen = ~blind.flatten()
        restore = (losses * seen).sum() / seen.sum().clamp(min=1)
        return losses.mean(), {"restore": restore}

    return objective
