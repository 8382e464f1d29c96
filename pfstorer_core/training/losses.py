"""Diffusion losses with SNR weighting."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import PFStorerError

if TYPE_CHECKING:
    from diffusers import DDPMScheduler


def noise_schedule(prediction_type: str, sigmas: Tensor | None = None) -> DDPMScheduler:
    """The noise at each timestep, and what the UNet predicts.

    Args:
        prediction_type: "epsilon" or "v_prediction".
        sigmas: (T,) noise over signal, rising with the timestep. None is Stable Diffusion's
            schedule: 1000 timesteps, betas from 0.00085 to 0.012, linear in the root.
    """
    from diffusers import DDPMScheduler

    if sigmas is not None:
        signal = 1 / (1 + sigmas.cpu().double() ** 2)  # (T,) cumulative product of 1 - beta
        before = torch.cat([torch.ones(1, dtype=torch.float64), signal[:-1]])
        return DDPMScheduler(
            num_train_timesteps=len(sigmas),
            trained_betas=(1 - signal / before).tolist(),
            prediction_type=prediction_type,
            clip_sample=False,
        )
    return DDPMScheduler(
        num_train_timesteps=1000,
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type=prediction_type,
        clip_sample=False,
    )


def stratified_timesteps(
    schedule: DDPMScheduler, count: int, generator: torch.Generator, blocks: int = 1
) -> Tensor:
    """Random timesteps (blocks * count,); each block of `count` covers all of them evenly.

    Every step then sees all noise levels, which steadies the gradient. On the generator's device.
    """
    place = torch.arange(count, device=generator.device).repeat(blocks)
    spread = torch.rand(len(place), generator=generator, device=generator.device)
    place = (place + spread) / count  # in [0, 1]
    steps = schedule.config["num_train_timesteps"]
    return (place * steps).long().clamp(max=steps - 1)  # rounding may give place 1


def diffusion_target(
    schedule: DDPMScheduler, latent: Tensor, noise: Tensor, timesteps: Tensor
) -> Tensor:
    """What the UNet shall predict: noise, or v; shaped like the latent (B, C, h, w)."""
    kind = schedule.config["prediction_type"]
    if kind == "epsilon":
        return noise
    if kind == "v_prediction":
        return schedule.get_velocity(latent, noise, timesteps)
    raise PFStorerError(f"The prediction type is {kind!r}; expected epsilon or v_prediction.")


def predicted_latent(
    schedule: DDPMScheduler, noisy: Tensor, prediction: Tensor, timesteps: Tensor
) -> Tensor:
    """The clean latent that a prediction means, (B, C, h, w); arguments as in `diffusion_loss`."""
    alpha = schedule.alphas_cumprod.to(noisy)[timesteps][:, None, None, None]
    if schedule.config["prediction_type"] == "v_prediction":
        return alpha.sqrt() * noisy - (1 - alpha).sqrt() * prediction
    return (noisy - (1 - alpha).sqrt() * prediction) / alpha.sqrt()


def diffusion_loss(
    schedule: DDPMScheduler,
    prediction: Tensor,
    target: Tensor,
    timesteps: Tensor,
    snr_gamma: float | None,
) -> Tensor:
    """Mean squared error per item, (B,), weighted by min(SNR, gamma) in terms of the clean latent.

    Args:
        prediction, target: (B, C, h, w).
        timesteps: (B,) of the schedule.
        snr_gamma: None for the plain error.

    Source: Efficient Diffusion Training via Min-SNR Weighting Strategy (arXiv 2303.09556),
        equation 8.
    """
    error = (prediction.float() - target.float()).pow(2).mean((1, 2, 3))
    if snr_gamma is None:
        return error
    from diffusers.training_utils import compute_snr

    snr = compute_snr(schedule, timesteps)
    weight = torch.clamp(snr, max=snr_gamma)
    weight = weight / (snr + 1 if schedule.config["prediction_type"] == "v_prediction" else snr)
    return error * weight
