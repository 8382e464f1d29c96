"""Hair: what hangs behind the neck, and the cap around the skull."""

from __future__ import annotations

import torch
from torch import Tensor

from .head import BALD, CURLY, FRINGE, HEAD_DEPTH, LONG, PARTED, SHORT, Head, bump, paint

_SOFTNESS = 0.4  # of its light, see Head.lit
_NAPE = -0.35  # z of the hair behind the neck


def long_hair(picture: Tensor, head: Head) -> Tensor:
    """The part of long hair that hangs behind the neck."""
    who = head.who
    phase = who["seed"].float()
    middle = torch.zeros_like(who["width"])
    cx, cy = head.project(middle, middle, _NAPE)
    x, y = head.px - cx, head.py - cy
    half = who["width"] + who["volume"] + 0.06 * torch.sin(4 * y + phase) * (y > 0)
    taper = half * (1 - 0.18 * ((y - 0.2) / 1.2).clamp(0, 1) ** 2)
    end = y - who["length"] - 0.03 * torch.sin(21 * x + phase)
    distance = torch.maximum(torch.maximum(x.abs() - taper, end), -0.1 - y)
    alpha = head.inside(distance) * (who["style"] == LONG).float()
    shade = (0.55 + 0.35 * (1 - (x / half) ** 2).clamp(0, 1)) * _strands(head, 1.4 * x / half, y)
    return paint(picture, who["hair"] * shade[:, None], alpha[:, None])


def front_hair(picture: Tensor, head: Head) -> Tensor:
    """The cap of hair around the skull, cut by the style's hairline."""
    who = head.who
    style, thick, phase = who["style"], who["volume"], who["seed"].float()
    curly, has_hair = (style == CURLY).float(), style != BALD
    rx = who["width"] + thick * (0.75 + 0.7 * curly)
    ry, rz = 1.0 + thick * (0.9 + 0.6 * curly), HEAD_DEPTH + thick * 0.8

    # the outline is rough: the rays are bent by a noise over the angle around the head's centre
    angle = torch.atan2(head.px, -head.py)
    rough = curly * 0.045 * torch.sin(16 * angle + phase) + 0.012 * torch.sin(31 * angle)
    u, v, z, closest = head.shell(
        head.px * (1 + rough), head.py * (1 + rough) + 0.03, rx, ry, rz
    )  # (B, H, W) each
    alpha = head.inside((closest.sqrt() - 1) * rx)
    azimuth = torch.atan2(u / rx, z / rz)  # 0 in front, +-pi behind
    line = _hairline(head, u, v, azimuth)
    covered = head.inside((v - line) * 0.9) * has_hair

    light = head.lit(head.facing(u / rx**2, v / ry**2, z / rz**2), _SOFTNESS)
    from_part = azimuth - who["part"]
    parting = 1 - 0.35 * bump(from_part, 0.05) * (style == PARTED)
    texture = _strands(head, azimuth + 0.3 * from_part * (v + 1), v) * parting
    shine = 0.10 * bump(v + 0.62 + 0.1 * azimuth**2, 0.12) * (1 - curly)
    colour = who["hair"] * (light * texture)[:, None] * 1.05 + (shine * light * texture)[:, None]
    below = v > line  # the hair throws a shadow there
    shade = 1 - 0.30 * bump((v - line - 0.05) * 0.9, 0.05) * has_hair * alpha * below
    return paint(picture * shade[:, None], colour, (alpha * covered)[:, None])


def _hairline(head: Head, u: Tensor, v: Tensor, azimuth: Tensor) -> Tensor:
    """Height y at which the cap of hair ends, for each pixel's place (u, v) on it: (B, H, W)."""
    who = head.who
    style, top, phase = who["style"], who["hairline"], who["seed"].float()
    around = azimuth.abs()
    temple = ((around - 0.55) / 0.65).clamp(0, 1)
    side_end = 0.02 + 0.16 * (style == SHORT) - 0.02 * (style == CURLY).float()
    line = top + (side_end - top) * temple**2 * (3 - 2 * temple)
    sweep = 0.20 * ((azimuth - who["part"]).abs() / 1.1).clamp(0, 1)
    line = line + (style == PARTED) * (sweep * (1 - temple) - 0.06)
    fringe = who["eye_y"] - 0.27 + 0.035 * torch.sin(17 * azimuth + phase)
    line = torch.where(style == FRINGE, torch.maximum(line, fringe), line)
    # long hair hangs down beside the face
    hang = ((around - 0.80) / 0.28).clamp(0, 1)
    hang = hang * ((u.abs() / who["width"] - 0.80 - 0.12 * v.clamp(max=0)) / 0.10).clamp(0, 1)
    hanging = torch.maximum(line, top + (who["length"] + 0.6) * hang)
    line = torch.where(style == LONG, hanging, line)
    line = line + 0.25 * ((around - 1.5) / 0.6).clamp(0, 1) * (style != BALD)
    return line + 0.02 * torch.sin(23 * azimuth + phase)


def _strands(head: Head, angle: Tensor, along: Tensor) -> Tensor:
    """Brightness of hair, about 1, that varies across the strands; curls where the style has them.

    Args:
        angle: (B, H, W) place across the strands, in radians.
        along: (B, H, W) place along them, in head units.
    """
    phase = head.who["seed"].float()
    bend = 0.5 * torch.sin(2.6 * along + phase)
    coarse = 0.10 * torch.sin(24 * angle + 5 * bend + phase)
    straight = coarse + 0.04 * torch.sin(47 * angle - 4 * bend)
    across = 0.22 * torch.sin(15 * angle + 2 * torch.sin(13 * along + phase))
    curls = across * torch.sin(15 * along + 2 * torch.sin(12 * angle))
    curly = (head.who["style"] == CURLY).float()
    return 1 + straight * (1 - curly) + curls * curly
