"""Pictures of a running training: a sheet of restorations with the loss curve."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor, resize
from torchvision.utils import make_grid

_BACKGROUND = (24, 24, 27)
_GRID = (63, 63, 70)
_RAW = (82, 96, 120)
_SMOOTH = (125, 211, 252)
_TEXT = (212, 212, 216)
_MARGIN = 6  # pixels


def loss_curve(losses: Sequence[float], steps: int, width: int, height: int) -> Tensor:
    """Draws the losses of the steps so far over the whole run.

    Args:
        losses: one per step; values that are not finite are left out.
        steps: of the whole run.
        width, height: of the picture in pixels.

    Returns:
        (3, height, width) in [0, 1].
    """
    image = Image.new("RGB", (width, height), _BACKGROUND)
    pen = ImageDraw.Draw(image)
    values = torch.tensor(losses, dtype=torch.float64)
    known = values.isfinite().nonzero().flatten()
    if len(known) > 1:
        values = values[known]
        smooth = _smoothed(values)
        top = float(values.quantile(0.98)) or 1.0
        inner = width - 2 * _MARGIN, height - 2 * _MARGIN

        def points(line: Tensor) -> list[tuple[float, float]]:
            x = _MARGIN + known / max(1, steps - 1) * inner[0]
            y = _MARGIN + (1 - (line / top).clamp(0, 1)) * inner[1]
            return list(zip(x.tolist(), y.tolist(), strict=True))

        for share in (0.0, 0.5, 1.0):
            y = _MARGIN + share * inner[1]
            pen.line([(_MARGIN, y), (width - _MARGIN, y)], fill=_GRID)
        pen.line(points(values), fill=_RAW)
        pen.line(points(smooth), fill=_SMOOTH, width=2)
        pen.text((_MARGIN + 2, _MARGIN), f"loss {smooth[-1]:.4f}", fill=_TEXT)
    return pil_to_tensor(image).float() / 255


def report_sheet(losses: Sequence[float], steps: int, pictures: Tensor) -> Tensor:
    """LQ and now, and below them the loss curve and clean: large on a node that is narrow.

    Args:
        losses, steps: see `loss_curve`.
        pictures: (3, 3, side, side) in [0, 1]: LQ, now and clean.

    Returns:
        (3, 2 * shown, 2 * shown) in [0, 1], where shown is the side, but 128 pixels at least.
    """
    shown = max(128, pictures.shape[2])
    if shown != pictures.shape[2]:
        pictures = resize(pictures, [shown, shown], antialias=True).clamp(0, 1)
    lq, now, clean = pictures
    curve = loss_curve(losses, steps, shown, shown).to(pictures)
    return make_grid([lq, now, curve, clean], nrow=2, padding=0)


def _smoothed(values: Tensor, share: float = 0.05) -> Tensor:
    window = max(1, int(len(values) * share))
    total = torch.cat([torch.zeros(1, dtype=values.dtype), values.cumsum(0)])
    end = torch.arange(1, len(values) + 1)
    start = (end - window).clamp(min=0)
    return (total[end] - total[start]) / (end - start)
