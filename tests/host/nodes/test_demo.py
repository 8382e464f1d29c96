"""Demo Group Photo in this process, as ComfyUI's loader made it."""

from typing import Any

import pytest
import torch


def group(pack: Any, *identities: int, size: tuple[int, int] = (192, 96), **others: Any) -> tuple:
    settings = {"seed": 3, "degradation": "none", **others}
    return pack.node("PFStorerDemoGroup").execute(*identities, *size, **settings).args


def test_each_person_has_a_mask(pack: Any) -> None:
    image, *masks = group(pack, 4, 5, 6)
    assert image.shape == (1, 96, 192, 3)
    assert 0 <= image.min() and image.max() <= 1
    places = []
    for mask in masks:
        assert mask.shape == (1, 96, 192)
        assert mask.max() == 1
        places.append(float((mask[0].sum(0) * torch.arange(192)).sum() / mask.sum()))
    assert places == sorted(places), "from left to right"
    assert sum(masks).max() <= 1 + 1e-6


@pytest.mark.parametrize("identities", [(4, -1, 6), (4, 6, -1)])
def test_nobody_has_an_empty_mask_and_leaves_no_gap(
    pack: Any, identities: tuple[int, int, int]
) -> None:
    image, *masks = group(pack, *identities)
    both, *_ = group(pack, 4, 6, -1)
    assert torch.equal(image, both)
    assert [bool(mask.any()) for mask in masks] == [number >= 0 for number in identities]


def test_the_degraded_picture_shows_the_same_people(pack: Any) -> None:
    clean, *masks = group(pack, 4, 5, -1)
    spoilt, *same = group(pack, 4, 5, -1, degradation="medium")
    assert spoilt.shape == clean.shape
    assert all(torch.equal(a, b) for a, b in zip(masks, same, strict=True))
    other, *_ = group(pack, 4, 5, -1, seed=4)
    assert 0 < (spoilt - clean).abs().mean() < (other - clean).abs().mean()


def test_it_makes_no_photo_too_small_for_its_people(pack: Any) -> None:
    node = pack.node("PFStorerDemoGroup")
    least = {entry.id: entry for entry in node.define_schema().inputs}
    size = (least["width"].min, least["height"].min)
    assert group(pack, 1, 2, 3, size=size)[0].shape == (1, size[1], size[0], 3)
