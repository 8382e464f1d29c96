"""Tests of the mini restorer's autoencoder."""

import torch

from pfstorer_core.drawn.portraits import portrait_set
from pfstorer_core.restorers.autoencoder import AutoencoderConfig, PatchAutoencoder


def small(channels: int = 12) -> PatchAutoencoder:
    config = AutoencoderConfig(
        patch=4, latent_channels=channels, encoder_width=16, decoder_width=16, decoder_depth=1
    )
    return PatchAutoencoder(config)


def portraits(count: int, first: int = 0) -> torch.Tensor:
    return torch.cat([portrait_set(first + n, 1, seed=n, size=64) for n in range(count)]) * 2 - 1


def test_shapes():
    autoencoder = small()
    latent = autoencoder.encode(torch.zeros(2, 3, 32, 48))
    assert latent.shape == (2, 12, 8, 12)
    assert autoencoder.decode(latent).shape == (2, 3, 32, 48)


def test_pca_start_is_the_best_linear_map():
    """With all channels the PCA is lossless; with fewer it beats any other choice of axes."""
    images = portraits(8)
    full = small(48)
    full.start_from_pca(images)
    assert torch.allclose(full.decode(full.encode(images)), images, atol=1e-4)

    few = small(12)
    few.start_from_pca(images)
    error = (few.decode(few.encode(images)) - images).pow(2).mean()
    patches = torch.nn.functional.pixel_unshuffle(images, 4).movedim(1, -1).flatten(0, -2)
    values = torch.linalg.eigvalsh(torch.cov(patches.T.double()))
    expected = values[:-12].sum() / 48  # the discarded variance per pixel value
    assert torch.isclose(error, expected.float(), rtol=1e-2)


def test_pca_start_gives_the_latent_unit_scale():
    images = portraits(8)
    autoencoder = small()
    autoencoder.start_from_pca(images)
    assert abs(autoencoder.encode(images).std() - 1) < 0.05


def refined() -> PatchAutoencoder:
    config = AutoencoderConfig(
        latent_channels=12, encoder_width=16, decoder_width=16, decoder_depth=1, refine_width=8
    )
    torch.manual_seed(0)
    return PatchAutoencoder(config)


def test_silent_refinement_is_the_decoder_without_one():
    autoencoder, plain = refined(), small()
    plain.load_state_dict(
        {k: v for k, v in autoencoder.state_dict().items() if not k.startswith("refine")}
    )
    latent = autoencoder.encode(portraits(2))
    assert not torch.allclose(autoencoder.decode(latent), plain.decode(latent), atol=1e-4)
    autoencoder.silence_refinement()
    assert torch.equal(autoencoder.decode(latent), plain.decode(latent))


def test_refinement_sees_over_the_borders_of_patches():
    """A change in one latent cell reaches pixels of its neighbours' patches."""
    config = AutoencoderConfig(
        latent_channels=12, encoder_width=16, decoder_width=8, decoder_depth=0, refine_width=8
    )
    autoencoder = PatchAutoencoder(config)
    torch.nn.init.zeros_(autoencoder.decoder.head.weight)  # the decoder's linear path alone
    latent = torch.zeros(1, 12, 5, 5)
    other = latent.clone()
    other[..., 2, 2] = 1
    changed = (autoencoder.decode(latent) != autoencoder.decode(other)).any(1)[0]
    assert changed[8:12, 8:12].all()
    assert changed[5:8, 8:12].any() and not changed[:5].any()  # three convolutions reach 3 px
