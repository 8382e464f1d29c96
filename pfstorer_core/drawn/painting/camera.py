"""What every portrait shares: the camera's coordinates, the background, the photo's tint."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .head import Head, Values

_LENS_SHARPNESS = 0.8  # of a one pixel wide edge; a lens is a little softer


class Frame(NamedTuple):
    """The square of a picture, in its pixels, that a view's coordinates of -1 to 1 stand for."""

    y0: float
    x0: float
    side: int


class Window(NamedTuple):
    """The pixels of a picture that are painted: rows y0 to y1 and columns x0 to x1, ends apart."""

    y0: int
    x0: int
    y1: int
    x1: int


def spread(values: Values) -> Values:
    """Rows made ready to meet pixels: (B,) -> (B, 1, 1) and (B, C) -> (B, C, 1, 1)."""
    return {
        name: t[:, None, None] if t.dim() == 1 else t[:, :, None, None]
        for name, t in values.items()
    }


def grid(view: Values, frame: Frame, window: Window) -> tuple[Tensor, Tensor]:
    """View coordinates x (1, 1, W) and y (1, H, 1) of a window's pixels."""
    device = view["yaw"].device
    x = torch.arange(window.x0, window.x1, device=device, dtype=torch.float32) - frame.x0
    y = torch.arange(window.y0, window.y1, device=device, dtype=torch.float32) - frame.y0
    x, y = ((axis + 0.5) * (2 / frame.side) - 1 for axis in (x, y))
    return x[None, None, :], y[None, :, None]


def stand(who: Values, view: Values, frame: Frame, window: Window) -> Head:
    """The heads where the views put them in the frame, as seen in the window's pixels."""
    x, y = grid(view, frame, window)
    dx, dy = (x - view["x"]) / view["scale"], (y - view["y"]) / view["scale"]
    cos, sin = view["roll"].cos(), view["roll"].sin()
    px, py = cos * dx + sin * dy, cos * dy - sin * dx  # (B, H, W) head plane, roll undone
    sharp = view["scale"] * (frame.side / 2 * _LENS_SHARPNESS)  # (B, 1, 1)
    return Head(who, view, px, py, sharp)


def background(view: Values, x: Tensor, y: Tensor) -> Tensor:
    """A gradient between two colours with soft waves across it: (B, 3, H, W)."""
    cos, sin = view["back_angle"].cos(), view["back_angle"].sin()
    along, across = x * cos + y * sin, y * cos - x * sin  # (B, H, W)
    mix = (0.5 + 0.4 * along).clamp(0, 1)[:, None]
    phase = view["back_freq"] * (across + 0.35 * torch.sin(2.3 * along))
    wave = view["back_wave"] * torch.sin(phase)
    return view["back_a"] * (1 - mix) + view["back_b"] * mix + wave[:, None]


def develop(picture: Tensor, view: Values) -> Tensor:
    """The painted picture (B, 3, H, W) in the photo's tint and exposure, in [0, 1]."""
    warm = view["warm"]
    tint = torch.cat([1 + warm, torch.ones_like(warm), 1 - warm], 1)[..., None]  # (B, 3, 1, 1)
    return (picture * tint * view["exposure"][:, None]).clamp(0, 1)
