"""Degradation with chosen values."""

import dataclasses

import pytest
import torch

from pfstorer_core.degradation import jpeg, resize_bicubic
from pfstorer_core.errors import PFStorerError
from pfstorer_core.exact_degradation import ExactDegradation, blur_in_pixels, degrade_exactly
from pfstorer_core.kernels import blur_kernel, filter_image

ALL = ExactDegradation(blur=8.0, downsample=3.0, noise=10.0, jpeg_quality=50)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def images() -> torch.Tensor:
    """Two smooth pictures (2, 3, 96, 128), in steps of 1/255."""
    torch.manual_seed(1)
    smooth = resize_bicubic(torch.rand(2, 3, 12, 16), (96, 128))
    return smooth.mul(255).round() / 255


def test_nothing_chosen_changes_nothing(images: torch.Tensor) -> None:
    assert torch.equal(degrade_exactly(images, ExactDegradation(), generator()), images)


def test_each_value_does_what_it_says(images: torch.Tensor) -> None:
    first = images[:1]
    sigma = blur_in_pixels(8.0, 96, 128)
    assert sigma == pytest.approx(8 * (96 * 128) ** 0.5 / 512)
    assert blur_in_pixels(8.0, 3000, 2000, person=128) == 2.0
    blurred = degrade_exactly(first, ExactDegradation(blur=8.0), generator())
    expected = filter_image(first, blur_kernel(sigma, sigma))
    assert torch.allclose(blurred, expected, atol=0.6 / 255)
    small = degrade_exactly(first, ExactDegradation(downsample=3.0), generator())
    assert small.shape == (1, 3, 32, 43)
    assert torch.allclose(small, resize_bicubic(first, (32, 43)), atol=0.6 / 255)
    saved = degrade_exactly(first, ExactDegradation(jpeg_quality=30), generator())
    assert torch.equal(saved, jpeg(first, 30))


def test_the_noise_has_the_chosen_deviation() -> None:
    grey = torch.full((1, 3, 128, 128), 0.5)
    noisy = degrade_exactly(grey, ExactDegradation(noise=10.0), generator())
    assert float((noisy - grey).std()) * 255 == pytest.approx(10, rel=0.03)


def test_only_the_noise_depends_on_the_seed(images: torch.Tensor) -> None:
    quiet = dataclasses.replace(ALL, noise=0.0)
    first, second = (degrade_exactly(images, quiet, generator(k)) for k in (0, 1))
    assert torch.equal(first, second)
    first, again, second = (degrade_exactly(images, ALL, generator(k)) for k in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


def test_a_batch_equals_its_items_one_by_one(images: torch.Tensor) -> None:
    same = generator(3)
    alone = [degrade_exactly(item[None], ALL, same) for item in images]
    assert torch.equal(degrade_exactly(images, ALL, generator(3)), torch.cat(alone))


@pytest.mark.parametrize(
    "values", [{"blur": -1.0}, {"downsample": 0.5}, {"noise": float("nan")}, {"jpeg_quality": 101}]
)
def test_impossible_values_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(PFStorerError, match=f"{next(iter(values))} is .*; give a number"):
        ExactDegradation(**values)


def test_wrong_pictures_are_refused() -> None:
    with pytest.raises(PFStorerError, match="scale them"):
        degrade_exactly(torch.full((1, 3, 8, 8), 255.0), ALL, generator())
