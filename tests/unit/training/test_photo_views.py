"""Tests of the views of photos that a base restorer is trained on."""

import pytest
import torch
from PIL import Image

from pfstorer_core.errors import PFStorerError
from pfstorer_core.pictures.photos import list_photos
from pfstorer_core.training.photo_views import PhotoViews, ViewMixture, _inset_mask

SIZE = 64


@pytest.fixture
def photos(tmp_path):
    """A red tight photo, a green wide one, a large blue one."""
    for folder, colour, side in (
        ("tight", (255, 0, 0), 80),
        ("wide", (0, 255, 0), 100),
        ("large", (0, 0, 255), 4 * SIZE),
    ):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (side, side + 10), colour).save(tmp_path / folder / "photo.png")
    return list_photos([tmp_path])


def views(photos, count=40, seed=0, **shares):
    mixture = ViewMixture(**{"wide": 0.5, "inset": 0.0, "part": 0.0, **shares})
    source = PhotoViews(photos, SIZE, ["tight"], mixture)
    return source.draw(count, torch.Generator().manual_seed(seed))


def colours(batch):
    """The strongest channel of each view, and whether it is the only one."""
    means = batch.mean((2, 3))
    return means.argmax(1).tolist(), (means.sort(1).values[:, :2].amax(1) < 0.05).tolist()


def test_shares_of_the_kinds(photos):
    strongest, _ = colours(views(photos, wide=0.0))
    assert set(strongest) == {0}
    strongest, _ = colours(views(photos, wide=1.0))
    assert set(strongest) == {1, 2}
    strongest, _ = colours(views(photos, part=1.0))
    assert set(strongest) == {2}, "parts of faces come from photos that are large enough"


def test_insets_stand_in_scenes_of_others(photos):
    _, alone = colours(views(photos, inset=1.0))
    assert 0.2 < sum(alone) / len(alone) < 0.8  # the rest is among or before other photos


def test_drawn_portraits_need_no_photo():
    generator = torch.Generator().manual_seed(0)
    batch = PhotoViews([], SIZE).draw(3, generator)
    assert batch.shape == (3, 3, SIZE, SIZE)
    assert batch.amin() >= 0 and batch.amax() <= 1
    assert batch.std((1, 2, 3)).min() > 0.02


def test_views_are_a_function_of_the_generator(photos):
    shares = {"inset": 0.4, "part": 0.2}
    assert torch.equal(views(photos, 8, **shares), views(photos, 8, **shares))
    assert not torch.equal(views(photos, 8, **shares), views(photos, 8, seed=1, **shares))


@pytest.mark.parametrize(("top", "left"), [(0, 0), (10, 44), (44, 20)])
def test_an_inset_fades_at_its_own_edges_alone(top, left):
    mask = _inset_mask(SIZE, 20, top, left, 4.0)[0]
    assert mask[top + 8 : top + 12, left + 8 : left + 12].min() == 1
    outside = mask.clone()
    outside[top : top + 20, left : left + 20] = 0
    assert outside.max() == 0
    assert (mask[top, left + 10] == 1) == (top == 0)


def test_errors():
    with pytest.raises(PFStorerError, match="'wide' is 1\\.5"):
        ViewMixture(wide=1.5)
    with pytest.raises(PFStorerError, match="sum to more than 1"):
        ViewMixture(inset=0.7, part=0.5)
