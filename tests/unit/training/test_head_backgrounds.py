"""Tests of the backgrounds of the head detector's scenes."""

import pytest
import torch

from pfstorer_core.training.head_backgrounds import background, leaves


@pytest.mark.parametrize("size", [(40, 40), (24, 90)])
def test_backgrounds_are_pictures_of_their_seed(size: tuple[int, int]) -> None:
    photos = [torch.arange(3 * 50 * 70).reshape(3, 50, 70).remainder(251).byte()]
    drawn = []
    for _ in range(2):
        generator = torch.Generator().manual_seed(3)
        drawn.append(torch.stack([background(size, photos, generator) for _ in range(12)]))
    assert drawn[0].shape == (12, 3, *size)
    assert drawn[0].min() >= 0 and drawn[0].max() <= 1
    assert torch.equal(drawn[0], drawn[1])
    assert len({tuple(picture.flatten().tolist()) for picture in drawn[0]}) == 12


def test_patterns_need_no_photo(generator: torch.Generator) -> None:
    assert bool(background((32, 32), (), generator).isfinite().all())


def test_leaves_cover_a_part(generator: torch.Generator) -> None:
    before = torch.full((3, 64, 64), 0.5)
    after = leaves(before, generator)
    changed = (after != before).any(0).float().mean()
    assert 0 < changed < 1
