import math

import pytest
import torch

from pfstorer_core.people.ellipses import head_of_box, head_of_face, head_of_face_box

SIZE = (200, 300)


def test_a_head_is_larger_than_its_face_most_of_all_above() -> None:
    head = head_of_face_box((100, 80, 140, 130), SIZE, 0.7)
    assert head is not None
    mask = head.full_mask(SIZE)
    rows, columns = (mask > 0.5).nonzero().T
    assert 80 - rows.min() == pytest.approx(0.45 * 50, abs=1)
    assert rows.max() + 1 - 130 == pytest.approx(0.05 * 50, abs=1.5)
    assert 100 - columns.min() == pytest.approx(0.18 * 40, abs=1)
    assert columns.max() + 1 - 140 == pytest.approx(0.18 * 40, abs=1)
    assert head.score == 0.7
    assert set(head.mask.unique().tolist()) - {0.0, 1.0}, "soft"


def test_a_box_is_filled() -> None:
    head = head_of_box((100, 60, 160, 140), SIZE)
    assert head is not None
    rows, columns = (head.full_mask(SIZE) > 0.5).nonzero().T
    extent = [int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1]
    assert extent == [100, 60, 160, 140]


@pytest.mark.parametrize("degrees", [30, -60, 90, 180])
def test_a_turned_face_has_a_turned_head(degrees: int) -> None:
    """The mask of turned points is the turned mask."""
    angle = math.radians(degrees)
    turn = torch.tensor(
        [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    ).double()
    points = torch.tensor([[-20.0, -30.0], [20.0, -30.0], [0.0, 30.0]]).double()
    middle = torch.tensor([150.0, 100.0]).double()
    upright = head_of_face(points + middle, SIZE)
    up = (turn @ torch.tensor([0.0, -1.0]).double()).tolist()
    turned = head_of_face(points @ turn.T + middle, SIZE, up=(up[0], up[1]))
    assert upright is not None and turned is not None
    found = []
    for head, back in ((upright, torch.eye(2).double()), (turned, turn.T)):
        mask = head.full_mask(SIZE).double()
        rows, columns = torch.meshgrid(*(torch.arange(n) + 0.5 for n in SIZE), indexing="ij")
        x, y = (columns * mask).sum() / mask.sum(), (rows * mask).sum() / mask.sum()
        centre = back @ (torch.stack([x, y]).double() - middle)
        found.append((float(mask.sum()), centre))
    assert found[0][0] == pytest.approx(found[1][0], rel=0.01), "of the same area"
    torch.testing.assert_close(found[0][1], found[1][1], atol=0.2, rtol=0)


def test_what_lies_beyond_the_edge_is_cut_off() -> None:
    head = head_of_face_box((-20, 150, 40, 220), SIZE)
    assert head is not None
    left, top, right, bottom = head.box
    assert (left, bottom) == (0, 200)
    assert head.mask.shape == (bottom - top, right - left)


@pytest.mark.parametrize("box", [(400, 10, 440, 60), (10, 10, 10, 60), (10, 300, 40, 340)])
def test_what_is_not_in_the_picture_is_nobody(box: tuple[float, float, float, float]) -> None:
    assert head_of_face_box(box, SIZE) is None
