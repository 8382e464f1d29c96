"""Tests of setting people into scenes."""

import math
from pathlib import Path

import pytest
import torch
from torchvision.utils import save_image

from pfstorer_core.pictures.photos import list_photos
from pfstorer_core.training.head_pasting import (
    FADED,
    FIGURE,
    HEAD,
    MANNERS,
    RECTANGLE,
    Person,
    Place,
    manner_for,
    paste,
    surroundings,
    whole_view,
)
from pfstorer_core.training.head_shapes import HeadShape

RED = torch.tensor([0.9, 0.1, 0.1])


@pytest.fixture
def person(tmp_path: Path) -> Person:
    """A photo of 120 px: a red disk as a head before green."""
    x, y = torch.arange(120.0)[None, :] - 60, torch.arange(120.0)[:, None] - 50
    photo = torch.tensor([0.1, 0.8, 0.1])[:, None, None].expand(3, 120, 120)
    photo = torch.where(x**2 + y**2 < 30**2, RED[:, None, None], photo)
    save_image(photo, tmp_path / "photo.png")
    return Person.of_photo(list_photos([tmp_path])[0], HeadShape(60, 50, 30, 0.9, 0.0))


@pytest.mark.parametrize("manner", MANNERS)
@pytest.mark.parametrize("angle", [0.0, 0.7])
def test_a_photo_comes_to_its_place(person: Person, manner: str, angle: float) -> None:
    scene = torch.zeros(3, 100, 140)
    head, cover = paste(scene, person, Place(80, 40, 15, angle, True), manner)
    assert torch.allclose(scene[:, 40, 80], RED, atol=0.05)
    assert head[40, 80] == 1 and cover[40, 80] > 0.9
    rows, columns = (head > 0.5).nonzero().float().mean(0).tolist()
    assert math.hypot(rows - 40, columns - 80) < 2
    untouched = cover == 0
    assert scene[:, untouched].abs().max() < 1e-6, "the rest of the scene stays"


def test_more_or_less_of_a_photo_is_seen(person: Person) -> None:
    shown = {}
    for manner in (FIGURE, RECTANGLE, FADED):
        scene = torch.zeros(3, 100, 100)
        paste(scene, person, Place(50, 40, 15, 0.0), manner)
        shown[manner] = float(((scene[1] > 0.6) & (scene[0] < 0.3)).sum())  # its green
    assert 0 < shown[FIGURE] < shown[RECTANGLE]
    assert 0 < shown[FADED] < shown[RECTANGLE]


def test_drawn_people_cover_what_is_behind_them(generator: torch.Generator) -> None:
    person = Person.drawn(7, generator)
    assert person.is_drawn
    scene = torch.zeros(3, 90, 90)
    scene[2] = 1
    head, cover = paste(scene, person, Place(45, 35, 15, 0.4), HEAD)
    assert bool((head <= 1).all())
    assert scene[2, 35, 45] < 0.95
    assert bool(scene[:, cover == 0][2].allclose(torch.ones(())))
    assert math.isclose(float(head.sum()), 15**2 * 3.4, rel_tol=0.5)


def test_beyond_the_scene_nothing_happens(person: Person) -> None:
    scene = torch.zeros(3, 30, 30)
    assert paste(scene, person, Place(500, -400, 5, 0.0), HEAD).sum() == 0
    assert scene.sum() == 0


def test_whole_photos_keep_their_head(person: Person, generator: torch.Generator) -> None:
    for unit in (8.0, 30.0):
        picture, mask = whole_view(person, unit, generator)
        assert picture.shape[1:] == mask.shape
        red = (picture[0] > 0.6).float()
        assert (red * mask).sum() > 0.9 * red.sum()


def test_surroundings_show_no_head(person: Person) -> None:
    parts = surroundings(person)
    assert parts
    for part in parts:
        assert (part[0] < 128).all()


def test_tight_photos_have_no_shoulders(person: Person, generator: torch.Generator) -> None:
    tight = Person(person.copies, person.shape, tight=True)
    assert FIGURE not in {manner_for(tight, generator) for _ in range(60)}
    assert {manner_for(person, generator) for _ in range(60)} == set(MANNERS)
