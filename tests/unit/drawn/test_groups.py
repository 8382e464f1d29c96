"""Tests of pictures of several procedural people."""

import pytest
import torch
from torch import Tensor

from pfstorer_core.degradation.config import DegradationConfig, StageConfig
from pfstorer_core.degradation.second_order import degrade
from pfstorer_core.drawn.groups import album_page, degrade_people, group_photo
from pfstorer_core.drawn.painting import BEHIND_HEAD, HEAD, Frame, Window
from pfstorer_core.drawn.painting.camera import spread
from pfstorer_core.drawn.painting.figure import torso
from pfstorer_core.drawn.painting.hair import long_hair
from pfstorer_core.drawn.painting.people import head_mask, paint, paint_person
from pfstorer_core.drawn.portraits import portrait_set, render, sample_identities, sample_views
from pfstorer_core.errors import PFStorerError
from pfstorer_core.measures.similarity import load_embedding


@pytest.mark.parametrize(
    ("people", "height", "width"), [(1, 40, 33), (2, 64, 300), (3, 150, 96), (6, 50, 301)]
)
def test_a_group_has_masks_and_frames_within_the_picture(people: int, height: int, width: int):
    picture, masks, frames = group_photo(range(people), height, width, seed=4)
    assert picture.shape == (1, 3, height, width)
    assert picture.isfinite().all()
    assert 0 <= picture.min() and picture.max() <= 1
    assert masks.shape == (people, height, width)
    assert masks.dtype == torch.float32
    assert masks.min() == 0
    assert masks.sum(0).max() <= 1 + 1e-6
    for mask, (y, x, side) in zip(masks, frames, strict=True):
        assert 0 <= y <= height - side and 0 <= x <= width - side
        assert mask.max() == 1
        assert mask[y : y + side, x : x + side].sum() > 0.95 * mask.sum()


def test_a_group_depends_on_its_seed_alone():
    first, again = (group_photo([1, 2], 64, 128, seed=1) for _ in range(2))
    assert torch.equal(first.picture, again.picture)
    assert not torch.equal(first.picture, group_photo([1, 2], 64, 128, seed=2).picture)


def test_another_number_changes_that_person_alone():
    before, after = (group_photo([1, n, 3], 128, 384, seed=5) for n in (2, 7))
    assert before.frames == after.frames
    changed = (before.picture != after.picture).any(1)[0]  # (128, 384)
    own = torch.maximum(before.masks[1], after.masks[1]) > 0.5
    others = (before.masks[[0, 2]] > 0.5).any(0)
    assert changed[own].float().mean() > 0.5
    assert not changed[others].any()
    _, x, side = before.frames[1]
    changed[:, x : x + side] = False
    assert not changed.any()


def test_people_of_a_group_look_as_in_their_portraits():
    """Cut out by their frames they are found among twelve; a group's light is as a portrait's."""
    embedding = load_embedding()
    numbers = range(1_500_000, 1_500_012)
    known = torch.stack([embedding.embed(portrait_set(n, 4, seed=n)).mean(0) for n in numbers])
    found = []
    for first in range(0, 12, 3):
        picture, _, frames = group_photo(numbers[first : first + 3], 160, 480, seed=first)
        cuts = [picture[..., y : y + side, x : x + side] for y, x, side in frames]
        found.append(embedding.embed(torch.cat(cuts)) @ known.T)
    similarities = torch.cat(found)  # (12, 12)
    assert similarities.argmax(1).tolist() == list(range(12))
    assert similarities.diagonal().mean() > 0.85  # measured: 0.90, of portraits 0.90


def paint_all(picture: Tensor, who: dict, view: dict, frame: Frame, layers: tuple) -> Tensor:
    """Paints one person's layers over the whole of a copy of the picture."""
    painted = picture.clone()
    whole = Window(0, 0, *picture.shape[2:])
    paint(painted, spread(who), spread(view), frame, layers, whole)
    return painted


def people_and_views(count: int, seed: int):
    """Values of one row per person, with the calmer poses of a group."""
    people, poses = (
        sample_identities(range(count)).values,
        sample_views(count, torch.Generator().manual_seed(seed)).values,
    )
    poses["roll"] = poses["roll"] * 0.5
    for k in range(count):
        yield tuple({n: t[k : k + 1] for n, t in v.items()} for v in (people, poses))


def test_a_person_is_painted_whole_by_the_windows(generator: torch.Generator):
    picture, frame = torch.rand(1, 3, 260, 300, generator=generator), Frame(10, 90, 128)
    for who, view in people_and_views(24, seed=2):
        painted = picture.clone()
        paint_person(painted, who, view, frame)
        whole = paint_all(picture, who, view, frame, (*BEHIND_HEAD, torso, *HEAD))
        torch.testing.assert_close(painted, whole, rtol=0, atol=1e-5)


def test_masks_hold_head_and_hair_and_little_more():
    frame, size = Frame(20, 30, 160), (200, 240)
    for who, view in people_and_views(24, seed=3):
        black, white = (
            paint_all(torch.full((1, 3, *size), c), who, view, frame, (long_hair, *HEAD))
            for c in (0.0, 1.0)
        )
        head = 1 - (white - black)[0].mean(0)  # what the background shines through of is not head
        mask = torch.zeros(size)
        part, at = head_mask(who, view, frame, *size)
        mask[at.y0 : at.y1, at.x0 : at.x1] = part
        assert (mask * head).sum() > 0.97 * head.sum()
        assert mask.sum() < 1.5 * head.sum()


def test_a_group_is_spoilt_like_a_portrait_of_a_frame():
    """Blur belongs to the person's frame, not to the picture, which is wider."""
    blur = StageConfig(
        blur_sigma=(8, 8), resize_weights=(0, 0, 1), noise_sigma=(0, 0), sinc_probability=0
    )
    config = DegradationConfig(
        first=blur, second_order_probability=0, downsample=(1, 1), final_sinc_probability=0
    )

    def seeded() -> torch.Generator:
        return torch.Generator().manual_seed(1)

    alone = group_photo([5], 96, 96, seed=0)
    assert torch.equal(
        degrade_people(alone.picture, 96, config, seeded()),
        degrade(alone.picture, config, seeded()),
    )
    trio = group_photo([5, 6, 7], 96, 288, seed=0)
    spoilt = degrade_people(trio.picture, 96, config, seeded())
    as_one_frame = degrade(trio.picture[..., :96], config, seeded())
    as_whole = degrade(trio.picture, config, seeded())[..., :96]
    near, far = ((spoilt[..., :96] - other).abs().mean() for other in (as_one_frame, as_whole))
    assert near < 0.5 * far


def test_people_of_a_group_stand_in_one_light():
    """Which side of a face is bright agrees between two of the same bald person."""
    sides = torch.zeros(24, 2)
    for seed in range(24):
        picture, masks, frames = group_photo([30, 30], 64, 128, seed)
        grey = picture[0].mean(0)  # (64, 128)
        for k, (mask, frame) in enumerate(zip(masks, frames, strict=True)):
            middle = (mask.sum(0) * torch.arange(128)).sum() / mask.sum()
            weight = mask * (torch.arange(128) - middle) / frame[2]
            sides[seed, k] = (grey * weight).sum() / mask.sum()
    assert torch.corrcoef(sides.T)[0, 1] > 0.6


def test_an_album_page_holds_the_portraits_of_successive_people():
    page = album_page(20, columns=3, rows=2, size=64, seed=4)
    assert page.shape == (1, 3, 2 * 72 + 8, 3 * 72 + 8)
    people = render(
        sample_identities(range(20, 26)),
        sample_views(6, torch.Generator().manual_seed(4)),
        64,
    )
    assert torch.equal(page[0, :, 8 + 72 : 8 + 72 + 64, 8 : 8 + 64], people[3])
    assert torch.equal(page[0, :, :8], torch.full((3, 8, 3 * 72 + 8), 0.93))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: group_photo([], 64, 64, 0), "1 to 6 persons, got 0"),
        (lambda: group_photo(range(7), 64, 640, 0), "1 to 6 persons, got 7"),
        (lambda: group_photo([1, -2], 64, 128, 0), "negative, got -2"),
        (lambda: group_photo([1, 2, 3], 64, 40, 0), "at least 48 x 16 pixels .* got 40 x 64"),
        (lambda: group_photo([1], 15, 40, 0), "at least 16 x 16 pixels .* got 40 x 15"),
        (lambda: album_page(0, 0, 1, 64, 0), "at least one cell, got 0 x 1"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(PFStorerError, match=message):
        call()
