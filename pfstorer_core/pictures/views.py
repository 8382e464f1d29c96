"""Alignment-free views of a photo: the face anywhere in the frame and at any size."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import PFStorerError
from ..ranges import Range, check_range, lists_to_tuples


@dataclass(frozen=True)
class ViewConfig:
    """Ranges of the random square window that becomes a view.

    Args:
        window: side of the window as a share of the photo's short side (log-uniform). Above 1 the
            view shows more than the photo, filled up by reflection.
        max_upscale: a window has at least size / max_upscale px, so that views stay sharp. In a
            photo smaller than that the rest is filled up by reflection.
        min_photo: smallest short side of a photo as a share of the view's size.
        flip_probability: chance of a horizontal flip. Set 0 where sides matter: a flip moves a
            mole to the other cheek.
        rotation: largest angle, degrees, either way. Windows up to 1 stay inside the photo.
        brightness: factor on the values; (1, 1) switches it off, as for the next two.
        gamma: exponent on the values (log-uniform).
        saturation: factor on the distance from grey.

    Raises:
        PFStorerError: when a range makes no sense.
    """

    window: Range = (0.4, 1.0)
    max_upscale: float = 1.25
    min_photo: float = 0.5
    flip_probability: float = 0.5
    rotation: float = 5.0
    brightness: Range = (1.0, 1.0)
    gamma: Range = (1.0, 1.0)
    saturation: Range = (1.0, 1.0)

    def __post_init__(self) -> None:
        for name in ("window", "brightness", "gamma", "saturation"):
            smallest = 0.0 if name in ("brightness", "saturation") else 0.01
            check_range(name, getattr(self, name), smallest, 10.0)
        for name, low, high in (
            ("max_upscale", 0.1, 16.0),
            ("min_photo", 0.01, 16.0),
            ("flip_probability", 0.0, 1.0),
            ("rotation", 0.0, 180.0),
        ):
            if not low <= getattr(self, name) <= high:
                raise PFStorerError(
                    f"{name} is {getattr(self, name)}; give a number from {low} to {high}."
                )

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain values that JSON keeps."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ViewConfig:
        """Return the settings that `to_dict` wrote.

        Raises:
            PFStorerError: for an unknown name or a value out of its range.
        """
        try:
            return cls(**lists_to_tuples(values))
        except (TypeError, AttributeError) as error:
            raise PFStorerError(
                f"These view settings cannot be read ({error}); use the names that "
                "ViewConfig.to_dict writes."
            ) from error


def random_view(image: Tensor, size: int, config: ViewConfig, generator: torch.Generator) -> Tensor:
    """Return a random square view of a photo of any aspect.

    Args:
        image: (3, H, W) in [0, 1].
        size: side of the view, px.
        config: ranges to draw from.
        generator: the only source of randomness; every view takes the same number of draws.

    Returns:
        (3, size, size) in [0, 1], on the device of `image`.

    Raises:
        PFStorerError: for a wrong shape or type, or a photo too small for the view.

    Source: training without alignment, PFStorer (arXiv 2403.08436), section 3.
    """
    _check_photo(image, size, config)
    u = torch.rand(8, generator=generator, device=generator.device).tolist()
    height, width = image.shape[-2:]
    angle = math.radians(config.rotation) * (2.0 * u[0] - 1.0)
    # A rotated window of side 1 spans this much along both axes.
    span = abs(math.cos(angle)) + abs(math.sin(angle))
    window = _window_side(min(height, width), size, span, config, u[1])
    box = math.ceil(window * span) if angle else window

    image = _crop(image, _start(height, box, u[2]), _start(width, box, u[3]), box)  # (3, box, box)
    target = max(1, round(box * size / window))
    if target != box:
        image = F.interpolate(image[None], (target, target), mode="bicubic", antialias=True)[
            0
        ]  # (3, target, target)
    if angle:
        image = _rotate(image, angle, size)  # (3, size, size)
    if u[4] < config.flip_probability:
        image = image.flip(-1)
    return _change_colours(image.clamp(0.0, 1.0), config, u[5:8])


def _window_side(short: int, size: int, span: float, config: ViewConfig, u: float) -> int:
    smallest = size / config.max_upscale
    low, high = (share * short for share in config.window)
    if config.window[1] <= 1.0:
        high = min(high, short / span)  # keep the corners of a rotated window inside
    low = max(smallest, min(low, high))
    high = max(low, high)
    return max(1, round(low * (high / low) ** u))


def _start(side: int, box: int, u: float) -> int:
    """Return where a box starts along an axis; a larger box contains the photo wholly."""
    first, last = sorted((0, side - box))
    return min(last, first + int(u * (last - first + 1)))


def _crop(image: Tensor, top: int, left: int, box: int) -> Tensor:
    rows = _reflect(torch.arange(top, top + box, device=image.device), image.shape[-2])
    columns = _reflect(torch.arange(left, left + box, device=image.device), image.shape[-1])
    return image[:, rows[:, None], columns[None, :]]  # (3, box, box)


def _reflect(index: Tensor, side: int) -> Tensor:
    """Return indices folded back into 0 .. side - 1, however far outside they lie."""
    index = index.remainder(2 * side)
    return torch.minimum(index, 2 * side - 1 - index)


def _rotate(image: Tensor, angle: float, size: int) -> Tensor:
    scale = size / image.shape[-1]  # the square of size x size px around the centre
    cos, sin = scale * math.cos(angle), scale * math.sin(angle)
    theta = image.new_tensor([[[cos, -sin, 0.0], [sin, cos, 0.0]]])
    grid = F.affine_grid(theta, [1, 3, size, size], align_corners=False)  # (1, size, size, 2)
    return F.grid_sample(
        image[None], grid, mode="bicubic", padding_mode="reflection", align_corners=False
    )[0]  # (3, size, size)


def _change_colours(image: Tensor, config: ViewConfig, u: list[float]) -> Tensor:
    from torchvision.transforms import functional as TF

    low, high = config.gamma
    gamma = low * (high / low) ** u[0]
    brightness = config.brightness[0] + (config.brightness[1] - config.brightness[0]) * u[1]
    saturation = config.saturation[0] + (config.saturation[1] - config.saturation[0]) * u[2]
    if gamma != 1.0:
        image = TF.adjust_gamma(image, gamma)
    if brightness != 1.0:
        image = TF.adjust_brightness(image, brightness)
    if saturation != 1.0:
        image = TF.adjust_saturation(image, saturation)
    return image


def _check_photo(image: Tensor, size: int, config: ViewConfig) -> None:
    if size < 1:
        raise PFStorerError(f"The side of a view is {size} px; ask for at least 1.")
    if image.ndim != 3 or image.shape[0] != 3 or not image.is_floating_point():
        raise PFStorerError(
            f"The photo has the shape {tuple(image.shape)} and type {image.dtype}; "
            "give (3, H, W) as floats in [0, 1]."
        )
    height, width = image.shape[-2:]
    smallest = math.ceil(config.min_photo * size)
    if min(height, width) < max(1, smallest):
        raise PFStorerError(
            f"The photo has {width} x {height} px, too few for views of {size} px; "
            f"use one with at least {smallest} px on its short side."
        )
