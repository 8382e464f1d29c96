"""Matching measured on scenes: who is in them, where heads are, and the tables."""

import re
from pathlib import Path

import pytest
import torch
from evaluate_people import BOTH, CHANCE, NETWORK, OURS, Trial, parse, report
from evaluation.faces import FaceFinder
from evaluation.scenes import HEADS, PEOPLE, Shot, draw_cast, scene, shots
from sample_pictures import portrait_folder
from tiny_models import write_bundled

from pfstorer_core.degradation.presets import PRESETS
from pfstorer_core.drawn.portraits import portrait_set
from pfstorer_core.measures.similarity import MINI_EMBEDDING_PATH
from pfstorer_core.people.found import FoundHead

pytest.importorskip("dlib")


@pytest.fixture(scope="module")
def shown() -> list[Shot]:
    finder = FaceFinder()
    found = []
    for who, number in enumerate(range(5_000_000, 5_000_004)):
        found += shots(list(portrait_set(number, 2, seed=1)), finder, who)
    return found + shots(list(portrait_set(5_000_005, 2, seed=1)), finder, None)


def test_a_cast_shows_everybody_once(shown) -> None:
    counts, unknown, spare = set(), 0, 0
    for seed in range(60):
        strangers = bool(seed % 2)
        cast = draw_cast(shown, strangers, torch.Generator().manual_seed(seed))
        people = [shown[k].who for k in cast.shots]
        known = [who for who in people if who is not None]
        assert len(set(known)) == len(known)
        truth = cast.truth(shown)
        if not strangers:
            assert None not in truth, "everybody's adapter is there"
        given = [k for k in truth if k is not None]
        assert len(set(given)) == len(given)
        assert all(cast.offered[k] in known for k in given)
        counts.add(len(people))
        unknown += truth.count(None)
        spare += len(cast.offered) > len(given)
    assert counts <= set(range(1, PEOPLE[1] + 1)) and max(counts) == PEOPLE[1]
    assert unknown > 20 and spare > 4


@pytest.mark.parametrize("whole", [False, True])
def test_heads_lie_where_a_scene_says(shown, whole: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    found = scene(shown[::2], PRESETS["light"], generator, whole)
    height, width = found.picture.shape[2:]
    again = scene(shown[::2], PRESETS["light"], torch.Generator().manual_seed(0), whole)
    assert torch.equal(found.picture, again.picture)
    for head, face in zip(found.heads, found.faces, strict=True):
        left, top, right, bottom = head.box
        assert 0 <= left < right <= width and 0 <= top < bottom <= height
        assert HEADS[0] * 0.7 < bottom - top <= HEADS[1] + 1, "a part may lie outside the photo"
        x, y = face.five_points().mean(0).tolist()
        assert left < x < right and top < y < bottom
    taken = torch.zeros(height, width)
    for head in found.heads:
        left, top, right, bottom = head.box
        taken[top:bottom, left:right] += 1
    assert taken.max() == 1


def test_the_tables(tmp_path: Path) -> None:
    for name, number in (("ann", 5_000_000), ("ben", 5_000_001)):
        portrait_folder(tmp_path / "people" / name, number, 4, size=128)
    portrait_folder(tmp_path / "strangers", 5_000_004, 2, size=128)
    small = ["--people", str(tmp_path / "people"), "--strangers", str(tmp_path / "strangers")]
    small += ["--recognition", str(MINI_EMBEDDING_PATH), "--train-photos", "2", "--pictures", "2"]
    small += ["--training-steps", "4", "--preset", "quick", "--levels", "medium"]
    small += ["--casts", "50"]
    small += ["--restorer", str(write_bundled(tmp_path / "tiny.safetensors"))]
    options = parse([*small, "--out", str(tmp_path / "out")])
    text = report(trial := Trial(options))
    assert "2 people, 4 held-out photos of them and 2 of strangers" in text
    rows = [row.split(" | ") for row in re.findall(r"^\| (medium.*) \|$", text, re.MULTILINE)]
    ways = [OURS, BOTH, NETWORK, CHANCE]
    assert [row[1:3] for row in rows] == [[s, w] for s in ("without", "with") for w in ways]
    assert [int(row[3]) for row in rows[:4]] == [2 * 50] * 4
    measured = trial.measured("medium")
    assert measured.likeness.shape == (6, 2) and bool(measured.likeness.isfinite().all())
    assert (tmp_path / "out" / "people_medium.pt").is_file()
    assert report(trial) == text


def test_heads_are_those_that_a_finder_finds(shown) -> None:
    generator = torch.Generator().manual_seed(0)
    whole = scene(shown[:3], PRESETS["light"], generator, False)
    first, second, _ = whole.heads
    left, top, right, bottom = second.box
    moved = FoundHead((left + 2, top + 2, right, bottom), second.mask)
    elsewhere = FoundHead((0, 0, 5, 5), second.mask)
    assert whole.found_by(lambda picture: [elsewhere, moved, first]) == ([first, moved, None], 1)
    assert whole.found_by(lambda picture: []) == ([None] * 3, 0)
