"""The people of a batch of pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .found import FoundHead


@dataclass(frozen=True)
class FoundPeople:
    """The heads of each picture of a batch, numbered from 1 throughout.

    Args:
        heads: of each picture, in reading order.
        size: (height, width) of the pictures in pixels.
        finder: what found them, for the user.
    """

    heads: tuple[tuple[FoundHead, ...], ...]
    size: tuple[int, int]
    finder: str = ""

    @property
    def count(self) -> int:
        """How many heads there are in all pictures."""
        return sum(map(len, self.heads))

    def firsts(self) -> list[int]:
        """Returns the number that the first head of each picture has, or would have."""
        counts = [len(heads) for heads in self.heads]
        return [1 + sum(counts[:k]) for k in range(len(counts))]

    def numbered(self) -> Iterator[tuple[int, int, FoundHead]]:
        """Yields number, picture (from 0) and head of each."""
        for picture, (first, heads) in enumerate(zip(self.firsts(), self.heads, strict=True)):
            for number, head in enumerate(heads, first):
                yield number, picture, head

    def masks(self) -> Tensor:
        """Returns the masks (N, H, W) of all heads; an empty one if there is nobody."""
        masks = [head.full_mask(self.size) for heads in self.heads for head in heads]
        return torch.stack(masks) if masks else torch.zeros(1, *self.size)

    def boxes(self) -> list[list[dict[str, object]]]:
        """Returns the boxes of each picture as ComfyUI's BOUNDING_BOX, labelled by numbers."""
        return [
            [
                {
                    "x": head.box[0],
                    "y": head.box[1],
                    "width": head.box[2] - head.box[0],
                    "height": head.box[3] - head.box[1],
                    "label": f"head {number}",
                    "score": head.score,
                }
                for number, head in enumerate(heads, first)
            ]
            for first, heads in zip(self.firsts(), self.heads, strict=True)
        ]

    def mask_of(self, numbers: Sequence[int]) -> Tensor:
        """Returns where in each picture the heads of these numbers are: (B, H, W) in [0, 1]."""
        mask = torch.zeros(len(self.heads), *self.size)
        for number, picture, head in self.numbered():
            if number in numbers:
                mask[picture] = torch.maximum(mask[picture], head.full_mask(self.size))
        return mask

    def lines(self) -> list[str]:
        """Says how many people were found in each picture, and whose heads are cut by its edge."""
        lines = []
        for picture, (first, heads) in enumerate(zip(self.firsts(), self.heads, strict=True), 1):
            where = "" if len(self.heads) == 1 else f"Picture {picture}: "
            found = f"{len(heads)} {'person' if len(heads) == 1 else 'people'} found"
            by = f" ({self.finder})" if self.finder else ""
            if not heads:
                lines.append(f"{where}nobody was found{by}; connect masks or boxes to say where")
                continue
            lines.append(f"{where}{found}{by}")
            cut = [str(n) for n, head in enumerate(heads, first) if self._is_cut(head)]
            if cut:
                lines.append(
                    f"Cut by the picture's edge: {', '.join(cut)}; what is left may be too little "
                    "to recognise and to restore"
                )
        return lines

    def _is_cut(self, head: FoundHead) -> bool:
        """Whether a head's mask reaches the picture's edge with more than its soft rim."""
        left, top, right, bottom = head.box
        height, width = self.size
        edges = (
            (left <= 0, head.mask[:, 0]),
            (top <= 0, head.mask[0]),
            (right >= width, head.mask[:, -1]),
            (bottom >= height, head.mask[-1]),
        )
        return any(touches and bool((values > 0.5).any()) for touches, values in edges)
