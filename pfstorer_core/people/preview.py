"""A picture with the found heads outlined and numbered."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from ..pictures.resizing import resize_bicubic
from .found import FoundHead
from .people import FoundPeople

_SMALLEST = 768  # px of the longer side; smaller pictures are enlarged, so that labels fit
_KNOWN, _UNKNOWN = (60, 200, 90), (255, 170, 0)
_SHADE = 0.45  # of the picture where nobody was found


def numbered_previews(pictures: Tensor, people: FoundPeople, labels: Sequence[str]) -> Tensor:
    """Draws the heads of pictures, each with its outline and label; all else is darker.

    Args:
        pictures: (B, 3, H, W) in [0, 1].
        people: found in them.
        labels: of all heads, see `numbered_preview`.

    Returns:
        (B, 3, H', W') in [0, 1], at least 768 px on the longer side.
    """
    drawn = [
        numbered_preview(picture, heads, labels[first - 1 : first - 1 + len(heads)])
        for picture, heads, first in zip(pictures, people.heads, people.firsts(), strict=True)
    ]
    return torch.stack(drawn)


def numbered_preview(picture: Tensor, heads: Sequence[FoundHead], labels: Sequence[str]) -> Tensor:
    """Draws the heads of a picture, each with its outline and label; all else is darker.

    Args:
        picture: (3, H, W) in [0, 1].
        heads: found in it.
        labels: of each, begun by its number; one that ends with "?" is drawn as not recognised.

    Returns:
        (3, H', W') in [0, 1], at least 768 px on its longer side.
    """
    height, width = picture.shape[-2:]
    factor = max(1.0, _SMALLEST / max(height, width))
    size = round(height * factor), round(width * factor)
    shown = resize_bicubic(picture[None].float().cpu(), size)[0].clamp(0, 1)
    masks = [
        resize_bicubic(head.full_mask((height, width))[None, None], size)[0, 0] for head in heads
    ]
    if masks:
        union = torch.stack(masks).amax(0)
        shown = shown * (_SHADE + (1 - _SHADE) * union)
    line = max(2, round(max(size) / 400))
    for mask, label in zip(masks, labels, strict=True):
        colour = torch.tensor(_colour(label), dtype=torch.float32)[:, None, None] / 255
        shown = torch.where(_outline(mask, line), colour, shown)
    page = to_pil_image(shown)
    for head, label in zip(heads, labels, strict=True):
        _write(page, head, label, factor)
    return pil_to_tensor(page).float() / 255


def _colour(label: str) -> tuple[int, int, int]:
    return _UNKNOWN if label.endswith("?") else _KNOWN


def _outline(mask: Tensor, line: int) -> Tensor:
    """Returns where (H, W) the edge of a mask (H, W) is, so many pixels wide."""
    inside = (mask > 0.5).float()[None, None]
    wider = F.max_pool2d(inside, 2 * line + 1, stride=1, padding=line)
    return (wider - inside)[0, 0] > 0.5


def _write(page: Image.Image, head: FoundHead, label: str, factor: float) -> None:
    """Writes a label on a plate at the top of a head, moved into the page."""
    pen = ImageDraw.Draw(page)
    font = ImageFont.load_default(size=max(14, round(max(page.size) / 45)))
    left, top, right, _ = (side * factor for side in head.box)
    x0, y0, x1, y1 = pen.textbbox((0, 0), label, font)
    width, height, room = x1 - x0, y1 - y0, 4
    x = min(max((left + right - width) / 2, room), page.width - width - room)
    y = min(max(top - height / 2, room), page.height - height - room)
    pen.rectangle((x - room, y - room, x + width + room, y + height + room), fill=_colour(label))
    pen.text((x - x0, y - y0), label, "black", font)
