import pytest
import torch

from pfstorer_core.drawn.portraits import portrait_set
from pfstorer_core.restorers.autoencoder import AutoencoderConfig, PatchAutoencoder
from pfstorer_core.training.autoencoder import Decoding, decoder_objective, patch_grid
from pfstorer_core.training.loop import LoopConfig, fit
from pfstorer_core.training.losses import noise_schedule


def portraits(count: int, first: int = 0) -> torch.Tensor:
    return torch.cat([portrait_set(first + n, 1, seed=n, size=64) for n in range(count)]) * 2 - 1


def refined() -> PatchAutoencoder:
    config = AutoencoderConfig(
        latent_channels=12, encoder_width=16, decoder_width=16, decoder_depth=1, refine_width=8
    )
    torch.manual_seed(0)
    return PatchAutoencoder(config)


def test_patch_grid_finds_a_grid_and_no_detail():
    """The amplitude of what is added is found; texture of the same amplitude is not."""
    generator = torch.Generator().manual_seed(0)
    flat = torch.zeros(1, 3, 64, 64)
    pattern = torch.randn(1, 3, 4, 4, generator=generator)
    pattern = 0.02 * (pattern - pattern.mean((2, 3), keepdim=True)) / pattern.std()
    grid = flat + pattern.repeat(1, 1, 16, 16)
    texture = flat + 0.02 * torch.randn(flat.shape, generator=generator)
    assert patch_grid(grid, 4).mean() == pytest.approx(pattern.pow(2).mean().sqrt().item(), rel=0.3)
    assert patch_grid(texture, 4).mean() < 0.35 * 0.02  # of 16 independent patches: a quarter
    assert patch_grid(flat, 4).max() < 1e-3
    ramp = torch.linspace(0, 1, 64).expand(1, 3, 64, 64)
    assert patch_grid(ramp, 4)[:, 1:-1, 1:-1].max() < 1e-3


class Exact(torch.nn.Module):
    """A restorer that knows the answer: it predicts v of a clean latent that it is given."""

    def __init__(self, autoencoder, clean):
        super().__init__()
        self.clean = autoencoder.encode(clean * 2 - 1).detach()

    def forward(self, noisy, timesteps, lq_latent):
        alpha = noise_schedule("v_prediction").alphas_cumprod[timesteps][:, None, None, None]
        clean = self.clean[: len(noisy)]
        noise = (noisy - alpha.sqrt() * clean) / (1 - alpha).sqrt()
        return alpha.sqrt() * noise - (1 - alpha).sqrt() * clean


def test_decoder_training_removes_a_grid_and_leaves_the_encoder(tmp_path):
    picture = (portraits(1) + 1) / 2
    autoencoder, before = refined(), refined()
    with torch.no_grad():
        for model in (autoencoder, before):
            model.start_from_pca(portraits(8))
            bias = 0.05 * torch.randn(48, generator=torch.Generator().manual_seed(1))
            model.decoder.linear.bias += bias  # the same in every patch
    encoder = [p.clone() for p in autoencoder.encoder.parameters()]

    class Same:
        def draw(self, count, generator):
            return picture.expand(count, -1, -1, -1), picture.expand(count, -1, -1, -1)

    objective = decoder_objective(
        Same(), Exact(before, picture), noise_schedule("v_prediction"), before, 3, steps=2
    )
    grids, model = [], Decoding(autoencoder)
    latent = before.encode(picture * 2 - 1)
    grids.append(patch_grid(autoencoder.decode(latent), 4).mean().item())
    config = LoopConfig(steps=60, warmup_steps=2, learning_rate=3e-3, ema_decay=0.5, sample_every=0)
    fit(model, objective, config, tmp_path, log_to_files=False)
    grids.append(patch_grid(autoencoder.decode(latent), 4).mean().item())
    assert grids[1] < 0.5 * grids[0]
    for kept, now in zip(encoder, autoencoder.encoder.parameters(), strict=True):
        assert torch.equal(kept, now)
