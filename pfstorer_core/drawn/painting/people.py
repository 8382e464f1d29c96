"""Several people in one picture, each painted only where he is."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from . import BEHIND_HEAD, HEAD
from .camera import Frame, Window, background, develop, grid, spread, stand
from .figure import torso
from .head import BALD, CURLY, HEAD_DEPTH, LONG, Head, Values

Layer = Callable[[Tensor, Head], Tensor]

_BAND_PIXELS = 2**16  # painted at once: the many intermediate values then stay in the cache
_BODY_W = 1.6  # half the width that shoulders and long hair keep within, head units
_HEAD_R = 1.5  # of the circle that holds head and hair
_MASK_MARGIN = 0.12  # head units around head and hair
_MASK_EDGE = 1 / 40  # width of its soft edge as a share of the frame


def draw_group(
    identities: Sequence[Values],
    views: Sequence[Values],
    frames: Sequence[Frame],
    order: Sequence[int],
    height: int,
    width: int,
) -> Tensor:
    """People before one background.

    Args:
        identities: K values of `Identities`, one row each.
        views: K values of `Views`, one row each; the first one's background, tint and exposure
            are the picture's.
        frames: what each view's coordinates stand for.
        order: the people's numbers from the farthest to the nearest.
        height, width: of the picture in pixels.

    Returns:
        (1, 3, height, width) float32 in [0, 1].
    """
    scene, side = spread(views[0]), max(height, width)
    whole = Frame((height - side) / 2, (width - side) / 2, side)
    picture = torch.empty(1, 3, height, width)
    bands = _bands(Window(0, 0, height, width))
    for band in bands:
        _part(picture, band)[:] = background(scene, *grid(scene, whole, band))
    for k in order:
        paint_person(picture, identities[k], views[k], frames[k])
    for band in bands:
        part = _part(picture, band)
        part[:] = develop(part, scene)
    return picture


def paint_person(picture: Tensor, identity: Values, view: Values, frame: Frame) -> None:
    """Paints one person into (1, 3, H, W), not touching what is away from him."""
    who, view = spread(identity), spread(view)
    paint(picture, who, view, frame, (*BEHIND_HEAD, torso), _body_window(picture, view, frame))
    paint(picture, who, view, frame, HEAD, _head_window(picture, view, frame))


def paint(
    picture: Tensor,
    who: Values,
    view: Values,
    frame: Frame,
    layers: Sequence[Layer],
    window: Window,
) -> None:
    """Paints layers of one person, given by `spread` values, into a window of (1, 3, H, W)."""
    for band in _bands(window):
        head = stand(who, view, frame, band)
        part = _part(picture, band)
        painted = part
        for layer in layers:
            painted = layer(painted, head)
        part[:] = painted


def head_mask(
    identity: Values, view: Values, frame: Frame, height: int, width: int
) -> tuple[Tensor, Window]:
    """Where head and hair of a person are: an ellipse with some margin and a soft edge.

    Below the eyes of long-haired people it is nearly a rectangle, to hold what hangs down.

    Returns:
        (h, w) in [0, 1], the part of the mask in a window of the picture, and that window;
        the mask is 0 elsewhere.
    """
    who, view = spread(identity), spread(view)
    style, yaw = who["style"], view["yaw"]
    hair = who["volume"] * (0.75 + 0.7 * (style == CURLY)) * (style != BALD)
    half_w = torch.hypot((who["width"] + hair) * yaw.cos(), (HEAD_DEPTH + hair) * yaw.sin())
    up = 1 + hair + _MASK_MARGIN
    chin = 1 + who["chin"].clamp(min=0) + _MASK_MARGIN
    down = torch.where(style == LONG, torch.maximum(who["length"] + 0.15, chin), chin)

    window = _window((height, width), view, frame, -1.7, 1.7, 1.7)
    head = stand(who, view, frame, window)
    x = head.px.abs() / (half_w + _MASK_MARGIN)
    y = torch.where(head.py < 0, -head.py / up, head.py / down)
    power = torch.where((style == LONG) & (head.py > 0), 4.0, 2.0)
    outside = (x**power + y**power + 1e-6) ** (1 / power) - 1  # (1, h, w)
    edge = _MASK_EDGE * 2 / view["scale"]  # head units
    return (0.5 - outside / edge).clamp(0, 1)[0], window


def _body_window(picture: Tensor, view: Values, frame: Frame) -> Window:
    """Everything of a person but the head, down to the picture's lower edge."""
    height, width = picture.shape[2:]
    _, y, unit = _place(view, frame)
    below = max((height - y) / unit, 0)
    lean = abs(math.sin(float(view["roll"]))) + 0.1 * abs(math.sin(float(view["yaw"])))
    half = _BODY_W + lean * (below + 0.5)
    return _window((height, width), view, frame, -_HEAD_R, half, below)


def _head_window(picture: Tensor, view: Values, frame: Frame) -> Window:
    height, width = picture.shape[2:]
    return _window((height, width), view, frame, -_HEAD_R, _HEAD_R, _HEAD_R)


def _window(
    size: tuple[int, int], view: Values, frame: Frame, top: float, half_w: float, bottom: float
) -> Window:
    """Pixels within some head units of a head's centre, as far as a picture (H, W) reaches."""
    height, width = size
    x, y, unit = _place(view, frame)
    y0, y1 = (min(max(round(y + unit * far), 0), height) for far in (top, bottom))
    x0, x1 = (min(max(round(x + unit * far), 0), width) for far in (-half_w, half_w))
    return Window(y0, x0, y1, x1)


def _place(view: Values, frame: Frame) -> tuple[float, float, float]:
    """x and y of the head's centre and the length of a head unit, in pixels of the picture."""
    x, y, scale = (float(view[name]) for name in ("x", "y", "scale"))
    half = frame.side / 2
    return frame.x0 + (1 + x) * half, frame.y0 + (1 + y) * half, scale * half


def _bands(window: Window) -> list[Window]:
    rows = max(_BAND_PIXELS // max(window.x1 - window.x0, 1), 1)
    return [
        window._replace(y0=y, y1=min(y + rows, window.y1))
        for y in range(window.y0, window.y1, rows)
    ]


def _part(picture: Tensor, window: Window) -> Tensor:
    return picture[:, :, window.y0 : window.y1, window.x0 : window.x1]
