"""People, drawn ones and those of photos, set into a scene."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..drawn.painting import Frame
from ..drawn.painting.people import head_mask, paint_person
from ..drawn.portraits import sample_identities, sample_views
from ..pictures.photos import Photo
from ..ranges import draw_choice, draw_uniform
from .head_shapes import HeadShape

# How a photo is set into a scene: the head alone upon a drawn body, with its shoulders, or the
# photo as it is, with hard or soft edges.
HEAD, FIGURE, RECTANGLE, FADED = MANNERS = ("head", "figure", "rectangle", "faded")
_ABOVE = 0.35  # units of hair that are mirrored where a photo ends above the head
_SMALLEST = 24  # pixels of a photo's reduced copies
_HAIR_GONE = 0.02  # margin, in units, of the head that is cut out
_VIEW_SCALE = 0.75
_DRAWN_SIZE, _DRAWN_UNIT = 112, 20.0  # pixels of a drawn person's picture, and of half the head
_BODY = 5.0  # units that a body reaches below the head's middle


class Place(NamedTuple):
    """Where a head goes: its middle and half its height in pixels, its turn in radians."""

    x: float
    y: float
    unit: float
    angle: float
    flipped: bool = False


@dataclass(frozen=True)
class Person:
    """A picture of one head, and copies of it at halved sizes.

    Attributes:
        copies: uint8 each, (3, H, W) of a photo; (5, H, W) of a drawn person, whose colours, on
            black, are followed by the mask of head and hair and by what the person covers.
        shape: of the head in the first one.
        tight: whether a photo shows little more than the face.
    """

    copies: Sequence[Tensor]
    shape: HeadShape
    tight: bool = False

    @classmethod
    def of_photo(cls, photo: Photo, shape: HeadShape) -> Person:
        """Reads a photo."""
        return cls(_copies(photo.load()), shape, 2 * shape.unit > 0.8 * photo.short_side)

    @classmethod
    def drawn(cls, number: int, generator: torch.Generator) -> Person:
        """Draws head and body of an identity; the generator draws the view."""
        who = sample_identities([number]).values
        view = sample_views(1, generator).values
        zero, scale = torch.zeros(1), torch.full((1,), _VIEW_SCALE)
        view |= {"x": zero, "y": zero, "scale": scale}
        half = round(_DRAWN_UNIT / _VIEW_SCALE)
        x, y = _DRAWN_SIZE / 2, 2.0 * _DRAWN_UNIT
        frame = Frame(y - half, x - half, 2 * half)
        white, black = torch.ones(2, 1, 3, _DRAWN_SIZE, _DRAWN_SIZE)
        black = black * 0
        for canvas in (white, black):
            paint_person(canvas, who, view, frame)
        masks = torch.zeros(2, _DRAWN_SIZE, _DRAWN_SIZE)
        part, at = head_mask(who, view, frame, _DRAWN_SIZE, _DRAWN_SIZE)
        masks[0, at.y0 : at.y1, at.x0 : at.x1] = part
        masks[1] = 1 - (white - black).mean((0, 1))
        shape = HeadShape(x, y, half * _VIEW_SCALE, float(who["width"]), float(view["roll"]))
        return cls(_copies(torch.cat([black[0], masks]).clamp(0, 1)), shape)

    @property
    def is_drawn(self) -> bool:
        """Whether this is a drawn person."""
        return self.copies[0].shape[0] > 3


def _copies(picture: Tensor) -> list[Tensor]:
    copies = [picture]
    while min(copies[-1].shape[-2:]) >= 2 * _SMALLEST:
        copies.append(F.avg_pool2d(copies[-1], 2))
    return [(copy * 255).round().byte() for copy in copies]


def paste(scene: Tensor, person: Person, place: Place, manner: str) -> Tensor:
    """Sets a person into a scene (3, H, W), in place.

    Args:
        scene: to paint into.
        person: whom.
        place: where to.
        manner: one of `MANNERS`; means nothing for a drawn person.

    Returns:
        (2, H, W) in [0, 1]: where head and hair are, and what the person covers.
    """
    alone = manner == HEAD and not person.is_drawn
    rows, columns = _window(scene, place, 2.2 if alone else 4.0)
    covered = torch.zeros(2, *scene.shape[1:])
    if rows.stop <= rows.start or columns.stop <= columns.start:
        return covered
    part = scene[:, rows, columns]
    x, y = _head_axes(place, rows, columns)
    seen, inside = _sampled(person, place, x, y)
    if person.is_drawn:
        seen = seen * inside
        part *= 1 - seen[4]
        part += seen[:3]
        covered[:, rows, columns] = seen[3:]
        return covered
    body = torch.zeros_like(x)
    if alone:
        body = _body(part, seen, x, y)
        cover = person.shape.mask(x, y, _HAIR_GONE) * inside
    else:
        cover = inside * _outline(person, x, y, manner)
    part += (seen - part) * cover
    covered[0, rows, columns] = person.shape.mask(x, y) * inside
    covered[1, rows, columns] = torch.maximum(cover, body)
    return covered


def _outline(person: Person, x: Tensor, y: Tensor, manner: str) -> Tensor:
    """What of a photo is set into a scene, in [0, 1]."""
    if manner == FADED:
        return (1.5 - torch.maximum(x.abs(), (y - 0.3).abs()) / 1.6).clamp(0, 1)
    if manner == FIGURE:
        half = 0.45 + 1.1 * ((y - 0.8) / 0.8).clamp(0, 1)
        figure = ((half - x.abs()) * 8 + 0.5).clamp(0, 1) * ((y - 0.5) * 8).clamp(0, 1)
        return torch.maximum(figure, person.shape.mask(x, y, 0.05))
    return torch.ones_like(x)


def manner_for(person: Person, generator: torch.Generator) -> str:
    """Draws a manner that suits a photo."""
    weights = (0.6, 0.0, 0.25, 0.15) if person.tight else (0.25, 0.3, 0.25, 0.2)
    return draw_choice(generator, MANNERS, weights)


def _window(scene: Tensor, place: Place, around: float) -> tuple[slice, slice]:
    """Rows and columns of a scene within some units of a head's middle, at any turn."""
    height, width = scene.shape[1:]
    below = _BODY if abs(place.angle) < 1 else around

    def part(middle: float, before: float, after: float, side: int) -> slice:
        start = min(max(math.floor(middle - before * place.unit), 0), side)
        return slice(start, min(max(math.ceil(middle + after * place.unit), 0), side))

    far = around + (_BODY - around) * abs(math.sin(place.angle))
    return part(place.y, around, below, height), part(place.x, far, far, width)


def _head_axes(place: Place, rows: slice, columns: slice) -> tuple[Tensor, Tensor]:
    """The head's own x and y (h, w), in units, of a window's pixels."""
    x = (torch.arange(columns.start, columns.stop) + 0.5 - place.x)[None, :] / place.unit
    y = (torch.arange(rows.start, rows.stop) + 0.5 - place.y)[:, None] / place.unit
    cos, sin = math.cos(place.angle), math.sin(place.angle)
    return x * cos + y * sin, y * cos - x * sin


def _sampled(person: Person, place: Place, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The photo (3, h, w) at the head's own axes, and where it lies within the photo."""
    shape = person.shape
    scale = place.unit / shape.unit
    copy = min(max(0, round(-math.log2(max(scale, 1e-6)) - 0.2)), len(person.copies) - 1)
    if place.flipped:
        x = -x
    cos, sin = math.cos(shape.angle), math.sin(shape.angle)
    px = shape.x + shape.unit * (x * cos - y * sin)
    py = shape.y + shape.unit * (x * sin + y * cos)
    height, width = person.copies[0].shape[1:]
    grid = torch.stack([2 * px / width - 1, 2 * py / height - 1], -1)[None]  # (1, h, w, 2)
    picture = person.copies[copy][None].float() / 255
    seen = F.grid_sample(picture, grid, "bilinear", "reflection", align_corners=False)[0]
    above = _ABOVE * shape.unit if person.tight else 0.0
    edge = torch.stack([px, width - px, py + above, height - py]).amin(0)
    return seen, (edge * scale + 0.5).clamp(0, 1)


def _body(part: Tensor, seen: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Paints neck and shoulders in place, of a colour of the photo; returns where they are."""
    skin = seen.flatten(1)[:, int((x**2 + y**2).argmin())] * 0.8
    cloth = seen[:, -1, 0]
    neck = (0.45 - x.abs()).clamp(max=1) * (y > 0.3)
    shoulders = 1 - (x / 1.5) ** 4 - ((y - 2.1) / 0.8).clamp(max=0) ** 2
    neck, shoulders = ((m * 8).clamp(0, 1) for m in (neck, shoulders))
    part += (skin[:, None, None] - part) * neck
    shade = 0.85 + 0.15 * torch.sin(3 * x + 5 * y)
    part += (cloth[:, None, None] * shade - part) * shoulders
    return torch.maximum(neck, shoulders)


def whole_view(person: Person, unit: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A photo as it is, its head of a given size: the picture (3, h, w) and its head's mask.

    Args:
        person: of the photo.
        unit: half of the head's height in pixels.
        generator: draws a crop, and whether it is mirrored.
    """
    scale = unit / person.shape.unit
    height, width = (max(8, round(side * scale)) for side in person.copies[0].shape[1:])
    shape = person.shape
    place = Place(shape.x * scale, shape.y * scale, unit, shape.angle)
    x, y = _head_axes(place, slice(0, height), slice(0, width))
    seen, _ = _sampled(person, place, x, y)
    mask = shape.mask(x, y)
    if float(torch.rand((), generator=generator)) < 0.5:
        seen, mask = seen.flip(-1), mask.flip(-1)
    top, left = (int(draw_uniform(generator, (0, 0.12)) * side) for side in (height, width))
    bottom, right = (
        side - int(draw_uniform(generator, (0, 0.12)) * side) for side in (height, width)
    )
    return seen[:, top:bottom, left:right], mask[top:bottom, left:right]


def surroundings(person: Person) -> list[Tensor]:
    """Returns parts (3, h, w) uint8 of a photo that show no part of the head: clothes, walls."""
    photo, shape = person.copies[0], person.shape
    chin = math.ceil(shape.y + 1.3 * shape.unit)
    left = math.floor(shape.x - 1.1 * shape.unit)
    right = math.ceil(shape.x + 1.1 * shape.unit)
    parts = (photo[:, chin:], photo[:, :, : max(left, 0)], photo[:, :, right:])
    return [part for part in parts if min(part.shape[1:]) >= _SMALLEST]
