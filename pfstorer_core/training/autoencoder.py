"""Training of a bundled restorer's autoencoder."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..drawn.painting import draw
from ..drawn.portraits import sample_identities, sample_views
from ..restorers.autoencoder import PatchAutoencoder
from .base import RestorerNetwork, restore_latents
from .loop import Objective, on_device
from .losses import predicted_latent, stratified_timesteps
from .pool import Pairs

if TYPE_CHECKING:
    from diffusers import DDPMScheduler

TRAIN_IDENTITIES = 20_000  # numbers below are for training
UNSEEN = 1_000_000  # all measurements use numbers from here on
_SPREAD_WEIGHT = 0.01
_KEEP_WEIGHT = 0.5
_GRID_WEIGHT = 4.0
_GRID_WINDOWS = (4, 16)  # patches: what is seen in a flat place, and what runs through a picture


def random_portraits(
    count: int,
    generator: torch.Generator,
    size: int,
    *,
    first: int = 0,
    last: int = TRAIN_IDENTITIES,
) -> Tensor:
    """Portraits of random identities in [first, last): (count, 3, size, size) in [0, 1].

    Args:
        count: number of portraits.
        generator: what persons and views are drawn with.
        size: height and width in pixels.
        first, last: range of identity numbers.
    """
    numbers = torch.randint(first, last, (count,), generator=generator).tolist()
    views = sample_views(count, generator)
    with torch.no_grad():
        return draw(sample_identities(numbers).values, views.values, size)


def autoencoder_objective(pairs: Pairs, batch: int, latent_noise: float = 0.05) -> Objective:
    """L1 between pictures and their round trip, with a little noise on the latent.

    The noise makes the decoder forgive the small errors that a diffusion model leaves in a latent.
    One picture in five is an LQ one: the restorer encodes those as well.

    Args:
        pairs: of pictures in [0, 1].
        batch: pictures per step.
        latent_noise: its standard deviation is drawn per picture in [0, latent_noise].
    """

    def objective(model: nn.Module, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        device = next(model.parameters()).device
        generator = on_device(generator, device)
        clean, lq = (x.to(device) for x in pairs.draw(batch, generator))
        bad = batch // 5
        image = torch.cat([clean[bad:], lq[:bad]]) * 2 - 1  # (B, 3, H, W)
        sigma = torch.rand(batch, 1, 1, 1, generator=generator, device=device) * latent_noise
        output, latent = model(image, sigma, generator)
        error = F.l1_loss(output.float(), image)
        spread = (latent.float().pow(2).mean() - 1).pow(2)  # keeps the latent's global scale at one
        mse = F.mse_loss(output.float(), image).detach() / 4  # of pictures in [0, 1]
        return error + _SPREAD_WEIGHT * spread, {"psnr": -10 * torch.log10(mse)}

    return objective


class NoisyRoundTrip(nn.Module):
    """The autoencoder as it is trained: image -> latent + noise -> image."""

    def __init__(self, autoencoder: PatchAutoencoder):
        super().__init__()
        self.autoencoder = autoencoder

    def forward(
        self, image: Tensor, sigma: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) in [-1, 1], (B, 1, 1, 1) -> picture, latent without the noise."""
        latent = self.autoencoder.encode(image)
        noise = torch.randn(latent.shape, generator=generator, device=latent.device)
        return self.autoencoder.decode(latent + sigma * noise), latent


def decoder_objective(
    pairs: Pairs,
    network: RestorerNetwork,
    schedule: DDPMScheduler,
    before: PatchAutoencoder,
    batch: int,
    *,
    steps: int = 4,
    latent_noise: float = 0.05,
) -> Objective:
    """Teaches the decoder what a restorer's latents are like, and to leave no grid of patches.

    A third of the pictures each is decoded from
    1. their own latents with a little noise, and shall be themselves;
    2. what the restorer makes of them at low noise, and shall be themselves;
    3. latents restored from pure noise, whose details are made up: they shall stay what the decoder
       made of them before.
    None shall have more of a pattern that repeats with the patches than the clean picture has.

    Args:
        pairs: of pictures in [0, 1].
        network: the trained restorer.
        schedule: its noise schedule.
        before: the autoencoder as it was; its encoder stays.
        batch: pictures per step, a multiple of 3.
        steps: of the restoration from pure noise.
        latent_noise: see `autoencoder_objective`.
    """
    patch, third = before.config.patch, batch // 3

    def latents_of(clean: Tensor, lq: Tensor, generator: torch.Generator) -> Tensor:
        device = clean.device
        latent, lq_latent = before.encode(torch.cat([clean, lq])).chunk(2)
        noise = torch.randn(latent.shape, generator=generator, device=device)
        own, near, far = latent.split(third)
        sigma = torch.rand(third, 1, 1, 1, generator=generator, device=device) * latent_noise
        own = own + sigma * noise[:third]
        timesteps = stratified_timesteps(schedule, third, generator) * 2 // 5  # low noise
        noisy = schedule.add_noise(near, noise[third : 2 * third], timesteps)
        prediction = network(noisy, timesteps, lq_latent[third : 2 * third]).float()
        near = predicted_latent(schedule, noisy, prediction, timesteps)
        seed = int(torch.randint(2**31, (), generator=generator, device=device))
        far = restore_latents(network, schedule, lq_latent[2 * third :], steps=steps, seed=seed)
        return torch.cat([own, near, far.float()])

    def objective(model: nn.Module, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        device = next(model.parameters()).device
        generator = on_device(generator, device)
        clean, lq = (x.to(device) * 2 - 1 for x in pairs.draw(3 * third, generator))
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
            latent = latents_of(clean, lq, generator)
            kept = before.decode(latent[2 * third :]).float()
        output = model(latent).float()  # (B, 3, H, W)
        error = F.l1_loss(output[: 2 * third], clean[: 2 * third])
        change = F.l1_loss(output[2 * third :], kept)
        excess = torch.stack(
            [
                F.relu(patch_grid(output, patch, n) - patch_grid(clean, patch, n)).mean()
                for n in _GRID_WINDOWS
            ]
        ).sum()
        loss = error + _KEEP_WEIGHT * change + _GRID_WEIGHT * excess
        return loss, {"error": error, "change": change, "grid": excess}

    return objective


def patch_grid(images: Tensor, patch: int, window: int = 4) -> Tensor:
    """Amplitude of what repeats with the patches, locally.

    Fine structure (the picture less its means over a patch) is averaged at each place inside a
    patch over `window` x `window` patches. Details cancel there; a decoder's grid does not.

    Args:
        images: (B, C, H, W), sides multiples of patch * window.
        patch: pixels of the grid's period.
        window: patches per axis that are averaged.

    Returns:
        (B, H / patch / window, W / patch / window), in the values' unit.
    """
    means = F.avg_pool2d(F.pad(images, [patch // 2, patch // 2 - 1] * 2, "replicate"), patch, 1)
    phases = F.pixel_unshuffle(images - means, patch)  # (B, C * patch^2, h, w)
    phases = F.avg_pool2d(phases, window).unflatten(1, (images.shape[1], -1))
    phases = phases - phases.mean(2, keepdim=True)  # (B, C, patch^2, h / window, w / window)
    return (phases.pow(2).mean((1, 2)) + 1e-8).sqrt()


class Decoding(nn.Module):
    """The autoencoder whose decoder is trained: latent -> image."""

    def __init__(self, autoencoder: PatchAutoencoder):
        super().__init__()
        self.autoencoder = autoencoder.requires_grad_(True)
        autoencoder.encoder.requires_grad_(False)

    def forward(self, latent: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, 3, H, W), about [-1, 1]."""
        return self.autoencoder.decode(latent)
