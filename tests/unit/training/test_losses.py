"""Tests of the diffusion losses."""

import json

import pytest
import torch

from pfstorer_core.errors import PFStorerError
from pfstorer_core.training.losses import diffusion_loss, diffusion_target, noise_schedule


def test_schedule_is_stable_diffusions(goldens):
    facts = json.loads((goldens.folder / "sampling_start.json").read_text())["alphas_cumprod_at"]
    schedule = noise_schedule("epsilon")
    for timestep, value in facts.items():
        assert schedule.alphas_cumprod[int(timestep)].item() == pytest.approx(value, rel=1e-5)


def test_target_recovers_the_latent():
    schedule = noise_schedule("v_prediction")
    latent, noise = torch.randn(2, 3, 4, 4, 4)
    timesteps = torch.tensor([3, 500, 998])
    noisy = schedule.add_noise(latent, noise, timesteps)
    v = diffusion_target(schedule, latent, noise, timesteps)
    alpha = schedule.alphas_cumprod[timesteps].sqrt()[:, None, None, None]
    sigma = (1 - alpha**2).sqrt()
    assert torch.allclose(alpha * noisy - sigma * v, latent, atol=1e-5)
    assert torch.equal(diffusion_target(noise_schedule("epsilon"), latent, noise, timesteps), noise)


def test_weight_is_min_snr_of_the_latent_error():
    """An error e in the latent costs min(SNR, gamma) e^2, whatever the UNet predicts."""
    latent, noise = torch.randn(2, 4, 2, 4, 4)
    timesteps = torch.tensor([10, 200, 500, 900])
    offset = 0.1 * torch.randn(4, 2, 4, 4)
    losses = []
    for kind in ("epsilon", "v_prediction"):
        schedule = noise_schedule(kind)
        alpha = schedule.alphas_cumprod[timesteps].sqrt()[:, None, None, None]
        sigma = (1 - alpha**2).sqrt()
        target = diffusion_target(schedule, latent, noise, timesteps)
        # the prediction whose implied latent is `latent + offset`, for this noisy latent
        error = -alpha / sigma * offset if kind == "epsilon" else -offset / sigma
        losses.append(diffusion_loss(schedule, target + error, target, timesteps, 5.0))
    snr = (alpha / sigma).pow(2).flatten()
    expected = torch.clamp(snr, max=5.0) * offset.pow(2).mean((1, 2, 3))
    assert torch.allclose(losses[0], expected, rtol=1e-4)
    assert torch.allclose(losses[1], expected, rtol=1e-4)


def test_unknown_prediction_type_is_named():
    schedule = noise_schedule("sample")
    with pytest.raises(PFStorerError, match="sample"):
        diffusion_target(schedule, *torch.zeros(2, 1, 1, 2, 2), torch.tensor([1]))
