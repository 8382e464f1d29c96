"""Pictures of a comparison: a labelled sheet, and panels of one size."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from ..pictures.resizing import resize_bicubic
from .figures import PSNR, SIMILARITY, TRUTH, Comparison, number

_PANEL = (256, 640)  # px of a panel's longer side, at least and at most
_NARROWEST = 170  # px of a column, so that figures fit below it
_SMALLEST = 64  # px of a panel's longer side in a sheet of many rows
_LARGEST = 8192  # px of the sheet's height, at most
_TITLE, _CAPTION, _GAP = 26, 20, 6  # px
_BACKGROUND, _TEXT, _FAINT = "white", "black", (110, 110, 110)
_FILLING = 0.5  # around a panel of other proportions than the first
_MOST_ROWS = (_LARGEST - _TITLE) // (_SMALLEST + _CAPTION + _GAP)


def panels(comparison: Comparison) -> Tensor:
    """Returns the pictures one by one: all kinds of the first item, then of the next.

    Args:
        comparison: see `comparison.compare`.

    Returns:
        (B * kinds, 3, H, W) in [0, 1], of the first item's size; others are fitted into it.
    """
    columns = list(comparison.columns.values())
    height, width = columns[0][0].shape[-2:]
    return torch.stack(
        [_fitted(column[k], height, width) for k in range(len(columns[0])) for column in columns]
    )


def sheet(comparison: Comparison) -> Tensor:
    """Draws one row per item, with the kinds side by side and their figures below each.

    Without a truth the last column is a reference, so that the person can be seen. Of very many
    items it shows the first ones; see `sheet_notes`.

    Args:
        comparison: see `comparison.compare`.

    Returns:
        (3, H, W) in [0, 1].
    """
    count = min(len(comparison.columns[comparison.main]), _MOST_ROWS)
    columns = {kind: pictures[:count] for kind, pictures in comparison.columns.items()}
    if TRUTH not in columns and comparison.references:
        columns["a reference"] = [comparison.references[0]] * count
    longest = max(max(p.shape[-2:]) for p in columns[comparison.main])
    room = (_LARGEST - _TITLE) // count - _CAPTION - _GAP
    side = min(max(longest, _PANEL[0]), _PANEL[1], room)
    drawn = {
        kind: [to_pil_image(_scaled(picture, side)) for picture in pictures]
        for kind, pictures in columns.items()
    }
    widths = {
        kind: max(_NARROWEST, *(image.width for image in images)) for kind, images in drawn.items()
    }
    heights = [max(images[k].height for images in drawn.values()) for k in range(count)]
    size = (
        sum(widths.values()) + _GAP * (len(widths) + 1),
        _TITLE + sum(heights) + (_CAPTION + _GAP) * count,
    )
    page = Image.new("RGB", size, _BACKGROUND)
    pen = ImageDraw.Draw(page)
    title, small = ImageFont.load_default(size=16), ImageFont.load_default(size=12)
    left = _GAP
    for kind, images in drawn.items():
        middle = left + widths[kind] / 2
        pen.text((middle, _TITLE / 2), kind, _TEXT, title, anchor="mm")
        top = _TITLE
        for k, image in enumerate(images):
            page.paste(image, (left + (widths[kind] - image.width) // 2, top))
            place = (middle, top + heights[k] + _CAPTION / 2)
            pen.text(place, _caption(comparison, kind, k), _FAINT, small, anchor="mm")
            top += heights[k] + _CAPTION + _GAP
        left += widths[kind] + _GAP
    return pil_to_tensor(page).float() / 255


def sheet_notes(comparison: Comparison) -> list[str]:
    """Returns a sentence on the items that `sheet` has no room for, none where it shows all."""
    count = len(comparison.columns[comparison.main])
    if count <= _MOST_ROWS:
        return []
    return [f"The picture shows the first {_MOST_ROWS} of {count} items; the figures are of all."]


def _caption(comparison: Comparison, kind: str, k: int) -> str:
    figures = comparison.figures.get(kind, {})
    parts = []
    for measure, form in ((PSNR, "{} dB"), (SIMILARITY, "similarity {}")):
        values = figures.get(measure)
        if values is not None and not math.isnan(values[k]):
            parts.append(form.format(number(measure, float(values[k]))))
    return ", ".join(parts)


def _scaled(picture: Tensor, side: int) -> Tensor:
    """Returns a picture whose longer side is so many pixels."""
    height, width = picture.shape[-2:]
    factor = side / max(height, width)
    size = (max(1, round(height * factor)), max(1, round(width * factor)))
    return resize_bicubic(picture[None], size)[0]


def _fitted(picture: Tensor, height: int, width: int) -> Tensor:
    """Returns a picture (3, height, width) that shows all of the given one, undistorted."""
    factor = min(height / picture.shape[-2], width / picture.shape[-1])
    size = (max(1, round(picture.shape[-2] * factor)), max(1, round(picture.shape[-1] * factor)))
    picture = resize_bicubic(picture[None], size)[0]
    down, right = height - size[0], width - size[1]
    around = (right // 2, right - right // 2, down // 2, down - down // 2)
    return F.pad(picture, around, value=_FILLING)
