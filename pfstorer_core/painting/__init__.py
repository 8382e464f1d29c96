"""Drawing of portraits: the layers of a head, painted from back to front.

All lengths are in head units (1 is half the head's height) and in head coordinates: x to the
picture's right, y down, z towards the camera, the head's centre at 0. Everything is element-wise
over the pixels, so a whole batch is drawn at once and torch.compile can fuse it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .face import face
from .figure import body, ears, spectacles
from .hair import front_hair, long_hair
from .head import Head, Values

_LAYERS = (long_hair, body, ears, face, front_hair, spectacles)
_LENS_SHARPNESS = 0.8  # of a one pixel wide edge; a lens is a little softer


def draw(identity: Values, view: Values, size: int) -> Tensor:
    """The whole batch in one go, without checks: `render`'s arithmetic, made for torch.compile.

    Args:
        identity: values of `Identities`, B rows each.
        view: values of `Views`, B rows each.
        size: height and width of the pictures in pixels.

    Returns:
        (B, 3, size, size) float32 in [0, 1].
    """
    who, view = _spread(identity), _spread(view)
    device = view["yaw"].device
    axis = (torch.arange(size, device=device, dtype=torch.float32) + 0.5) * (2 / size) - 1
    screen_y, screen_x = axis[None, :, None], axis[None, None, :]  # (1, H, 1), (1, 1, W)

    dx, dy = (screen_x - view["x"]) / view["scale"], (screen_y - view["y"]) / view["scale"]
    cos, sin = view["roll"].cos(), view["roll"].sin()
    px, py = cos * dx + sin * dy, cos * dy - sin * dx  # (B, H, W) head plane, roll undone
    sharp = view["scale"] * (size / 2 * _LENS_SHARPNESS)  # (B, 1, 1)
    head = Head(who, view, px, py, sharp)

    picture = _background(view, screen_x, screen_y)  # (B, 3, H, W)
    for layer in _LAYERS:
        picture = layer(picture, head)
    warm = view["warm"]
    tint = torch.cat([1 + warm, torch.ones_like(warm), 1 - warm], 1)[..., None]  # (B, 3, 1, 1)
    return (picture * tint * view["exposure"][:, None]).clamp(0, 1)


def _spread(values: Values) -> Values:
    """Rows made ready to meet pixels: (B,) -> (B, 1, 1) and (B, C) -> (B, C, 1, 1)."""
    return {
        name: t[:, None, None] if t.dim() == 1 else t[:, :, None, None]
        for name, t in values.items()
    }


def _background(view: Values, x: Tensor, y: Tensor) -> Tensor:
    """A gradient between two colours with soft waves across it: (B, 3, H, W)."""
    cos, sin = view["back_angle"].cos(), view["back_angle"].sin()
    along, across = x * cos + y * sin, y * cos - x * sin  # (B, H, W)
    mix = (0.5 + 0.4 * along).clamp(0, 1)[:, None]
    phase = view["back_freq"] * (across + 0.35 * torch.sin(2.3 * along))
    wave = view["back_wave"] * torch.sin(phase)
    return view["back_a"] * (1 - mix) + view["back_b"] * mix + wave[:, None]
