"""At which size a small restorer works, and what it leaves alone."""

import pytest
import torch
from torch import Tensor

from pfstorer_core.drawn.portraits import portrait_set
from pfstorer_core.pictures.resizing import resize_bicubic
from pfstorer_core.tiling.working_size import Size, working_size

SIZE = 512, 512


@pytest.fixture(scope="module")
def portrait() -> Tensor:
    """A sharp portrait (1, 3, 512, 512) in [0, 1]."""
    return portrait_set(7, 1, 0, 512)


def blurred(picture: Tensor, factor: int) -> Tensor:
    height, width = picture.shape[2:]
    small = resize_bicubic(picture, (height // factor, width // factor))
    return resize_bicubic(small, (height, width))


def size_of(images: Tensor, known: float) -> Size:
    return working_size(images, SIZE, known)[0]


def kept(images: Tensor, known: float) -> list[bool]:
    return list(working_size(images, SIZE, known)[1].tolist())


def test_what_is_blurred_is_restored_at_the_size_that_shows_it_sharply(portrait: Tensor) -> None:
    sides = [size_of(blurred(portrait, factor), 128 / 512)[0] for factor in (1, 8)]
    assert sides == [512, 256]  # faces of 256 px pictures are not large for 128 px


def test_a_restorer_of_larger_faces_works_at_the_full_size(portrait: Tensor) -> None:
    assert size_of(blurred(portrait, 8), 256 / 512) == SIZE


def test_faces_that_are_known_to_be_larger_take_more_halves(portrait: Tensor) -> None:
    picture = blurred(portrait, 32)
    sides = [size_of(picture, known)[0] for known in (1 / 16, 1 / 8, 1 / 4, 1 / 2)]
    assert sides == [64, 128, 256, 512]


def test_the_sharpest_of_a_batch_decides(portrait: Tensor) -> None:
    batch = torch.cat([blurred(portrait, 8), portrait])
    assert size_of(batch, 128 / 512) == SIZE


def test_sharp_pictures_are_told_from_blurred_and_noisy_ones(portrait: Tensor) -> None:
    noise = 0.08 * torch.randn(portrait.shape, generator=torch.Generator().manual_seed(1))
    noisy = (blurred(portrait, 4) + noise).clamp(0, 1)
    pictures = torch.cat([portrait, blurred(portrait, 4), noisy])
    assert kept(pictures, 128 / 512) == [True, False, False]
    # what is scaled up is not sharp at its new size
    small = resize_bicubic(portrait, (128, 128))
    assert kept(small, 1.0) == [False]


def test_no_picture_of_faces_that_the_restorer_knows_is_too_sharp_for_it(portrait: Tensor) -> None:
    assert kept(portrait, 128 / 512) == [True]
    assert kept(portrait, 256 / 512) == [False]
