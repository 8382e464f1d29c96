"""Training views of photos: faces from a fifth of the frame to parts of one, anywhere in it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.functional import gaussian_blur

from ..errors import PFStorerError
from ..pictures.photos import Photo
from ..pictures.views import ViewConfig, random_view
from .autoencoder import random_portraits

_VIEW = ViewConfig(
    max_upscale=1.3,
    min_photo=0.2,
    rotation=8.0,
    brightness=(0.85, 1.15),
    gamma=(0.85, 1.18),
    saturation=(0.8, 1.2),
)
# A tight photo is all face, a wide one shows head and shoulders.
_WHOLE = {
    True: dataclasses.replace(_VIEW, window=(0.8, 1.0)),
    False: dataclasses.replace(_VIEW, window=(0.6, 1.0)),
}
_PART = dataclasses.replace(_VIEW, window=(0.2, 0.75))
_INSET = dataclasses.replace(_VIEW, window=(0.85, 1.0))
_SURROUNDINGS = dataclasses.replace(_VIEW, window=(0.3, 1.0))
_INSET_SHARE = {True: (0.25, 0.8), False: (0.4, 0.9)}  # of the frame's side
_LARGE_VIEWS = 4  # a photo of so many views' side shows parts of a face sharply


@dataclass(frozen=True)
class ViewMixture:
    """Which views a restorer is trained on, as shares of all.

    Attributes:
        wide: views of photos that show head and shoulders.
        inset: the photo is a part of a larger scene.
        part: a part of the face, as the tiles of a large one show it.
    """

    wide: float = 0.45
    inset: float = 0.35
    part: float = 0.1

    def __post_init__(self) -> None:
        for name in ("wide", "inset", "part"):
            if not 0 <= getattr(self, name) <= 1:
                raise PFStorerError(
                    f"The share '{name}' is {getattr(self, name)}; give a number from 0 to 1."
                )
        if self.inset + self.part > 1:
            raise PFStorerError("The shares 'inset' and 'part' sum to more than 1; lower one.")


class PhotoViews:
    """Draws square views of photos, or of procedural portraits, alignment-free.

    Args:
        photos: what to draw from; none at all gives drawn portraits.
        size: side of the views in pixels.
        tight: names of the folders whose photos are all face; others show head and shoulders.
        mixture: shares of the kinds of views.

    Source: training without alignment, PFStorer (arXiv 2403.08436), section 3; scenes around
        photos and the shares are ours.
    """

    def __init__(
        self,
        photos: Sequence[Photo],
        size: int,
        tight: Sequence[str] = (),
        mixture: ViewMixture | None = None,
    ) -> None:
        self.size, self.mixture = size, mixture or ViewMixture()
        self._tight = [photo for photo in photos if photo.folder in tight]
        self._wide = [photo for photo in photos if photo.folder not in tight]
        self._large = [photo for photo in photos if photo.short_side >= _LARGE_VIEWS * size]

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """`count` views: (count, 3, size, size) in [0, 1]."""
        return torch.stack([self._view(generator) for _ in range(count)])

    def _view(self, generator: torch.Generator) -> Tensor:
        mixture = self.mixture
        if not (self._tight or self._wide):
            portrait = random_portraits(1, generator, self.size)[0]
            in_scene = _uniform(generator) < mixture.inset / 2
            return self._inset(portrait, True, generator) if in_scene else portrait
        wide = not self._tight or (bool(self._wide) and _uniform(generator) < mixture.wide)
        photo = _choose(self._wide if wide else self._tight, generator)
        kind = _uniform(generator)
        if kind < mixture.part:
            large = _choose(self._large, generator) if self._large else photo
            return random_view(large.load(), self.size, _PART, generator)
        if kind < mixture.part + mixture.inset:
            return self._inset(photo.load(), not wide, generator)
        return random_view(photo.load(), self.size, _WHOLE[not wide], generator)

    def _inset(self, image: Tensor, tight: bool, generator: torch.Generator) -> Tensor:
        """The picture as a part of a larger scene; (3, size, size)."""
        low, high = _INSET_SHARE[tight]
        side = round(self.size * low * (high / low) ** _uniform(generator))
        inset = random_view(image, side, _INSET, generator)  # (3, side, side)
        top, left = (int(_uniform(generator) * (self.size - side + 1)) for _ in range(2))
        kind = _uniform(generator)
        others = self._tight or self._wide
        if kind < 0.25 and others:
            return self._among_others(inset, top, left, generator)
        around = _extended(inset, self.size, top, left)  # (3, size, size)
        if kind < 0.6 and others:  # another place, out of focus
            other = _choose(self._wide or self._tight, generator).load()
            around = random_view(other, self.size, _SURROUNDINGS, generator)
        around = _blurred(around, self.size / 40 * (0.5 + 2 * _uniform(generator)))
        feather = max(2.0, side * (0.02 + 0.1 * _uniform(generator)))
        mask = _inset_mask(self.size, side, top, left, feather)  # (1, size, size)
        placed = F.pad(inset, (left, self.size - left - side, top, self.size - top - side))
        return around + mask * (placed - around)

    def _among_others(
        self, inset: Tensor, top: int, left: int, generator: torch.Generator
    ) -> Tensor:
        """The picture among other people's, as in albums and groups; (3, size, size)."""
        side, size = inset.shape[-1], self.size
        scene = _extended(inset, size, top, left)
        for row in range(top % side - side, size, side):
            for column in range(left % side - side, size, side):
                up, at = max(0, -row), max(0, -column)  # what lies before the frame
                if (row, column) == (top, left) or side in (up, at):
                    continue
                other = _choose(self._tight or self._wide, generator).load()
                part = random_view(other, side, _INSET, generator)[:, up : size - row, at:]
                part = part[:, :, : size - max(0, column)]
                y, x = max(0, row), max(0, column)
                scene[:, y : y + part.shape[1], x : x + part.shape[2]] = part
        return scene


def _uniform(generator: torch.Generator) -> float:
    return float(torch.rand((), generator=generator))


def _choose(photos: Sequence[Photo], generator: torch.Generator) -> Photo:
    return photos[int(torch.randint(len(photos), (), generator=generator))]


def _reflected(count: int, start: int, side: int) -> Tensor:
    index = (torch.arange(count) - start).remainder(2 * side)
    return torch.minimum(index, 2 * side - 1 - index)


def _extended(inset: Tensor, size: int, top: int, left: int) -> Tensor:
    """The inset at its place, its surroundings filled by reflection: (3, size, size)."""
    side = inset.shape[-1]
    rows, columns = _reflected(size, top, side), _reflected(size, left, side)
    return inset[:, rows[:, None], columns[None, :]].clone()


def _inset_mask(size: int, side: int, top: int, left: int, feather: float) -> Tensor:
    """1 inside the inset, falling to 0 over `feather` px at its edges: (1, size, size)."""
    place = torch.arange(size) + 0.5
    axes = []
    for start in (top, left):
        # an edge of the inset on the frame's own edge is none
        before = (place - start) / feather if start else torch.ones(size)
        after = (start + side - place) / feather if start + side < size else torch.ones(size)
        axes.append(torch.minimum(before, after).clamp(0, 1))
    return (axes[0][:, None] * axes[1])[None]


def _blurred(image: Tensor, sigma: float) -> Tensor:
    # at a quarter of the size, where a wide kernel costs little
    small = F.interpolate(image[None], scale_factor=0.25, mode="area")
    small = gaussian_blur(small, kernel_size=[9, 9], sigma=[max(0.3, sigma / 4)] * 2)
    return F.interpolate(small, image.shape[-2:], mode="bicubic", antialias=True)[0].clamp(0, 1)
