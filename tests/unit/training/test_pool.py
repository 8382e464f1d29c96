"""Tests of the latent pool."""

import pytest
import torch

from pfstorer_core.degradation.presets import PRESETS
from pfstorer_core.errors import PFStorerError
from pfstorer_core.training.pool import LatentPool, degrade_mixed


def test_draw_repeats_with_the_generator():
    clean = torch.randn(8, 4, 2, 2).half()
    pool = LatentPool(clean, clean + 1)
    first, second = (pool.draw(3, torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert torch.allclose(first[1], first[0] + 1, atol=0.01), "pairs stay together"
    assert first[0].dtype == torch.float32


def test_mixed_degradation_uses_every_config():
    """With weight on one preset alone, the result has its strength."""
    images = torch.nn.functional.interpolate(
        torch.rand(6, 3, 16, 16), size=64, mode="bicubic"
    ).clamp(0, 1)
    weak, strong = PRESETS["light"], PRESETS["extreme"]
    losses = []
    for weights in ((1.0, 0.0), (0.5, 0.5), (0.0, 1.0)):
        mixed = degrade_mixed(
            images,
            list(zip(weights, (weak, strong), strict=True)),
            torch.Generator().manual_seed(0),
        )
        losses.append((mixed - images).pow(2).mean((1, 2, 3)))
    assert losses[0].mean() < losses[1].mean() < losses[2].mean()


def test_errors():
    with pytest.raises(PFStorerError, match="differ in shape"):
        LatentPool(torch.zeros(1, 4, 2, 2), torch.zeros(2, 4, 2, 2))
