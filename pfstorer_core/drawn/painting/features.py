"""What is drawn upon the skin: mouth, nostrils, beard, eyes and brows.

Each function takes the skin (B, 3, H, W) and (B, H, W) head x and y of what each pixel shows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .head import FULL_BEARD, GOATEE, MOUSTACHE, SIDES, STUBBLE, Head, bump, paint, radius, rgb

_LIP = (0.86, 0.26, 0.30)
_MOUTH_INSIDE = (0.26, 0.08, 0.08)
_TEETH = (0.93, 0.90, 0.84)
_EYE_WHITE = (0.95, 0.94, 0.93)
_PUPIL = 0.03  # its grey value
_PUPIL_SIZE = 0.43  # of the iris' radius


def mouth(skin: Tensor, head: Head, u: Tensor, v: Tensor) -> Tensor:
    """Lips, and the opening with its teeth where the view opens the mouth."""
    who, view = head.who, head.view
    half = who["mouth_w"] * (1 + 0.14 * view["smile"])
    t = u / half  # -1 and 1 at the corners
    shape = (1 - t**2).clamp(0, 1)
    line = who["mouth_y"] - 0.055 * view["smile"] * t**2  # y where the lips meet
    gap = 0.075 * view["mouth_open"] * shape
    bow = who["cupid"] * 0.022 * (bump(t, 0.13) - 0.4 * bump(t.abs() - 0.28, 0.16))
    top = line - gap * 0.4 - who["lip_up"] * shape.sqrt() + bow
    bottom = line + gap * 0.6 + who["lip_low"] * shape.sqrt()
    within = head.inside((t.abs() - 1) * half)

    lips = within * head.inside(top - v) * head.inside(v - bottom)
    red = (0.55 + 0.4 * who["lip_red"])[:, None]
    tone = who["skin"] * (1 - red) + (who["skin"] * 0.35 + 0.5 * rgb(_LIP, u)) * red
    lower = head.inside(line - v)
    shine = 0.12 * bump(v - line - gap * 0.6 - who["lip_low"] * 0.5, 0.02) * bump(t, 0.45)
    lip_colour = tone * (0.80 + 0.18 * lower)[:, None] + shine[:, None]
    skin = paint(skin, lip_colour, lips[:, None])

    opened = within * head.inside(line - gap * 0.4 - v) * head.inside(v - line - gap * 0.6)
    opened = opened * (gap > 0.004)
    skin = paint(skin, rgb(_MOUTH_INSIDE, u).expand_as(skin), opened[:, None])
    teeth = opened * head.inside(v - line + gap * 0.4 - 0.055)
    teeth = teeth * head.inside((t.abs() - 0.8) * half)
    skin = paint(skin, rgb(_TEETH, u).expand_as(skin), teeth[:, None])

    crease = within * bump(v - line, 0.013) * 0.7 * (1 - opened)
    skin = skin * (1 - crease)[:, None]
    shadow = 0.18 * bump(v - bottom - 0.035, 0.022) * bump(t, 0.6)  # below the lower lip
    return skin * (1 - shadow)[:, None]


def nostrils(skin: Tensor, head: Head, u: Tensor, v: Tensor) -> Tensor:
    """The nostrils and the edge of the nose's wings; u and v lie in the nose's plane."""
    width, dv = head.who["nose_w"], v - head.who["nose_y"]
    dark = torch.zeros_like(u)
    for side in SIDES:
        hole = radius((side * u - width * 0.48) / 0.040, (dv - 0.035) / 0.020)  # 1 at its edge
        dark = torch.maximum(dark, 0.72 * head.inside((hole - 1) * 0.03))
        wing = bump(radius(side * u - width * 0.55, dv) - 0.058, 0.012)
        outside = (side * u > width * 0.55).float() * bump(dv, 0.06)
        dark = torch.maximum(dark, 0.42 * wing * outside)
    return skin * (1 - dark)[:, None]


def beard(skin: Tensor, head: Head, u: Tensor, v: Tensor, front: Tensor) -> Tensor:
    """The person's beard, if any, around the lips; `front` is above 0 on the front of the head."""
    who = head.who
    kind, width, dv = who["beard"], who["mouth_w"] * 1.05, v - who["mouth_y"]
    chin = ((dv + 0.10 + 0.25 * u.abs()) / 0.12).clamp(0, 1)
    below = ((dv - 0.03) / 0.08).clamp(0, 1)
    sides = ((u.abs() - 0.44 + 0.5 * dv.clamp(min=0)) / 0.14).clamp(0, 1)
    sides = sides * ((v - 0.12) / 0.25).clamp(0, 1)
    moustache = bump(dv + 0.105 + 0.25 * u**2, 0.045) * head.inside((u.abs() - width) * 0.4)
    full = torch.maximum(torch.maximum(chin * below, sides), moustache)
    goatee = torch.maximum(below * bump(u, 0.20), moustache)
    amount = (
        (kind == STUBBLE).float() * full * 0.32
        + (kind == FULL_BEARD).float() * full * 0.9
        + (kind == GOATEE).float() * goatee * 0.9
        + (kind == MOUSTACHE).float() * moustache * 0.95
    )
    grain = torch.sin(61 * u + 9 * torch.sin(17 * v + who["seed"].float()))
    grain = 0.75 + 0.25 * grain * torch.sin(47 * v)
    lips = head.inside(radius(u / width, dv / 0.105) * 0.1 - 0.1)
    bare = lips * (kind < MOUSTACHE)
    alpha = (amount * grain).clamp(0, 1) * (1 - bare) * (front > 0)
    return paint(skin, who["hair"] * 0.8, alpha[:, None])


def eyes(skin: Tensor, head: Head, u: Tensor, v: Tensor, light: Tensor) -> Tensor:
    """Both eyes and brows on skin that is lit already.

    Args:
        light: (B, H, W) brightness of the skin.
    """
    who = head.who
    for side in SIDES:
        du = side * u - who["eye_x"]  # outwards
        dv = v - who["eye_y"] + who["eye_slant"] * du
        skin = _eye(skin, head, du, dv, light, side)
        skin = _brow(skin, head, du, dv, light)
    return skin


def _eye(skin: Tensor, head: Head, du: Tensor, dv: Tensor, light: Tensor, side: float) -> Tensor:
    """One eye; du points outwards and dv down from its centre, (B, H, W) in head units."""
    who, view = head.who, head.view
    t = du / who["eye_w"]  # -1 inner corner, 1 outer corner
    arch = (1 - t**2).clamp(0, 1)
    height = who["eye_h"] * view["open"] * (1 - 0.25 * view["smile"].clamp(min=0))
    top, bottom = -height * arch.sqrt() * (0.9 + 0.1 * t), height * 0.62 * arch
    inside = head.inside((t.abs() - 1) * who["eye_w"])
    opening = inside * head.inside(top - dv) * head.inside(dv - bottom)

    shade = 1 - 0.25 * t.abs() ** 2 - 0.35 * bump(dv - top, 0.022)  # of the lid
    ball = rgb(_EYE_WHITE, du) * shade[:, None] * (0.45 + 0.55 * light)[:, None]
    gaze_u, gaze_v = du - side * view["gaze_x"], dv - view["gaze_y"]  # from the iris' centre
    distance = radius(gaze_u, gaze_v + 0.008, 1e-8)
    rel = distance / who["iris_r"]
    rings = 0.75 + 0.5 * bump(rel - 0.55, 0.25) - 0.5 * bump(rel - 1.0, 0.14)
    iris = who["iris"] * rings[:, None] * (0.55 + 0.5 * light)[:, None]
    ball = paint(ball, iris, head.inside(distance - who["iris_r"])[:, None])
    pupil = head.inside(distance - who["iris_r"] * _PUPIL_SIZE)
    ball = paint(ball, torch.full_like(ball, _PUPIL), pupil[:, None])
    glint_u = side * gaze_u - 0.03 * torch.sign(view["light_x"])
    glint = head.inside(radius(glint_u, gaze_v + 0.035, 1e-8) - 0.018)
    ball = paint(ball, torch.ones_like(ball), glint[:, None] * 0.9)
    skin = paint(skin, ball, opening[:, None])

    wide = head.inside((t.abs() - 1.08) * who["eye_w"])
    lash = wide * bump(dv - top, 0.012 + 0.012 * who["lash"]) * (0.55 + 0.4 * who["lash"])
    under = inside * bump(dv - bottom, 0.012) * 0.35
    crease = wide * bump(dv - top + 0.045, 0.014) * 0.38 * who["lid"]
    return skin * (1 - torch.maximum(torch.maximum(lash, under), crease))[:, None]


def _brow(skin: Tensor, head: Head, du: Tensor, dv: Tensor, light: Tensor) -> Tensor:
    """The brow above an eye; du and dv as for the eye."""
    who = head.who
    u = du - 0.01
    arc = who["brow_tilt"] * u - who["brow_bend"] * (4 * u) ** 2
    arc = arc + who["brow_y"] + head.view["brow_raise"]  # height above the eye
    t = (u + who["brow_w"]) / (2 * who["brow_w"])  # 0 inner end, 1 outer end
    thick = who["brow_t"] * (1.15 - 0.75 * t.clamp(0, 1))
    hatch = 0.82 + 0.18 * torch.sin(70 * u + 40 * dv)
    brow = head.inside((dv + arc).abs() - thick) * head.inside(u.abs() - who["brow_w"]) * hatch
    return paint(skin, who["hair"] * 0.72 * light[:, None], brow[:, None] * 0.92)
