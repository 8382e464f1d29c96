"""Training of the mini restorer's autoencoder on procedural portraits."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..autoencoder import AutoencoderConfig, PatchAutoencoder
from ..painting import draw
from ..portraits import sample_identities, sample_views
from .loop import Objective

Draw = Callable[[dict[str, Tensor], dict[str, Tensor], int], Tensor]

TRAIN_IDENTITIES = 20_000  # numbers below are for training
UNSEEN = 1_000_000  # all measurements use numbers from here on
_SPREAD_WEIGHT = 0.01


def random_portraits(
    count: int,
    generator: torch.Generator,
    size: int,
    *,
    draw: Draw = draw,
    first: int = 0,
    last: int = TRAIN_IDENTITIES,
) -> Tensor:
    """Portraits of random identities in [first, last): (count, 3, size, size) in [0, 1].

    Args:
        count: number of portraits.
        generator: what persons and views are drawn with.
        size: height and width in pixels.
        draw: the renderer; pass `torch.compile(painting.draw)` for speed.
        first, last: range of identity numbers.
    """
    numbers = torch.randint(first, last, (count,), generator=generator).tolist()
    views = sample_views(count, generator)
    with torch.no_grad():
        return draw(sample_identities(numbers).values, views.values, size)


def autoencoder_objective(
    config: AutoencoderConfig, batch: int, size: int, draw: Draw, latent_noise: float = 0.05
) -> Objective:
    """L1 between portraits and their round trip, with a little noise on the latent.

    The noise makes the decoder forgive the small errors that a diffusion model leaves in a latent.

    Args:
        config: sizes of the autoencoder in the `NoisyRoundTrip` that is trained.
        batch: portraits per step.
        size: their height and width in pixels.
        draw: see `random_portraits`.
        latent_noise: its standard deviation is drawn per picture in [0, latent_noise].
    """
    cells = size // config.patch  # per axis of the latent

    def objective(model: nn.Module, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        image = random_portraits(batch, generator, size, draw=draw) * 2 - 1
        sigma = torch.rand(batch, 1, 1, 1, generator=generator) * latent_noise
        shape = (batch, config.latent_channels, cells, cells)
        noise = torch.randn(shape, generator=generator) * sigma
        output, latent = model(image, noise)
        error = (output.float() - image).abs().mean()
        spread = (latent.float().pow(2).mean() - 1).pow(2)  # keeps the latent's global scale at one
        mse = F.mse_loss(output.float(), image).detach() / 4  # of pictures in [0, 1]
        return error + _SPREAD_WEIGHT * spread, {"psnr": -10 * torch.log10(mse)}

    return objective


class NoisyRoundTrip(nn.Module):
    """The autoencoder as it is trained: image -> latent + noise -> image."""

    def __init__(self, autoencoder: PatchAutoencoder):
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, image: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) in [-1, 1], noise like the latent -> picture, latent without the noise."""
        latent = self.autoencoder.encode(image)
        return self.autoencoder.decode(latent + noise), latent
