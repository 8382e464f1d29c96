"""Scenes of several real people: photos set side by side, with the heads where they are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.ops import box_iou

from pfstorer_core.degradation.config import DegradationConfig
from pfstorer_core.drawn.groups import degrade_people
from pfstorer_core.host.restoring.regions import HEAD
from pfstorer_core.people.found import FoundHead, HeadFinder
from pfstorer_core.pictures.resizing import resize_bicubic

from .faces import Face, FaceFinder

HEADS = (48, 128)  # px, heights of heads in a scene
PEOPLE = (3, 6)  # in a scene
SAME = 0.4  # intersection over union of a find and the head that it is
_FRAME = 128  # px: side of a portrait, for which degradations are made
_HEAD_OF_FACE = 1.25  # height of a head with its hair over that from hairline to chin
_WIDTH = 0.8  # of a head, over its height
_GAP = 8  # px between photos
_COLUMNS = 3


@dataclass(frozen=True)
class Shot:
    """A photo of one person in which the face is known.

    Attributes:
        who: index of the person; None for a stranger.
        photo: (3, H, W) in [0, 1].
        face: in the photo.
    """

    who: int | None
    photo: Tensor
    face: Face

    def head(self) -> tuple[float, float, float]:
        """Returns the middle (x, y) of the head with its hair, and its height in px."""
        middle, height = self.face.extent()
        whole = height * _HEAD_OF_FACE
        return float(middle[0]), float(middle[1]) - (whole - height) / 2, whole


@dataclass(frozen=True)
class Scene:
    """Photos side by side.

    Attributes:
        picture: (1, 3, H, W) in [0, 1], degraded.
        heads: in the picture.
        faces: of the heads, where recognition networks look for them.
    """

    picture: Tensor
    heads: list[FoundHead]
    faces: list[Face]

    def found_by(self, finder: HeadFinder) -> tuple[list[FoundHead | None], int]:
        """Returns what a finder finds of each head, None for nothing, and how many finds more."""
        finds = finder(self.picture[0])
        own = paired_finds(finds, self.heads)
        heads = [None if k is None else finds[k] for k in own]
        return heads, len(finds) - sum(k is not None for k in own)


@dataclass(frozen=True)
class Cast:
    """Who is in a scene, and whose adapters are there.

    Attributes:
        shots: index of each head's shot.
        offered: indices of the people whose adapters are there.
    """

    shots: list[int]
    offered: list[int]

    def truth(self, shown: Sequence[Shot]) -> list[int | None]:
        """Returns for each head which of the offered is its person, an index into `offered`."""
        people = [shown[k].who for k in self.shots]
        return [self.offered.index(p) if p in self.offered else None for p in people]


def shots(photos: Sequence[Tensor], finder: FaceFinder, who: int | None) -> list[Shot]:
    """Returns those of the photos (3, H, W) in which a face is found."""
    found = [(photo, finder.find(photo)) for photo in photos]
    return [Shot(who, photo, face) for photo, face in found if face is not None]


def paired_finds(finds: Sequence[FoundHead], heads: Sequence[FoundHead]) -> list[int | None]:
    """Returns which of the finds each true head is, None for none."""
    boxes, truth = (
        torch.tensor([head.box for head in some]).reshape(-1, 4).float() for some in (finds, heads)
    )
    shares = box_iou(truth, boxes)
    pairs = zip(*linear_sum_assignment(shares.numpy(), maximize=True), strict=True)
    found = {int(head): int(find) for head, find in pairs if shares[head, find] >= SAME}
    return [found.get(k) for k in range(len(heads))]


def draw_cast(shown: Sequence[Shot], strangers: bool, generator: torch.Generator) -> Cast:
    """Draws 3 to 6 heads of different people and the adapters that there are.

    With strangers each head is one by a chance of a half: one of the strangers or, by a chance of a
    half, a person whose adapter is left out. Adapters of people who are not there are offered by a
    chance of a half.

    Args:
        shown: shots of people with adapters and of strangers.
        strangers: whether there are any.
        generator: the only source of randomness.
    """

    def draw(count: int) -> int:
        return int(torch.randint(count, (), generator=generator))

    people = sorted({shot.who for shot in shown if shot.who is not None})
    of_person = {p: [k for k, shot in enumerate(shown) if shot.who == p] for p in people}
    others = [k for k, shot in enumerate(shown) if shot.who is None]
    heads = PEOPLE[0] + draw(PEOPLE[1] - PEOPLE[0] + 1)
    unknown = sum(draw(2) for _ in range(heads)) if strangers else 0
    order = [people[k] for k in torch.randperm(len(people), generator=generator)]
    known, hidden = order[: heads - unknown], order[heads - unknown :]
    cast = [of_person[p][draw(len(of_person[p]))] for p in known]
    for _ in range(unknown):
        if hidden and draw(2):
            left_out = of_person[hidden.pop()]
            cast.append(left_out[draw(len(left_out))])
        else:
            cast.append(others[draw(len(others))])
    return Cast(cast, sorted(known + [p for p in hidden if draw(2)]))


def scene(
    cast: Sequence[Shot], degradation: DegradationConfig, generator: torch.Generator, whole: bool
) -> Scene:
    """Sets photos side by side with heads of random heights, and degrades them.

    Args:
        cast: what is shown.
        degradation: ranges to draw from.
        generator: the only source of randomness.
        whole: degrade the scene as one picture, so that small heads lose most; otherwise each photo
            is spoilt as a portrait of 128 px is, and then made as large as its place.
    """
    low, high = HEADS
    parts, heads, faces = [], [], []
    sizes = (low + (high - low) * torch.rand(len(cast), generator=generator)).tolist()
    for shot, size in zip(cast, sizes, strict=True):
        photo = shot.photo[None]
        if not whole:
            photo = _scaled(photo, HEAD * _FRAME / shot.head()[2])
            photo = degrade_people(photo, _FRAME, degradation, generator)
            photo = _scaled(photo, size / (HEAD * _FRAME))
        else:
            photo = _scaled(photo, size / shot.head()[2])
        parts.append(photo[0])
    places, canvas = _places([(part.shape[1], part.shape[2]) for part in parts])
    picture = torch.full((1, 3, *canvas), 0.5)
    for shot, part, (top, left), size in zip(cast, parts, places, sizes, strict=True):
        height, width = part.shape[1:]
        picture[0, :, top : top + height, left : left + width] = part
        scale = size / shot.head()[2]
        heads.append(_head_at(shot, scale, (top, left), (height, width)))
        faces.append(shot.face.moved(scale).moved(1.0, -left, -top))
    if whole:
        frame = round(sum(sizes) / len(sizes) / HEAD)
        picture = degrade_people(picture, frame, degradation, generator)
    picture = picture.clamp(0, 1).mul(255).round().div(255)
    return Scene(picture, heads, faces)


def _scaled(picture: Tensor, factor: float) -> Tensor:
    height, width = picture.shape[2:]
    size = max(1, round(height * factor)), max(1, round(width * factor))
    return resize_bicubic(picture, size).clamp(0, 1)


def _places(sizes: Sequence[tuple[int, int]]) -> tuple[list[tuple[int, int]], tuple[int, int]]:
    """Returns top and left of each photo, row by row, and the size of the whole."""
    places, top, widest = [], _GAP, 0
    for start in range(0, len(sizes), _COLUMNS):
        row, left = sizes[start : start + _COLUMNS], _GAP
        for _, width in row:
            places.append((top, left))
            left += width + _GAP
        widest = max(widest, left)
        top += max(height for height, _ in row) + _GAP
    return places, (top, widest)


def _head_at(shot: Shot, scale: float, place: tuple[int, int], size: tuple[int, int]) -> FoundHead:
    x, y, height = (value * scale for value in shot.head())
    top, left = place
    edges = (x - _WIDTH * height / 2, y - height / 2, x + _WIDTH * height / 2, y + height / 2)
    inside = [
        min(max(0, round(edge)), size[1 - k % 2]) + (left, top)[k % 2]
        for k, edge in enumerate(edges)
    ]
    rows, columns = torch.meshgrid(*[torch.linspace(-1, 1, 32)] * 2, indexing="ij")
    ellipse = (rows.square() + columns.square() <= 1).float()
    return FoundHead((inside[0], inside[1], inside[2], inside[3]), ellipse)
