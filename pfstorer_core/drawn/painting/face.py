"""The face: its surface and relief, the skin with its marks, and the features upon it."""

from __future__ import annotations

import torch
from torch import Tensor

from .features import beard, eyes, mouth, nostrils
from .head import HEAD_DEPTH, SIDES, Head, bump, cell_noise, paint, radius, rgb, step

Pair = tuple[Tensor, Tensor]

_SOFTNESS = 0.25  # of the skin's light, see Head.lit
_NOSE_DEPTH = HEAD_DEPTH * 1.03  # z of the plane that the nose is drawn in
_BLUSH = (0.06, -0.07, -0.06)  # added to the skin
_BROWN = (0.62, 0.42, 0.32)  # factor on the skin, for freckles and moles
_FRECKLE_CELL = 0.088  # head units; each cell of this grid holds one freckle at most
_FRECKLE_RADIUS = 0.016


def face(picture: Tensor, head: Head) -> Tensor:
    """The lit face: an ellipsoid that jaw and chin make narrower, with everything on it."""
    who = head.who
    low = ((head.py - 0.05) / 0.95).clamp(0, 1.05)  # 0 at the eyes, 1 at the chin
    taper = 1 - who["jaw"] * low**2 * (1.25 - 0.5 * low) + 0.05 * bump(head.py - 0.45, 0.35)
    taper = taper + 0.10 * ((-0.35 - head.py) / 0.6).clamp(0, 1) ** 2
    rx, ry = who["width"], 1.0 + who["chin"]
    u, v, z, closest = head.shell(head.px / taper, head.py, rx, ry, HEAD_DEPTH)  # (B, H, W) each
    rim = closest.sqrt() - 1  # 0 at the outline
    alpha = head.inside(rim * rx)
    front = (z / HEAD_DEPTH).clamp(0, 1)
    nose_u, nose_v = head.plane(_NOSE_DEPTH)

    nx, ny, nz = u / rx**2, v / ry**2, z / HEAD_DEPTH**2
    nx, ny = _relief(head, (nx, ny), (u, v), (nose_u, nose_v))
    cosine = head.facing(nx, ny, nz)
    light = head.lit(cosine, _SOFTNESS)
    gloss = 0.10 * ((cosine - 0.86) / 0.14).clamp(0, 1) ** 2

    skin = _skin(head, u, v, front)  # (B, 3, H, W)
    skin = mouth(skin, head, u, v)
    skin = nostrils(skin, head, nose_u, nose_v)
    skin = beard(skin, head, u, v, front)
    skin = skin * light[:, None] + gloss[:, None]
    skin = eyes(skin, head, u, v, light)
    skin = skin * (1 - 0.35 * bump(rim, 0.06))[:, None]
    return paint(picture, skin, alpha[:, None])


def _relief(head: Head, normal: Pair, surface: Pair, nose_plane: Pair) -> Pair:
    """Bends x and y of the ellipsoid's normal by nose, cheeks, eye sockets and chin.

    Args:
        normal: (B, H, W) its x and y.
        surface: (B, H, W) head x and y on the surface.
        nose_plane: (B, H, W) head x and y in the nose's plane.
    """
    who, view = head.who, head.view
    (nx, ny), (u, v), (nose_u, nose_v) = normal, surface, nose_plane
    top = who["eye_y"] - 0.06
    ridge = ((nose_v - top) / (who["nose_y"] - top)).clamp(0, 1)  # 0 at the root, 1 at the tip
    ridge_w = who["nose_bridge"] + (who["nose_w"] * 0.62 - who["nose_bridge"]) * ridge**1.6
    nose = bump(nose_u, ridge_w * 1.5) * head.inside((nose_v - who["nose_y"] - 0.05) * 0.35)
    nose = nose * ((nose_v - top) / 0.16).clamp(0, 1)
    nx = nx + nose * (nose_u / ridge_w) * who["nose_h"] * 1.7 * (0.4 + 0.6 * ridge)
    under = bump(nose_v - who["nose_y"] - 0.045, 0.04) * bump(nose_u, who["nose_w"] * 0.9)
    ny = ny + 0.9 * under * who["nose_h"]
    for side in SIDES:
        cheek_u, cheek_v = u - side * 0.40, v - who["nose_y"] + 0.02
        lifted = 0.35 + 0.35 * view["smile"].clamp(min=0)
        cheek = bump(radius(cheek_u, cheek_v), 0.22) * lifted
        nx, ny = nx + cheek * cheek_u * 1.6, ny + cheek * cheek_v * 1.6
        socket_u, socket_v = u - side * who["eye_x"], v - who["eye_y"] + 0.05
        socket = bump(radius(socket_u, 1.4 * socket_v), 0.19)
        nx, ny = nx - socket * socket_u * 1.8, ny - socket * socket_v * 2.6
    chin_v = v - 0.86
    ny = ny + 0.5 * bump(radius(u, chin_v), 0.16) * chin_v / 0.16
    return nx, ny


def _skin(head: Head, u: Tensor, v: Tensor, front: Tensor) -> Tensor:
    """Unlit skin with blush, lines of age, freckles and moles: (B, 3, H, W).

    Args:
        u, v: (B, H, W) head x and y on the surface.
        front: (B, H, W), 0 at the side of the head and behind, 1 in front.
    """
    who = head.who
    colour = who["skin"].expand(-1, -1, u.shape[1], u.shape[2])
    blush_colour = rgb(_BLUSH, u)
    for side in SIDES:
        blush = who["blush"] * bump(radius(u - side * 0.42, v - 0.28), 0.2)
        colour = colour + blush_colour * blush[:, None]
        colour = colour * _wrinkles(head, side * u, v)[:, None]
    lines = bump(torch.sin(38 * (v + 0.42 + 0.08 * u**2)), 0.35)  # on the forehead
    lines = lines * bump(v + 0.36, 0.09) * bump(u, 0.32)
    colour = colour * (1 - 0.34 * (who["age"] - 0.25).clamp(min=0) * lines)[:, None]

    brown = rgb(_BROWN, u)
    spots = _freckles(head, u, v) * front
    colour = colour * (1 + (brown - 1) * spots[:, None] * 0.85)
    mole_colour = who["skin"] * who["mole_tone"][:, None] * brown
    for k in range(who["mole_r"].shape[1]):
        mole_x, mole_y, mole_r = (who[name][:, k] for name in ("mole_x", "mole_y", "mole_r"))
        mole = head.inside(radius(u - mole_x, v - mole_y, 1e-8) - mole_r) * (mole_r > 0)
        colour = paint(colour, mole_colour, (mole * (front > 0.05))[:, None])
    return colour


def _wrinkles(head: Head, u: Tensor, v: Tensor) -> Tensor:
    """Brightness (B, H, W) that the folds leave to one half of the face, that of positive u."""
    who = head.who
    age, du, dv = who["age"], u - who["eye_x"], v - who["eye_y"]
    fold = bump(u - 0.20 - 0.25 * (v - 0.30), 0.020) * bump(v - 0.42, 0.15)  # nose to mouth
    fold = fold * (0.15 + 0.85 * age) * 0.55
    crow = bump(du - 0.24, 0.05) * bump(torch.sin(48 * dv), 0.6)  # beside the eye
    crow = crow * bump(dv, 0.09) * age * 0.35
    bag = bump(dv - 0.13, 0.025) * bump(du, 0.11) * age * 0.3
    dimple = bump(radius(u - 0.36, v - 0.52), 0.022) * who["dimple"] * 0.4
    return 1 - fold - crow - bag - dimple * head.view["smile"].clamp(min=0.2)


def _freckles(head: Head, u: Tensor, v: Tensor) -> Tensor:
    """Coverage (B, H, W) of freckles: at most one per cell of a grid, at a random place in it."""
    seed = head.who["seed"]
    row_u, row_v = torch.floor(u / _FRECKLE_CELL), torch.floor(v / _FRECKLE_CELL)
    cell = row_u.long(), row_v.long()
    at_u = (cell_noise(*cell, seed, 1) * 0.6 + 0.2 + row_u) * _FRECKLE_CELL
    at_v = (cell_noise(*cell, seed, 2) * 0.6 + 0.2 + row_v) * _FRECKLE_CELL
    chance = head.who["freckles"] * bump(v - 0.20, 0.28) * bump(u, 0.62)  # nose and cheeks
    there = (cell_noise(*cell, seed, 3) < chance).float()
    return there * step(radius(u - at_u, v - at_v, 1e-8) - _FRECKLE_RADIUS, head.sharp * 0.8)
