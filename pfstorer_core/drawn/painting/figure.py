"""What surrounds the face: neck and clothes, ears, spectacles."""

from __future__ import annotations

import torch
from torch import Tensor

from .head import (
    HEAD_DEPTH,
    LONG,
    NO_GLASSES,
    SIDES,
    SQUARE_GLASSES,
    Head,
    bump,
    paint,
    radius,
    rgb,
)

_EAR_RED = (1.0, 0.93, 0.92)  # factor on the skin
_SHOULDER_W = 1.35  # half their width, head units
_CHEST_Y = 2.02  # where the body is as wide as that
_FAR = 9.0  # a distance outside everything, in head units


def body(picture: Tensor, head: Head) -> Tensor:
    """Neck and shoulders; they follow the head only partly, so they stay upright."""
    who, view, y = head.who, head.view, head.py
    x = _upright(head)

    neck_w = 0.40 + 0.10 * who["width"] + 0.10 * ((y - 0.95) / 0.5).clamp(0, 1) ** 2
    neck = torch.maximum(x.abs() - neck_w, 0.3 - y)
    round_ = (1 - (x / neck_w) ** 2).clamp(0, 1).sqrt()
    shadow = 0.55 + 0.35 * ((y - 0.9) / 0.5).clamp(0, 1)  # of the chin
    side = 1 + 0.25 * head.light[0] * (x / neck_w)
    shade = (0.55 + 0.45 * round_) * shadow * side * (0.35 + 0.75 * view["ambient"])
    neck_colour = who["skin"] * shade[:, None] * 1.1
    picture = paint(picture, neck_colour, head.inside(neck)[:, None])

    shoulder = radius(x / _SHOULDER_W, (y - _CHEST_Y) / 0.72) - 1
    colour, opening = _cloth(head, x)
    cloth = torch.maximum(shoulder, -opening * 0.5)
    return paint(picture, colour, head.inside(cloth * 0.9)[:, None])


def torso(picture: Tensor, head: Head) -> Tensor:
    """What is below the chest of someone who is not cut off there by the picture's lower edge."""
    x, y = _upright(head), head.py
    colour, _ = _cloth(head, x)
    arms = bump(x.abs() - _SHOULDER_W * 0.72, 0.05) * ((y - _CHEST_Y - 0.2) / 0.5).clamp(0, 1)
    alpha = head.inside(torch.maximum((x.abs() - _SHOULDER_W) * 0.9, _CHEST_Y - y))
    return paint(picture, colour * (1 - 0.3 * arms)[:, None], alpha[:, None])


def _upright(head: Head) -> Tensor:
    """The body's own x (B, H, W): it turns less than the head."""
    return head.px * 0.995 + 0.10 * torch.sin(head.view["yaw"]) * (head.py - 0.6)


def _cloth(head: Head, x: Tensor) -> tuple[Tensor, Tensor]:
    """The clothes' colour (B, 3, H, W), and how far outside the collar's opening a pixel is."""
    view, y = head.view, head.py
    opening = radius(x / 0.50, (y - 1.18) / (0.30 + 0.22 * view["collar"])) - 1
    fold = 0.85 + 0.10 * torch.sin(5 * x + 3 * y) + 0.2 * head.light[0] * x
    hem = bump(opening, 0.10) * 0.25
    return view["cloth"] * (fold * (0.4 + 0.6 * view["ambient"]) + hem)[:, None], opening


def ears(picture: Tensor, head: Head) -> Tensor:
    """Both ears, unless long hair hides them."""
    who, view = head.who, head.view
    hidden = (who["style"] == LONG).float()
    red = rgb(_EAR_RED, picture)
    for side in SIDES:
        ex, ey = head.project(side * who["width"], who["eye_y"] + 0.12, -0.06)
        rx = 0.10 * who["ear"] * (0.75 + 0.5 * (-side * view["yaw"]).clamp(-0.4, 0.4))
        ry = 0.185 * who["ear"]
        reach = radius((head.px - ex - side * 0.02) / rx, (head.py - ey) / ry)  # 1 at the rim
        lit = view["ambient"] * 0.8 + 0.25 + 0.12 * side * head.light[0]
        shade = lit - 0.28 * bump(reach - 0.45, 0.22)
        alpha = head.inside((reach - 1) * rx) * (1 - hidden)
        picture = paint(picture, who["skin"] * red * shade[:, None], alpha[:, None])
    return picture


def spectacles(picture: Tensor, head: Head) -> Tensor:
    """Rims in a plane before the eyes, a bridge, temples to the ears and a faint glare."""
    who = head.who
    u, v = head.plane(HEAD_DEPTH * 1.02)
    v = v - who["eye_y"] - 0.02
    worn, size, wire = (who["glasses"] > NO_GLASSES).float(), who["frame_r"], who["frame_t"]

    rims, lenses = torch.full_like(u, _FAR), torch.full_like(u, _FAR)  # distances
    for side in SIDES:
        du = side * u - who["eye_x"] - 0.01
        circle = radius(du, v, 1e-8) - size
        # a rectangle with corners rounded by 0.05
        bx, by = du.abs() - size + 0.05, v.abs() - size * 0.72 + 0.05
        corner = radius(bx.clamp(min=0), by.clamp(min=0), 1e-8)
        square = corner - 0.05 + torch.maximum(bx, by).clamp(max=0)
        outline = torch.where(who["glasses"] == SQUARE_GLASSES, square, circle)
        rims = torch.minimum(rims, outline.abs() - wire)
        lenses = torch.minimum(lenses, outline)
    bridge_end = (who["eye_x"] - size + 0.02).clamp(min=0.04)
    bridge = torch.maximum((v + 0.03).abs() - wire, u.abs() - bridge_end)
    frame = head.inside(torch.minimum(rims, bridge))
    for side in SIDES:
        frame = torch.maximum(frame, _temple(head, side))

    glare = 0.10 * head.inside(lenses) * bump(u - v * 0.6 - 0.25, 0.10)
    picture = picture + (glare * worn)[:, None]
    gleam = 0.85 + 0.35 * bump(v + size * 0.6, 0.06)
    return paint(picture, who["frame"] * gleam[:, None], (frame * worn)[:, None])


def _temple(head: Head, side: float) -> Tensor:
    """Coverage (B, H, W) of the bar from the rim back to the ear, where it can be seen."""
    who = head.who
    x0, y0 = head.project(
        side * (who["eye_x"] + who["frame_r"]), who["eye_y"], HEAD_DEPTH * 0.95
    )  # at the rim
    x1, y1 = head.project(side * (who["width"] + 0.03), who["eye_y"] - 0.01, 0.0)  # at the ear
    ex, ey = x1 - x0, y1 - y0
    dx, dy = head.px - x0, head.py - y0
    along = ((dx * ex + dy * ey) / (ex**2 + ey**2 + 1e-6)).clamp(0, 1)  # 0 rim, 1 ear
    away = radius(dx - along * ex, dy - along * ey, 1e-8)
    seen = (side * ex > -0.02).float()
    return head.inside(away - who["frame_t"] * 0.9) * seen
