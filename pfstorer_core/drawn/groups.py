"""Pictures of several procedural people: group photos and album pages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.utils import make_grid

from ..degradation.config import DegradationConfig
from ..degradation.second_order import degrade
from ..errors import PFStorerError
from .painting import Frame
from .painting.people import draw_group, head_mask
from .portraits import SMALLEST, Views, render, row, sample_identities, sample_views

_LARGEST_PAGE = 16384  # pixels a side
_PAPER = 0.93  # brightness of an album's page
_LARGEST_GROUP = 6
_GROUP_SPACING = 1.1  # from one person of a group to the next at most, in sides of their frames
_HEADROOM = 0.4  # share of a group photo's spare height that is above the frames
_CALM = {"yaw": 0.8, "roll": 0.5, "x": 0.5, "y": 0.5}  # factors on a view's values, in a group
_SCENE = (  # what the views of one photo share
    "light_x",
    "light_y",
    "ambient",
    "warm",
    "exposure",
    "back_a",
    "back_b",
    "back_angle",
    "back_wave",
    "back_freq",
)


class GroupPhoto(NamedTuple):
    """People side by side, see `group_photo`.

    Attributes:
        picture: (1, 3, H, W) float32 in [0, 1].
        masks: (K, H, W) float32 in [0, 1], 1 on head and hair of each person; at most 1 in sum.
        frames: y0, x0 and side of a square around each person, in pixels; its part of the picture
            shows him as `portrait_set` does, beside parts of his neighbours.
    """

    picture: Tensor
    masks: Tensor
    frames: list[tuple[int, int, int]]


def group_photo(numbers: Sequence[int], height: int, width: int, seed: int) -> GroupPhoto:
    """Draws people side by side before one background and in one light.

    Heads take 60 to 70% of squares as high as the picture or as wide as a person's share of it.
    Shoulders may overlap, faces never do.

    Args:
        numbers: identities of 1 to 6 persons, from the picture's left to its right.
        height: of the picture in pixels.
        width: of the picture in pixels; at least 16 per person, as the height is.
        seed: of places, poses, light and background. None of them depends on the numbers.

    Raises:
        PFStorerError: no or too many persons, a negative identity, or too small a picture.
    """
    count = len(numbers)
    if not 1 <= count <= _LARGEST_GROUP:
        raise PFStorerError(
            f"A group photo shows 1 to {_LARGEST_GROUP} persons, got {count} identities."
        )
    side = min(height, width // count)
    if side < SMALLEST:
        raise PFStorerError(
            f"A group photo of {count} persons needs at least {SMALLEST * count} x {SMALLEST} "
            f"pixels (width x height), got {width} x {height}."
        )
    generator = torch.Generator().manual_seed(seed)
    views = _group_views(count, generator).values
    frames = _group_frames(count, height, width, side, generator)
    order = torch.randperm(count, generator=generator).tolist()
    people = [row(sample_identities(numbers).values, k) for k in range(count)]
    each_view = [row(views, k) for k in range(count)]
    picture = draw_group(people, each_view, frames, order, height, width)

    masks = torch.zeros(count, height, width)
    for mask, who, view, frame in zip(masks, people, each_view, frames, strict=True):
        part, at = head_mask(who, view, frame, height, width)
        mask[at.y0 : at.y1, at.x0 : at.x1] = part
    masks /= masks.sum(0).clamp(min=1)  # neighbours share what both masks cover
    return GroupPhoto(picture, masks, [(int(f.y0), int(f.x0), f.side) for f in frames])


def album_page(first: int, columns: int, rows: int, size: int, seed: int) -> Tensor:
    """Draws a page of an album: a portrait of another person in each cell, on paper.

    Args:
        first: identity of the first person; the others follow, row by row.
        columns, rows: of the page.
        size: height and width of a portrait in pixels, at least 16; an eighth of it is between two.
        seed: of the views.

    Returns:
        (1, 3, height, width) in [0, 1].

    Raises:
        PFStorerError: no cell, a negative identity, too small a size, or too large a page.
    """
    if min(columns, rows) < 1:
        raise PFStorerError(f"A page needs at least one cell, got {columns} x {rows}.")
    sides = [n * (size + size // 8) + size // 8 for n in (columns, rows)]
    if max(sides) > _LARGEST_PAGE:
        raise PFStorerError(
            f"The page would be {sides[0]} x {sides[1]} pixels; choose fewer or smaller portraits, "
            f"for {_LARGEST_PAGE} pixels a side at most."
        )
    count = columns * rows
    generator = torch.Generator().manual_seed(seed)
    views = sample_views(count, generator)
    people = render(sample_identities(range(first, first + count)), views, size)
    page: Tensor = make_grid(people, nrow=columns, padding=size // 8, pad_value=_PAPER)
    return page[None]


def degrade_people(
    picture: Tensor, frame: int, config: DegradationConfig, generator: torch.Generator
) -> Tensor:
    """Pictures of one or several people spoilt as much as a portrait of one person would be.

    Args:
        picture: (B, 3, H, W) in [0, 1].
        frame: side in pixels of the square that a portrait of one person takes.
        config: ranges to draw from, for example `presets.PRESETS["medium"]`.
        generator: CPU generator, the only source of randomness.

    Returns:
        (B, 3, H, W) in [0, 1].
    """
    height, width = picture.shape[2:]
    # `degrade` blurs in proportion to the picture, of which a person is a part.
    share = frame / math.sqrt(height * width)
    return degrade(picture, config.with_blur(share), generator)


def _group_views(count: int, generator: torch.Generator) -> Views:
    """Views of people who pose together: calmer, at one distance, in one light."""
    v = sample_views(count, generator).values
    for name, factor in _CALM.items():
        v[name] = v[name] * factor
    v["scale"] = 0.60 + (v["scale"] - 0.60) * 0.45  # 0.60 to 0.70
    for name in _SCENE:
        v[name] = v[name][:1].expand_as(v[name])
    return Views(v)


def _group_frames(
    count: int, height: int, width: int, side: int, generator: torch.Generator
) -> list[Frame]:
    """Squares in a row, people standing close and not all equally tall."""
    share = min(width / count, _GROUP_SPACING * side)
    left = (width - count * share) / 2
    tall = (torch.rand(count, generator=generator) - 0.5) * 0.16 * side
    room = height - side
    return [
        Frame(
            y0=min(max(round(_HEADROOM * room + float(tall[k])), 0), room),
            x0=round(left + (k + 0.5) * share - side / 2),
            side=side,
        )
        for k in range(count)
    ]
