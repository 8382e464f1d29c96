"""Scenes of the head detector's training: people set into backgrounds, spoilt like bad photos."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import roi_align

from ..degradation.config import DegradationConfig
from ..degradation.presets import PRESETS
from ..degradation.second_order import degrade
from ..ranges import draw_chance, draw_choice, draw_uniform
from .head_backgrounds import background
from .head_pasting import (
    Person,
    Place,
    manner_for,
    paste,
    whole_view,
)

SIZE = 112  # pixels of a scene's side
WHOLE = 2.15  # size of a head by half of its height without hair
MASK = 16  # texels of a head's mask
MOST_HEADS = 8
ABSENT, FOUND, IGNORED = range(3)
FIRST_IDENTITY = 200_000  # of drawn people, to 299,999
SMALLEST, LARGEST = 11.0, 44.0  # sizes of heads to be found, pixels: roots of their boxes' areas
_TOO_LARGE = 60.0  # between this and LARGEST nothing is asked for, nor below SMALLEST
_EDGE = 0.1  # of the mask, where its box ends
_SEEN, _HARDLY = 0.4, 0.1  # shares of a head that can be seen
_PORTRAIT = 128  # pixels of the portraits that the presets are made for
_WIDE_SHARE = 0.4
_SHARE = 0.75  # of a portrait's side that the head takes
_LEVELS = ("clean", "light", "medium", "extreme")
_LEVEL_WEIGHTS = (0.3, 0.3, 0.25, 0.15)


class Scenes(NamedTuple):
    """Scenes and what is in them.

    Attributes:
        pictures: (N, 3, SIZE, SIZE) uint8; 0 beyond the picture's border.
        extents: (N, 4) int16: left, top, right and bottom of the picture.
        boxes: (N, MOST_HEADS, 4) float32: left, top, right and bottom of heads.
        kinds: (N, MOST_HEADS) uint8: ABSENT, FOUND or IGNORED (not asked for).
        masks: (N, MOST_HEADS, MASK, MASK) uint8, of the boxes.
    """

    pictures: Tensor
    extents: Tensor
    boxes: Tensor
    kinds: Tensor
    masks: Tensor


@dataclass(frozen=True)
class Sources:
    """What scenes are made of.

    Attributes:
        drawn: drawn people.
        people: photos of one head each; none at all leaves drawn people alone.
        empty: photos (3, H, W) uint8 without anybody.
        drawn_share: of the people, where there are photos.
    """

    drawn: Sequence[Person]
    people: Sequence[Person] = ()
    empty: Sequence[Tensor] = ()
    drawn_share: float = 0.2


class Composed(NamedTuple):
    """A scene before it is spoilt: (3, H, W), and of each head its mask (H, W) and whole size."""

    picture: Tensor
    masks: list[Tensor]
    sizes: list[float]


def make_scenes(count: int, sources: Sources, generator: torch.Generator) -> Scenes:
    """Makes `count` scenes of none to several heads."""
    made = [_scene(sources, generator) for _ in range(count)]
    return Scenes(*(torch.stack(parts) for parts in zip(*made, strict=True)))


def _scene(sources: Sources, generator: torch.Generator) -> tuple[Tensor, ...]:
    if sources.people and draw_chance(generator, 0.08):
        composed, extent = _close_up(sources, generator)
    else:
        extent = _extent(generator)
        left, top, right, bottom = extent
        composed = compose((bottom - top, right - left), sources, generator)
    left, top, right, bottom = extent
    boxes, kinds = torch.zeros(MOST_HEADS, 4), torch.zeros(MOST_HEADS, dtype=torch.uint8)
    masks = torch.zeros(MOST_HEADS, MASK, MASK, dtype=torch.uint8)
    k = 0
    for mask, size in zip(composed.masks, composed.sizes, strict=True):
        kind, box, texels = _labelled(mask, size)
        if kind != ABSENT and k < MOST_HEADS:
            boxes[k] = box + torch.tensor([left, top, left, top])
            kinds[k], masks[k] = kind, texels
            k += 1
    picture = _photographed(composed, generator)
    whole = torch.zeros(3, SIZE, SIZE, dtype=torch.uint8)
    whole[:, top:bottom, left:right] = (picture * 255).round().byte()
    return whole, torch.tensor(extent, dtype=torch.int16), boxes, kinds, masks


def _extent(generator: torch.Generator) -> tuple[int, int, int, int]:
    """Where the picture lies in the scene: mostly all of it, else one that ends within."""
    if draw_chance(generator, 0.55):
        return 0, 0, SIZE, SIZE
    sides = []
    for _ in range(2):
        length = round(draw_uniform(generator, (28, SIZE)))
        start = int(draw_uniform(generator, (0, SIZE - length + 1)))
        sides.append((start, start + length))
    (left, right), (top, bottom) = sides
    if draw_chance(generator, 0.5):  # some of its borders beyond the scene
        left, top = (0 if draw_chance(generator, 0.5) else at for at in (left, top))
        right, bottom = (SIZE if draw_chance(generator, 0.5) else at for at in (right, bottom))
    return left, top, right, bottom


def _close_up(
    sources: Sources, generator: torch.Generator
) -> tuple[Composed, tuple[int, int, int, int]]:
    """A whole photo of one person, small enough for the scene."""
    person = _of_photos(sources, generator)
    unit = draw_uniform(generator, (7, 22))
    picture, mask = whole_view(person, unit, generator)
    height, width = (min(side, SIZE) for side in picture.shape[1:])
    picture, mask = picture[:, :height, :width], mask[:height, :width]
    left = int(draw_uniform(generator, (0, SIZE - width + 1)))
    top = int(draw_uniform(generator, (0, SIZE - height + 1)))
    composed = Composed(picture, [mask], [_whole_size(unit)])
    return composed, (left, top, left + width, top + height)


def compose(
    size: tuple[int, int],
    sources: Sources,
    generator: torch.Generator,
    places: Sequence[Place] | None = None,
) -> Composed:
    """Sets people into a background.

    Args:
        size: height and width in pixels.
        sources: of people and backgrounds.
        generator: of all choices.
        places: of the heads; drawn as well if not given.
    """
    picture = background(size, sources.empty, generator).clone().contiguous()
    masks: list[Tensor] = []
    sizes = []
    for place in _places(size, generator) if places is None else places:
        if sources.people and not draw_chance(generator, sources.drawn_share):
            person = _of_photos(sources, generator)
        else:
            person = _choose(sources.drawn, generator)
        manner = manner_for(person, generator)
        head, cover = paste(picture, person, place, manner)
        masks = [mask * (1 - cover) for mask in masks]
        masks.append(head)
        sizes.append(_whole_size(place.unit))
    return Composed(picture.clamp(0, 1), masks, sizes)


def _whole_size(unit: float) -> float:
    """Root of the area of an upright head's box."""
    return WHOLE * unit


def _places(size: tuple[int, int], generator: torch.Generator) -> list[Place]:
    height, width = size
    crowd = int(draw_choice(generator, ("0", "1", "3", "7"), (0.15, 0.4, 0.3, 0.15)))
    places: list[Place] = []
    if draw_chance(generator, 0.3):  # a head so large that only parts of it are seen
        unit = 30.0 * 8 ** draw_uniform(generator, (0, 1))
        x, y = (_between(-unit, side + unit, generator) for side in (width, height))
        places.append(Place(x, y, unit, _tilt(generator), draw_chance(generator, 0.5)))
    for _ in range(crowd):
        smallest, largest = (9.5, 46.0) if crowd < 7 else (9.5, 22.0)
        head = smallest * (largest / smallest) ** draw_uniform(generator, (0, 1))
        unit = head / WHOLE
        beyond = unit * (0.6 if draw_chance(generator, 0.3) else -1.0)
        for _ in range(5):
            x = _between(-beyond, width + beyond, generator)
            y = _between(-beyond, height + beyond, generator)
            others = [p for p in places if p.unit * WHOLE < _TOO_LARGE]
            apart = (math.hypot(p.x - x, p.y - y) / (p.unit + unit) for p in others)
            if min(apart, default=9.0) > 0.95:
                break
        else:
            continue
        places.append(Place(x, y, unit, _tilt(generator), draw_chance(generator, 0.5)))
    return places


def _tilt(generator: torch.Generator) -> float:
    largest = 0.2 if draw_chance(generator, 0.55) else math.radians(52)
    return draw_uniform(generator, (-largest, largest))


def _labelled(mask: Tensor, size: float) -> tuple[int, Tensor, Tensor]:
    """What is asked for of a head: its kind, box (4,) and the box's mask (MASK, MASK) uint8."""
    box = head_box(mask)
    share = float(mask.sum()) / (math.pi / 4 * size**2)
    if box is None or size >= _TOO_LARGE or share < _HARDLY:
        return ABSENT, torch.zeros(4), torch.zeros(MASK, MASK, dtype=torch.uint8)
    asked = SMALLEST <= size <= LARGEST and share >= _SEEN
    texels = roi_align(mask[None, None], [box[None]], MASK, aligned=True)[0, 0]
    return FOUND if asked else IGNORED, box, (texels * 255).round().byte()


def head_box(mask: Tensor) -> Tensor | None:
    """Returns left, top, right and bottom (4,) of a mask (H, W); None where it is empty."""
    seen = mask > _EDGE
    if not seen.any():
        return None
    rows, columns = seen.any(1).nonzero()[:, 0], seen.any(0).nonzero()[:, 0]
    return torch.stack([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]).float()


def _photographed(composed: Composed, generator: torch.Generator) -> Tensor:
    """The scene in other light, perhaps grey, and spoilt: (3, h, w) in [0, 1]."""
    picture = composed.picture
    gain, lift = draw_uniform(generator, (0.6, 1.25)), draw_uniform(generator, (-0.1, 0.1))
    picture = ((picture - 0.5) * gain + 0.5 + lift).clamp(0, 1)
    picture = picture ** draw_uniform(generator, (0.7, 1.4))
    if draw_chance(generator, 0.4):
        picture = picture * (0.8 + 0.4 * torch.rand(3, 1, 1, generator=generator))
    grey = draw_choice(generator, ("no", "grey", "sepia"), (0.75, 0.2, 0.05))
    if grey != "no":
        picture = picture.mean(0, keepdim=True).expand(3, -1, -1)
    if grey == "sepia":
        picture = picture * torch.tensor([1.05, 0.9, 0.7])[:, None, None]
    picture = picture.clamp(0, 1)
    level = draw_choice(generator, _LEVELS, _LEVEL_WEIGHTS)
    if level in PRESETS:
        typical = sum(composed.sizes) / len(composed.sizes) if composed.sizes else 24.0
        strength = draw_uniform(generator, (0.7, 1.1))
        picture = spoilt(picture, min(typical, LARGEST), PRESETS[level], generator, strength)
    if grey == "grey":
        picture = picture.mean(0, keepdim=True).expand(3, -1, -1)
    return picture


def spoilt(
    picture: Tensor,
    size: float,
    config: DegradationConfig,
    generator: torch.Generator,
    strength: float = 1.0,
) -> Tensor:
    """Degrades a scene so that its heads lose as much as that of a portrait of 128 px would.

    Args:
        picture: (3, H, W) in [0, 1].
        size: of its heads in pixels.
        config: for portraits, for example `presets.PRESETS["medium"]`.
        generator: of the degradation.
        strength: factor on that by which the scene is scaled down.

    Returns:
        (3, H, W) in [0, 1].
    """
    frame = size / _SHARE  # pixels of a portrait with such a head
    config = config.with_blur(frame / math.sqrt(picture[0].numel()))
    ratio = frame / _PORTRAIT * strength
    low, high = (max(1.0, factor * ratio) for factor in config.downsample)
    config = dataclasses.replace(config, downsample=(low, high))
    return degrade(picture[None].contiguous(), config, generator)[0].clamp(0, 1)


def _between(low: float, high: float, generator: torch.Generator) -> float:
    if low > high:
        low = high = (low + high) / 2
    return low + (high - low) * float(torch.rand((), generator=generator))


def _of_photos(sources: Sources, generator: torch.Generator) -> Person:
    """A person of a photo; those who are shown with shoulders are few, and so come more often."""
    wide = draw_chance(generator, _WIDE_SHARE)
    chosen = [person for person in sources.people if person.tight != wide] or sources.people
    return _choose(chosen, generator)


def _choose(people: Sequence[Person], generator: torch.Generator) -> Person:
    return people[int(torch.randint(len(people), (), generator=generator))]
