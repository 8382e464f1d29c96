"""Tests of the scenes that the head detector is trained on."""

import pytest
import torch

from pfstorer_core.degradation.presets import PRESETS
from pfstorer_core.training.autoencoder import TRAIN_IDENTITIES, UNSEEN
from pfstorer_core.training.embedding import FIRST_IDENTITY as FIRST_OF_EMBEDDING
from pfstorer_core.training.head_pasting import Person, Place
from pfstorer_core.training.head_scenes import (
    ABSENT,
    FIRST_IDENTITY,
    FOUND,
    IGNORED,
    MOST_HEADS,
    SIZE,
    WHOLE,
    Scenes,
    Sources,
    compose,
    head_box,
    make_scenes,
    spoilt,
)


@pytest.fixture(scope="module")
def sources() -> Sources:
    generator = torch.Generator().manual_seed(0)
    return Sources([Person.drawn(FIRST_IDENTITY + k, generator) for k in range(3)])


@pytest.fixture(scope="module")
def scenes(sources: Sources) -> Scenes:
    return make_scenes(24, sources, torch.Generator().manual_seed(1))


def test_drawn_people_are_of_no_other_training() -> None:
    assert max(TRAIN_IDENTITIES, FIRST_OF_EMBEDDING + 100_000) <= FIRST_IDENTITY
    assert FIRST_IDENTITY + 100_000 <= UNSEEN


def test_scenes_are_a_function_of_their_seed(sources: Sources, scenes: Scenes) -> None:
    again = make_scenes(24, sources, torch.Generator().manual_seed(1))
    for ours, theirs in zip(scenes, again, strict=True):
        assert torch.equal(ours, theirs)


def test_labels_lie_in_their_picture(scenes: Scenes) -> None:
    assert scenes.pictures.shape == (24, 3, SIZE, SIZE)
    assert scenes.kinds.shape == (24, MOST_HEADS)
    assert {ABSENT, FOUND, IGNORED} >= set(scenes.kinds.unique().tolist()) >= {ABSENT, FOUND}
    for item, head in (scenes.kinds == FOUND).nonzero().tolist():
        box, extent = scenes.boxes[item, head], scenes.extents[item].float()
        assert bool((box[:2] >= extent[:2]).all() and (box[2:] <= extent[2:]).all())
        assert scenes.masks[item, head].float().mean() > 64, "a head fills its box"


def test_there_is_nothing_beyond_the_border(scenes: Scenes) -> None:
    smaller = 0
    for picture, extent in zip(scenes.pictures, scenes.extents.tolist(), strict=True):
        left, top, right, bottom = extent
        smaller += (right - left) * (bottom - top) < SIZE**2
        picture = picture.clone()
        picture[:, top:bottom, left:right] = 0
        assert picture.sum() == 0
    assert 0 < smaller < 24


def test_nearer_people_hide_others(sources: Sources, generator: torch.Generator) -> None:
    places = [Place(40, 40, 14, 0.0), Place(46, 44, 14, 0.0)]
    composed = compose((90, 90), sources, generator, places)
    first, second = composed.masks
    assert first.sum() < 0.7 * second.sum()
    assert composed.sizes == [WHOLE * 14] * 2


def test_the_box_holds_the_mask() -> None:
    mask = torch.zeros(20, 30)
    assert head_box(mask) is None
    mask[4:9, 7:20] = 0.6
    box = head_box(mask)
    assert box is not None
    assert box.tolist() == [7, 4, 20, 9]


def test_large_heads_lose_more_pixels(generator: torch.Generator) -> None:
    """The same loss of detail in a larger picture of a head is a larger factor."""
    picture = torch.rand(3, 96, 96, generator=generator)
    left = [
        float(spoilt(picture, size, PRESETS["medium"], torch.Generator().manual_seed(0)).std())
        for size in (10.0, 90.0)
    ]
    assert left[0] > left[1]
