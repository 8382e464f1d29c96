"""Degradation with chosen values."""

import dataclasses
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from pfstorer_core.degradation.exact import (
    WIDEST_BLUR,
    ExactDegradation,
    blur_in_pixels,
    degrade_exactly,
)
from pfstorer_core.degradation.jpeg import jpeg
from pfstorer_core.degradation.kernels import blur_kernel, filter_image
from pfstorer_core.errors import PFStorerError
from pfstorer_core.pictures.resizing import resize_bicubic

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


def test_a_wide_blur_is_that_of_the_whole_kernel() -> None:
    """It is done at a smaller size: near to the full kernel; one less wide equals it."""
    torch.manual_seed(2)
    image = resize_bicubic(torch.rand(1, 3, 7, 5), (420, 300))
    for sigma, tolerance in ((64.0, 0.6 / 255), (65.0, 2 / 255), (150.0, 2 / 255)):
        exact = ExactDegradation(blur=sigma / 2)
        blurred = degrade_exactly(image, exact, generator(), person=1024)
        expected = filter_image(image, blur_kernel(sigma, sigma))
        assert torch.allclose(blurred, expected, atol=tolerance), sigma
    assert torch.equal(
        degrade_exactly(image, ExactDegradation(blur=32.0), generator(), person=1024),
        filter_image(image, blur_kernel(64.0, 64.0)).mul(255).round() / 255,
    )


class LargestTensor(TorchFunctionMode):
    """Notes the values of the largest tensor that any function returns."""

    def __init__(self) -> None:
        super().__init__()
        self.values = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.values = max(self.values, result.numel())
        return result


@pytest.mark.parametrize("size", [(3072, 3072), (2, 8192), (8192, 65), (1, 1)])
def test_the_widest_blurs_take_little_memory(size: tuple[int, int]) -> None:
    ramp = torch.linspace(0, 1, max(size)).mul(255).round() / 255
    image = (ramp if size[1] == max(size) else ramp[:, None]).expand(1, 3, *size)
    widest = min(16384, int(WIDEST_BLUR * max(size) * 512 / 100))
    for person in (0, widest):
        with LargestTensor() as largest:
            result = degrade_exactly(image, ExactDegradation(blur=100.0), generator(), person)
        assert result.shape == image.shape
        assert float((result.mean() - image.mean()).abs()) < 0.01
        assert image.numel() <= largest.values < 1.5 * image.numel() + 3 * 1300**2


def test_a_blur_wider_than_the_picture_is_refused() -> None:
    image = torch.full((1, 3, 64, 64), 0.5)
    with pytest.raises(PFStorerError, match=r"sigma of 3200 px in a picture of 64 x 64.*lower"):
        degrade_exactly(image, ExactDegradation(blur=100.0), generator(), person=16384)


@pytest.mark.parametrize(
    "values", [{"blur": -1.0}, {"downsample": 0.5}, {"noise": float("nan")}, {"jpeg_quality": 101}]
)
def test_impossible_values_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(PFStorerError, match=f"{next(iter(values))} is .*; give a number"):
        ExactDegradation(**values)


def test_wrong_pictures_are_refused() -> None:
    with pytest.raises(PFStorerError, match="expected 0 to 1"):
        degrade_exactly(torch.full((1, 3, 8, 8), 255.0), ALL, generator())
