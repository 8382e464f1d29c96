"""The head as a body in space, and the brushes that every layer of a portrait is painted with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Values = dict[str, Tensor]  # named numbers of persons or views, B rows each
Vector = tuple[Tensor, Tensor, Tensor]  # x, y, z

BALD, SHORT, PARTED, FRINGE, LONG, CURLY = range(6)  # hair styles
SHAVEN, STUBBLE, FULL_BEARD, GOATEE, MOUSTACHE = range(5)
NO_GLASSES, ROUND_GLASSES, SQUARE_GLASSES = range(3)

SIDES = (-1.0, 1.0)  # sign of x: picture's left, picture's right
HEAD_DEPTH = 0.88  # half depth of the head ellipsoid; its half height is 1
_LIGHT_DISTANCE = 0.8  # z of the light, whose x and y belong to the view
_FULL_LIGHT = 1.02  # brightness of a surface that faces the light


class Head:
    """A batch of heads as the camera sees them.

    Args:
        who: identity values, (B, 1, 1) or, for colours and lists, (B, C, 1, 1).
        view: view values, of the same shapes.
        px, py: (B, H, W) places of the pixels on the plane through the head's centre that faces
            the camera, in head units.
        sharp: (B, 1, 1) pixels per head unit.

    Attributes:
        light: unit vector to the light, in camera coordinates.
    """

    def __init__(self, who: Values, view: Values, px: Tensor, py: Tensor, sharp: Tensor):
        self.who, self.view, self.px, self.py, self.sharp = who, view, px, py, sharp
        cos_yaw, sin_yaw = view["yaw"].cos(), view["yaw"].sin()
        cos_pitch, sin_pitch = view["pitch"].cos(), view["pitch"].sin()
        # the head's axes in camera coordinates: yaw about y, then pitch about x
        self.ax: Vector = (cos_yaw, torch.zeros_like(cos_yaw), -sin_yaw)
        self.ay: Vector = (sin_yaw * sin_pitch, cos_pitch, cos_yaw * sin_pitch)
        self.az: Vector = (sin_yaw * cos_pitch, -sin_pitch, cos_yaw * cos_pitch)
        lx, ly = view["light_x"], view["light_y"]
        norm = torch.sqrt(lx**2 + ly**2 + _LIGHT_DISTANCE**2)
        self.light: Vector = (lx / norm, ly / norm, _LIGHT_DISTANCE / norm)

    def project(self, x: Tensor, y: Tensor, z: Tensor | float) -> tuple[Tensor, Tensor]:
        """Where a head point (x, y, z) lies on the plane of px and py."""
        return (
            x * self.ax[0] + y * self.ay[0] + z * self.az[0],
            x * self.ax[1] + y * self.ay[1] + z * self.az[1],
        )

    def shell(
        self, x: Tensor, y: Tensor, rx: Tensor, ry: Tensor | float, rz: Tensor | float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Front hit of the viewing rays with an ellipsoid around the head's centre.

        Args:
            x, y: (B, H, W) places where the rays cross the plane of px and py.
            rx, ry, rz: half axes of the ellipsoid, in head units.

        Returns:
            Head x, y and z of the hit, and how near the ray comes to the centre: the quadric at its
            closest place, below 1 inside the outline. (B, H, W) each.
        """
        ox = x * self.ax[0] + y * self.ax[1]
        oy = x * self.ay[0] + y * self.ay[1]
        oz = x * self.az[0] + y * self.az[1]
        vx, vy, vz = self.ax[2], self.ay[2], self.az[2]
        a = (vx / rx) ** 2 + (vy / ry) ** 2 + (vz / rz) ** 2
        b = ox * vx / rx**2 + oy * vy / ry**2 + oz * vz / rz**2
        c = (ox / rx) ** 2 + (oy / ry) ** 2 + (oz / rz) ** 2
        closest = c - b**2 / a
        t = (-b + torch.sqrt((b**2 - a * (c - 1)).clamp(min=1e-6))) / a
        return ox + t * vx, oy + t * vy, oz + t * vz, closest

    def plane(self, z: float) -> tuple[Tensor, Tensor]:
        """Head x, y where the viewing rays cross depth z, for things in front of the face."""
        t = (z - self.px * self.az[0] - self.py * self.az[1]) / self.az[2]
        return (
            self.px * self.ax[0] + self.py * self.ax[1] + t * self.ax[2],
            self.px * self.ay[0] + self.py * self.ay[1] + t * self.ay[2],
        )

    def facing(self, nx: Tensor, ny: Tensor, nz: Tensor) -> Tensor:
        """Cosine between the light and a normal of any length, given in head coordinates."""
        length = torch.sqrt(nx**2 + ny**2 + nz**2).clamp(min=1e-6)
        lx, ly, lz = (
            axis[0] * self.light[0] + axis[1] * self.light[1] + axis[2] * self.light[2]
            for axis in (self.ax, self.ay, self.az)
        )
        return (nx * lx + ny * ly + nz * lz) / length

    def lit(self, cosine: Tensor, softness: float) -> Tensor:
        """Brightness of a surface by its `facing`; a soft one is lit beyond the right angle."""
        ambient = self.view["ambient"]
        direct = ((cosine + softness) / (1 + softness)).clamp(min=0)
        return ambient + (_FULL_LIGHT - ambient) * direct

    def inside(self, distance: Tensor) -> Tensor:
        """Coverage in [0, 1] of where a distance in head units is negative, one pixel soft."""
        return step(distance, self.sharp)


def step(distance: Tensor, sharp: Tensor) -> Tensor:
    """Coverage in [0, 1] of where the distance is negative; `sharp` is pixels per its unit."""
    return (0.5 - distance * sharp).clamp(0, 1)


def bump(x: Tensor, width: Tensor | float) -> Tensor:
    """A Gaussian of height 1 that falls to 1/e at `width`."""
    return torch.exp(-((x / width) ** 2))


def radius(x: Tensor, y: Tensor, floor: float = 1e-6) -> Tensor:
    """Distance from 0, its tip rounded off: `floor` is added to the square."""
    return torch.sqrt(x**2 + y**2 + floor)


def paint(base: Tensor, colour: Tensor, alpha: Tensor) -> Tensor:
    """`colour` over `base`, both (B, 3, H, W), where alpha (B, 1, H, W) in [0, 1] says so."""
    return base + (colour - base) * alpha


def rgb(colour: Sequence[float], like: Tensor) -> Tensor:
    """A colour as (1, 3, 1, 1) on the device of `like`."""
    return torch.tensor(colour, device=like.device)[None, :, None, None]


def cell_noise(i: Tensor, j: Tensor, seed: Tensor, salt: int) -> Tensor:
    """Uniform [0, 1) numbers of integer cells (i, j), exact on every device."""
    h = (i * 73856093 + j * 19349663 + seed * 83492791 + salt * 2654435) & 0x7FFFFFFF
    h = ((h ^ (h >> 13)) * 1274126177) & 0x7FFFFFFF
    return ((h ^ (h >> 16)) & 0xFFFF).float() / 65536
