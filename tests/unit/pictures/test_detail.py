"""The degradation level of pictures."""

from itertools import pairwise

import pytest
import torch

from pfstorer_core.degradation.presets import PRESETS
from pfstorer_core.degradation.second_order import degrade
from pfstorer_core.drawn.portraits import portrait_set
from pfstorer_core.identities.automatic_gamma import gamma_for
from pfstorer_core.pictures.detail import degradation_level
from pfstorer_core.pictures.resizing import resize_bicubic

LEVELS = ("light", "medium", "extreme")


@pytest.fixture(scope="module")
def clean() -> torch.Tensor:
    return torch.cat([portrait_set(identity, 4, 3, 128) for identity in (61, 62, 63)])


def degraded(clean: torch.Tensor, preset: str) -> torch.Tensor:
    return degrade(clean, PRESETS[preset], torch.Generator().manual_seed(5))


def test_it_rises_with_the_degradation(clean) -> None:
    pictures = [clean, *(degraded(clean, preset) for preset in LEVELS)]
    means = [float(degradation_level(x).mean()) for x in pictures]
    assert all(after > before + 0.1 for before, after in pairwise(means)), means
    gammas = [float(gamma_for(degradation_level(x)).mean()) for x in pictures]
    assert gammas == sorted(gammas) and gammas[0] < gammas[-1]


def test_it_is_of_each_picture(clean) -> None:
    pictures = torch.cat([clean[:2], degraded(clean, "extreme")[:2]])
    together = degradation_level(pictures)
    alone = torch.cat([degradation_level(x[None]) for x in pictures])
    assert torch.equal(together, alone)


def test_noise_is_not_taken_for_detail(clean) -> None:
    small = resize_bicubic(resize_bicubic(clean, (24, 24)), (128, 128))
    noise = torch.randn(small.shape, generator=torch.Generator().manual_seed(0))
    noisy = (small + 0.03 * noise).clamp(0, 1)
    blurred, spoilt, sharp = (float(degradation_level(x).mean()) for x in (small, noisy, clean))
    assert blurred > sharp + 0.5 and spoilt > sharp + 0.6 * (blurred - sharp)


def test_it_looks_where_the_weight_is(clean) -> None:
    picture = torch.cat([clean[:1], degraded(clean, "extreme")[:1]], dim=3)  # (1, 3, 128, 256)
    left = torch.zeros(1, 1, 128, 256)
    left[..., :128] = 1
    assert degradation_level(picture, 1 - left) > degradation_level(picture, left) + 0.5


@pytest.mark.parametrize("shape", [(1, 3, 5, 7), (2, 3, 40, 130)])
def test_any_size_and_flat_pictures(shape: tuple[int, ...]) -> None:
    assert torch.equal(degradation_level(torch.full(shape, 0.5)), torch.zeros(shape[0]))
    empty = torch.zeros(shape[0], 1, *shape[2:])
    assert torch.equal(degradation_level(torch.rand(shape), empty), torch.zeros(shape[0]))
