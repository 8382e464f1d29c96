from collections import namedtuple
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pfstorer_core.errors import PFStorerError
from pfstorer_core.people.ellipses import head_of_box, head_of_face_box
from pfstorer_core.people.given import (
    boxes_by_picture,
    heads_of_boxes,
    heads_of_masks,
    heads_of_segs,
)

SIZE = (60, 100)
# As Impact Pack's.
SEG = namedtuple(
    "SEG",
    "cropped_image cropped_mask confidence crop_region bbox label control_net_wrapper",
    defaults=[None],
)


def painted(*boxes: tuple[int, int, int, int], size: tuple[int, int] = SIZE) -> Tensor:
    mask = torch.zeros(size)
    for left, top, right, bottom in boxes:
        mask[top:bottom, left:right] = 1
    return mask


def test_each_mask_is_a_head() -> None:
    masks = torch.stack([painted((10, 5, 30, 40)), painted(), painted((50, 10, 70, 20))])
    heads = heads_of_masks(masks, SIZE)
    assert [head.box for head in heads] == [(10, 5, 30, 40), (50, 10, 70, 20)]
    for head, mask in zip(heads, masks[[0, 2]], strict=True):
        torch.testing.assert_close(head.full_mask(SIZE), mask)


def test_what_is_painted_apart_in_one_mask_are_several_heads_but_specks_are_not() -> None:
    mask = painted((10, 5, 30, 40), (50, 10, 70, 30), (90, 50, 91, 51))
    heads = heads_of_masks(mask[None], SIZE)
    assert [head.box for head in heads] == [(10, 5, 30, 40), (50, 10, 70, 30)]
    assert len(heads_of_masks(mask, SIZE)) == 2, "without a batch as well"
    assert len(heads_of_masks(torch.stack([mask, mask]), SIZE)) == 2, "one each"


def test_a_mask_of_another_size_is_scaled() -> None:
    (head,) = heads_of_masks(painted((20, 10, 60, 80), size=(120, 200))[None], SIZE)
    assert all(abs(a - b) <= 1 for a, b in zip(head.box, (10, 5, 30, 40), strict=True))


def test_masks_that_are_none_are_refused() -> None:
    with pytest.raises(PFStorerError, match=r"shape \(1, 1, 60, 100\)"):
        heads_of_masks(torch.zeros(1, 1, *SIZE), SIZE)
    with pytest.raises(PFStorerError, match="expected 0 to 1"):
        heads_of_masks(painted((1, 1, 9, 9)) * 255, SIZE)


FACE: dict[str, Any] = {"x": 40.0, "y": 20.0, "width": 12, "height": 16, "label": "face"}


@pytest.mark.parametrize("boxes", [FACE, [FACE], [[FACE]]], ids=["one", "list", "lists"])
def test_boxes_come_in_several_forms(boxes: Any) -> None:
    assert boxes_by_picture(boxes, 1) == [[FACE]]


def test_boxes_of_several_pictures_go_to_their_pictures() -> None:
    assert boxes_by_picture([[FACE], []], 2) == [[FACE], []]
    with pytest.raises(PFStorerError, match=r"boxes of 1 pictures for 2 image\(s\)"):
        boxes_by_picture([FACE], 2)
    with pytest.raises(PFStorerError, match="type str"):
        boxes_by_picture("face", 1)


def test_a_face_gets_hair_and_another_box_is_the_head() -> None:
    other = {**FACE, "label": "person", "score": 0.5}
    found = heads_of_boxes([FACE, other], SIZE)
    wanted = [head_of_face_box((40, 20, 52, 36), SIZE), head_of_box((40, 20, 52, 36), SIZE, 0.5)]
    for head, same in zip(found, wanted, strict=True):
        assert same is not None
        assert (head.box, head.score) == (same.box, same.score)
        torch.testing.assert_close(head.mask, same.mask)


@pytest.mark.parametrize("box", ["face", {"x": 1}, {**FACE, "width": "wide"}, None])
def test_what_is_no_box_is_refused(box: Any) -> None:
    with pytest.raises(PFStorerError, match="expected numbers x, y, width and height"):
        heads_of_boxes([box], SIZE)


def seg(label: str, mask: Any) -> SEG:
    return SEG(None, mask, np.array([0.8], np.float32), (30, 10, 60, 50), (40, 20, 52, 36), label)


def test_segs_give_their_masks() -> None:
    mask = np.zeros((40, 30), np.float32)
    mask[5:35, 3:27] = 1
    (head,) = heads_of_segs((SIZE, [seg("hair", mask)]), SIZE)
    assert head.box == (33, 15, 57, 45)
    assert head.score == pytest.approx(0.8)
    (same,) = heads_of_segs((SIZE, [seg("hair", torch.from_numpy(mask * 255)[None])]), SIZE)
    torch.testing.assert_close(same.full_mask(SIZE), head.full_mask(SIZE))


def test_segs_of_faces_get_hair() -> None:
    (head,) = heads_of_segs((SIZE, [seg("face", np.ones((40, 30), np.float32))]), SIZE)
    wanted = head_of_face_box((40, 20, 52, 36), SIZE)
    assert wanted is not None
    assert head.box == wanted.box


def test_segs_of_a_larger_picture_are_scaled() -> None:
    (head,) = heads_of_segs((SIZE, [seg("head", np.ones((40, 30), np.float32))]), (120, 200))
    assert head.box == (60, 20, 120, 100)


def test_segs_that_reach_beyond_the_edge_are_cut_off() -> None:
    part = SEG(
        None, np.ones((40, 30), np.float32), 1.0, (80, 30, 110, 70), (80, 30, 99, 59), "head"
    )
    (head,) = heads_of_segs((SIZE, [part]), SIZE)
    assert head.box == (80, 30, 100, 60)


@pytest.mark.parametrize(
    "segs", ["segs", None, (SIZE,), (SIZE, [FACE]), (SIZE, [seg("a", "mask")])]
)
def test_what_are_no_segs_is_refused(segs: Any) -> None:
    with pytest.raises(PFStorerError, match="another form than Impact Pack's"):
        heads_of_segs(segs, SIZE)


def test_empty_segs_are_nobody() -> None:
    assert heads_of_segs((SIZE, []), SIZE) == []
