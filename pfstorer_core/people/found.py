"""Heads found in a picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..pictures.resizing import resize_bicubic


@dataclass(frozen=True)
class FoundHead:
    """One head with its hair.

    The mask covers its box alone, so that many heads of a large picture need little memory.

    Args:
        box: (left, top, right, bottom) in whole pixels inside the picture, right and bottom
            exclusive.
        mask: (h, w) in [0, 1] of the box, at any resolution.
        score: in [0, 1], how sure its finder is; 1 for what the user drew.
    """

    box: tuple[int, int, int, int]
    mask: Tensor
    score: float = 1.0

    def full_mask(self, size: tuple[int, int]) -> Tensor:
        """Returns the mask (H, W) of a picture of a size (height, width) in pixels."""
        left, top, right, bottom = self.box
        whole = torch.zeros(size)
        mask = resize_bicubic(self.mask[None, None].float(), (bottom - top, right - left))
        whole[top:bottom, left:right] = mask[0, 0].clamp(0, 1)
        return whole


# heads of a picture (3, H, W) in [0, 1], in reading order
HeadFinder = Callable[[Tensor], list[FoundHead]]


def in_reading_order(heads: Sequence[FoundHead]) -> list[FoundHead]:
    """Returns the heads row by row, those of a row from left to right.

    A head is in a row if its middle lies within the height of the row's first head.
    """
    rows: list[list[FoundHead]] = []
    for head in sorted(heads, key=lambda head: head.box[1] + head.box[3]):
        middle = (head.box[1] + head.box[3]) / 2
        if rows and rows[-1][0].box[1] <= middle <= rows[-1][0].box[3]:
            rows[-1].append(head)
        else:
            rows.append([head])
    return [head for row in rows for head in sorted(row, key=lambda head: head.box[0])]
