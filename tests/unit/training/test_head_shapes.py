"""Tests of labels that say where a photo's head is."""

import math
from pathlib import Path

import pytest
import torch

from pfstorer_core.errors import PFStorerError
from pfstorer_core.training.head_shapes import HeadShape, read_shapes, write_shapes

SHAPE = HeadShape(40.0, 50.0, 20.0, 0.7, 0.1)


def face(angle: float) -> torch.Tensor:
    """Returns landmarks of a face around (100, 80), turned to the picture's right."""
    points = torch.zeros(68, 2, dtype=torch.float64)
    points[0], points[16], points[8] = (torch.tensor(p) for p in ((-30.0, 0), (30.0, 0), (0, 40.0)))
    points[17:27, 1] = -10
    turn = torch.tensor([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    return points @ turn.double() + torch.tensor([100.0, 80.0])


@pytest.mark.parametrize("angle", [0.0, 0.5, -0.7])
def test_landmarks_give_the_head(angle: float) -> None:
    shape = HeadShape.from_points(face(angle))
    assert math.isclose(shape.angle, angle, abs_tol=1e-6)
    assert math.isclose(shape.unit, 50 / 1.25, rel_tol=1e-6)
    assert math.isclose(shape.half_width, 30 / 40, rel_tol=1e-6)
    upright = HeadShape.from_points(face(0))
    assert math.isclose(math.hypot(shape.x - 100, shape.y - 80), abs(upright.y - 80), abs_tol=1e-6)


def test_a_mask_holds_the_head_and_ends_softly() -> None:
    x, y = torch.linspace(-2, 2, 81)[None, :], torch.linspace(-2, 2, 81)[:, None]
    mask = SHAPE.mask(x, y)
    assert mask[40, 40] == 1
    assert mask[20, 40] == 1, "the crown"
    assert mask[0, 0] == 0
    assert mask[20:40].sum() > mask[41:61].sum(), "hair is above"
    assert bool(((mask > 0) & (mask < 1)).any())


def test_labels_survive_being_written(tmp_path: Path) -> None:
    path = tmp_path / "labels.json"
    write_shapes({"a/b.png": SHAPE}, path)
    assert read_shapes(path) == {"a/b.png": SHAPE}


@pytest.mark.parametrize("text", ["", "[]", '{"a": 1}', '{"a": {"x": 1}}'])
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "labels.json"
    path.write_text(text)
    with pytest.raises(PFStorerError, match="no labels of heads"):
        read_shapes(path)
    with pytest.raises(PFStorerError, match="no labels of heads"):
        read_shapes(tmp_path / "none.json")
