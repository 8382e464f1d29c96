"""Faces are turned upright and scaled to the places that recognition networks expect."""

import cmath

import pytest
import torch

from pfstorer_core.errors import PFStorerError
from pfstorer_core.measures.face_crops import POINTS, SIDE, aligned_face

PLACES = torch.tensor(POINTS)


def spots(points: torch.Tensor, height: int, width: int, radius: float) -> torch.Tensor:
    """A dark picture (3, height, width) with a bright spot at each of the points (5, 2)."""
    y = torch.arange(height)[:, None]
    x = torch.arange(width)[None, :]
    near = [((x - px) ** 2 + (y - py) ** 2) / radius**2 for px, py in points.tolist()]
    return torch.exp(-torch.stack(near)).amax(0).expand(3, -1, -1)


def centre(image: torch.Tensor, near: torch.Tensor) -> torch.Tensor:
    """The (x, y) of the spot of an image (H, W) that lies near a point."""
    y = torch.arange(image.shape[0])[:, None].expand_as(image)
    x = torch.arange(image.shape[1])[None, :].expand_as(image)
    weight = image * (((x - near[0]).abs() < 6) & ((y - near[1]).abs() < 6))
    return torch.stack([(weight * x).sum(), (weight * y).sum()]) / weight.sum()


def test_a_crop_that_is_aligned_already_stays() -> None:
    picture = torch.rand(3, SIDE, SIDE)
    assert torch.allclose(aligned_face(picture, PLACES), picture, atol=1e-4)


@pytest.mark.parametrize(("scale", "degrees"), [(0.6, 0), (1.0, 25), (4.3, -40), (2.0, 180)])
def test_the_points_come_to_their_places(scale: float, degrees: float) -> None:
    turn = scale * cmath.exp(1j * cmath.pi * degrees / 180)
    moved = [turn * (complex(*point) - 56 - 60j) + 300 + 280j for point in POINTS]
    points = torch.tensor([[z.real, z.imag] for z in moved])
    crop = aligned_face(spots(points, 560, 620, 2.5 * max(scale, 1.0)), points)
    assert crop.shape == (3, SIDE, SIDE)
    for place in PLACES:
        assert torch.allclose(centre(crop[0], place), place, atol=0.35)


def test_a_large_face_is_smoothed_before_it_is_made_small() -> None:
    """A fine checkerboard becomes grey and no coarse pattern."""
    board = (torch.arange(1024)[:, None] + torch.arange(1024)[None, :]) % 2
    crop = aligned_face(board.expand(3, -1, -1).float(), PLACES * 9)
    assert (crop - 0.5).abs().max() < 0.05


def test_a_crop_of_another_side() -> None:
    points = PLACES * 2
    picture = spots(points, 224, 224, 6.0)
    assert torch.allclose(aligned_face(picture, points, side=224), picture, atol=1e-4)


@pytest.mark.parametrize(
    "points", [torch.zeros(5, 2), torch.zeros(4, 2), torch.full((5, 2), torch.nan)]
)
def test_points_of_no_face_are_refused(points: torch.Tensor) -> None:
    with pytest.raises(PFStorerError):
        aligned_face(torch.rand(3, 64, 64), points)
