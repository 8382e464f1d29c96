import torch

from pfstorer_core.people.found import FoundHead, in_reading_order


def head(left: int, top: int, side: int = 10) -> FoundHead:
    return FoundHead((left, top, left + side, top + side), torch.ones(4, 4))


def test_a_mask_lies_in_its_box() -> None:
    mask = FoundHead((2, 3, 6, 9), torch.ones(3, 2)).full_mask((12, 10))
    assert mask.shape == (12, 10)
    torch.testing.assert_close(mask[3:9, 2:6], torch.ones(6, 4))
    assert mask.count_nonzero() == 24


def test_heads_are_read_row_by_row() -> None:
    heads = [head(50, 4), head(20, 60), head(5, 0), head(40, 57), head(90, 2)]
    boxes = [found.box[:2] for found in in_reading_order(heads)]
    assert boxes == [(5, 0), (50, 4), (90, 2), (20, 60), (40, 57)]


def test_nobody_is_nobody() -> None:
    assert in_reading_order([]) == []
