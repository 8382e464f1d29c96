"""Pictures without anybody, for the scenes of the head detector's training."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..pictures.resizing import resize_bicubic
from ..ranges import draw_chance, draw_uniform

_SKIN = ((0.97, 0.84, 0.75), (0.88, 0.70, 0.55), (0.68, 0.48, 0.34), (0.40, 0.27, 0.19))
_LARGEST_ZOOM = 2.5  # of a photo's pixels
_MOST_LEAVES = 40
_OCTAVES = 4


def background(
    size: tuple[int, int], photos: Sequence[Tensor], generator: torch.Generator
) -> Tensor:
    """Draws a picture without anybody: a view of a photo, or a pattern.

    Args:
        size: height and width in pixels.
        photos: (3, H, W) uint8 each, with nobody in them; patterns alone if there are none.
        generator: of all choices.

    Returns:
        (3, height, width) in [0, 1].
    """
    kind = _unit(generator)
    if photos and kind < 0.6:
        picture = _photo_view(_choose(photos, generator), size, generator)
    elif kind < 0.75:
        picture = clouds(size, generator)
    elif kind < 0.9:
        picture = leaves(clouds(size, generator), generator)
    else:
        picture = _gratings(size, generator)
    if draw_chance(generator, 0.15):  # the edge of a wall, a door, a table
        other = leaves(clouds(size, generator), generator)
        angle, offset = (
            draw_uniform(generator, (0, 2 * math.pi)),
            draw_uniform(generator, (-0.3, 0.3)),
        )
        x, y = _axes(size)
        picture = torch.where(x * math.cos(angle) + y * math.sin(angle) > offset, picture, other)
    if draw_chance(generator, 0.3):
        picture = picture[torch.randperm(3, generator=generator)]
    return picture.clamp(0, 1)


def clouds(size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Draws soft noise of several sizes: (3, height, width) in [0, 1]."""
    colours = torch.rand(3, 1, 1, generator=generator).expand(3, *size)
    finest, grey = draw_uniform(generator, (0, 5)), draw_chance(generator, 0.5)
    picture, strength = colours.clone(), draw_uniform(generator, (0.02, 0.5))
    for octave in range(_OCTAVES):
        cells = 2 + round(2 ** (finest * (octave + 1) / _OCTAVES))
        noise = torch.rand(1, 1 if grey else 3, cells, cells, generator=generator) - 0.5
        picture += strength * F.interpolate(noise, size, mode="bilinear")[0]
        strength *= draw_uniform(generator, (0.4, 0.9))
    return picture.clamp(0, 1)


def leaves(picture: Tensor, generator: torch.Generator) -> Tensor:
    """Lays ellipses and rectangles, some of the colours of skin, over (3, H, W)."""
    height, width = picture.shape[1:]
    x, y = _axes((height, width))
    for _ in range(1 + int(_unit(generator) ** 2 * _MOST_LEAVES)):
        half = 0.04 * 15 ** _unit(generator)
        long = half * draw_uniform(generator, (1.0, 2.5))
        angle = draw_uniform(generator, (0, math.pi))
        dx = x - draw_uniform(generator, (-0.6, 0.6))
        dy = y - draw_uniform(generator, (-0.6, 0.6))
        across = (dx * math.cos(angle) + dy * math.sin(angle)) / half
        along = (dy * math.cos(angle) - dx * math.sin(angle)) / long
        power = 2.0 if draw_chance(generator, 0.6) else 8.0
        reach = across.abs() ** power + along.abs() ** power
        colour = torch.rand(3, generator=generator)
        if draw_chance(generator, 0.35):
            skin = torch.tensor(_SKIN[int(_unit(generator) * len(_SKIN))])
            colour = skin * draw_uniform(generator, (0.6, 1.1))
        shade = 1 + draw_uniform(generator, (-0.5, 0.5)) * across.clamp(-1, 1)
        picture = torch.where(reach < 1, colour[:, None, None] * shade, picture)
    return picture.clamp(0, 1)


def _gratings(size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Stripes, checks and what looks like letters from afar."""
    x, y = _axes(size)
    angle = draw_uniform(generator, (0, math.pi))
    first, second = (draw_uniform(generator, (5, 150)) for _ in range(2))
    wave = torch.sin(first * (x * math.cos(angle) + y * math.sin(angle)))
    if draw_chance(generator, 0.6):
        wave = wave * torch.sin(second * (y * math.cos(angle) - x * math.sin(angle)))
    if draw_chance(generator, 0.3):
        wave = wave * (torch.rand(size, generator=generator) > 0.5)
    sharp = draw_uniform(generator, (0.5, 5))
    mix = (0.5 + sharp * wave).clamp(0, 1)
    colours = torch.rand(2, 3, 1, 1, generator=generator)
    return colours[0] * mix + colours[1] * (1 - mix)


def _photo_view(photo: Tensor, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    height, width = photo.shape[1:]
    largest = min(height / size[0], width / size[1])  # pixels of the photo per pixel
    scale = draw_uniform(generator, (math.log(min(1 / _LARGEST_ZOOM, largest)), math.log(largest)))
    rows, columns = (
        max(1, min(side, round(math.exp(scale) * n)))
        for side, n in zip((height, width), size, strict=True)
    )
    top = int(_unit(generator) * (height - rows + 1))
    left = int(_unit(generator) * (width - columns + 1))
    part = photo[:, top : top + rows, left : left + columns]
    if rows > 2 * size[0]:  # cheaper than the filter of a large factor
        step = rows // (2 * size[0])
        part = part[:, ::step, ::step]
    view = resize_bicubic(part[None].float() / 255, size)[0]
    if draw_chance(generator, 0.5):
        view = view.flip(-1)
    if draw_chance(generator, 0.15):
        view = view.flip(-2)
    if draw_chance(generator, 0.3) and size[0] == size[1]:
        view = view.transpose(1, 2)
    return view


def _axes(size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """x (1, W) and y (H, 1) of pixels, the longer side from -0.5 to 0.5."""
    longest = max(size)
    x = (torch.arange(size[1]) + 0.5 - size[1] / 2) / longest
    y = (torch.arange(size[0]) + 0.5 - size[0] / 2) / longest
    return x[None, :], y[:, None]


def _unit(generator: torch.Generator) -> float:
    return float(torch.rand((), generator=generator))


def _choose(items: Sequence[Tensor], generator: torch.Generator) -> Tensor:
    return items[int(_unit(generator) * len(items))]
